"""The state of another process, from /proc: a rank that does not answer may be computing in a call that holds the GIL."""

import json
import os
import socket
from contextlib import suppress
from typing import NamedTuple

BUSY = 0.2  # share of a core above which a process computes: a thread that waits for the GIL uses a hundredth
LINE = 512  # bytes of a Process


class Process(NamedTuple):
    """The process of a rank."""

    rank: int  # in COMM_WORLD
    pid: int
    host: str
    place: str  # the kernel and the process namespace in which `pid` is a process's number


class Sight(NamedTuple):
    """One reading of /proc/PID/stat."""

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
    """A Sight of process `pid`; None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except OSError:
        return None
    return Sight(fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))


class Watch:
    """Monitors the process of a rank. near: /proc shows it, under its number."""

    def __init__(self, process, near):
        self.process, self.near = process, near
        self.answered(0.0)

    def answered(self, now):
        """The rank has answered at `now` (seconds, monotonic)."""
        self.alive, self.looked, self.cpu, self.state = now, now, None, ""

    def look(self, now) -> str:
        """State: stopped, gone, idle, far (on another host), or busy: it computes, which counts as an answer."""
        sight = look(self.process.pid) if self.near else None
        if sight is None or sight.state in "ZXT":
            self.state = "far" if not self.near else "stopped" if sight and sight.state == "T" else "gone"
            return self.state
        last, since = self.cpu, max(now - self.looked, 1e-3)
        self.cpu, self.looked = sight.cpu, now
        # On an overloaded machine a runnable process (R) may use little processor time.
        self.state = "busy" if sight.state == "R" or last is None or sight.cpu - last >= BUSY * since else "idle"
        if self.state == "busy":
            self.alive = now
        return self.state
