"""What every command runs in: one line for each cause of failure, the end of all ranks, and nothing left behind.

Under mpiexec a rank is two processes: one that trains, and its parent, which only waits, and tells when the other one was
killed (see `launch`). In the first, a thread sends a beat to the next rank every second; each watches the one before it.

    sparsecomm.guard.run(main)                        # as a command does
    mpiexec -n 4 python -m sparsecomm.guard script.py # around a script of one's own
"""

import contextlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from typing import NamedTuple

from hogwild.errors import Terminated, UserError
from sparsecomm import launch
from sparsecomm.launch import FLUSH_SECONDS, say

PATIENCE = 20.0  # seconds without a beat after which a rank is given up
BEAT_SECONDS, POLL_SECONDS = 1.0, 0.1
PAUSE_SECONDS = 5.0  # a watcher that did not run for so long itself, as in a suspended job, starts its count anew
SETTLE_SECONDS = 1.0  # ranks that fail alike do so within this; one line then names them all
FORCE_SECONDS = 5.0  # an abort that has no effect within this becomes an exit
BEAT, BYE, FAIL = 0, 1, 2  # tags

active = None  # the Guard of this process


class Failure(NamedTuple):
    """Why a rank ends."""

    code: int  # exit status
    cause: str = ""  # one line, or nothing to say
    trace: str = ""  # of an error that is not the user's


class Process(NamedTuple):
    """Where a rank lives."""

    rank: int  # in COMM_WORLD
    pid: int
    host: str
    place: str  # the kernel and the process namespace in which `pid` is a process's number


def run(main):
    """Call `main()` and end the process with its exit code; under mpiexec all ranks end when one fails.

    0; 2 for a UserError, its line printed once where all ranks raise it alike; 130 or 143 for Ctrl-C and SIGTERM; 1 for any
    other exception, with its traceback. Returns where `main` does and there is nothing to tell.
    """
    global active
    if launch.size() > 1 and "mpi4py.MPI" not in sys.modules and sys.platform == "linux":
        launch.supervise()
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _terminate)
    failure = _outcome(_start)
    if failure and active is None:
        _quit(failure, silent=launch.rank() > 0)
    failure = failure or _outcome(main) or (active and _outcome(active.finish))
    if failure and active:
        active.fail(failure)
    if failure:
        _quit(failure)
    if active and active.bereaved:
        sys.stdout.flush()
        os._exit(0)  # Open MPI 5.0.11's Finalize may wait for ever once two ranks have died at the same moment


def patience(seconds):
    """Give a rank up after `seconds` without an answer. The same on all ranks. Raises UserError below 5 s."""
    if not seconds >= 5 * BEAT_SECONDS:
        raise UserError(f"a rank needs at least {5 * BEAT_SECONDS:g} s to answer, got {seconds:g}")
    if active:
        active.patience = seconds


def restart(comm):
    """Watch over the ranks of `comm` in place of those so far, of which some are dead. Collective over `comm`."""
    global active
    if active:
        active.abandon()
        active = Guard(comm, active.patience, active.tolerant)
        active.bereaved = True


class Guard:
    """A rank's thread that watches the rank before it and, on rank 0, hears why others fail. Construction is collective.

    tolerant: the death of a rank is none of the guard's business: the program goes on without it (see `shrink`).
    """

    def __init__(self, comm, patience=PATIENCE, tolerant=False):
        from mpi4py import MPI
        self.MPI, self.comm = MPI, comm.Dup()
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.before, self.after = (self.rank - 1) % self.size, (self.rank + 1) % self.size
        self.processes = _processes(comm)
        self.patience, self.tolerant, self.bereaved = patience, tolerant, False
        self.failure, self.failures = None, {}  # of this rank; on rank 0, of all that have told
        self.sends, self.barrier, self.settled = [], None, 0.0
        self.done = self.left = self.gone = self.over = False  # done; said goodbye; heard goodbye; the thread may end
        self.wake, self.beaten = threading.Event(), 0.0
        self.heard = self.looked = time.monotonic()
        self.thread = threading.Thread(target=self._watch, name="guard", daemon=True)
        self.thread.start()

    def finish(self):
        """Wait until all ranks are done; they are watched until then. Collective."""
        self.done = True
        self.wake.set()
        self.thread.join()

    def abandon(self):
        """End the thread now, after the death of a rank."""
        self.over = True
        self.wake.set()
        self.thread.join()

    def fail(self, failure):
        """Tell rank 0 why this rank fails; rank 0 tells the user, once for all that fail alike. Does not return."""
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):
                signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        own = f"rank {self.processes[self.rank].rank}: "
        self.failure = failure._replace(cause=failure.cause.removeprefix(own))
        self.wake.set()
        time.sleep(SETTLE_SECONDS + 4)
        self._end(self._said({self.rank: self.failure}), failure.code)  # rank 0 cannot be reached

    def _watch(self):
        while not self.over:
            try:
                self._look(time.monotonic())
            except self.MPI.Exception:  # a rank is dead; its parent has told
                if not self.tolerant:
                    self._end("", 1)
                return
            self.wake.wait(POLL_SECONDS)
            self.wake.clear()

    def _look(self, now):
        if now - self.looked > PAUSE_SECONDS:
            self.heard = now
        self.looked = now
        self._receive()
        self.sends = [request for request in self.sends if not request.Test()]
        if self.failure and self.rank not in self.failures:
            self.failures[self.rank] = self.failure
            if self.rank:
                self._send(json.dumps(self.failure).encode(), 0, FAIL)
        if now - self.beaten > BEAT_SECONDS and not self.sends and not self.left:
            self.beaten = now
            self._send(b"", self.after, BEAT)
        if now - self.heard > self.patience and not self.gone:
            self._silent()
        if self.failures and not self.rank:
            self._settle(now)
        if self.done:
            self._leave()

    def _receive(self):
        status = self.MPI.Status()
        while self.comm.Iprobe(self.MPI.ANY_SOURCE, self.MPI.ANY_TAG, status):
            source, tag = status.Get_source(), status.Get_tag()
            raw = bytearray(status.Get_count(self.MPI.BYTE))
            self.comm.Recv([raw, self.MPI.BYTE], source, tag)
            if tag == FAIL:
                self.failures[source] = Failure(*json.loads(raw))
            else:
                self.heard, self.gone = time.monotonic(), tag == BYE

    def _send(self, raw, to, tag):
        self.sends.append(self.comm.Isend([raw, self.MPI.BYTE], to, tag))

    def _settle(self, now):
        self.settled = self.settled or now + SETTLE_SECONDS
        if now >= self.settled or len(self.failures) == self.size:
            self._end(self._said(self.failures), self.failures[min(self.failures)].code)

    def _leave(self):
        """Say goodbye once all ranks are done, and end once the rank before has said it."""
        self.barrier = self.barrier or self.comm.Ibarrier()
        if not self.left and self.barrier.Test():
            self.left = True
            self._send(b"", self.after, BYE)
        self.over = self.left and self.gone and not self.sends

    def _silent(self):
        """The rank before this one has not answered."""
        rank, pid, host, place = self.processes[self.before]
        here = self.tolerant and place and place == self.processes[self.rank].place
        what = f"rank {rank} has not answered for {self.patience:g} s (process {pid} on {host} is stopped, hung or gone)"
        if not here:
            self._end(f"sparsecomm: {what}: ending the job\n", 1)
        say(f"sparsecomm: {what}: ending it\n")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.heard = time.monotonic()

    def _said(self, failures) -> str:
        """A line for each cause, which names its ranks unless all have it; after it the traceback, if there is one."""
        alike = {}
        for rank in sorted(failures):
            alike.setdefault(failures[rank][:2], []).append(rank)
        text = ""
        for (_, cause), ranks in alike.items():
            names = [str(self.processes[rank].rank) for rank in ranks]
            who = "" if len(ranks) == self.size else f"rank{'s' * (len(ranks) > 1)} {', '.join(names)}: "
            text += (f"sparsecomm: {who}{cause}\n" if cause else "") + failures[ranks[0]].trace
        return text

    def _end(self, text, code):
        """Write `text` and end the job, whatever the other threads are at. Does not return."""
        force = threading.Timer(FORCE_SECONDS, os._exit, (code,))
        force.daemon = True
        force.start()
        say(text)
        time.sleep(FLUSH_SECONDS)
        self.MPI.COMM_WORLD.Abort(code)
        time.sleep(FORCE_SECONDS + 1)


def _start():
    """The guard of this process, where it is one of several ranks."""
    global active
    if launch.size() > 1:
        comm = launch.world()
        launch.limit_threads(comm)
        from mpi4py import MPI
        if MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            active = Guard(comm)
        else:
            raise UserError("this MPI cannot be called from several threads (MPI_THREAD_MULTIPLE), which the watch over the "
                            "ranks needs; use the one of hogwild-sparsecomm[mpich]")


def _terminate(number, frame):
    raise Terminated


def _outcome(function) -> Failure | None:
    """Call `function()`; how it failed, if it did."""
    try:
        function()
    except UserError as error:
        return Failure(2, _line(error))
    except MemoryError as error:
        return Failure(2, _line(f"not enough memory: {error}"))
    except KeyboardInterrupt as stop:
        return Failure(143, "terminated") if isinstance(stop, Terminated) else Failure(130, "interrupted")
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        return Failure(1)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return Failure(code, _line(stop.code) if isinstance(stop.code, str) else "") if code else None
    except BaseException as error:
        return Failure(1, _line(f"{type(error).__name__}: {error}"),
                       "".join(traceback.format_exception(error.with_traceback(error.__traceback__.tb_next)))[-8000:])
    return None


def _line(message) -> str:
    return " ".join(str(message).split("\n"))[:4000]


def _quit(failure, silent=False):
    """End this process, which stands alone."""
    if not silent:
        say((f"sparsecomm: {failure.cause}\n" if failure.cause else "") + failure.trace)
    sys.exit(failure.code)


def _processes(comm) -> list[Process]:
    """The process of every rank. Collective."""
    from mpi4py import MPI
    place = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as kernel:
        place = kernel.read().strip() + os.readlink("/proc/self/ns/pid")
    own = json.dumps(Process(MPI.COMM_WORLD.rank, os.getpid(), socket.gethostname()[:100], place)).encode().ljust(512)
    all_ranks = bytearray(512 * comm.Get_size())
    comm.Allgather([own, MPI.BYTE], [all_ranks, MPI.BYTE])
    return [Process(*json.loads(all_ranks[at:at + 512])) for at in range(0, len(all_ranks), 512)]


def _script():
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    from sparsecomm import guard  # this file is imported under its own name too: `active` must be that one's
    if len(sys.argv) < 2:
        sys.exit("usage: mpiexec -n N python -m sparsecomm.guard SCRIPT [ARGUMENT …]")
    guard.run(_script)
