"""Lock-free workers: one Python thread each, running a problem's nogil kernel on its own slice of the examples."""

import os
import threading
import time

import numpy as np

from kernels.steps import aligned

CHUNK_SECONDS = 0.02  # a kernel call is bounded, so that stop flags and progress are seen within it
TALLIES = 8  # float64 a worker: one cache line each; the problem uses the first three: loss, examples, non-zeros


def cores() -> int:
    """Cores this process may use (its affinity, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Runs slices of examples in `count` threads; `tally[count, TALLIES]` float64 adds up what each has done."""

    def __init__(self, problem, count: int):
        self.problem, self.count = problem, count
        self.own = [problem.private() for _ in range(count)]
        self.tally = aligned((count, TALLIES), np.float64)
        self.chunk = [64] * count
        self.stop = threading.Event()
        self.failure = None

    def run(self, rule, schedule, order, t, watch=lambda: None):
        """Each worker takes a contiguous slice of `order`; `watch` is called about 20 times a second meanwhile.

        t: steps done before. An exception in a worker stops all and is raised here; so is KeyboardInterrupt.
        """
        bounds = np.linspace(0, len(order), self.count + 1).astype(np.int64)
        threads = [threading.Thread(target=self._work, args=(k, rule, schedule, order[bounds[k]:bounds[k + 1]], t),
                                    name=f"worker-{k}", daemon=True) for k in range(self.count)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.05)
                    watch()
        except BaseException:
            self.stop.set()
            for thread in threads:
                thread.join()
            raise
        if self.failure:
            raise self.failure

    def _work(self, k, rule, schedule, order, t):
        at = 0
        try:
            while at < len(order) and not self.stop.is_set():
                start, part = time.perf_counter(), order[at:at + self.chunk[k]]
                self.problem.run(rule, schedule, self.own[k], part, t + at * self.count + k, self.count, self.tally[k])
                at += len(part)
                speed = CHUNK_SECONDS / max(time.perf_counter() - start, 1e-6)
                self.chunk[k] = int(min(max(len(part) * min(speed, 4.0), 1), 1 << 20))
        except BaseException as error:  # a thread has no caller to raise to
            self.failure = error
            self.stop.set()


def spread(function, n: int, count: int):
    """Run `function(start, stop)` over [0, n) in `count` threads, for kernels that only read what is shared."""
    bounds = np.linspace(0, n, count + 1).astype(np.int64)
    threads = [threading.Thread(target=function, args=(bounds[k], bounds[k + 1])) for k in range(1, count)]
    for thread in threads:
        thread.start()
    function(bounds[0], bounds[1])
    for thread in threads:
        thread.join()
