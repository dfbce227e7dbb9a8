"""What can be seen of another process, which may be too busy to answer: a call that keeps Python's lock is no death."""

import json
import os
import socket
from contextlib import suppress
from typing import NamedTuple

BUSY = 0.2  # share of a core that tells computing from waiting: a thread that waits for Python's lock takes a hundredth
LINE = 512  # bytes of a Process


class Process(NamedTuple):
    """Where a rank lives."""

    rank: int  # in COMM_WORLD
    pid: int
    host: str
    place: str  # the kernel and the process namespace in which `pid` is a process's number


class Sight(NamedTuple):
    """A look at a process."""

    state: str  # R, S, D, T …: proc(5)
    cpu: float  # seconds that it has computed


def processes(comm) -> list[Process]:
    """The process of every rank. Collective."""
    from mpi4py import MPI
    place = ""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as kernel:
        place = kernel.read().strip() + os.readlink("/proc/self/ns/pid")
    own = json.dumps(Process(MPI.COMM_WORLD.rank, os.getpid(), socket.gethostname()[:100], place)).encode().ljust(LINE)
    all_ranks = bytearray(LINE * comm.Get_size())
    comm.Allgather([own, MPI.BYTE], [all_ranks, MPI.BYTE])
    return [Process(*json.loads(all_ranks[at:at + LINE])) for at in range(0, len(all_ranks), LINE)]


def look(pid) -> Sight | None:
    """None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return Sight(fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))


class Watch:
    """What a rank that does not answer is at."""

    def __init__(self, process, near):
        self.process, self.near = process, near  # near: its number is a process's here too
        self.answered(0.0)

    def answered(self, now):
        """It has answered at `now`."""
        self.alive, self.looked, self.cpu, self.state = now, now, None, ""

    def look(self, now) -> str:
        """stopped, gone, idle, far (on another host); or busy: it computes, and so is alive."""
        sight = look(self.process.pid) if self.near else None
        if sight is None or sight.state in "ZXT":
            self.state = "far" if not self.near else "stopped" if sight and sight.state == "T" else "gone"
            return self.state
        last, since = self.cpu, max(now - self.looked, 1e-3)
        self.cpu, self.looked = sight.cpu, now
        # On a crowded machine a process that wants to compute (R) may hardly come to it.
        self.state = "busy" if sight.state == "R" or last is None or sight.cpu - last >= BUSY * since else "idle"
        if self.state == "busy":
            self.alive = now
        return self.state
