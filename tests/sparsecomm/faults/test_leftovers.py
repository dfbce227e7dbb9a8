"""What a dead job left in /dev/shm goes; what anybody still has, and what is not ours to judge, stays."""

import mmap
import os
import subprocess
import sys
import time

import pytest

from sparsecomm.faults import leftovers

pytestmark = pytest.mark.waits
KILLED = """
import os, signal, sys
from pathlib import Path
from sparsecomm.faults import leftovers
leftovers.FOLDER = sys.argv[1]
told = leftovers.fork_cleaner()
(Path(sys.argv[1]) / "mpich_shm_1").touch()
(Path(sys.argv[1]) / "else_1").touch()
if sys.argv[2] == "told":
    os.write(told, b"1")
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "FOLDER", str(tmp_path))
    for name in ("mpich_shm_dead", "ucx_shm_posix_dead", "sm_segment.dead", "mpich_shm_open", "ucx_shm_mapped", "data",
                 "my_mpich_shm_1"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_only_what_nobody_uses_goes(folder):
    with open(folder / "mpich_shm_open"), open(folder / "ucx_shm_mapped", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 1)
        file.close()
        assert not leftovers.sweep()
        assert names(folder) == {"mpich_shm_open", "ucx_shm_mapped", "data", "my_mpich_shm_1"}
        mapped.close()
    assert leftovers.sweep() and names(folder) == {"data", "my_mpich_shm_1"}


def test_another_users_stays(folder, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    leftovers.sweep()
    assert len(names(folder)) == 7


def test_at_a_start_only_old_ones_go(folder):
    """A job that starts beside this one, in another process namespace, has just made its own."""
    os.utime(folder / "mpich_shm_dead", (time.time() - 100,) * 2)
    leftovers.sweep_old()
    assert "mpich_shm_dead" not in names(folder) and len(names(folder)) == 6


@pytest.mark.parametrize("how", ["killed", "told"])
def test_after_a_kill_in_the_middle_of_the_start(tmp_path, how):
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path, how], capture_output=True, text=True, timeout=30)
    assert ended.stdout == "ready\n" and ended.returncode == -9, ended.stderr
    until = time.monotonic() + (10 if how == "killed" else 0.5)
    while "mpich_shm_1" in names(tmp_path) and time.monotonic() < until:
        time.sleep(0.02)
    assert names(tmp_path) == ({"else_1"} if how == "killed" else {"else_1", "mpich_shm_1"})
