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

from hogwild.model import load

ROOT = Path(__file__).parents[1]
KILLS = 100 if os.environ.get("HOGWILD_LONG_TESTS") else 4
START = "from hogwild.cli import command; command()"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """An svmlight file of 6,000 rows."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("resume") / "rows.svm"
    planted = rng.standard_normal(300)
    with open(path, "w") as file:
        for _ in range(6000):
            js = np.sort(rng.choice(300, 20, replace=False))
            x = rng.random(20).round(3) + 0.001
            file.write(f"{1 if planted[js] @ x > 0 else -1} " + " ".join(f"{j + 1}:{v:.3f}" for j, v in zip(js, x)) + "\n")
    return path


def start(rows, folder, *more, epochs=40):
    return subprocess.Popen(
        [sys.executable, "-c", START, "train", "linear", str(rows), "--mode", "deterministic", "--epochs", str(epochs),
         "--early-stopping", "log_loss", "--patience", "1000", "--checkpoint", str(folder / "run.ckpt"), "--resume",
         "--checkpoint-seconds", "0.02", "--model", str(folder / "model.safetensors"), *more],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def weights(folder):
    return load(folder / "model.safetensors")[0]["weights"].tobytes()


def test_killed_again_and_again_the_result_is_that_of_an_unbroken_run(rows, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    began = time.monotonic()
    process = start(rows, whole, "--workers", "2")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    took, rng = time.monotonic() - began, random.Random(1)
    for _ in range(KILLS):
        process = start(rows, broken, "--workers", str(rng.choice([1, 2, 3])))
        time.sleep(rng.uniform(0.3, 0.9) * took)
        while not (broken / "run.ckpt").exists() and process.poll() is None:  # a slow machine: nothing to resume from yet
            time.sleep(0.01)
        process.kill()
        process.communicate(timeout=60)
        if (broken / "model.safetensors").exists():
            (broken / "model.safetensors").unlink()
    process = start(rows, broken)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "resumed from" in out and weights(broken) == weights(whole)


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


def test_resume_refuses_another_run(rows, tmp_path, capsys):
    process = start(rows, tmp_path, epochs=1)
    assert process.communicate(timeout=120) and process.returncode == 0
    process = start(rows, tmp_path, "--l2", "0.5", epochs=2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "l2" in err and len(err.strip().splitlines()) == 1
