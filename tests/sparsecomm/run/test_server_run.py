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


# (ranks, servers): what is run there, every task and consistency at one of them
SEATS = {(3, 1): [("linear", "bsp"), ("linear", "async"), ("mlp", "ssp"), ("mlp", "async"), ("cnn", "bsp"), ("lm", "ssp")],
         (5, 2): [("linear", "ssp"), ("mlp", "bsp"), ("cnn", "ssp"), ("cnn", "async"), ("lm", "bsp"), ("lm", "async")]}


@pytest.mark.parametrize("ranks, servers", SEATS)
def test_every_task_learns_with_every_consistency(files, tmp_path, ranks, servers):
    chosen = SEATS[ranks, servers]
    runs = [train(files, task, "--epochs", 8, "--keep", 0.3, "--record", f"{task}.{kind}", "--model", f"{task}.{kind}.model",
                  servers=servers, consistency=kind) for task, kind in chosen]
    measure = [["evaluate", f"{task}.{kind}.model", files[task]] for task, kind in chosen if task != "linear"]
    said = in_turn(ranks, *runs, *measure, cwd=tmp_path)
    workers = ranks - servers
    for (task, kind), (out, mistake) in zip(chosen, said):
        assert not mistake, (task, kind, mistake)
        start, *epochs, end = events(tmp_path / f"{task}.{kind}")
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


def test_bsp_is_the_dense_exchange(files, tmp_path):
    """With nothing dropped: the same batches, the same mean, the same rule; clip by norm is each worker's, and not here."""
    more = {"linear": ["--rule", "adam", "--l2", 1e-3, "--schedule", "cosine", "--warmup", 1],
            "mlp": ["--rule", "momentum", "--lr", 0.02, "--schedule", "plateau:patience=0,threshold=0.5"],
            "lm": ["--clip-value", 0.01]}
    every = {task: ["--epochs", 3, *more[task]] for task in more}
    dense = [["train", task, files[task], "--holdout", 0.2, *TASKS[task], *every[task], "--exchange", "dense", "--model",
              f"{task}.dense", "--record", f"{task}.dense.r"] for task in more]
    assert not any(mistake for _, mistake in in_turn(2, *dense, cwd=tmp_path))
    for ranks, servers, tasks in ((3, 1, ("linear", "lm")), (4, 2, ("mlp",))):
        runs = [train(files, task, *every[task], "--pull", "dense", "--compressor", "none", "--model", f"{task}.{ranks}",
                      "--record", f"{task}.{ranks}.r", servers=servers) for task in tasks]
        assert not any(mistake for _, mistake in in_turn(ranks, *runs, cwd=tmp_path))
        for task in tasks:
            ours, theirs = tensors(tmp_path / f"{task}.{ranks}"), tensors(tmp_path / f"{task}.dense")
            assert ours.keys() == theirs.keys()
            for name in ours:
                assert np.allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-5), (task, name)
            got, want = ([e["loss"] for e in events(tmp_path / f"{task}.{end}.r") if e["event"] == "epoch"]
                         for end in (ranks, "dense"))
            assert got == pytest.approx(want, rel=1e-4)


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(files, tmp_path):
    more = {"linear": ["--rule", "adam", "--lr", 0.05, "--schedule", "plateau:patience=0,threshold=0.5", "--warmup", 1],
            "mlp": ["--keep", 0.1, "--pull-keep", 0.2, "--value-code", "int8", "--momentum-correction", 0.5, "--rule", "sgd",
                    "--lr", 0.02], "lm": ["--keep", 0.2, "--dropout", 0.1]}
    for ranks, servers, tasks in ((3, 1, ("linear", "mlp")), (5, 2, ("lm",))):
        runs = []
        for task in tasks:
            run = train(files, task, "--epochs", 3, *more[task], servers=servers)
            broken = [*run, "--checkpoint", f"{task}.{ranks}.ckpt", "--model", f"{task}.broken"]
            runs += [[*run, "--model", f"{task}.whole"], [*broken, "--max-steps", 7], [*broken, "--max-steps", 9, "--resume"],
                     [*broken, "--resume"], [*broken, "--resume"]]
        said = in_turn(ranks, *runs, cwd=tmp_path)
        assert not any(mistake for _, mistake in said), [mistake for _, mistake in said]
        for k, task in enumerate(tasks):
            whole, first, *again = [out for out, _ in said[5 * k:5 * k + 5]]
            assert "7 steps are done" in first and "step 7" in again[0] and "step 9" in again[1]
            assert "epoch 3/3" in again[1] and "resumed from" in again[2] and "epoch 3/3" not in again[2]
            ours, theirs = (tensors(tmp_path / f"{task}.{end}") for end in ("whole", "broken"))
            assert all(np.array_equal(ours[name], theirs[name]) for name in ours), task
    other = train(files, "mlp", "--epochs", 3, *more["mlp"], "--checkpoint", "mlp.3.ckpt", "--resume", servers=2)
    (_, mistake), = in_turn(5, other, cwd=tmp_path)
    assert "--servers" in mistake


def test_a_signal_saves_all_and_the_run_goes_on(files, tmp_path):
    run = train(files, "mlp", "--checkpoint", "c", "--checkpoint-seconds", 0.2, "--record", "r", "--model", "m",
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


def test_stopping_and_evaluations_within_an_epoch(files, tmp_path):
    run = train(files, "mlp", "--epochs", 60, "--lr", 0.1)
    said = in_turn(3, [*run, "--early-stopping", "accuracy", "--patience", 2, "--record", "r", "--model", "m"],
                   [*run, "--evaluate-every", 3, "--early-stopping", "accuracy", "--target", 0.4, "--record", "t"],
                   [*run, "--max-seconds", 0], [*run, "--max-steps", 3], cwd=tmp_path)
    assert not any(mistake for _, mistake in said)
    outs = [out for out, _ in said]
    assert "accuracy has not risen for 2 epochs" in outs[0] and "the best, are restored" in outs[0]
    assert "has reached" in outs[1] and any(e["event"] == "evaluation" for e in events(tmp_path / "t"))
    assert "of training are over" in outs[2] and "stopped: 3 steps are done" in outs[3]


def test_a_slow_worker_holds_up_whom_the_bound_says(files, tmp_path):
    """Worker 1 is slowed: others are ahead of it by the bound of ssp and no more; nobody waits for it with async."""
    slow = ["--epochs", 2, "--slow-worker", "1:10", "--pull", "dense"]
    kinds = {"bsp": ("bsp", []), "ssp 0": ("ssp", ["--staleness", 0]), "ssp 2": ("ssp", []), "async": ("async", [])}
    runs = [[*train(files, "mlp", *slow, consistency=kind), *more, "--record", name, "--model", f"{name}.m"]
            for name, (kind, more) in kinds.items()]
    assert not any(mistake for _, mistake in in_turn(3, *runs, cwd=tmp_path))
    ahead = {name: events(tmp_path / name)[-1]["server"][0]["most clocks ahead"] for name in kinds}
    assert ahead["bsp"] == ahead["ssp 0"] == 0 and ahead["ssp 2"] == 2 and ahead["async"] > 2
    bsp, ssp = (tensors(tmp_path / f"{name}.m") for name in ("bsp", "ssp 0"))
    assert all(np.array_equal(bsp[name], ssp[name]) for name in bsp)


def test_options_that_cannot_be(files, tmp_path):
    serve = ["train", "mlp", files["mlp"], "--exchange", "server"]
    wrong = {("--servers", 3): "leaves no worker", ("--servers", 0): "at least 1", ("--consistency", "ssp"): "--staleness S",
             ("--staleness", 1): "bound of --consistency ssp", ("--consistency", "ssp", "--staleness", -1): "at least 0",
             ("--consistency", "no"): "bsp, ssp, async", ("--pull", "no"): "sparse, dense", ("--replicas", 1): "neighbour",
             ("--pull", "dense", "--pull-keep", 0.1): "for --pull sparse", ("--kkt", 0.1): "--l1",
             ("--pushes-per-step", 2): "for ssp and async", ("--combine", "local"): "combine local",
             ("--compressor", "sign"): "sign", ("--slow-worker", "2:3"): "RANK:FACTOR", ("--random-skip", 1): "[0, 1)",
             ("--delayed-momentum", 2): "nesterov", ("--exchange", "dense", "--servers", 2): "needs --exchange server"}
    said = in_turn(3, *[[*serve, *more] for more in wrong], cwd=tmp_path)
    for words, (out, mistake) in zip(wrong.items(), said):
        assert words[1] in mistake and "\n" not in mistake and "epoch" not in out, (words, mistake, out)
