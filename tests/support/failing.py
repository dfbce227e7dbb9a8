"""A program for ranks of which one, or all, fail: `failing.py HOW WHO FOLDER [PATIENCE] [install]`; WHO is a rank, or all.

install: it is not started by the guard, but installs it, as DistributedOptimizer does.

Each rank leaves in FOLDER a file of its number with its process id and the files in /dev/shm that it uses.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

from hogwild.errors import UserError
from sparsecomm import guard
from sparsecomm.wire.launch import TIME_SCALE

PATIENCE = 5.0 * TIME_SCALE
SECONDS = 1.3 * PATIENCE  # of work that is no silence


def world():
    from mpi4py import MPI  # not before one rank has failed `early`
    return MPI.COMM_WORLD


def guarded():
    return guard.active or guard.others or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL


def busy():
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        pass


def fail(how):
    if how == "user":
        raise UserError("no such file: x.svm")
    if how == "own":
        raise UserError(f"rank {world().rank}: no gradient for w")
    if how == "bug":
        [].pop()
    if how == "exit":
        sys.exit(7)
    if how == "words":
        sys.exit("that is all")
    if how == "memory":
        raise MemoryError("8 GiB\nfor w")
    if how == "deaf":  # the last rank fails while rank 0 hears nothing
        fail("user" if world().rank else "hang")
    if how == "hang":  # with Python's lock held: no thread runs
        ctypes.PyDLL(None).sleep(1000)
    if how == "busy":
        busy()
    if how == "lock":  # as a large pickle or a regular expression: it computes with Python's lock held
        start = time.perf_counter()
        sum(range(10**7))
        sum(range(int(10**7 * 1.2 * SECONDS / (time.perf_counter() - start))))
    if how == "library":
        os._exit(3)
    if how == "quiet":
        os._exit(0)
    if how == "leave":
        sys.exit(0)
    if how == "junk":
        for tag in range(7):
            for raw in (b"", b"\xff{", b"[1]", b"[[1]]", b"{}", b'{"a": 1}', b"7", b"[" * 9999):
                guard.active.comm.Send([raw, "B"], 0, tag)
    if how == "pool":
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(abs, range(-3, 3)) == [3, 2, 1, 0, 1, 2]
            assert not pool.apply(guarded)
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))


def main():
    how, who, folder, *rest = sys.argv[1:]
    if how == "early" and os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == who:
        raise UserError("no such file: x.svm")
    comm = world()
    if "install" in rest:
        rest.remove("install")
        guard.install(comm)
    if guard.active:
        guard.patience(float(rest[0]) if rest else PATIENCE)
    maps = {line.split(None, 5)[-1].strip() for line in open("/proc/self/maps") if "/dev/shm/" in line}
    part = Path(folder) / f"part{comm.rank}"
    part.write_text("\n".join([str(os.getpid()), *maps]))
    part.rename(Path(folder) / str(comm.rank))
    with guard.together(range(comm.size), "step 7"):
        comm.Barrier()
    chosen = who in ("all", str(comm.rank))
    if chosen or (how == "deaf" and comm.rank == 0):
        fail(how)
    with guard.together(range(comm.size), "step 8"):
        comm.Barrier()
    if how == "late" and chosen:
        busy()
    print("end", flush=True)


main()
