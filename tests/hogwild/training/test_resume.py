"""Killed, interrupted and resumed runs of the command: in mode deterministic the result is that of an unbroken run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hogwild.training import checkpoint
from hogwild.training.model_files import load

ROOT = Path(__file__).parents[3]
ROWS, EPOCHS = 40_000, 30  # an epoch of several chunks, so that a checkpoint is written within it
KILLS = 100 if os.environ.get("HOGWILD_LONG_TESTS") else 4
START = "from hogwild.cli.main import command; command()"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """An svmlight file of ROWS rows."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("resume") / "rows.svm"
    planted = rng.standard_normal(300)
    with open(path, "w") as file:
        for js, x in zip(rng.integers(0, 15, (ROWS, 20)) + np.arange(0, 300, 15), rng.random((ROWS, 20)) + 0.001):
            file.write(f"{1 if planted[js] @ x > 0 else -1} " + " ".join(f"{j + 1}:{v:.3f}" for j, v in zip(js, x)) + "\n")
    return path


def start(rows, folder, *more, epochs=EPOCHS):
    return subprocess.Popen(
        [sys.executable, "-c", START, "train", "linear", str(rows), "--mode", "deterministic", "--epochs", str(epochs),
         "--early-stopping", "log_loss", "--patience", "1000", "--checkpoint", str(folder / "run.ckpt"), "--resume",
         "--checkpoint-seconds", "0.02", "--model", str(folder / "model.safetensors"), *more],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def weights(folder):
    return load(folder / "model.safetensors")[0]["weights"].tobytes()


def test_killed_again_and_again_the_result_is_that_of_an_unbroken_run(rows, tmp_path):
    """Each is killed a moment after an epoch of its own; one that ends first makes way for a new one."""
    whole, (left, finished) = tmp_path / "whole", killed(rows, tmp_path, random.Random(1), KILLS)
    whole.mkdir()
    process = start(rows, whole, "--workers", "2")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    within = sum(step % int(0.9 * ROWS) > 0 for _, step in left)
    print(f"{KILLS} kills, {len(finished)} runs to the end; {within} went on within an epoch; epochs {[e for e, _ in left]}")
    assert within or KILLS < 100  # of few, none may
    assert sum(1 < epoch < EPOCHS for epoch, _ in left) >= KILLS / 2
    assert set(finished) == {weights(whole)}


def killed(rows, tmp_path, rng, kills):
    """(epoch, step) of the checkpoint that each of the kills left, all before the end, and the weights of all whole runs."""
    left, finished, state = [], [], None
    while True:
        folder = tmp_path / f"broken{len(finished)}"
        folder.mkdir(exist_ok=True)
        process = start(rows, folder, "--workers", str(rng.choice([1, 2, 3])))
        trained = state is not None and state["epoch"] > EPOCHS  # what is left is to save the model
        if len(left) < kills and not trained and begun(process, folder / "run.ckpt", state["epoch"] if state else 1):
            time.sleep(rng.uniform(0, 0.3))
            process.kill()  # does nothing to one that has just ended
        out, err = process.communicate(timeout=120)
        if state:
            assert f"epoch {state['epoch']}, step {state['t']:,}\n" in out
        if process.returncode == -signal.SIGKILL:
            state = checkpoint.load(folder / "run.ckpt")[1]
            left += [(state["epoch"], state["t"])] * (state["epoch"] <= EPOCHS)
            continue
        assert process.returncode == 0, err
        finished.append(weights(folder))
        state = None
        if len(left) == kills:
            return left, finished


def begun(process, file, epoch) -> bool:
    """Wait until the checkpoint in that file is of a later epoch; false where the process ends first."""
    for _ in range(24_000):
        if file.exists() and checkpoint.load(file)[1]["epoch"] > epoch:
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    raise AssertionError("no checkpoint within 120 s")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("mode", ["wild", "deterministic", "round-robin"])
def test_a_signal_saves_a_checkpoint_and_the_model(rows, tmp_path, number, code, mode):
    record = tmp_path / "r.jsonl"
    # Python installs no handler where SIGINT is ignored, as in the background jobs of a shell
    restored = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", restored + START, "train", "linear", str(rows), "--mode", mode, "--epochs", "1000000",
               "--checkpoint", str(tmp_path / "run.ckpt"), "--model", str(tmp_path / "m"), "--record", str(record),
               "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):  # wait for the first epochs
        time.sleep(0.1)
        if record.exists() and record.read_text().count('"epoch"') > 3:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "checkpoint saved" in out and "model saved" in out and "Traceback" not in err
    events = [json.loads(line)["event"] for line in record.read_text().splitlines()]
    assert events[0] == "start" and events[-1] == "end"
    command[command.index("1000000")] = "2"  # it has done more than that
    again = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and "resumed from" in again.stdout, again.stderr


# What each does when it has come to the place: it tells, and takes very long.
STUCK = {"chunk": """
def work(self, rule, schedule, own, order, t, queue, *more):
    if len(order):
        print("training", flush=True)
        while not queue[STOP]:
            time.sleep(0.01)
        stuck()
    return before(self, rule, schedule, own, order, t, queue, *more)
before, linear.Linear.work = linear.Linear.work, work
""", "evaluation": """
def measure(*args):
    if Run.begun:
        try:
            print("training", flush=True)
            time.sleep(60)
        finally:
            stuck()
    return before(*args)
def go(self):
    Run.begun = True
    went(self)
Run.begun, before, linear.measure, went, Run.go = False, linear.measure, measure, Run.go, go
""", "checkpoint": """
def save(self, *args):
    stuck()
checkpoint.Writer.save = save
"""}
BEFORE = """
import signal, time
from hogwild.families import linear
from hogwild.training import checkpoint
from hogwild.training.loop import Run
from hogwild.kernels.sharing.work_queue import STOP
signal.signal(signal.SIGINT, signal.default_int_handler)
def stuck():
    print("stuck", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", STUCK)
def test_a_second_signal_ends_it_at_once(rows, tmp_path, place, second):
    """By the signal itself, which a shell calls 128 + its number: nothing has to come back from where it is."""
    command = [sys.executable, "-c", BEFORE + STUCK[place] + START, "train", "linear", str(rows), "--workers", "1",
               "--epochs", "1000000", "--checkpoint", str(tmp_path / "run.ckpt"), "--checkpoint-seconds", "1000"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    for word, number in ("epoch 1/" if place == "checkpoint" else "training", signal.SIGINT), ("stuck", second):
        while word not in " ".join(process.stdout.readline().split()):
            assert process.poll() is None, process.stderr.read()
        sent = time.monotonic()
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -second and time.monotonic() - sent < 20 and "Traceback" not in err


def test_resume_refuses_another_run(rows, tmp_path, capsys):
    process = start(rows, tmp_path, epochs=1)
    assert process.communicate(timeout=120) and process.returncode == 0
    process = start(rows, tmp_path, "--l2", "0.5", epochs=2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "l2" in err and len(err.strip().splitlines()) == 1
