"""Gradient dropping (Aji & Heafield 2017): take what is large of residual + gradient, and keep the rest for later.

One fused pass over float32 arrays: add, compare with the threshold, emit (index, value), zero what was emitted. Nothing is
ever cut by position. `hogwild.kernels.compression.thresholds` says what passes a threshold and how it is found.
"""

import math
from typing import NamedTuple

import numpy as np

from hogwild.kernels.compiler.jit import kernel
from hogwild.kernels.compression import thresholds
from hogwild.kernels.compression.select_simd import WIDTH, scan
from hogwild.kernels.compression.thresholds import HITS, METHODS, SHARE, checked_share, flat, grown, least_bits, pairs_of

SCOPES = "local", "global"
WIDER = 3.0  # a new threshold is looked for where the old one would let pass so many times the share: saves sorting
SLACK, DEVIATIONS = 0.1, 3.0  # a reused threshold is found anew after a miss by 10% and these standard deviations
GAIN, DRIFT = 0.4, 0.1  # of what a step missed by: corrected at once, and at every step from now on
BOUND = 1.0  # the most, as a logarithm, that one step can have missed by


class Selection(NamedTuple):
    """What was taken; views of the selector's buffers, valid until its next `select`."""

    indices: np.ndarray  # uint32[k], ascending, over all tensors laid end to end
    values: np.ndarray  # float32[k]
    bad: int  # elements whose sum was not finite


def select(residual, gradient, threshold, indices, values, start=0, base=0):
    """(count, stopped at, bad): one pass over s = residual + gradient, from element `start` on.

    What passes the threshold goes to indices (uint32, plus base) and values (float32), and becomes 0 in the residual,
    which is s elsewhere; where s is not finite it stays as it was, and the element counts in `bad`. Where the hits of the
    next 16 elements do not fit, it stops: go on from `stopped at` with other buffers, of which 16 empty places are enough
    to get on. Behind `count` the buffers may be overwritten. gradient None: s is the residual. Raises ValueError.
    """
    [(residual, gradient)] = pairs_of([residual], [gradient])
    flat("indices", indices, flat("values", values).size, np.uint32)
    if not 0 <= start <= residual.size or not 0 <= base <= 2**32 - residual.size:
        raise ValueError(f"start must be in [0, {residual.size}] and base + {residual.size} at most 2**32, got start {start} "
                         f"and base {base}")
    return scan(residual, gradient, least_bits(threshold), indices, values, int(start), int(base))


@kernel
def _zero(array, indices):
    for k in range(indices.size):
        array[indices[k]] = 0


def mask(array, indices):
    """array[indices] = 0: forget the velocity of what was sent (Lin et al. 2018, momentum factor masking).

    Less than half of NumPy's time. array: flat float32; indices: uint32, below its size. Raises ValueError.
    """
    flat("array", array)
    if flat("indices", indices, dtype=np.uint32).size and indices.max() >= array.size:
        raise ValueError(f"indices must be below {array.size}, got {indices.max()}")
    _zero(array, indices)


class Selector:
    """Selects the share `keep` of a sequence of tensors at each step; the tensors are laid end to end for the indices.

    method: how a threshold is found, see `hogwild.kernels.compression.thresholds.threshold`; share and hits size the
    sample, seed draws it.
    scope: a threshold for each tensor ("local") or one over all of them ("global").
    reuse: steps for which a threshold serves. 1 finds it anew at each step, which holds the kept share within 10% even
    where the norm of the gradient jumps by tens of percent, as with small batches. Beyond 1, `correct` moves it by what
    the last steps missed by, so that their mean holds the share, and finds it anew after a miss that chance does not
    explain; without, it stays as it is (Ok-Topk: 32 steps), and what it lets pass may be many times the share.
    """

    def __init__(self, sizes, keep, method="sample", scope="local", reuse=1, correct=True, share=SHARE, hits=HITS, seed=0):
        if method not in METHODS or scope not in SCOPES:
            raise ValueError(f"method must be one of {', '.join(METHODS)} and scope one of {', '.join(SCOPES)}, got "
                             f"{method!r} and {scope!r}")
        if reuse < 1 or hits < 1 or not 0.0 < share <= 1.0:
            raise ValueError(f"reuse and hits must be at least 1 and share in (0, 1], got {reuse}, {hits}, {share}")
        self.sizes, self.keep, self.method = [int(size) for size in sizes], checked_share(keep), method
        self.reuse, self.correct, self.share, self.hits, self.seed = reuse, correct, share, hits, seed
        self.bases = np.cumsum([0, *self.sizes]).tolist()
        if self.bases[-1] > 2**32:
            raise ValueError(f"indices are 32 bits: at most 2**32 elements, got {self.bases[-1]}")
        tensors = range(len(self.sizes))
        self.groups = [[t] for t in tensors] if scope == "local" else [list(tensors)]
        self.threshold = np.zeros(len(self.groups), np.float32)  # for the next step
        self.exponent = np.zeros(len(self.groups))  # how it depends on the kept share
        self.drift = np.zeros(len(self.groups))  # what its logarithm changes by at a step
        self.age = np.full(len(self.groups), self.reuse)  # steps that it has served
        self.target = np.zeros(len(self.groups))  # the share that it was found for
        self.indices, self.values = (np.empty(WIDTH, dtype) for dtype in (np.uint32, np.float32))

    def select(self, residuals, gradients, step, keep=None) -> Selection:
        """`select` from every tensor with its threshold. keep: this step's share, if not the selector's.

        Equal states, steps and arrays give equal bits. Raises ValueError.
        """
        keep, pairs = checked_share(self.keep if keep is None else keep), pairs_of(residuals, gradients, self.sizes)
        self._make_room(0, min(self.bases[-1], int(1.25 * keep * self.bases[-1])) + WIDTH)
        count = bad = 0
        for group, members in enumerate(self.groups):
            before, wrong = count, bad
            self._find(group, [pairs[t] for t in members], step, keep)
            for t in members:
                count, bad = self._take(*pairs[t], self.threshold[group], count, bad, self.bases[t])
            self._judge(group, count - before, sum(self.sizes[t] for t in members) - (bad - wrong), keep)
        return Selection(self.indices[:count], self.values[:count], bad)

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the arrays that the next step depends on."""
        return {name: getattr(self, name).copy() for name in ("threshold", "exponent", "drift", "age", "target")}

    def load(self, state):
        """Go on from a `state` of a selector made alike; other keys are ignored. Raises ValueError."""
        for name, own in self.state().items():
            if name not in state or np.shape(state[name]) != own.shape:
                got = f"shape {np.shape(state[name])}" if name in state else "nothing"
                raise ValueError(f"the selector's state needs {name!r} of shape {own.shape}, got {got}")
            getattr(self, name)[:] = state[name]

    def _find(self, group, pairs, step, keep):
        """Find the group's threshold, if it cannot be used again."""
        if self.age[group] < self.reuse and self.target[group] == keep and self.threshold[group] < np.inf:
            return
        key = thresholds.key_of(self.seed, step, group)
        guess = WIDER ** -self.exponent[group] * self.threshold[group] if self.target[group] == keep else 0.0
        found = thresholds.estimate(pairs, keep, self.method, self.share, self.hits, key, guess)
        self.threshold[group], self.exponent[group], self.age[group], self.target[group] = *found, 0, keep

    def _take(self, residual, gradient, threshold, count, bad, base):
        """(count, bad) after this tensor: the whole of it, whatever room that takes."""
        start, least = 0, least_bits(threshold)
        while True:
            found, start, wrong = scan(residual, gradient, least, self.indices[count:], self.values[count:], start, base)
            count, bad = count + found, bad + wrong
            if start == residual.size:
                return count, bad
            self._make_room(count, 2 * self.values.size)

    def _make_room(self, count, room):
        if self.values.size < room:
            self.indices, self.values = (grown(array, count, room) for array in (self.indices, self.values))

    def _judge(self, group, kept, finite, keep):
        """Correct the threshold for the next step, by what it let pass of `finite` elements, and by its drift so far."""
        self.age[group] += 1
        if self.reuse == 1 or not self.correct or not finite:
            return
        target = keep * finite
        surprise = min(max(math.log((kept + 1) / (target + 1)), -BOUND), BOUND) * self.exponent[group]
        self.drift[group] += DRIFT * surprise
        moved = self.threshold[group] * math.exp(GAIN * surprise + self.drift[group])
        self.threshold[group] = max(moved, thresholds.TINY)
        if abs(kept - target) > SLACK * target + DEVIATIONS * target ** 0.5:
            self.age[group] = self.reuse
