"""The proximal step of the L1 penalty on plain arrays: each coordinate at once, or when it is next looked at."""

import numpy as np
from numba.extending import overload

from hogwild.kernels.compiler.jit import LOOP, kernel
from hogwild.kernels.optim import protocol
from hogwild.kernels.optim.steps import cast, load


def _place(indices, i):
    return i if indices is None else indices[i]


@overload(_place, **LOOP)
def _place_impl(indices, i):
    return lambda indices, i: i if indices is None else indices[i]


@kernel
def soft_threshold(rule, w, slots, applied, indices, l1, now, t):
    """Shrink w [d] at `indices` (uint32[m]; None: all) by l1, times each one's pace, times the learning rates since it was.

    slots: S arrays [d]. applied: float64[d], the sum of learning rates up to which each has been shrunk; now: that sum after
    step t. What would cross 0 becomes 0. As `lazy_l1.shrink`, which does this where threads share the weights.
    """
    like = w.dtype.type
    c = cast(protocol.prepare(rule, 1.0, t), like)
    for i in range(np.uint64(w.size if indices is None else indices.size)):
        j = _place(indices, i)
        owed = l1 * (now - applied[j])
        applied[j] = now
        most = like(owed * protocol.pace(rule, c, load(slots, j)))
        if w[j] > 0:
            w[j] = max(w[j] - most, like(0))
        else:
            w[j] = min(w[j] + most, like(0))
