"""How many changes plain stores lose, estimated while a run goes on: hogwild's sampled shadow counters.

For one stretch of time in EVERY, the same for all workers, each change of a parameter is counted twice: in memory of the
worker's own, and, as plainly as the parameter is changed, in a counter that all share. What the shared ones lack was lost.
"""

import time
from contextlib import contextmanager

import numpy as np

from hogwild.kernels.optim.steps import aligned
from hogwild.kernels.sharing.modes import Counted
from hogwild.training.workers import CHUNK_SECONDS

STRETCH = 2 * CHUNK_SECONDS  # so that every worker begins a chunk in it
EVERY = 64  # counting takes up to 0.9 times as long again: about 1% of a run's time
FIRST = 1  # the first such stretch of a run comes early
COUNTERS = 1 << 18  # 1 MB; parameters that share one seldom meet in it within a store's nanoseconds


class Shadow:
    """The counters of `workers` workers, and when they count."""

    def __init__(self, workers, every=EVERY):
        self.workers, self.every, self.begun = workers, every, None
        self.shadow, self.made = aligned((COUNTERS,), np.uint32), aligned((workers, 8), np.int64)
        self.spans = []  # (window, worker, start, end) since the last look
        self.totals = np.zeros(4)  # changes made, lost; seconds counted, and of others beside them

    def mode(self, k) -> Counted:
        """How worker k changes parameters while it counts."""
        return Counted(self.shadow, self.made[k])

    def window(self) -> int:
        """Number of the stretch of time that it is now, since the first was asked for."""
        self.begun = self.begun or time.perf_counter()
        return int((time.perf_counter() - self.begun) / STRETCH)

    def due(self) -> bool:
        """Whether a chunk that starts now is to be counted."""
        return self.window() % self.every == FIRST % self.every

    @contextmanager
    def watch(self, k):
        """Around a chunk that worker k counts."""
        window, start = self.window(), time.perf_counter()
        yield
        self.spans.append((window // self.every, k, start, time.perf_counter()))

    def lost(self) -> float | None:
        """Estimated share of the changes lost so far, in [0, 1]; None before any was counted. Called between passes.

        Chunks of several workers do not begin and end together. A change that is counted while no other worker counts is
        not lost from the counters, so the share is scaled up by (W - 1) over the others that counted, on average.
        """
        made = int(self.made[:, 0].sum())
        alone, beside = overlap(self.spans)
        self.totals += made, made - int(self.shadow.sum(dtype=np.int64)), alone, beside
        self.made[:], self.shadow[:], self.spans = 0, 0, []
        made, lost, alone, beside = self.totals
        if not made or not beside:
            return None
        most = (self.workers - 1) / self.workers
        return float(min(lost / made * (self.workers - 1) * alone / beside, most))


def overlap(spans) -> tuple[float, float]:
    """(seconds of all spans, seconds of pairs of spans in one window, each pair once for either), of `Shadow.spans`."""
    alone = beside = 0.0
    by_window = {}
    for window, k, start, end in spans:
        alone += end - start
        for other, first, last in by_window.setdefault(window, []):
            if other != k:
                beside += 2 * max(min(end, last) - max(start, first), 0.0)
        by_window[window].append((k, start, end))
    return alone, beside
