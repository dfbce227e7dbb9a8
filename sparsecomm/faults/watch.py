"""The guard thread of each rank: it monitors the rank before it; that of rank 0 collects the failures and waits of all ranks.

A rank sends a beat to the next one every second. A silent rank may be computing in a call that holds the GIL: where its
process can be seen, the rank is given up only when the process is stopped, gone, or idle for long.
"""

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from typing import NamedTuple

from hogwild.errors import UserError
from sparsecomm.faults.liveness import Watch, processes
from sparsecomm.wire import launch
from sparsecomm.wire.launch import FLUSH_SECONDS, FORCE_SECONDS, TIME_SCALE, say

PATIENCE = 20.0  # seconds without a beat after which a rank whose process is stopped or gone is given up …
HUNG = 600.0  # … and one that is idle, or on another host
LEAST = 5.0 * TIME_SCALE
BEAT_SECONDS, POLL_SECONDS = 1.0 * TIME_SCALE, 0.1 * TIME_SCALE
PAUSE_SECONDS = 5.0 * TIME_SCALE  # a guard that did not run for so long (a suspended job) restarts its count of silence
COLLECT_SECONDS = 1.0 * TIME_SCALE  # between the first failure and the report: ranks that fail alike then share one line
WAIT_SECONDS = 2.0 * TIME_SCALE  # a rank that has waited for others for so long reports it to rank 0
FAIL_SECONDS = 5.0 * TIME_SCALE  # after so long a failed rank ends the job itself, if rank 0 has not
MOST = 1 << 20  # bytes of a message between guards that are read
BEAT, BYE, FAIL, WAIT, DONE = range(5)  # tags
WHAT = {"stopped": "is stopped", "gone": "is gone", "idle": "is hung: it neither answers nor computes",
        "far": "is stopped, hung or gone"}


class Failure(NamedTuple):
    """Why a rank ends."""

    code: int  # exit status
    cause: str = ""  # one line, or nothing to say
    trace: str = ""  # of an error that is not the user's
    named: bool = False  # the cause says itself which rank it is about


class Call(NamedTuple):
    """A collective call of a group of ranks: the last one that a rank has ended, or the one that it is in."""

    count: int  # number of the call in its group, from 1, the same on all ranks; 0: none yet
    what: str  # "step 8"


NO_CALL = Call(0, "nothing")


def patience(text):
    """(seconds for a process that is stopped or gone, for another) from a number, or None. Raises UserError."""
    if text is None:
        return PATIENCE, HUNG
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= LEAST:
        raise UserError(f"a rank needs at least {LEAST:g} s to answer, got {text}")
    return seconds, seconds


class Guard:
    """Construction is collective over `comm`.

    tolerant: the guard does not end the job at the death of a rank, without which the program continues (see `shrink`).
    """

    def __init__(self, comm, tolerant=False):
        from mpi4py import MPI
        self.MPI, self.comm = MPI, comm.Dup()
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.before, self.after = (self.rank - 1) % self.size, (self.rank + 1) % self.size
        self.processes = processes(comm)
        own, before = self.processes[self.rank], self.processes[self.before]
        self.watch = Watch(before, bool(own.place) and own.place == before.place)
        self.members = frozenset(process.rank for process in self.processes)
        self.patience, self.hung = patience(os.environ.get("SPARSECOMM_PATIENCE"))
        self.tolerant, self.bereaved = tolerant, False
        self.failure, self.failures = None, {}  # of this rank; on rank 0, of all ranks that have reported one
        self.ended_calls, self.open_calls = {}, {}  # by group: the last Call that this rank has ended; (Call, since) it is in
        self.reported = {}  # by group: the count of the Call that this rank has reported to rank 0 as waiting
        self.waits, self.ended, self.warned = {}, {}, set()  # on rank 0: {(rank, group): (Call, since)}; {rank: ended_calls}
        self.sends, self.barrier, self.report_at = [], None, 0.0
        self.done = self.bye_sent = self.bye_received = self.over = False  # over: the thread may end
        self.wake, self.last_beat, self.last_look = threading.Event(), 0.0, 0.0
        self.last_run = time.monotonic()
        self.watch.answered(self.last_run)
        self.thread = threading.Thread(target=self._watch, name="guard", daemon=True)
        self.thread.start()

    def set_patience(self, seconds):
        """Seconds without an answer after which a rank that does not compute is given up, whatever its process does."""
        self.patience, self.hung = patience(seconds)

    def begin_call(self, group, what):
        """This rank begins a collective call of `group`, a text with the group's ranks in COMM_WORLD."""
        count = self.ended_calls[group].count + 1 if group in self.ended_calls else 1
        self.open_calls[group] = Call(count, what), time.monotonic()

    def end_call(self, group):
        """This rank has ended the call, or has failed in it."""
        self.ended_calls[group], _ = self.open_calls.pop(group)

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
        """Report the failure to rank 0, which prints it once for all ranks that fail alike. Does not return."""
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):
                signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        own = f"rank {self.processes[self.rank].rank}: "
        self.failure = failure._replace(cause=failure.cause.removeprefix(own))
        self.wake.set()
        time.sleep(FAIL_SECONDS)
        self._end(self._failure_lines({self.rank: self.failure}), failure.code)  # rank 0 cannot be reached

    def _watch(self):
        while not self.over:
            try:
                self._look(time.monotonic())
            except self.MPI.Exception:  # a rank is dead; its parent has reported that
                if not self.tolerant:
                    self._end("", 1)
                return
            except Exception as error:  # otherwise the rank would be unguarded without notice
                self._end(f"sparsecomm: rank {self.processes[self.rank].rank}: the guard fails: {error!r}\n", 1)
            self.wake.wait(POLL_SECONDS)
            self.wake.clear()

    def _look(self, now):
        if now - self.last_run > PAUSE_SECONDS:
            self.watch.answered(now)
        self.last_run = now
        self._receive(now)
        self.sends = [request for request in self.sends if not request.Test()]
        if self.failure and self.rank not in self.failures:
            self.failures[self.rank] = self.failure
            self._report(self.failure, FAIL)
        if now - self.last_beat > BEAT_SECONDS and not self.sends and not self.bye_sent:
            self.last_beat = now
            self._send(b"", self.after, BEAT)
        if not self.bye_received and now - self.watch.alive > 3 * BEAT_SECONDS and now - self.last_look > BEAT_SECONDS:
            self.last_look, state = now, self.watch.look(now)
            if now - self.watch.alive > (self.hung if state in ("idle", "far") else self.patience):
                self._give_up()
        if self.failures and not self.rank:
            self._report_failures(now)
        self._report_waits(now)
        if not self.rank:
            self._check_waits(now)
        if self.done:
            self._sign_off()

    def _receive(self, now):
        status = self.MPI.Status()
        while self.comm.Iprobe(self.MPI.ANY_SOURCE, self.MPI.ANY_TAG, status):
            source, tag, size = status.Get_source(), status.Get_tag(), status.Get_count(self.MPI.BYTE)
            raw = bytearray(max(size, 0))
            self.comm.Recv([raw, self.MPI.BYTE], source, tag)
            if tag in (BEAT, BYE) and source == self.before:
                self.watch.answered(now)
                self.bye_received = tag == BYE
            elif tag in (FAIL, WAIT, DONE):
                self._read_report(source, tag, raw, now)

    def _read_report(self, source, tag, raw, now):
        """Decode a rank's report to rank 0; one that cannot be decoded is printed, and the guard continues."""
        try:
            told = json.loads(raw[:MOST])
            if tag == FAIL:
                code, cause, trace, named = told
                self.failures[source] = Failure(int(code), str(cause), str(trace), bool(named))
            elif tag == WAIT:
                group, count, what = told
                self.waits.pop((source, str(group)), None)
                if what:
                    self.waits[source, str(group)] = Call(int(count), str(what)), now
            else:
                self.ended[source] = {str(group): Call(int(count), str(what)) for group, (count, what) in told.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            say(f"sparsecomm: rank {self.processes[source].rank} sent its guard a message that cannot be read ({error})\n")

    def _send(self, raw, to, tag):
        self.sends.append(self.comm.Isend([raw, self.MPI.BYTE], to, tag))

    def _report(self, what, tag):
        """Send a report to rank 0."""
        raw = json.dumps(what).encode()
        if self.rank:
            self._send(raw, 0, tag)
        elif tag != FAIL:
            self._read_report(0, tag, raw, time.monotonic())

    def _report_waits(self, now):
        """Report to rank 0 the call that this rank has waited in for long, and the end of that wait."""
        for group, (call, since) in list(self.open_calls.items()):
            if now - since > WAIT_SECONDS and self.reported.get(group) != call.count:
                self.reported[group] = call.count
                self._report([group, *call], WAIT)
        for group in [group for group in self.reported if group not in self.open_calls]:
            del self.reported[group]
            self._report([group, 0, ""], WAIT)

    def _check_waits(self, now):
        """End the job where a rank waits for a rank that has ended; print a line where it waits for long."""
        for (rank, group), (call, since) in list(self.waits.items()):
            name, ranks = self.processes[rank].rank, set(map(int, group.split()))
            missing = {process.rank: r for r, process in enumerate(self.processes) if process.rank in ranks
                       and self.waits.get((r, group), (NO_CALL, 0))[0].count < call.count}
            for late, r in missing.items():
                last = self.ended[r].get(group, NO_CALL) if r in self.ended else call
                if last.count < call.count:
                    self._end(f"sparsecomm: rank {late} has ended, but rank {name} waits for it in {call.what}; the last "
                              f"that rank {late} took part in is {last.what}: all ranks must make equally many steps, or "
                              "make them within optimizer.join()\n", 2)
            if missing and now - since > self.patience - WAIT_SECONDS and (group, call.count) not in self.warned:
                self.warned.add((group, call.count))
                say(f"sparsecomm: rank {name} has waited {now - since + WAIT_SECONDS:.0f} s in {call.what} for rank "
                    f"{', '.join(map(str, missing))}, and goes on waiting\n")

    def _report_failures(self, now):
        self.report_at = self.report_at or now + COLLECT_SECONDS
        if now >= self.report_at or len(self.failures) == self.size:
            self._end(self._failure_lines(self.failures), self.failures[min(self.failures)].code)

    def _sign_off(self):
        """Send the last message once all ranks are done; end the thread once the rank before has sent its own."""
        if self.barrier is None:
            self.barrier = self.comm.Ibarrier()
            self._report(self.ended_calls, DONE)
        if not self.bye_sent and self.barrier.Test():
            self.bye_sent = True
            self._send(b"", self.after, BYE)
        self.over = self.bye_sent and self.bye_received and not self.sends

    def _give_up(self):
        """End the job, or where it is tolerant the process, of the rank before this one, which has not answered."""
        rank, pid, host, _ = self.watch.process
        seconds = self.hung if self.watch.state in ("idle", "far") else self.patience
        what = f"rank {rank} has not answered for {seconds:g} s (process {pid} on {host} {WHAT[self.watch.state]})"
        if not (self.tolerant and self.watch.near):
            self._end(f"sparsecomm: {what}: ending the job\n", 1)
        say(f"sparsecomm: {what}: ending it\n")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.watch.answered(time.monotonic())

    def _failure_lines(self, failures) -> str:
        """A line for each cause, which names its ranks unless all have it; after it the traceback, if there is one."""
        alike = {}
        for rank in sorted(failures):
            alike.setdefault(failures[rank][:2], []).append(rank)
        text = ""
        for (_, cause), ranks in alike.items():
            names = [str(self.processes[rank].rank) for rank in ranks]
            whole = len(ranks) == self.size or failures[ranks[0]].named
            who = "" if whole else f"rank{'s' * (len(ranks) > 1)} {', '.join(names)}: "
            text += (f"sparsecomm: {who}{cause}\n" if cause else "") + failures[ranks[0]].trace
        return text

    def _end(self, text, code):
        """Print `text` and end the job without regard to other threads. Does not return."""
        launch.goodbye()
        force = threading.Timer(FORCE_SECONDS, os._exit, (code,))
        force.daemon = True
        force.start()
        say(text)
        time.sleep(FLUSH_SECONDS)
        self.MPI.COMM_WORLD.Abort(code)
        time.sleep(FORCE_SECONDS + 1)
