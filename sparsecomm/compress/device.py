"""Reducers for gradients on a torch device: selection is done there, and only what is kept comes to the host.

The twins of sparsecomm/compress/reducer.py, from operations of torch that every device has. What a step replaces is kept
until the step is settled, so that `undo` is exact.
"""

import math
import time
from collections import Counter

import numpy as np
import torch

from hogwild.errors import UserError
from hogwild.kernels.compression.thresholds import HITS, SHARE, SHIFT, TINY
from sparsecomm.compress.reducer import Dense


def flat(name, p):
    """The parameter as a flat view of its memory. Raises UserError where it is not contiguous float32."""
    if p.dtype != torch.float32 or p.layout != torch.strided or not p.is_contiguous():
        strides = p.stride() if p.layout == torch.strided else p.layout
        raise UserError(f"parameter {name} must be contiguous and float32, got {p.dtype} of shape {tuple(p.shape)} and "
                        f"strides {strides}; convert the model before")
    return p.detach().view(-1)


class DeviceSparse:
    """As `reducer.Sparse`; gradients and `total` are flat float32 tensors on `device`, `touched` is on the host."""

    def __init__(self, sizes, exchange, config, device, seed=0):
        self.n, self.exchange, self.config, self.seed = sum(sizes), exchange, config, seed
        ends = np.cumsum(sizes).tolist()
        self.tensors = [slice(end - size, end) for size, end in zip(sizes, ends)]
        self.parts = self.tensors if config.scope == "local" else [slice(None)]
        self.residual, self.total = (torch.zeros(self.n, device=device) for _ in range(2))
        self.velocity = torch.zeros(self.n, device=device) if config.momentum else None
        self.random = torch.Generator(device)
        self.touched, self.seconds, self.counts = np.zeros(0, np.uint32), Counter(), Counter()

    def reduce(self, step, gradients) -> int:
        """As `Sparse.reduce`."""
        start, bad = time.perf_counter(), 0
        self.before, live = (self.residual, self.velocity), self._live(gradients)
        self.added = torch.cat([torch.zeros_like(self.total[part]) if g is None else g
                                for part, g in zip(self.tensors, gradients)])
        if self.velocity is not None:
            velocity, bad = _finite(self.config.momentum * self.velocity + self.added, self.velocity)
            self.velocity, self.added = _of(live, velocity, self.velocity), _of(live, velocity, 0.0)
        old = self.residual if self.config.residual else torch.zeros_like(self.residual)
        self.residual, more = _finite(old + self.added, old)
        keep, seen = self.config.share(step), _of(live, self.residual, 0.0)
        large = torch.cat([abs(seen[part]) >= self._threshold(seen[part], keep, step, k)
                           for k, part in enumerate(self.parts)])
        self.at = large.nonzero()[:, 0]
        self.chosen = self.residual[self.at]
        self.residual[self.at] = 0
        indices, values = self.at.cpu().numpy().astype(np.uint32), self.chosen.cpu().numpy().copy()
        self.seconds["select"] += time.perf_counter() - start
        reduced = self.exchange.reduce(step, self.n, indices, values, bad + more)
        start = time.perf_counter()
        self.total.zero_()
        self.total[self._index(reduced.indices)] = self._tensor(reduced.values)
        self.touched, self.back = reduced.indices, (self._index(reduced.back[0]), self._tensor(reduced.back[1]))
        self.seconds["decode"] += time.perf_counter() - start
        self.counts.update(kept=indices.size, sent=reduced.sent, received=reduced.received)
        return reduced.bad

    def _live(self, gradients):
        """bool[n]: the elements of tensors that are not left alone; None: all of them."""
        if all(g is not None for g in gradients):
            return None
        return torch.cat([torch.full_like(self.total[part], g is not None, dtype=torch.bool)
                          for part, g in zip(self.tensors, gradients)])

    def _tensor(self, array):
        return torch.from_numpy(array).to(self.total.device)

    def _index(self, indices):
        return self._tensor(indices.astype(np.int64))

    def _threshold(self, x, keep, step, part) -> float:
        """What the share `keep` of x (finite) reaches; as `hogwild.kernels.compression.thresholds.threshold`, from another
        sample."""
        if keep == 1.0:
            return float(TINY)
        rate = max(SHARE, HITS / (keep * len(x)))
        if self.config.threshold == "sample" and rate <= 0.5:
            seed = np.random.SeedSequence([self.seed, step, part]).generate_state(1, np.uint64)[0] >> np.uint64(1)
            self.random.manual_seed(int(seed))
            x = x[torch.randint(len(x), (int(rate * len(x)),), device=x.device, generator=self.random)]
        rank = max(1, round(keep * len(x)))
        if self.config.threshold == "histogram":
            bins = torch.bincount(abs(x).view(torch.int32) >> SHIFT)
            above = int((bins.flip(0).cumsum(0) < rank).sum())
            found = np.int32((len(bins) - 1 - above) << SHIFT).view(np.float32)
        else:
            found = abs(x).topk(rank, sorted=False).values.min()  # on a GPU 100 times faster than kthvalue
        return max(float(found), float(TINY))

    def commit(self):
        """As `Sparse.commit`."""
        at, lost = self.back
        if self.config.residual:
            self.residual = self.residual.index_add(0, at, lost)
        if self.velocity is not None and self.config.masking:
            self.velocity = self.velocity.index_fill(0, self.at, 0.0)
        if self.config.combine == "local":
            self.total += self.exchange.size * self.added
            self.total[self.at] -= self.exchange.size * self.chosen
            self.total[at] += self.exchange.size * lost
            self.touched = None

    def undo(self):
        """As before `reduce`."""
        self.residual, self.velocity = self.before

    def state(self) -> dict[str, np.ndarray]:
        """As `Sparse.state`, copied to the host."""
        kept = {"residual": self.residual} | ({} if self.velocity is None else {"velocity": self.velocity})
        return {name: x.cpu().numpy().copy() for name, x in kept.items()} | self.exchange.state()

    def load(self, state):
        """Go on from a `state`."""
        self.residual.copy_(torch.from_numpy(state["residual"]))
        if self.velocity is not None:
            self.velocity.copy_(torch.from_numpy(state["velocity"]))
        self.exchange.load(state)


class DeviceDense(Dense):
    """As `reducer.Dense`, with `total` on `device`: everything comes to the host."""

    def __init__(self, sizes, exchange, config, device):
        super().__init__(sizes, exchange, config)
        self.host, self.device = self.total, device

    def reduce(self, step, gradients) -> int:
        """As `Dense.reduce`."""
        self.total = self.host
        bad = super().reduce(step, [None if g is None else g.cpu().numpy() for g in gradients])
        self.total = torch.from_numpy(self.host).to(self.device)
        return bad


def _of(live, new, old):
    """new, but old where not `live`."""
    return new if live is None else torch.where(live, new, old)


def _finite(new, old):
    """(new, but old where that is not finite; the number of those)."""
    good = abs(new) < math.inf
    return torch.where(good, new, old), int((~good).sum())
