"""Shared memory of ranks: its names in /dev/shm are removed once all ranks have mapped it, or after a rank's early death."""

import contextlib
import os
import signal
import time
from pathlib import Path

SEGMENTS = ("mpich_shm_", "sm_segment.", "ucx_shm_")  # MPICH's, Open MPI's, UCX's
FOLDER = "/dev/shm"
OLD_SECONDS = 60.0  # a job that starts beside this one, where its processes cannot be seen, has its names for less
LOOK_SECONDS, LAST_SECONDS = 0.1, 5.0  # of the cleaner: between two sweeps, and in all


def unlink_mapped():
    """Remove the names of what this process has mapped; all ranks of this host must have mapped it too."""
    for path in _mapped("self"):
        _remove(path)


def sweep(since=0.0, until=None):
    """Remove names that a dead job of this user left between two times; whether there are none in use left either.

    A name that a living process has open or mapped stays.
    """
    found = {}
    for path in Path(FOLDER).glob("*"):
        with contextlib.suppress(OSError):
            facts = path.lstat()
            if path.name.startswith(SEGMENTS) and facts.st_uid == os.geteuid() and facts.st_mtime >= since \
                    and (until is None or facts.st_mtime <= until):
                found[str(path)] = facts.st_ino
    used = set().union(*map(_used, Path("/proc").glob("[0-9]*"))) if found else set()
    for path, inode in found.items():
        if path not in used:
            with contextlib.suppress(OSError):
                if os.lstat(path).st_ino == inode:
                    os.unlink(path)
    return not used & set(found)


def sweep_old():
    """Remove the names of jobs of this user that were killed before `unlink_mapped`."""
    sweep(until=time.time() - OLD_SECONDS)


def fork_cleaner() -> int:
    """Fork a process that cleans up if this one dies; the file descriptor to which any byte ends the fork.

    MPI_Init makes names that only `unlink_mapped` removes. A launcher kills all processes of the job when one dies: the
    cleaner must be outside the job. Call it before anything has started threads.
    """
    began, (read, write) = time.time() - 1, os.pipe()
    middle = os.fork()
    if middle:
        os.close(read)
        os.waitpid(middle, 0)
        return write
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.dup2(read, 0)
        os.closerange(1, 1 << 16)  # the launcher's pipes too: it waits until nobody can write to them
        if not os.read(0, 1):
            _clean(began)
    finally:
        os._exit(0)


def _clean(began):
    """Sweep until the other ranks are dead too."""
    end = time.monotonic() + LAST_SECONDS
    while not sweep(began) and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)


def _used(process) -> set[str]:
    """The names that a process has open or mapped. First the open ones: between the two looks it may map and close one."""
    paths = set()
    with contextlib.suppress(OSError):
        for link in os.scandir(process / "fd"):
            with contextlib.suppress(OSError):
                paths.add(os.readlink(link.path))
    return paths | set(_mapped(process.name))


def _mapped(process) -> set[str]:
    with contextlib.suppress(OSError), open(f"/proc/{process}/maps", errors="replace") as maps:
        names = {line.rstrip("\n").split(None, 5)[-1] for line in maps if FOLDER in line}
        return {path for path in names if path.startswith(tuple(f"{FOLDER}/{name}" for name in SEGMENTS))
                and not path.endswith(" (deleted)")}
    return set()


def _remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
