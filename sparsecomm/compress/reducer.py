"""One bucket of tensors: compensate -> select -> encode -> exchange -> decode -> add up.

Dense and sparse alike give the sum over the ranks in `total`, which all ranks then have to the bit.
"""

import time
from collections import Counter

import numpy as np

from hogwild.kernels.compression.selection import Selector
from hogwild.kernels.optim.steps import aligned
from sparsecomm.compress.residual import memory


class Sparse:
    """Sums what each rank selects of its gradients, for tensors of the given sizes.

    `reduce` is called by all ranks in one order, and followed by `commit`, or by `undo` where the step is skipped, which may
    also follow `commit` until the next `reduce`.
    total: float32[n], the sum; touched: uint32[m], where it may differ from 0, None: anywhere.
    """

    def __init__(self, sizes, exchange, config, seed=0):
        self.n, self.exchange, self.config = sum(sizes), exchange, config
        self.memory = memory(sizes, config)
        self.selector = Selector(sizes, config.keep, config.threshold, config.scope, seed=seed)
        self.total, self.touched = aligned((self.n,)), np.zeros(0, np.uint32)
        self.seconds, self.counts, self.chosen = Counter(), Counter(), None

    def reduce(self, step, gradients) -> int:
        """Sum over the ranks at step `step` of the gradients, a flat float32 array a tensor; elements not finite, of all.

        A gradient None, on all ranks alike: its tensor is left alone, with its residual, and its sum is 0.
        """
        start = time.perf_counter()
        added, bad = self.memory.compensate(gradients)
        residuals = self.memory.residuals
        if any(x is None for x in added):
            residuals = [_zeros(r.size) if x is None else r for r, x in zip(residuals, added)]
            added = [_zeros(r.size) if x is None else x for r, x in zip(residuals, added)]
        indices, values, more = self.selector.select(residuals, added, step, self.config.share(step))
        self.chosen = indices, values.copy(), added
        self.seconds["select"] += time.perf_counter() - start
        reduced = self.exchange.reduce(step, self.n, indices, values, bad + more)
        start = time.perf_counter()
        self.total[slice(None) if self.touched is None else self.touched] = 0
        self.total[reduced.indices] = reduced.values
        self.touched, self.back = reduced.indices, reduced.back
        self.seconds["decode"] += time.perf_counter() - start
        self.counts.update(kept=indices.size, sent=reduced.sent, received=reduced.received)
        return reduced.bad

    def commit(self):
        """What was not delivered goes back; the rest is forgotten. With combine local, the own gradient is added."""
        indices, values, added = self.chosen
        if self.config.combine == "local":
            # That less what was sent: what the residual grew by, so that over the steps it adds up to the residual.
            self.total /= np.float32(self.exchange.size)
            at = 0
            for x in added:
                self.total[at:at + x.size] += x
                at += x.size
            self.total[indices] -= values
            self.total[self.back[0]] += self.back[1]
            self.total *= np.float32(self.exchange.size)
            self.touched = None
        self.memory.put_back(*self.back)
        self.memory.sent(indices)

    def undo(self):
        """To the bit as before `reduce`."""
        self.memory.undo()

    def state(self) -> dict[str, np.ndarray]:
        """What the next step of this rank depends on."""
        return {**self.memory.state(), **self.selector.state(), **self.exchange.state()}

    def load(self, state):
        """Go on from a `state`."""
        self.memory.load(state)
        self.selector.load(state)
        self.exchange.load(state)


class Dense:
    """The trivial twin: everything is sent. A value code that rounds leaves what it loses in the residual."""

    def __init__(self, sizes, exchange, config):
        self.n, self.exchange = sum(sizes), exchange
        ends = np.cumsum(sizes).tolist()
        self.parts = [slice(end - size, end) for size, end in zip(sizes, ends)]
        self.residual = aligned((self.n,)) if config.value_code != "float32" and config.residual else None
        self.total, self.touched, self.before = aligned((self.n,)), None, self.residual
        self.seconds, self.counts = Counter(), Counter()

    def reduce(self, step, gradients) -> int:
        """As `Sparse.reduce`."""
        start, self.before = time.perf_counter(), self.residual
        self.live = [part for part, g in zip(self.parts, gradients) if g is not None]
        whole = len(self.live) == len(self.parts)
        sent = self.total if whole else np.empty(sum(part.stop - part.start for part in self.live), np.float32)
        np.concatenate([g for g in gradients if g is not None], out=sent)
        if self.residual is not None:
            sent += self.residual if whole else np.concatenate([self.residual[part] for part in self.live])
        self.seconds["select"] += time.perf_counter() - start
        reduced = self.exchange.reduce_dense(step, sent)
        start = time.perf_counter()
        if reduced.values is not self.total:
            self.total[:] = 0
            self._spread(reduced.values, self.total)
        self.back = reduced.back
        self.seconds["decode"] += time.perf_counter() - start
        self.counts.update(kept=sent.size, sent=reduced.sent, received=reduced.received)
        return reduced.bad

    def _spread(self, values, out):
        """Put the values of the live tensors, laid end to end, into their places."""
        at = 0
        for part in self.live:
            size = part.stop - part.start
            out[part] = values[at:at + size]
            at += size

    def commit(self):
        """What rounding lost is kept."""
        if self.residual is not None:
            self.residual = self.before.copy()
            self._spread(self.back, self.residual)

    def undo(self):
        """To the bit as before `reduce`."""
        self.residual = self.before

    def state(self):
        return {} if self.residual is None else {"residual": self.residual}

    def load(self, state):
        for name, array in self.state().items():
            array[:] = state[name]


def _zeros(size) -> np.ndarray:
    """Zeros in place of a tensor that is left alone: nothing is selected of them."""
    return np.zeros(size, np.float32)
