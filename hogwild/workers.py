"""Lock-free workers: one Python thread each, running a problem's nogil kernel on chunk after chunk of the examples."""

import contextlib
import ctypes
import os
import threading
import time

import numpy as np

from kernels.steps import aligned

CHUNK_SECONDS = 0.02  # a kernel call is bounded, so that stop flags and progress are seen within it
LEAST = 256  # examples of a chunk, if there are so many: a call takes 10 µs, so many examples some 100
WATCH_SECONDS = 0.05  # between two looks at the workers from outside
TALLIES = 8  # float64 a worker: one cache line each: loss, examples, non-zeros (or what the work is counted in), …
BAD = 3  # … and an example whose loss was not finite, its number + 1


def cores() -> int:
    """Cores this process may use (its affinity, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_core = getattr(ctypes.CDLL(None), "sched_getcpu", None) if hasattr(os, "sched_setaffinity") else None


class Seats:
    """On which core each worker of a team has started."""

    def __init__(self, count):
        self.taken = [-1] * count

    def take(self, k):
        """Move the calling thread, worker k, from a core that an earlier worker has taken to one that none has.

        The scheduler does so too, but after milliseconds, which is as long as a short epoch takes. The thread is not
        bound there: it may be moved again at once where something else runs.
        """
        if _core is None:
            return
        self.taken[k] = here = _core()
        if here in self.taken[:k]:
            allowed = os.sched_getaffinity(0)
            free = sorted(allowed - set(self.taken))
            if free:
                self.taken[k] = free[0]
                with contextlib.suppress(OSError):  # forbidden: it is a hint
                    os.sched_setaffinity(0, free[:1])
                    os.sched_setaffinity(0, allowed)


class Workers:
    """Runs chunks of examples in `count` threads; `tally[count, TALLIES]` float64 adds up what each has done.

    Each takes the next chunk when it has done one, so that a worker that the system let start late, or on a slower core,
    keeps none of the others waiting. A problem that says `lockstep` has its workers call the kernel together: worker k on
    every count-th example of a chunk from its k-th, or, where it says `whole`, each on all of it.
    """

    def __init__(self, problem, count: int):
        self.problem, self.count = problem, count
        self.own = [problem.private(k) for k in range(count)]
        self.tally = aligned((count, TALLIES), np.float64)
        self.chunk = [512] * count
        self.stop, self.failure, self.lock, self.done = threading.Event(), None, threading.Lock(), 0

    def run(self, rule, schedule, order, t, watch=lambda: None):
        """Work through `order`, whose example i is step t + i; `watch` is called every WATCH_SECONDS, and true ends the run.

        t: steps done before. Afterwards the first `done` examples are done. An exception in a worker stops all and is
        raised here; so is KeyboardInterrupt. All have stopped when this returns or raises.
        """
        self.stop.clear()
        self.done, self.failure, self.order, self.seats = 0, None, order, Seats(self.count)
        self.problem.begin(t)
        self.together = threading.Barrier(self.count, self._agree) if self.problem.lockstep else None
        threads = [threading.Thread(target=self._work, args=(k, rule, schedule, t), name=f"worker-{k}", daemon=True)
                   for k in range(self.count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(WATCH_SECONDS)
                    if watch():
                        self.stop.set()
        except BaseException:
            self.stop.set()
            if self.together is not None and not all(thread.ident for thread in threads):
                self.together.abort()  # the others would wait for one that never came
            for thread in threads:
                if thread.ident:
                    thread.join()
            raise
        finally:
            self.problem.end()
        if self.failure:
            raise self.failure

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
        with self.lock:
            share = (len(self.order) - self.done) // (2 * self.count) if self.count > 1 else len(self.order)
            return self._take(min(self.chunk[k], max(share, LEAST)))

    def _work(self, k, rule, schedule, t):
        first, stride = (k, self.count) if self.together is not None and not self.problem.whole else (0, 1)
        try:
            self.seats.take(k)
            self.problem.enter(self.own[k])
            while bounds := self._next(k):
                start, stop = bounds
                part, begun = np.ascontiguousarray(self.order[start + first:stop:stride]), time.perf_counter()
                self.problem.run(rule, schedule, self.own[k], part, t + start + first, stride, self.tally[k])
                if self.tally[k, BAD]:
                    self.stop.set()
                speed = CHUNK_SECONDS / max(time.perf_counter() - begun, 1e-6)
                self.chunk[k] = int(min(max(len(part) * min(speed, 8.0), 1), 1 << 20))
            self.problem.leave(self.own[k])
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:  # a thread has no caller to raise to
            self.failure = error
            self.stop.set()
            if self.together is not None:
                self.together.abort()


def spread(function, n: int, count: int):
    """Run `function(start, stop)` over [0, n) in `count` threads, for kernels that only read what is shared."""
    bounds = np.linspace(0, n, count + 1).astype(np.int64)
    threads = [threading.Thread(target=function, args=(bounds[k], bounds[k + 1])) for k in range(1, count)]
    for thread in threads:
        thread.start()
    function(bounds[0], bounds[1])
    for thread in threads:
        thread.join()
