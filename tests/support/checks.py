"""Run the checks of a program for ranks, `check_…` in `names`, so that one that fails hides none of those after it.

A rank whose check failed goes on with the next once all have ended this one. Where a rank waits for ever, since another one
failed in between, the job ends, and the failures so far are told.
"""

import contextlib
import importlib
import os
import sys
import time
import traceback

PATIENCE = 60.0  # seconds that a rank waits for the others after a check that failed on it


def run(names, wait, rank, which=()):
    """Call all checks, or `which`; exit with 1 where one has failed on this rank, else print "passed" on rank 0.

    wait(): whether all ranks have come to the same place; asked again and again.
    """
    failed = []
    for check in which or [name.removeprefix("check_") for name in names if name.startswith("check_")]:
        wrong = False
        try:
            names[f"check_{check}"]()
        except BaseException:
            wrong = True
            failed.append(check)
            print(f"rank {rank}, check {check}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        _meet(wait(), f"rank {rank} has failed in {check}; another one waits there for ever", wrong)
    if failed:
        sys.exit(f"rank {rank}: failed: {', '.join(failed)}")
    if rank == 0:
        print("passed", flush=True)


def chosen(words) -> dict:
    """The checks of modules, by "check_MODULE.NAME". words: MODULE or MODULE.CHECK, of the file MODULE_ranks.py here."""
    found = {}
    for word in words:
        module, _, only = word.partition(".")
        for name, check in vars(importlib.import_module(f"{module}_ranks")).items():
            if name.startswith("check_") and only in ("", name.removeprefix("check_")):
                found[f"check_{module}.{name.removeprefix('check_')}"] = check
    return found


def _meet(there, why, impatient):
    end = time.monotonic() + PATIENCE
    while not there():
        if impatient and time.monotonic() > end:
            print(why, file=sys.stderr, flush=True)
            with contextlib.suppress(Exception):
                from mpi4py import MPI
                MPI.COMM_WORLD.Abort(1) if MPI.Is_initialized() else None
            os._exit(1)
        time.sleep(0.001)


def mpi(comm):
    """`wait` for the ranks of `comm`."""
    comm = comm.Dup()
    return lambda: comm.Ibarrier().Test


def gloo(dist):
    """`wait` for the processes of torch's default group."""
    group = dist.new_group(backend="gloo")
    return lambda: dist.barrier(group, async_op=True).is_completed
