"""A program for ranks of which one, or all, fail: `failing.py HOW WHO FOLDER [PATIENCE]`; WHO is a rank, or all.

Each rank leaves in FOLDER a file of its number with its process id and the files in /dev/shm that it uses.
"""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from mpi4py import MPI

from hogwild.errors import UserError
from sparsecomm import guard

SECONDS = 6.5  # longer than the patience of the tests


def busy():
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        pass


def fail(how):
    if how == "user":
        raise UserError("no such file: x.svm")
    if how == "own":
        raise UserError(f"rank {MPI.COMM_WORLD.rank}: no gradient for w")
    if how == "bug":
        [].pop()
    if how == "exit":
        sys.exit(7)
    if how == "words":
        sys.exit("that is all")
    if how == "memory":
        raise MemoryError("8 GiB\nfor w")
    if how == "deaf":  # the last rank fails while rank 0 hears nothing
        fail("user" if MPI.COMM_WORLD.rank else "hang")
    if how == "hang":  # with Python's lock held: no thread runs
        ctypes.PyDLL(None).sleep(1000)
    if how == "busy":
        busy()
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))


def main():
    how, who, folder, *rest = sys.argv[1:]
    comm = MPI.COMM_WORLD
    if guard.active:
        guard.patience(float(rest[0]) if rest else 5.0)
    maps = {line.split(None, 5)[-1].strip() for line in open("/proc/self/maps") if "/dev/shm/" in line}
    part = Path(folder) / f"part{comm.rank}"
    part.write_text("\n".join([str(os.getpid()), *maps]))
    part.rename(Path(folder) / str(comm.rank))
    comm.Barrier()
    chosen = who in ("all", str(comm.rank))
    if chosen or (how == "deaf" and comm.rank == 0):
        fail(how)
    comm.Barrier()
    if how == "late" and chosen:
        busy()
    print("end", flush=True)


main()
