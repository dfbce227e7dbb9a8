"""Lock-free workers: threads, of which the caller's is one, that run a problem's nogil kernel on chunk after chunk."""

import contextlib
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from kernels.steps import aligned

CHUNK_SECONDS = 0.02  # a kernel call is bounded, so that stop flags and progress are seen within it
LEAST = 256  # examples of a chunk, if there are so many: a call takes 10 µs, so many examples some 100
WATCH_SECONDS = 0.05  # between two looks at how far all are
TALLIES = 8  # float64 a worker: one cache line each: loss, examples, non-zeros (or what the work is counted in), …
BAD = 3  # … and an example whose loss was not finite, its number + 1


def cores() -> int:
    """Cores this process may use (its affinity, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def postponed(stop):
    """Let Ctrl-C and SIGTERM set `stop` (an Event) at once, but raise what their handlers raise only at the end.

    Where the caller's thread is itself at work, they would else end a chunk that is counted and not done.
    """
    raised, ours = [], {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(number)):
                def later(number, frame, handler=handler):
                    try:
                        handler(number, frame)
                    except BaseException as error:
                        raised.append(error)
                        stop.set()
                signal.signal(number, later)
                ours[number] = handler, later
    try:
        yield
    finally:
        for number, (handler, later) in ours.items():
            if signal.getsignal(number) is later:  # the handler may have set another
                signal.signal(number, handler)
    if raised:
        raise raised[0]


class Workers:
    """Runs chunks of examples in `count` threads; `tally[count, TALLIES]` float64 adds up what each has done.

    Each takes the next chunk when it has done one, so that a worker that the system let start late, or on a slower core,
    keeps none of the others waiting. Worker 0 is the caller: a thread more than cores that only waits has the system put
    one worker behind another for milliseconds, which is as long as a short epoch takes. A problem that says `lockstep`
    has its workers call the kernel together: worker k on every count-th example of a chunk from its k-th, or, where it
    says `whole`, each on all of it.
    """

    def __init__(self, problem, count: int):
        self.problem, self.count = problem, count
        self.own = [problem.private(k) for k in range(count)]
        self.tally = aligned((count, TALLIES), np.float64)
        self.chunk = [512] * count
        self.stop, self.failure, self.lock, self.done = threading.Event(), None, threading.Lock(), 0
        self.look = 0.0  # when `watch` is next to be called
        self.others = ThreadPoolExecutor(count - 1, "worker") if count > 1 else None

    def run(self, rule, schedule, order, t, watch=lambda: None):
        """Work through `order`, whose example i is step t + i; `watch` is called every WATCH_SECONDS, and true ends the run.

        t: steps done before. Afterwards the first `done` examples are done. An exception in a worker stops all and is
        raised here; so is KeyboardInterrupt. All have stopped when this returns or raises.
        """
        self.stop.clear()
        self.done, self.failure, self.order, self.watch = 0, None, order, watch
        self.running = set()
        self.problem.begin(t)
        self.together = threading.Barrier(self.count, self._agree) if self.problem.lockstep else None
        with postponed(self.stop):
            try:
                for k in range(1, self.count):
                    self.running.add(self.others.submit(self._work, k, rule, schedule, t))
                self._work(0, rule, schedule, t)
            except BaseException as error:  # a thread that could not be started
                self._fail(error)
            while self.running:
                try:
                    self.running = wait(self.running, WATCH_SECONDS).not_done
                    self._look()
                except BaseException as error:
                    self._fail(error)
            self.together = self.watch = None
            self.problem.end()
        if self.failure:
            raise self.failure

    def _look(self):
        """Ask whether to go on, every WATCH_SECONDS."""
        if time.monotonic() >= self.look:
            self.look = time.monotonic() + WATCH_SECONDS
            if self.watch():
                self.stop.set()

    def _fail(self, error):
        """Stop all."""
        self.failure = self.failure or error
        self.stop.set()
        if self.together is not None:
            self.together.abort()  # the others would wait for one that never comes

    def _take(self, wanted):
        """(start, stop) of the next examples, up to `wanted`; None at the end or when told to stop."""
        start = self.done
        if self.stop.is_set() or start >= len(self.order):
            return None
        self.done = min(start + wanted, len(self.order))
        return start, self.done

    def _agree(self):
        """In lockstep: one decision for all, on whether to stop and what to do next."""
        multiple = getattr(self.problem, "block", 1)
        wanted = min(self.chunk) * (1 if self.problem.whole else self.count)
        self.agreed = self._take(-(-wanted // multiple) * multiple)

    def _next(self, k):
        """As `_take`, for worker k. Where each goes by itself, chunks become shorter towards the end: all end at once."""
        if self.together is not None:
            self.together.wait()
            return self.agreed
        if k and not self.problem.pays():
            return None
        if k == 0 and all(other.done() for other in self.running):
            self.problem.alone(self.own[0])
        with self.lock:
            share = (len(self.order) - self.done) // (2 * self.count) if self.count > 1 else len(self.order)
            return self._take(min(self.chunk[k], max(share, LEAST)))

    def _work(self, k, rule, schedule, t):
        first, stride = (k, self.count) if self.together is not None and not self.problem.whole else (0, 1)
        try:
            self.problem.enter(self.own[k])
            while bounds := self._next(k):
                start, stop = bounds
                part, begun = np.ascontiguousarray(self.order[start + first:stop:stride]), time.perf_counter()
                self.problem.run(rule, schedule, self.own[k], part, t + start + first, stride, self.tally[k])
                if self.tally[k, BAD]:
                    self.stop.set()
                speed = CHUNK_SECONDS / max(time.perf_counter() - begun, 1e-6)
                self.chunk[k] = int(min(max(len(part) * min(speed, 8.0), 1), 1 << 20))
                if k == 0:
                    self._look()
            self.problem.leave(self.own[k])
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:  # a thread has no caller to raise to
            self._fail(error)


def spread(function, n: int, count: int):
    """Run `function(start, stop)` over [0, n) in `count` threads, for kernels that only read what is shared."""
    bounds = np.linspace(0, n, count + 1).astype(np.int64)
    threads = [threading.Thread(target=function, args=(bounds[k], bounds[k + 1])) for k in range(1, count)]
    for thread in threads:
        thread.start()
    function(bounds[0], bounds[1])
    for thread in threads:
        thread.join()
