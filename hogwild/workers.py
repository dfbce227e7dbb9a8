"""Lock-free workers: threads, of which the caller's is one, that run a problem's nogil kernel on chunk after chunk."""

import os
import signal
import threading
import time
import weakref
from functools import partial
from typing import NamedTuple

import numpy as np

from kernels.chunks import BEGUN, NEXT, ORDER, STOP, WORKERS
from kernels.doors import AT, EXPECTED, LEFT, OVER, OWN, RIGHT, wait_at
from kernels.steps import aligned

CHUNK_SECONDS = 0.02  # a kernel call is bounded, so that stop flags and progress are seen within it
WATCH_SECONDS = 0.05  # between two looks at how far all are
TALLIES = 8  # float64 a worker: one cache line each: loss, examples, non-zeros (or what the work is counted in), …
BAD = 3  # … and an example whose loss was not finite, its number + 1


def cores() -> int:
    """Cores this process may use (its affinity, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Postponed:
    """A context in which Ctrl-C and SIGTERM, while `held`, set `stop` (a Flag) at once, but raise what their handlers raise
    only when they are let go.

    Where the caller's thread is itself at work, they would else end a chunk that is counted and not done. To set handlers
    for each epoch would take 3% of one of 3 ms.
    """

    def __init__(self, stop):
        self.stop, self.held, self.raised, self.ours = stop, False, [], {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    later = partial(self._signalled, handler)
                    signal.signal(number, later)
                    self.ours[number] = handler, later

    def _signalled(self, handler, number, frame):
        if not self.held:
            return handler(number, frame)
        try:
            handler(number, frame)
        except BaseException as error:
            self.raised.append(error)
            self.stop.set()

    def let_go(self):
        """Raise what a handler has raised meanwhile."""
        self.held = False
        if self.raised:
            error, self.raised = self.raised[0], []
            raise error

    def __exit__(self, *raised):
        for number, (handler, later) in self.ours.items():
            if signal.getsignal(number) is later:  # the handler may have set another
                signal.signal(number, handler)
        self.ours = {}


class Flag:
    """An element of an array that kernels look at."""

    def __init__(self, array, at):
        self.array, self.at = array, at

    def set(self):
        self.array[self.at] = 1

    def clear(self):
        self.array[self.at] = 0

    def is_set(self):
        return bool(self.array[self.at])


class Order(NamedTuple):
    """What all workers are to do."""

    number: int
    rule: tuple
    schedule: tuple
    examples: np.ndarray


class Helper:
    """A thread that works on each order that it is woken for, at once where the kernel itself waits at the problem's `door`.

    It refers to its Workers weakly: their end ends it. Whoever has `idle` may wake it, and it gives that back.
    """

    def __init__(self, team, k):
        self.k, self.order, self.most, self.done, self.idle = k, None, 0, 0.0, threading.Lock()
        native = team.problem.door(k)
        self.native, self.door = native is not None, np.zeros(8, np.int64) if native is None else native
        self.door[OWN], self.pipe = os.pipe()
        self.door[LEFT:RIGHT + 1] = -1
        args = team.problem, team.own[k], team.queue, team.tally[k], weakref.ref(team)
        threading.Thread(target=self._serve, args=args, name=f"worker {k}", daemon=True).start()

    def wake(self):
        os.write(self.pipe, b".")

    def _serve(self, problem, own, queue, tally, team):
        while True:
            order, over, error = self.order, None, None
            self.door[AT], self.door[EXPECTED] = 1, order.number if order else OVER
            if order and self.native:
                try:
                    over = problem.work(order.rule, order.schedule, own, order.examples, 0, queue, self.most, True, tally)
                except BaseException as raised:  # a thread has no caller to raise to
                    error = raised
            if self.door[AT]:  # the problem did not wait
                wait_at(self.door, queue, 0)
            if (called := self.door[EXPECTED]) == OVER:
                os.close(int(self.door[OWN]))
                return os.close(self.pipe)
            if workers := team():
                workers.helped(self, over if order and called == order.number else None, error)
            del workers, order
            self.idle.release()

    def busy(self, seconds) -> bool:
        """Whether it is at work, for so many seconds from now on."""
        free = self.idle.acquire(timeout=seconds)
        if free:
            self.idle.release()
        return not free


def _dismiss(helpers, queue, process):
    """End the threads; not those of another process, of whose pipes a fork has copies."""
    if os.getpid() == process:
        queue[ORDER] = OVER
        for helper in helpers:
            helper.wake()


class Workers:
    """Runs chunks of examples in `count` threads; `tally[count, TALLIES]` float64 adds up what each has done.

    Each takes the next chunk from a queue when it has done one, so that a worker that the system let start late, or on a
    slower core, keeps none of the others waiting, and does so in the kernel (kernels/chunks.py): a thread that asks for
    Python's lock waits for 50 to 100 µs for it, and 16 of them for each other. Worker 0 is the caller: a thread more than
    cores that only waits has the system put one worker behind another for milliseconds, which is as long as a short epoch
    takes. A problem that says `lockstep` has its workers call the kernel together: worker k on every count-th example of a
    chunk from its k-th, or, where it says `whole`, each on all of it.
    """

    def __init__(self, problem, count: int):
        self.problem, self.count = problem, count
        self.own = [problem.private(k) for k in range(count)]
        self.tally = aligned((count, TALLIES), np.float64)
        self.chunk = [512] * count  # examples of a call
        self.queue = aligned((16,), np.int64)
        self.queue[WORKERS] = count
        self.stop, self.failure = Flag(self.queue, STOP), None
        self.signals = Postponed(self.stop)
        self.look = 0.0  # when `watch` is next to be called
        self.helpers, self.order = [], None
        weakref.finalize(self, _dismiss, self.helpers, self.queue, os.getpid()).atexit = False

    @property
    def done(self) -> int:
        """Examples that were taken; all of them are done when `run` returns."""
        return int(self.queue[NEXT])

    def compile(self, rule, schedule, t):
        """Call the kernel, on no examples and into a tally that nobody reads, and start the threads; t: steps done before."""
        wait_at(np.zeros(8, np.int64), self.queue, 0)  # before the threads come to it
        self._hire()
        none, tally = np.zeros(0, np.int64), np.zeros(TALLIES)
        self.problem.begin(t)
        if self.problem.lockstep:
            self.problem.run(rule, schedule, self.own[0], none, t, self.count, tally)
        else:
            self.problem.work(rule, schedule, self.own[0], none, t, np.zeros_like(self.queue), 1, True, tally)
        self.problem.end()

    def run(self, rule, schedule, order, t, watch=lambda: None):
        """Work through `order`, whose example i is step t + i; `watch` is called every WATCH_SECONDS, and true ends the run.

        t: steps done before. Afterwards the first `done` examples are done. An exception in a worker stops all and is
        raised here; so is KeyboardInterrupt, within `signals`. All have stopped when this returns or raises.
        """
        self.stop.clear()
        self.queue[NEXT], self.failure, self.watch = 0, None, watch
        self.queue[BEGUN], self.began = t, time.perf_counter()
        self._say(rule, schedule, np.ascontiguousarray(order))
        self.problem.begin(t)
        self.together = threading.Barrier(self.count, self._agree) if self.problem.lockstep else None
        self.signals.held = True
        try:
            self._all()
            self.together = self.watch = None
            self.problem.end()
        finally:
            self.signals.let_go()
        if self.failure:
            raise self.failure

    def _hire(self):
        while len(self.helpers) < self.count - 1:
            n = len(self.helpers)
            self.helpers.append(Helper(self, n + 1))
            if n > 1:  # each wakes two, the caller the first two
                self.helpers[n // 2 - 1].door[LEFT + n % 2] = self.helpers[n].pipe

    def _say(self, rule, schedule, examples):
        """What the order is; the same as the one before where nothing but what its array holds is new."""
        last = self.order
        same = last and last.rule is rule and last.schedule is schedule and len(last.examples) == len(examples)
        if not (same and last.examples.ctypes.data == examples.ctypes.data):
            self.queue[ORDER] += 1
            self.order = Order(int(self.queue[ORDER]), rule, schedule, examples)

    def _all(self):
        try:
            self._hire()
        except BaseException as error:  # a thread that could not be started
            self._fail(error)
        for helper in self.helpers:
            helper.idle.acquire()
            helper.order = self.order
        for helper in self.helpers[:2]:
            helper.wake()
        self._work(0)
        # What a helper still does when all examples are done and brought together does not matter to anyone, unless it may
        # set `stop` again, and it may take 0.1 ms until it has the interpreter.
        for helper in self.helpers if self.stop.is_set() or not self.problem.ended() else ():
            while helper.busy(WATCH_SECONDS):
                self._look()

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
        """Stop all."""
        self.failure = self.failure or error
        self.stop.set()
        if self.together is not None:
            self.together.abort()  # the others would wait for one that never comes

    def _work(self, k, over=None):
        """over: what a first call of the kernel has said."""
        try:
            if self.together is None:
                self._by_itself(k, over)
            else:
                self._in_step(k)
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:  # a thread has no caller to raise to
            self._fail(error)

    def helped(self, helper, over, error):
        """A helper was woken; over, error: what its first call of the kernel has said, if that has waited for this order."""
        k = helper.k
        if error:
            return self._fail(error)
        if over is not None:
            self._called(k, self.tally[k, 1] - helper.done, self.began)
        self._work(k, over)
        helper.done, helper.most = self.tally[k, 1], self.chunk[k] * self.problem.pays()

    def _by_itself(self, k, over):
        """Chunks from the queue until it is empty, or until others do better without this worker."""
        own, tally, first, (_, rule, schedule, examples) = self.own[k], self.tally[k], over is None, self.order
        while not over:
            if k and not self.problem.pays():
                return self.problem.leave(rule, schedule, own)
            done, begun = tally[1], time.perf_counter()
            over = self.problem.work(rule, schedule, own, examples, int(self.queue[BEGUN]), self.queue, self.chunk[k], first,
                                     tally)
            self._called(k, tally[1] - done, begun)
            first = False

    def _in_step(self, k):
        """Every count-th example of chunks that all agree on, or all of them."""
        (_, rule, schedule, examples), t = self.order, int(self.queue[BEGUN])
        first, stride = (0, 1) if self.problem.whole else (k, self.count)
        self.problem.enter(self.own[k])
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
        multiple, n, start = getattr(self.problem, "block", 1), len(self.order.examples), self.done
        wanted = min(self.chunk) * (1 if self.problem.whole else self.count)
        self.agreed = None
        if start < n and not self.stop.is_set():
            self.queue[NEXT] = min(start + -(-wanted // multiple) * multiple, n)
            self.agreed = start, self.done

    def _called(self, k, done, begun):
        """After a call of the kernel for `done` examples: the next is to take CHUNK_SECONDS."""
        if self.tally[k, BAD]:
            self.stop.set()
        if done:
            speed = CHUNK_SECONDS / max(time.perf_counter() - begun, 1e-6)
            self.chunk[k] = int(min(max(done * min(speed, 8.0), 1), 1 << 20))
        if k == 0:
            self._look()


def spread(function, n: int, count: int, step=None):
    """Run `function(start, stop)` over [0, n) in `count` threads, for kernels that only read what is shared.

    step: the most that a call gets; None: a thread's whole part. After an exception in the caller, such as Ctrl-C's, the
    others begin no further call.
    """
    bounds, over = np.linspace(0, n, count + 1).astype(np.int64), threading.Event()

    def part(first, last):
        for start in range(first, last, step or max(last - first, 1)):
            if not over.is_set():
                function(start, min(start + (step or last), last))
    threads = [threading.Thread(target=part, args=(bounds[k], bounds[k + 1])) for k in range(1, count)]
    try:
        for thread in threads:
            thread.start()
        part(bounds[0], bounds[1])
        for thread in threads:
            thread.join()
    except BaseException:
        over.set()
        raise
