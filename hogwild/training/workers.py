"""Lock-free workers: threads, of which the caller's is one, that run a problem's nogil kernel on chunk after chunk."""

import math
import os
import queue
import threading
import time
import weakref
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.optim.steps import aligned
from hogwild.kernels.sharing.work_queue import NEXT, STOP, WORKERS
from hogwild.training.signals import Flag, Postponed

CHUNK_SECONDS = 0.02  # a kernel call is bounded, so that stop flags and progress are seen within it
WATCH_SECONDS = 0.05  # between two looks at how far all are
TALLIES = 8  # float64 a worker: one cache line each: loss, examples, non-zeros (or what the work is counted in), …
BAD = 3  # … and an example whose loss was not finite, its number + 1


def cores() -> int:
    """Cores this process may use (its affinity, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Order(NamedTuple):
    """What all workers are to do."""

    rule: tuple
    schedule: tuple
    examples: np.ndarray


class Helper:
    """A thread that works on each order of its Workers, to which it refers weakly: their end ends it."""

    def __init__(self, team, k):
        self.k, self.calls = k, queue.SimpleQueue()
        args = self.calls, team.rested, weakref.ref(team), k
        self.thread = threading.Thread(target=_serve, args=args, name=f"worker {k}", daemon=True)
        _start(self.thread)


def _serve(calls, rested, team, k):
    while calls.get():
        if workers := team():
            workers.work(k)
        del workers
        rested.release()


def _dismiss(helpers):
    for helper in helpers:
        helper.calls.put(False)


def _start(thread):
    try:
        thread.start()
    except RuntimeError as error:
        raise UserError(f"{thread.name} cannot be started ({error}): use fewer workers, or allow this process more threads "
                        "(ulimit -u)") from None


class Workers:
    """Runs chunks of examples in `count` threads; `tally[count, TALLIES]` float64 adds up what each has done.

    Each takes the next chunk from a queue when it has done one, so that a worker that the system let start late, or on a
    slower core, keeps none of the others waiting, and does so in the kernel (kernels/sharing/work_queue.py): a thread
    that asks for Python's lock waits for 50 to 100 µs for it, and 16 of them for each other. Worker 0 is the caller: a
    thread more than cores that only waits has the system put one worker behind another for milliseconds, which is as long
    as a short epoch takes. A problem that says `lockstep` has its workers call the kernel together: worker k on every
    count-th example of a chunk from its k-th, or, where it says `whole`, each on all of it.
    """

    def __init__(self, problem, count: int):
        self.problem, self.count = problem, count
        self.own = [problem.private(k) for k in range(count)]
        self.tally = aligned((count, TALLIES), np.float64)
        self.chunk = [512] * count  # examples of a call
        self.queue = aligned((16,), np.int64)
        self.queue[WORKERS] = count
        self.stop, self.failure = Flag(self.queue, STOP), None
        self.halt = Flag(np.zeros(1, np.int64) if problem.halt is None else problem.halt, 0)
        self.signals = Postponed(self.stop)
        self.look = 0.0  # when `watch` is next to be called
        self.helpers, self.order, self.rested, self.busy = [], None, threading.Semaphore(0), 0
        weakref.finalize(self, _dismiss, self.helpers).atexit = False

    @property
    def done(self) -> int:
        """Examples that were taken; all of them are done when `run` returns."""
        return int(self.queue[NEXT])

    def compile(self, rule, schedule, t):
        """Call the kernel, on no examples and into a tally that nobody reads, and start the threads; t: steps done before."""
        self._hire()
        none, tally = np.zeros(0, self.problem.numbers), np.zeros(TALLIES)
        self.problem.begin(t)
        if self.problem.lockstep:
            self.problem.run(rule, schedule, self.own[0], none, t, self.count, tally)
        else:
            self.problem.work(rule, schedule, self.own[0], none, t, np.zeros_like(self.queue), 1, True, tally)
        self.problem.end()

    def run(self, rule, schedule, order, t, watch=lambda: None):
        """Work through `order`, whose example i is step t + i; `watch` is called every WATCH_SECONDS, and true ends the run.

        t: steps done before. Afterwards the first `done` examples are done. An exception in a worker stops all and is
        raised here; so is KeyboardInterrupt, within `signals`. No worker changes anything more when this returns or raises.
        """
        self.stop.clear()
        self.halt.clear()
        self.failure, self.watch = None, watch
        self.reset()
        self.begun = t
        self.order = Order(rule, schedule, np.ascontiguousarray(order))
        self.problem.begin(t)
        self.together = threading.Barrier(self.count, self._agree) if self.problem.lockstep else None
        self.signals.held = True
        try:
            self._all()
            self.together = None
            self.problem.end()
        finally:
            self.signals.let_go()
        if self.failure:
            raise self.failure

    def reset(self):
        """Of the next order, nothing is done yet."""
        self.queue[NEXT] = 0

    def _hire(self):
        while len(self.helpers) < self.count - 1:
            self.helpers.append(Helper(self, len(self.helpers) + 1))

    def _all(self):
        try:
            self._hire()
        except BaseException as error:  # a thread that could not be started
            self.give_up(error)
        for helper in self.helpers:
            helper.calls.put(True)
            self.busy += 1
        self.work(0)
        self._look()
        while self.busy:
            if self.rested.acquire(timeout=WATCH_SECONDS):
                self.busy -= 1
                continue
            self._look()
            for helper in self.helpers:
                if not helper.thread.is_alive():  # of a fork, or one that was ended from outside
                    raise self.failure or RuntimeError(f"the thread of worker {helper.k} has ended before its work")

    def _look(self):
        """Ask whether to go on, every WATCH_SECONDS."""
        if time.monotonic() >= self.look:
            self.look = time.monotonic() + WATCH_SECONDS
            try:
                if self.watch():
                    self.stop.set()
            except BaseException as error:  # first all end their chunks, and bring them together
                self._fail(error)

    def _fail(self, error):
        """Stop all, when they have done what they have begun."""
        self.failure = self.failure or error
        self.stop.set()

    def give_up(self, error):
        """Stop all, after a failure of a worker that others may wait for: for its turn, for what it has locked."""
        self._fail(error)
        self.halt.set()
        if self.together is not None:
            self.together.abort()

    def work(self, k):
        """What worker k does of the order."""
        try:
            if self.together is None:
                self._by_itself(k)
            else:
                self._in_step(k)
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:  # a thread has no caller to raise to
            self.give_up(error)

    def _by_itself(self, k):
        """Chunks from the queue until it is empty, or until others do better without this worker."""
        own, tally, first, over, (rule, schedule, examples) = self.own[k], self.tally[k], True, False, self.order
        while not over:
            if k and not self.problem.pays():
                return self.problem.leave(rule, schedule, own)
            done, begun = tally[1], time.perf_counter()
            over = self.problem.work(rule, schedule, own, examples, self.begun, self.queue, self.chunk[k], first, tally)
            if not over:
                self._called(k, tally[1] - done, begun)
            first = False

    def _in_step(self, k):
        """Every count-th example of chunks that all agree on, or all of them."""
        (rule, schedule, examples), t = self.order, self.begun
        first, stride = (0, 1) if self.problem.whole else (k, self.count)
        while bounds := self._next():
            start, stop = bounds
            part, begun = np.ascontiguousarray(examples[start + first:stop:stride]), time.perf_counter()
            self.problem.run(rule, schedule, self.own[k], part, t + start + first, stride, self.tally[k])
            self._called(k, len(part), begun)
        self.problem.leave(rule, schedule, self.own[k])

    def _next(self):
        self.together.wait()
        return self.agreed

    def _agree(self):
        """One decision for all, on whether to stop and what to do next."""
        n, start = len(self.order.examples), self.done
        wanted = min(self.chunk) * (1 if self.problem.whole else self.count)
        self.agreed = None
        if start < n and not self.stop.is_set():
            self.queue[NEXT] = self.problem.call_end(self.order.examples, min(start + wanted, n))
            self.agreed = start, self.done

    def _called(self, k, done, begun):
        """After a call of the kernel for `done` examples: the next is to take CHUNK_SECONDS."""
        if self.tally[k, BAD]:
            self.stop.set()
        if done:
            speed = CHUNK_SECONDS / max(time.perf_counter() - begun, 1e-6)
            # Rounded up: after a last chunk of 1, where a call takes half of it whatever it does, 1 would follow for ever.
            self.chunk[k] = min(math.ceil(done * min(speed, 8.0)), 1 << 20)
        if k == 0:
            self._look()


def spread(function, n: int, count: int, step=None):
    """Run `function(start, stop)` over [0, n) in `count` threads, for kernels that only read what is shared.

    step: the most that a call gets; None: a thread's whole part. What a call raises is raised here; after that, or Ctrl-C,
    the threads begin no further call.
    """
    bounds, over, errors = np.linspace(0, n, count + 1).astype(np.int64), threading.Event(), []

    def part(first, last):
        for start in range(first, last, step or max(last - first, 1)):
            if not over.is_set():
                function(start, min(start + (step or last), last))

    def helped(first, last):
        try:
            part(first, last)
        except BaseException as error:  # a thread has no caller to raise to
            errors.append(error)
            over.set()
    threads = [threading.Thread(target=helped, args=(bounds[k], bounds[k + 1])) for k in range(1, count)]
    try:
        for thread in threads:
            _start(thread)
        part(bounds[0], bounds[1])
        for thread in threads:
            thread.join()
    except BaseException:
        over.set()
        raise
    if errors:
        raise errors[0]
