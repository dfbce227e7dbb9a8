"""Lock-free workers: one Python thread each, running a problem's nogil kernel on its own slice of the examples."""

import contextlib
import ctypes
import os
import threading
import time

import numpy as np

from kernels.steps import aligned

CHUNK_SECONDS = 0.02  # a kernel call is bounded, so that stop flags and progress are seen within it
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
    """Runs slices of examples in `count` threads; `tally[count, TALLIES]` float64 adds up what each has done.

    A problem that says `lockstep` has its workers call the kernel together, on chunks of one size; one that says `whole`
    gives each of them all examples of the chunk.
    """

    def __init__(self, problem, count: int):
        self.problem, self.count = problem, count
        self.own = [problem.private(k) for k in range(count)]
        self.tally = aligned((count, TALLIES), np.float64)
        self.chunk = [512] * count
        self.stop, self.failure, self.at = threading.Event(), None, [0] * count

    def slices(self, order):
        """What each worker gets of `order`: equal parts, the first ones an example longer where it does not divide."""
        return [order] * self.count if self.problem.whole else np.array_split(order, self.count)

    def run(self, rule, schedule, order, t, watch=lambda: None):
        """Work through `order`; `watch` is called every WATCH_SECONDS meanwhile, and ends the run by returning true.

        t: steps done before. Afterwards `at` says how far each worker has come in its slice. An exception in a worker
        stops all and is raised here; so is KeyboardInterrupt. All have stopped when this returns or raises.
        """
        self.stop.clear()
        self.at, self.failure = [0] * self.count, None
        self.problem.begin(t)
        parts = self.slices(order)
        self.together = threading.Barrier(self.count, self._agree) if self.problem.lockstep else None
        self.position = self.span = 0
        self.longest, self.seats = len(parts[0]), Seats(self.count)
        threads = [threading.Thread(target=self._work, args=(k, rule, schedule, part, t), name=f"worker-{k}", daemon=True)
                   for k, part in enumerate(parts)]
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

    def _agree(self):
        """In lockstep: one decision for all, on whether to stop and how much to do next."""
        self.position += self.span
        self.halt = self.stop.is_set() or self.position >= self.longest
        multiple = getattr(self.problem, "block", 1)
        self.span = -(-min(self.chunk) // multiple) * multiple

    def _work(self, k, rule, schedule, order, t):
        try:
            self.seats.take(k)
            self.problem.enter(self.own[k])
            while True:
                if self.together is not None:
                    self.together.wait()
                    if self.halt:
                        break
                elif self.stop.is_set() or self.at[k] >= len(order):
                    break
                at, size = (self.at[k], self.chunk[k]) if self.together is None else (self.position, self.span)
                part, start = order[at:at + size], time.perf_counter()
                now, stride = (t + at, 1) if self.problem.whole else (t + at * self.count + k, self.count)
                self.problem.run(rule, schedule, self.own[k], part, now, stride, self.tally[k])
                self.at[k] = at + len(part)
                if self.tally[k, BAD]:
                    self.stop.set()
                speed = CHUNK_SECONDS / max(time.perf_counter() - start, 1e-6)
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
