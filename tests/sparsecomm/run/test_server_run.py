"""Training over a parameter server with `sparsecomm train`: it learns, equals the dense exchange, resumes to the bit."""

import json
import os
import signal
import time

import jobs
import numpy as np
import pytest
from mpi import mpirun
from turns import in_turn

from hogwild.training.model_files import load

COMMAND = "-c", ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
                 "from sparsecomm.cli import command; command()")
TASKS = {"linear": ["--transform", "log,l2"], "mlp": ["--width", 16, "--batch", 10], "cnn": ["--channels", 3, "--batch", 10],
         "lm": ["--hidden", 12, "--batch", 2, "--bptt", 5, "--rule", "adagrad", "--lr", 0.2]}
CONSISTENCIES = {"bsp": [], "ssp": ["--staleness", 2], "async": []}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return jobs.files(tmp_path_factory.mktemp("data"))


def train(files, task, *more, servers=1, consistency="bsp"):
    return ["train", task, files[task], "--holdout", 0.2, *TASKS[task], "--exchange", "server", "--servers", servers,
            "--consistency", consistency, *CONSISTENCIES[consistency], *more]


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def tensors(path):
    return load(path)[0]


# By (ranks, servers): what learns there; every task with every consistency at one of them.
SEATS = {(3, 1): [("linear", "bsp"), ("linear", "async"), ("mlp", "ssp"), ("mlp", "async"), ("cnn", "bsp"), ("lm", "ssp")],
         (5, 2): [("linear", "ssp"), ("mlp", "bsp"), ("cnn", "ssp"), ("cnn", "async"), ("lm", "bsp"), ("lm", "async")]}
# By task: options with which bsp is compared with the dense exchange, and with which a run is broken off.
EQUAL = {"linear": ["--rule", "adam", "--l2", 1e-3, "--schedule", "cosine", "--warmup", 1],
         "mlp": ["--rule", "momentum", "--lr", 0.02, "--schedule", "plateau:patience=0,threshold=0.5"],
         "lm": ["--clip-value", 0.01]}
BROKEN = {"linear": ["--rule", "adam", "--lr", 0.05, "--schedule", "plateau:patience=0,threshold=0.5", "--warmup", 1],
          "mlp": ["--keep", 0.1, "--pull-keep", 0.2, "--value-code", "int8", "--momentum-correction", 0.5, "--rule", "sgd",
                  "--lr", 0.02],
          "lm": ["--keep", 0.2, "--dropout", 0.1]}
SLOW = {"bsp": ("bsp", []), "ssp 0": ("ssp", ["--staleness", 0]), "ssp 2": ("ssp", []), "async": ("async", [])}
WRONG = {("--servers", 3): "leaves no worker", ("--servers", 0): "at least 1", ("--consistency", "ssp"): "--staleness S",
         ("--staleness", 1): "bound of --consistency ssp", ("--consistency", "ssp", "--staleness", -1): "at least 0",
         ("--consistency", "no"): "bsp, ssp, async", ("--pull", "no"): "sparse, dense",
         ("--on-failure", "shrink"): "--resume", ("--rule", "apollo", "--servers", 2): "whole tensor",
         ("--pull", "dense", "--pull-keep", 0.1): "for --pull sparse", ("--kkt", 0.1): "--l1",
         ("--pushes-per-step", 2): "for ssp and async", ("--combine", "local"): "combine local",
         ("--compressor", "sign"): "sign", ("--slow-worker", "2:3"): "RANK:FACTOR", ("--random-skip", 1): "[0, 1)",
         ("--delayed-momentum", 2): "nesterov", ("--exchange", "dense", "--servers", 2): "needs --exchange server"}


def learning(files, ranks, servers):
    """Runs by name."""
    runs = {}
    for task, kind in SEATS[ranks, servers]:
        runs[task, kind] = train(files, task, "--epochs", 8, "--keep", 0.3, "--record", f"{task}.{kind}", "--model",
                                 f"{task}.{kind}.model", servers=servers, consistency=kind)
    return runs


def equal(files, task, servers):
    more = ["--epochs", 3, *EQUAL[task], "--model", f"{task}.equal", "--record", f"{task}.equal.r"]
    if servers:
        return {f"equal {task}": train(files, task, *more, "--pull", "dense", "--compressor", "none", servers=servers)}
    return {f"equal {task}": ["train", task, files[task], "--holdout", 0.2, *TASKS[task], *more, "--exchange", "dense"]}


def broken(files, task, servers):
    run = train(files, task, "--epochs", 3, *BROKEN[task], servers=servers)
    part = [*run, "--checkpoint", f"{task}.ckpt", "--model", f"{task}.broken"]
    runs = [*run, "--model", f"{task}.whole"], [*part, "--max-steps", 7], [*part, "--max-steps", 9, "--resume"], \
        [*part, "--resume"], [*part, "--resume"]
    return {("broken", task, k): run for k, run in enumerate(runs)}


def stopping(files):
    run = train(files, "mlp", "--epochs", 60, "--lr", 0.1)
    return {"patience": [*run, "--early-stopping", "accuracy", "--patience", 2],
            "target": [*run, "--evaluate-every", 3, "--early-stopping", "accuracy", "--target", 0.4, "--record", "target"],
            "seconds": [*run, "--max-seconds", 0], "steps": [*run, "--max-steps", 3]}


def slow(files):
    more = ["--epochs", 2, "--slow-worker", "1:10", "--pull", "dense"]
    return {("slow", name): [*train(files, "mlp", *more, consistency=kind), *last, "--record", name, "--model", f"{name}.m"]
            for name, (kind, last) in SLOW.items()}


def in_one_job(folder, ranks, *runs):
    """(folder, what each run said by name): one job, since to start its ranks takes the longest."""
    runs = {name: run for some in runs for name, run in some.items()}
    return folder, dict(zip(runs, in_turn(ranks, *runs.values(), cwd=folder, timeout=400)))


@pytest.fixture(scope="module")
def three(files, tmp_path_factory):
    wrong = {more: ["train", "mlp", files["mlp"], "--exchange", "server", *more] for more in WRONG}
    other = {"other servers": train(files, "linear", *BROKEN["linear"], "--checkpoint", "linear.ckpt", "--resume", servers=2)}
    return in_one_job(tmp_path_factory.mktemp("three"), 3, learning(files, 3, 1), equal(files, "linear", 1),
                      equal(files, "lm", 1), broken(files, "linear", 1), broken(files, "mlp", 1), other, stopping(files),
                      slow(files), wrong)


@pytest.fixture(scope="module")
def five(files, tmp_path_factory):
    return in_one_job(tmp_path_factory.mktemp("five"), 5, learning(files, 5, 2), equal(files, "mlp", 3),
                      broken(files, "lm", 2))


@pytest.mark.parametrize("ranks, servers", SEATS)
def test_every_task_learns_with_every_consistency(request, ranks, servers):
    folder, said = request.getfixturevalue({3: "three", 5: "five"}[ranks])
    workers = ranks - servers
    for task, kind in SEATS[ranks, servers]:
        out, mistake = said[task, kind]
        assert not mistake, (task, kind, mistake)
        start, *epochs, end = events(folder / f"{task}.{kind}")
        epochs = [e for e in epochs if e["event"] == "epoch"]
        assert len(epochs) == 8 and start["ranks"] == ranks and end["event"] == "end" and end["exchange"] == "server"
        losses = [e["loss"] for e in epochs]
        assert losses[-1] < 0.9 * losses[0], (task, kind, losses)
        (metric, last), = list(end["metrics"].items())[:1]
        assert last < 8 if metric == "perplexity" else last > 0.55, (task, kind, end["metrics"])
        assert len(end["sent"]) == len(end["received"]) == workers and min(end["sent"]) > 0
        pushes = {server["pushes"] for server in end["server"]}
        assert len(end["server"]) == servers and pushes == {workers * end["steps"]}
        stale = {int(k): n for k, n in end["staleness"].items()}
        assert sum(stale.values()) == servers * workers * end["steps"]
        if kind == "bsp":
            assert set(stale) == {0}
        if kind == "ssp":  # no worker more than 2 clocks ahead of another
            assert max(server["most clocks ahead"] for server in end["server"]) <= 2 and max(stale) <= 5 * workers
        for words in ("epoch 8/8", "model saved", "staleness" if max(stale) else "pushed", kind):
            assert words in out, words


def test_bsp_is_the_dense_exchange(files, tmp_path, three, five):
    """With nothing dropped: the same batches, the same mean, the same rule."""
    dense, said = in_one_job(tmp_path, 2, *[equal(files, task, 0) for task in EQUAL])
    for task in EQUAL:
        folder, ours = five if task == "mlp" else three
        assert not said[f"equal {task}"][1] and not ours[f"equal {task}"][1]
        got, want = tensors(folder / f"{task}.equal"), tensors(dense / f"{task}.equal")
        assert got.keys() == want.keys()
        for name in got:
            assert np.allclose(got[name], want[name], rtol=1e-3, atol=1e-5), (task, name)
        got, want = ([e["loss"] for e in events(of / f"{task}.equal.r") if e["event"] == "epoch"] for of in (folder, dense))
        assert got == pytest.approx(want, rel=1e-4)


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(three, five):
    for task in BROKEN:
        folder, said = five if task == "lm" else three
        _, first, *again = [said["broken", task, k][0] for k in range(5)]
        assert not any(said["broken", task, k][1] for k in range(5)), task
        assert "7 steps are done" in first and "step 7" in again[0] and "step 9" in again[1]
        assert "epoch 3/3" in again[1] and "resumed from" in again[2] and "epoch 3/3" not in again[2]
        ours, theirs = (tensors(folder / f"{task}.{end}") for end in ("whole", "broken"))
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours), task
    assert "resume with mpiexec -n 3 and --servers 1" in three[1]["other servers"][1]


def test_stopping_and_evaluations_within_an_epoch(three):
    folder, said = three
    outs = {name: said[name][0] for name in ("patience", "target", "seconds", "steps") if not said[name][1]}
    assert "accuracy has not risen for 2 epochs" in outs["patience"] and "the best, are restored" in outs["patience"]
    assert "has reached" in outs["target"] and any(e["event"] == "evaluation" for e in events(folder / "target"))
    assert "of training are over" in outs["seconds"] and "stopped: 3 steps are done" in outs["steps"]


def test_a_slow_worker_holds_up_whom_the_bound_says(three):
    """Worker 1 is slowed: others are ahead of it by the bound of ssp and no more; nobody waits for it with async."""
    folder, said = three
    assert not any(said["slow", name][1] for name in SLOW)
    ahead = {name: events(folder / name)[-1]["server"][0]["most clocks ahead"] for name in SLOW}
    assert ahead["bsp"] == ahead["ssp 0"] == 0 and ahead["ssp 2"] == 2 and ahead["async"] > 2
    bsp, ssp = (tensors(folder / f"{name}.m") for name in ("bsp", "ssp 0"))
    assert all(np.array_equal(bsp[name], ssp[name]) for name in bsp)


def test_options_that_cannot_be(three):
    for more, words in WRONG.items():
        out, mistake = three[1][more]
        assert words in mistake and "\n" not in mistake and "epoch" not in out, (more, mistake, out)


def test_a_signal_saves_all_and_the_run_goes_on(files, tmp_path):
    run = train(files, "linear", "--checkpoint", "c", "--checkpoint-seconds", 0.2, "--record", "r", "--model", "m",
                consistency="async")

    def during(started):
        deadline = time.monotonic() + 90
        while not ((tmp_path / "r").exists() and len(events(tmp_path / "r")) > 3):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(min(started()), signal.SIGTERM)  # mpiexec, the first of them
    ended = mpirun(3, *COMMAND, *run, "--epochs", 10**6, cwd=tmp_path, during=during)
    assert ended.code == 143 and not ended.left, ended
    assert "checkpoint saved: c; go on with --resume" in ended.out and "model saved" in ended.out
    *_, last, end = events(tmp_path / "r")
    assert end["event"] == "end" and end["interrupted"] and "Traceback" not in ended.err
    out, mistake = in_turn(3, [*run, "--epochs", last["epoch"] + 1, "--resume"], cwd=tmp_path)[0]
    assert not mistake and "resumed from c" in out
