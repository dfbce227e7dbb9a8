"""The `hogwild` command run in this process, and small files for it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hogwild.cli import main

ROWS = 400
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def svm(path, rows=ROWS, d=30, seed=0, end="\n"):
    rng = np.random.default_rng(seed)
    planted = np.linspace(-2, 2, d)
    lines = []
    for _ in range(rows):
        js = np.sort(rng.choice(d, 6, replace=False))
        x = rng.integers(1, 5, 6)
        lines.append(f"{'+1' if planted[js] @ x > 0 else '-1'} " + " ".join(f"{j + 1}:{v}" for j, v in zip(js, x)))
    lines[0] = "+1 30:1"
    path.write_bytes(end.join(lines).encode() + (b"" if end == "\r\n" else b"\n"))
    return path


def run(*arguments):
    """Exit code of `hogwild ARGUMENTS…` in this process."""
    try:
        main.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def fresh(code):
    """`code` in a Python process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


def fails(capsys, *arguments):
    """The one line that a mistake prints."""
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.strip().splitlines() if not line.startswith("compiling kernels")]
    assert len(lines) == 1 and lines[0].startswith("hogwild: ") and "Traceback" not in printed.err
    return lines[0]
