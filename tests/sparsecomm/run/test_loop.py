"""Whole runs of `sparsecomm train` under mpiexec: they learn, go on to the bit, stop in time, and say what they did."""

import json
import os
import shutil
import signal
import time

import jobs
import numpy as np
import pytest
from jobs import rows, svmlight
from mpi import mpirun
from turns import in_turn

from hogwild.cli import main
from hogwild.training import checkpoint
from hogwild.training.model_files import load
from sparsecomm.run.loop import PHASES

# Python installs no handler where SIGINT is ignored, as in the background jobs of a shell.
COMMAND = "-c", ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
                 "from sparsecomm.cli import command; command()")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return jobs.files(tmp_path_factory.mktemp("data"))


TASKS = {"linear": ["--transform", "log,l2", "--exchange", "allgather", "--keep", 0.3],
         "mlp": ["--width", 16, "--batch", 10, "--exchange", "balanced", "--keep", 0.1, "--value-code", "float16"],
         "cnn": ["--channels", 3, "--batch", 10, "--exchange", "balanced", "--keep", 0.2, "--scope", "global",
                 "--drop-warmup", 1],
         "lm": ["--hidden", 12, "--batch", 2, "--bptt", 5, "--rule", "sgd", "--lr", 2, "--momentum-correction", 0.9,
                "--keep", 0.2, "--dropout", 0.1, "--exchange", "allgather"]}


def train(files, task, *more):
    return ["train", task, files[task], "--holdout", 0.2, *TASKS[task], *more]


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("n", [1, 3])
def test_every_task_learns_and_says_what_it_did(files, tmp_path, capsys, n):
    runs = [train(files, task, "--test", files[f"{task}.test"], "--epochs", 6, "--record", task, "--model", f"{task}.model")
            for task in TASKS]
    measure = [["evaluate", f"{task}.model", files[f"{task}.test"]] for task in TASKS]
    said = in_turn(n, *runs, *measure, cwd=tmp_path)
    for task, (out, mistake) in zip(TASKS, said):
        assert not mistake
        start, *epochs, end = events(tmp_path / task)
        assert [e["event"] for e in (start, *epochs, end)] == ["start", *["epoch"] * 6, "end"]
        assert start["ranks"] == n == len(start["hosts"]) and start["options"]["task"]["holdout"] == 0.2
        assert {"numpy", "numba", "mpi4py", "mpi"} <= start["versions"].keys() and start["options"]["exchange"]["keep"] < 1
        losses = [e["loss"] for e in epochs]
        assert losses[-1] < 0.9 * losses[0], (task, losses)
        (metric, last), (first, *_) = next(iter(end["metrics"].items())), epochs[0]["metrics"].values()
        assert (last < first if metric == "perplexity" else last > 0.6) and last == end["metrics"][metric]
        for e in epochs:
            assert e["skipped"] == 0 and e["residual"] > 0 and set(e["phases"]) == set(PHASES) and e["examples_per_s"] > 0
            assert e["examples"] == epochs[0]["examples"] and (e["bytes_per_step"] > 0) == (n > 1)
        assert epochs[-1]["kept"] < 0.5 and (task != "cnn" or epochs[-1]["kept"] < epochs[0]["kept"])
        assert end["phases"]["compute"][end["slowest"]] == max(end["phases"]["compute"]) and len(end["sent"]) == n
        assert sum(end["sent"]) == sum(end["received"]) and end["steps"] >= 6
        for words in ("phase", "longest s", "compute", "residual", "slowest rank", "epoch 6/6", f"{n} rank", "model saved"):
            assert words in out, words
        assert (n == 1) == ("nothing was sent" in out) and (n == 1) == ("2n(P-1)/P" not in out)
        if n > 1:
            dense = 8 * end["parameters"] * (n - 1) / n
            assert end["compression"] == pytest.approx(dense / np.mean(end["sent"]) * end["steps"])
    assert "hogwild evaluate measures" in said[4][1]
    main.main(["evaluate", str(tmp_path / "linear.model"), str(files["linear.test"])])
    for task, out in zip(TASKS, (capsys.readouterr().out, *(out for out, _ in said[5:]))):
        measured = {name: float(value) for name, value in map(str.split, out.splitlines()[1:])}
        assert measured == pytest.approx(events(tmp_path / task)[-1]["metrics"], abs=1e-6), task


def tensors(path):
    return {name: x.tobytes() for name, x in load(path)[0].items()}


MORE = {"linear": ["--rule", "adam", "--lr", 0.05, "--schedule", "plateau:patience=0,threshold=0.5", "--warmup", 1],
        "mlp": ["--rule", "momentum", "--clip-norm", 1, "--early-stopping", "log_loss", "--l2", 1e-3],
        "lm": ["--clip-local", 1, "--schedule", "cosine"],
        "low-rank": ["--compressor", "low-rank:rank=2"],
        "local": ["--combine", "local", "--average-every", 4, "--rule", "adagrad", "--exchange", "balanced"]}


@pytest.mark.parametrize("n", [1, 3])
def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(files, tmp_path, n):
    runs = []
    for name, more in MORE.items():
        run = train(files, name if name in TASKS else "mlp", "--epochs", 3, *more)
        stopped = [*run, "--checkpoint", f"{name}.ckpt", "--model", f"{name}.broken"]
        runs += [[*run, "--model", f"{name}.whole"], [*stopped, "--max-steps", 7], [*stopped, "--max-steps", 9, "--resume"],
                 [*stopped, "--resume"], [*stopped, "--resume"]]
    said = in_turn(n, *runs, cwd=tmp_path)
    assert not any(mistake for _, mistake in said)
    for k, name in enumerate(MORE):
        whole, first, *again = [out for out, _ in said[5 * k:5 * k + 5]]
        assert "stopped: 7 steps are done" in first and "step 7" in again[0] and "step 9" in again[1]
        assert "epoch 3/3" in again[1] and "resumed from" in again[2] and "epoch 3/3" not in again[2]
        assert tensors(tmp_path / f"{name}.whole") == tensors(tmp_path / f"{name}.broken"), name


def unsent(path):
    """(ranks, the sum over the ranks of what each has not sent) of a checkpoint."""
    held, state = checkpoint.load(path)
    names = {name.partition(".")[2] for name in held if name.endswith((".residual", ".velocity"))}
    return state["ranks"], {name: np.sum([held[f"rank{r}.{name}"] for r in range(state["ranks"])], axis=0, dtype=np.float64)
                            for name in names}


def waited(path):
    """(steps of an epoch, for how many steps each coordinate of a checkpoint has waited)."""
    held, state = checkpoint.load(path)
    at = held["step.clock"][0] - held["step.missed"][0] - 1
    return state["steps"], {name: (at - x.astype(int)) % 2**16 for name, x in held.items() if name.startswith("step.last.")}


def test_other_ranks_share_out_what_was_not_sent(files, tmp_path):
    runs = {task: train(files, task, "--checkpoint", f"{task}.ckpt", "--epochs", 3) for task in ("mlp", "lm")}
    in_turn(2, *[[*run, "--max-steps", 8] for run in runs.values()], cwd=tmp_path)
    before = {task: unsent(tmp_path / f"{task}.ckpt") for task in runs}
    waits = {task: waited(tmp_path / f"{task}.ckpt") for task in runs}
    assert max(x.max() for x in waits["mlp"][1].values()) > 5 and not waits["lm"][1]  # whose rule is sgd
    for n in (3, 1):
        stay = [[*run, "--max-steps", 1, "--resume"] for run in runs.values()]  # has done more already: only writes
        for task in runs:
            shutil.copy(tmp_path / f"{task}.ckpt", tmp_path / f"{task}.end")
        go_on = [[*run, "--checkpoint", f"{task}.end", "--resume"] for task, run in runs.items()]
        said = in_turn(n, *stay, *go_on, cwd=tmp_path)
        assert all(f"{n} rank" in out and "its sum stays the same" in out and not mistake for out, mistake in said), said
        assert all("epoch 3/3" in out for out, _ in said[2:])
        for task, (_, old) in before.items():
            ranks, new = unsent(tmp_path / f"{task}.ckpt")
            assert ranks == n and old.keys() == new.keys()
            (old_steps, old_waits), (steps, new_waits) = waits[task], waited(tmp_path / f"{task}.ckpt")
            waits[task] = steps, new_waits
            assert steps != old_steps and old_waits.keys() == new_waits.keys()
            assert all(np.array_equal(new_waits[name], x * steps // old_steps) for name, x in old_waits.items())
            assert any(name.endswith("velocity") for name in new) == (task == "lm")
            for name, total in old.items():
                assert np.abs(total).max() > 0 and np.allclose(new[name], total, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_must_be_the_same(files, tmp_path):
    run = train(files, "linear", "--checkpoint", "c", "--epochs", 1)
    other = svmlight(tmp_path / "other.svm", *rows(2, n=400, seed=1))
    changed = ["train", "linear", other, *run[3:]]
    said = in_turn(2, run, [*run, "--l2", 0.1, "--resume"], [*run, "--keep", 0.2, "--resume"], [*changed, "--resume"],
                   [*run, "--epochs", 2, "--resume"], cwd=tmp_path)
    for (_, mistake), words in zip(said, ("", "training.l2", "exchange.keep", "other data", "")):
        assert words in mistake and bool(words) == bool(mistake)
    assert "epoch 2/2" in said[-1][0]


def test_stopping_and_the_best_epoch(files, tmp_path):
    run = train(files, "mlp", "--epochs", 60)
    said = [out for out, mistake in in_turn(
        2, [*run, "--early-stopping", "accuracy", "--patience", 2, "--record", "r", "--model", "m", "--lr", 0.1],
        [*run, "--early-stopping", "accuracy", "--target", 0.5], [*run, "--tol", 10, "--patience", 1],
        [*run, "--max-seconds", 0], [*run, "--max-steps", 3, "--nonfinite", "stop"], cwd=tmp_path)]
    assert "accuracy has not risen for 2 epochs" in said[0] and "the best, are restored" in said[0]
    assert "has reached" in said[1] and "training loss has not fallen" in said[2]
    assert "of training are over" in said[3] and "epoch  1/60" in said[3] and "epoch  2/60" not in said[3]
    assert "stopped: 3 steps are done" in said[4] and "in 3 steps" in said[4]


def test_evaluations_within_an_epoch_change_nothing_but_when_a_target_is_seen(files, tmp_path):
    n, run = 2, train(files, "mlp", "--epochs", 3)
    often = [*run, "--evaluate-every", 3]
    said = in_turn(n, [*run, "--model", "a"], [*often, "--model", "b", "--record", "r"],
                   [*often, "--early-stopping", "accuracy", "--target", 0.1, "--record", "t"],
                   [*run[:3], "--holdout", 0, "--evaluate-every", 3], [*run, "--evaluate-every", 0], cwd=tmp_path)
    assert tensors(tmp_path / "a") == tensors(tmp_path / "b")
    told, each = events(tmp_path / "r"), -(-240 // (10 * n))  # 240 rows to train on, 10 a rank
    within = [e for e in told if e["event"] == "evaluation"]
    assert [e["step"] for e in within] == [step for step in range(3, 3 * each, 3) if step % each]
    assert all(e["metrics"].keys() == told[-1]["metrics"].keys() for e in within)
    assert sorted(e["seconds"] for e in within) == [e["seconds"] for e in within] and within[0]["seconds"] > 0
    reached = [e for e in events(tmp_path / "t") if e["event"] == "evaluation"]
    assert [e["step"] for e in reached] == [3] and events(tmp_path / "t")[-1]["steps"] == 3
    assert "has reached" in said[2][0] and "needs held-out data" in said[3][1] and "at least 1, got 0" in said[4][1]


@pytest.mark.parametrize("number, code, words", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_signal_saves_all_and_the_run_goes_on(files, tmp_path, number, code, words):
    run = train(files, "mlp", "--checkpoint", "c", "--checkpoint-seconds", 0.2, "--record", "r", "--model", "m")

    def during(started):
        deadline = time.monotonic() + 90
        while not ((tmp_path / "r").exists() and len(events(tmp_path / "r")) > 3):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(min(started()), number)  # mpiexec, the first of them
    ended = mpirun(2, *COMMAND, *run, "--epochs", 10**6, cwd=tmp_path, during=during)
    assert ended.code == code and not ended.left and ended.err.count(f"sparsecomm: {words}") == 1, ended
    assert "checkpoint saved: c; go on with --resume" in ended.out and "model saved" in ended.out and "slowest" in ended.out
    *_, last, end = events(tmp_path / "r")
    assert end["event"] == "end" and end["interrupted"] and "Traceback" not in ended.err
    out, mistake = in_turn(2, [*run, "--epochs", last["epoch"] + 1, "--resume"], cwd=tmp_path)[0]
    assert not mistake and f"resumed from c: epoch {last['epoch'] + 1}" in out


def test_sparse_training_is_as_good_as_lock_free(tmp_path, capsys):
    common = ["train", "linear", "--rows", "20000", "--epochs", "3"]
    main.main([*common, "--workers", "1", "--record", str(tmp_path / "lock-free")])
    in_turn(2, [*common, "--batch", 8, "--exchange", "balanced", "--record", "sparse"], cwd=tmp_path)
    one, other = (events(tmp_path / name)[-1]["metrics"]["accuracy"] for name in ("lock-free", "sparse"))
    assert other > one - 0.01 and events(tmp_path / "sparse")[-1]["kept"] < 0.02


def test_where_the_model_cannot_be_written_it_is_saved_elsewhere(files, tmp_path):
    """And ranks of the linear task have imported neither torch nor scikit-learn up to there, which take seconds."""
    code = ("import sys, tempfile; from hogwild.errors import UserError; from hogwild.training import model_files\n"
            "save = model_files.save\n"
            "def full(path, *rest):\n    assert not {'torch', 'sklearn'} & set(sys.modules)\n"
            "    if str(path) == 'm': raise UserError('m: full')\n    save(path, *rest)\n"
            f"model_files.save, tempfile.tempdir = full, {str(tmp_path)!r}\n{COMMAND[1]}")
    outputs = "--model", "m", "--checkpoint", "c", "--record", "r"
    ended = mpirun(2, "-c", code, *train(files, "linear", "--epochs", 1, *outputs), cwd=tmp_path)
    (saved,) = tmp_path.glob("m-*")
    assert ended.code == 2 and load(saved)[1]["ranks"] == 2 and events(tmp_path / "r")[-1]["event"] == "end"
    assert f"sparsecomm: m: full; the model was saved as {saved} instead; the last checkpoint is c" in ended.err.splitlines()
