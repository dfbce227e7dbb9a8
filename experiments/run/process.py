"""A command in a process group of its own, all of whose processes end with it, with its timeout, or with this one."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import hogwild
from hogwild.errors import UserError
from hogwild.training import console

MARK = "EXPERIMENTS_CELL"  # in the environment of all that a command starts: MPI's ranks leave its process group
GRACE = 5.0  # seconds between asking processes to end and killing them
DYING = 10.0  # seconds that killed processes have to be gone: one that waits for a device may never be
TAIL = 4000  # last characters of a command's output that are stored
# Program that execs the command: the kernel then sends it SIGTERM when this process dies, of kill -9 too.
BEFORE = """import ctypes, os, sys
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl:
    prctl(1, 15)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])"""
OPEN_MPI = {  # as root, and more ranks than cores; MPICH does not look at these
    "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "PRTE_MCA_hwloc_default_binding_policy": "none"}
ROOT = Path(hogwild.__file__).parents[1]  # on Python's path, not hogwild/ itself


class Ended(NamedTuple):
    """How a command ended."""

    code: int | None  # exit status, negative for a signal; None: it was stopped at its timeout
    said: str  # the end of its standard error, or of its output where there is none
    seconds: float


def found(name) -> str:
    """Path of a program: `python` is this one; the others beside it, else on PATH. Raises UserError."""
    if name == "python":
        return sys.executable
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.exists() else shutil.which(name)
    if path is None:
        raise UserError(f"no command '{name}', neither beside {sys.executable} nor on PATH")
    return path


def environment() -> dict[str, str]:
    """This process's, with these packages on Python's path."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | OPEN_MPI | {"PYTHONPATH": path}


def run(command, timeout) -> Ended:
    """Run `command` (its first word as `found` has it) for at most `timeout` seconds; nothing of it is left running."""
    mark, began = uuid.uuid4().hex, time.monotonic()
    before = [sys.executable, "-ISc", BEFORE, str(os.getpid())]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:  # a pipe would be held open by what is left
        process = subprocess.Popen([*before, found(command[0]), *command[1:]], env=environment() | {MARK: mark}, stdout=out,
                                   stderr=err, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process, mark)
        said = [(file.seek(0), file.read().decode(errors="replace").strip())[1] for file in (err, out)]
    return Ended(code, (said[0] or said[1])[-TAIL:], time.monotonic() - began)


def _end(process, mark):
    """Send SIGTERM to the remaining processes, and SIGKILL after GRACE seconds; a second Ctrl-C kills at once."""
    try:
        _signal(process, mark, signal.SIGTERM)
        until = time.monotonic() + GRACE
        while _left(process, mark) and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        kill(lambda: _left(process, mark), "what the cell has started")


def kill(living, what):
    """Kill the processes that `living()` finds, and wait for their end; after DYING seconds a line names the others."""
    until = time.monotonic() + DYING
    while found := living():
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > until:
            console.note(f"experiments: {what} cannot be ended, and is left: process {', '.join(map(str, found))}")
            return
        time.sleep(0.01)


def _signal(process, mark, number):
    for pid in _left(process, mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _left(process, mark) -> list[int]:
    """Processes of the command that live; where there is no /proc, its first one alone."""
    left = [process.pid] if process.poll() is None else []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                left.append(int(folder.name))
    return left
