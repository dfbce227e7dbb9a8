"""Start a program on several MPI ranks, as every MPI test does: `mpirun(n, program, *args)`.

`program` is what follows `python`: a path (`__file__`, say), or "-c" and code, or "-m" and a module:

    @ranks
    def test_sum(n):
        ended = mpirun(n, "-c", "from mpi4py import MPI; print(MPI.COMM_WORLD.allreduce(1))")
        assert ended.code == 0, ended.err
        assert ended.out.split() == [str(n)] * n

Results come back as printed text (flush it) or in files of `tmp_path`. Packages of the repository and of tests/support
can be imported on the ranks.
"""

import functools
import importlib.util
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

import pytest

RANKS = (1, 2, 5)  # 5: odd, no power of two, more than cores
ranks = pytest.mark.parametrize("n", RANKS)  # a test that takes `n` runs with each number of ranks
SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parents[1]
# More ranks than cores: threads of one rank must not fight with the other ranks.
QUIET = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
# MPICH's ranks poll while they wait: with this they sleep between two looks, a fifth of the system time.
QUIET["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = "1"
WHOLE = {"PYTHONUNBUFFERED": ""}  # unbuffered, one print is several writes, and lines of two ranks mix
OPEN_MPI = ("--oversubscribe", "--allow-run-as-root", "--bind-to", "none")
# What Open MPI's mpiexec says when it could not itself start; perhaps because a network test beside it has just removed an
# interface (seen once).
NOT_STARTED = "PMIx server's listener thread failed to start"
MARK = "HOGWILD_TEST_RUN"  # in the environment of all that a run starts: ranks leave mpiexec's session and process group


class Ended(NamedTuple):
    """A run that ended by itself."""

    code: int  # exit status of mpiexec, negative for a signal
    out: str
    err: str
    seconds: float  # from start to the end of mpiexec
    left: tuple  # command lines of processes that outlived mpiexec by two seconds; they have been killed


@functools.cache
def mpiexec() -> str:
    """The mpiexec beside this Python, else that on PATH; skips the test where there is none, or no mpi4py."""
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed: pip install '.[mpich]'")
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    return found or pytest.skip("no mpiexec: pip install '.[mpich]'")


@functools.cache
def open_mpi() -> bool:
    """Whether that mpiexec is Open MPI's (else MPICH's)."""
    version = subprocess.run([mpiexec(), "--version"], capture_output=True, text=True, timeout=60)
    return "open mpi" in (version.stdout + version.stderr).lower() or "prte" in version.stdout.lower()


def other_launcher(rank, size) -> dict[str, str]:
    """What the mpiexec of another MPI than mpi4py's puts into the environment of a process."""
    if open_mpi():
        return {"PMI_RANK": str(rank), "PMI_SIZE": str(size)}
    return {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": str(size), "PMIX_NAMESPACE": "prterun-x@1"}


def started(mark) -> dict[int, str]:
    """Process id and command line of every living process whose environment holds `mark`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:  # ended meanwhile, or another user's
            pass
    return found


def killed(mark) -> tuple:
    """Kill every process of the run and see it gone; their command lines."""
    left = {}
    while now := started(mark):
        left |= now
        for pid in now:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.01)
    return tuple(left.values())


def mpirun(n, *program, **options) -> Ended:
    """As `once`; again where Open MPI's mpiexec could not start, or did not end when all ranks had."""
    for again in (True, True, False):
        ended = once(n, *program, again=again, **options)
        if ended and not (ended.code and NOT_STARTED in ended.err):
            break
    return ended


def once(n, *program, timeout=120, env=None, launcher=(), during=None, cwd=None, again=False, bare=False) -> Ended | None:
    """Run `python -m mpi4py program…` on n ranks and wait for its end; a run longer than `timeout` s fails the test.

    bare: without -m mpi4py, which ends all ranks when one raises. env: added to the environment; launcher: more options of
    mpiexec; during: called with `started`'s dictionary as its argument, a function () -> {pid: command line}, while the run
    goes on (to kill a rank, say). again: None where nothing but Open MPI's mpiexec was left of a run that did not end.
    """
    mark = uuid.uuid4().hex
    vendor = OPEN_MPI if open_mpi() else ()
    program = program if bare else ("-m", "mpi4py", *program)
    command = [str(x) for x in (mpiexec(), *vendor, *launcher, "-n", n, sys.executable, *program)]
    path = os.pathsep.join(filter(None, (str(ROOT), str(SUPPORT), os.environ.get("PYTHONPATH"))))
    env = os.environ | QUIET | WHOLE | {"PYTHONPATH": path, MARK: mark} | (env or {})
    began = time.monotonic()
    # Files, not pipes: a process that outlives mpiexec would hold a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=cwd,
                                   start_new_session=True)
        try:
            if during:
                # Asked again: a process that is just about to become another program shows no environment.
                during(lambda: started(mark) or (time.sleep(0.2), started(mark))[1])
            code = process.wait(max(0.0, began + timeout - time.monotonic()))
            seconds = time.monotonic() - began
            while started(mark) and time.monotonic() < began + seconds + 2:
                time.sleep(0.02)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            left = killed(mark)
            process.wait()
        text = [(stream.seek(0), stream.read().decode(errors="replace"))[1] for stream in (out, err)]
    if code is None and again and left and all(Path(line.split(" ")[0]).name == "prterun" for line in left):
        return None
    if code is None:
        pytest.fail(f"no end after {timeout} s: {' '.join(command)}\nleft: {left}\n{text[0][-4000:]}\n{text[1][-4000:]}")
    return Ended(code, *text, seconds, left)
