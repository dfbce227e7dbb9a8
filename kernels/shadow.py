"""How many updates were lost, and how old weights were: counters that are raised as the parameters are, now and then."""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from kernels.atomics import atomic_load, atomic_store
from kernels.jit import LOOP, kernel
from kernels.sharing import row_of

EVERY, WINDOW = 4096, 64  # of so many examples so many are sampled for lost updates


class Shadow(NamedTuple):
    """Counters beside the parameters, raised as they are, but only now and then: what is missing in them was lost."""

    counts: np.ndarray  # uint32[d]: shared, plain additions
    board: np.ndarray  # int64[8 (workers + 1)]: [0]: whether all sample now; [8 (k + 1)]: examples that worker k sampled
    me: int


def sampled(shadow, n, workers):
    """Before example n: the others' examples sampled so far; -1 where this one is not to be sampled."""


@overload(sampled, **LOOP)
def _sampled(shadow, n, workers):
    if isinstance(shadow, types.NoneType):
        return lambda shadow, n, workers: -1

    def others(shadow, n, workers):
        if shadow.me == 0 and n % (EVERY // 2) == 0:
            atomic_store(shadow.board, 0, 0)
        if shadow.me == 0 and n % EVERY == EVERY - WINDOW:
            atomic_store(shadow.board, 0, 1)
        return _others(shadow, workers) if atomic_load(shadow.board, 0) else -1
    return others


@kernel
def _others(shadow, workers):
    total = 0
    for k in range(workers):
        if k != shadow.me:
            total += atomic_load(shadow.board, 8 * (k + 1))
    return total


def sample(shadow, place, indices, start, stop, others, workers, tally):
    """After an example: raise the counters of its shared features; tally[4:7]: raised, others' steps meanwhile, samples."""


@overload(sample, **LOOP)
def _sample(shadow, place, indices, start, stop, others, workers, tally):
    if isinstance(shadow, types.NoneType):
        return lambda shadow, place, indices, start, stop, others, workers, tally: None

    def raise_counters(shadow, place, indices, start, stop, others, workers, tally):
        if others >= 0:
            for i in range(np.uint64(start), np.uint64(stop)):
                j = indices[i]
                if row_of(place, j) == j:
                    shadow.counts[j] += np.uint32(1)
                    tally[4] += 1
            at = 8 * (shadow.me + 1)
            atomic_store(shadow.board, at, atomic_load(shadow.board, at) + 1)
            tally[5] += _others(shadow, workers) - others
            tally[6] += 1
    return raise_counters
