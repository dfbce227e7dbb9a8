"""Sparse lists that meet: ascending uint32 indices with a float32 value each, from one rank or from several.

Everything here gives the same bits on every machine: values are added in the order of the lists.
"""

import numpy as np

from hogwild.kernels.compiler.bit_intrinsics import trailing_zeros
from hogwild.kernels.compiler.jit import kernel

LOG = np.uint64(14)  # of the elements in a block: its sums, 64 KB, stay in the cache
SIX, ONE, ZERO, REST, NONE = (np.uint64(x) for x in (6, 1, 0, 63, 2**64 - 1))


@kernel
def _sum(indices, values, at, ends, sums, marks, out, total):
    """Write the indices of any list to `out` and their sums to `total`, block by block; how many.

    at, ends: uint64[P], the bounds of each list; at is moved. sums float32, marks uint64: one block's, zeros.
    """
    m, lists = ZERO, np.uint64(at.size)
    while True:
        block = NONE
        for r in range(lists):
            block = min(block, np.uint64(indices[at[r]]) >> LOG) if at[r] < ends[r] else block
        if block == NONE:
            return m
        base = block << LOG
        for r in range(lists):
            i = at[r]
            while i < ends[r] and np.uint64(indices[i]) >> LOG == block:
                j = np.uint64(indices[i]) - base
                sums[j] += values[i]
                marks[j >> SIX] |= ONE << (j & REST)
                i += ONE
            at[r] = i
        for w in range(np.uint64(marks.size)):
            bits = marks[w]
            marks[w] = ZERO
            while bits != ZERO:
                j = (w << SIX) + np.uint64(trailing_zeros(bits))
                bits &= bits - ONE
                out[m], total[m] = base + j, sums[j]
                sums[j] = np.float32(0)
                m += ONE


@kernel
def _settle(indices, values, lost, arrived, out, back):
    """As `settle`; how many."""
    j, m = ZERO, ZERO
    for i in range(np.uint64(indices.size)):
        while j < np.uint64(arrived.size) and arrived[j] < indices[i]:
            j += ONE
        there = j < np.uint64(arrived.size) and arrived[j] == indices[i]
        value = lost[i] if there else values[i]
        out[m], back[m] = indices[i], value
        m += np.uint64(value != np.float32(0))
    return m


def _checked(name, array, dtype, size):
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != (size,) or not array.flags.c_contiguous:
        got = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be a contiguous {np.dtype(dtype)} array of {size} elements, got {got}")


def add_lists(indices, values, ends):
    """(indices uint32[m] ascending, values float32[m]): the sums of P lists, which lie one behind the other.

    indices: uint32[total], strictly ascending within a list; values: float32[total]; ends: where each list ends. A sum
    is 0 + the first list's value + the second's …, rounded each time; it is kept even where it is 0. Raises ValueError.
    """
    ends = np.asarray(ends, np.uint64)
    total = int(ends[-1]) if ends.size else 0
    if np.any(ends[1:] < ends[:-1]):
        raise ValueError(f"ends must not descend, got {ends}")
    _checked("indices", indices, np.uint32, total)
    _checked("values", values, np.float32, total)
    out, sums = np.empty(total, np.uint32), np.empty(total, np.float32)
    at = np.concatenate([np.zeros(min(ends.size, 1), np.uint64), ends[:-1]])
    m = _sum(indices, values, at, ends, np.zeros(1 << int(LOG), np.float32), np.zeros(1 << int(LOG - SIX), np.uint64),
             out, sums)
    return out[:m], sums[:m]


def largest(values, share) -> np.ndarray:
    """bool[m]: which `share` of the values (float32[m]) have the largest magnitude. Equal ones are taken evenly spread."""
    if share >= values.size:
        return np.ones(values.size, bool)
    if share <= 0:
        return np.zeros(values.size, bool)
    magnitudes = np.abs(values)
    threshold = np.partition(magnitudes, values.size - share)[values.size - share]
    chosen = magnitudes > threshold
    equal, missing = np.flatnonzero(magnitudes == threshold), share - np.count_nonzero(chosen)
    chosen[equal[np.arange(missing) * equal.size // missing]] = True
    return chosen


def settle(indices, values, lost, arrived):
    """(indices, values): what returns to a rank that sent `values` at `indices`, of which `lost` was rounded away.

    What has not arrived returns whole, what has returns its rounding loss; zeros are left out. indices, arrived: uint32,
    ascending; values, lost: float32, as long as indices. Raises ValueError.
    """
    size = np.size(indices)
    _checked("indices", indices, np.uint32, size)
    _checked("values", values, np.float32, size)
    _checked("lost", lost, np.float32, size)
    _checked("arrived", arrived, np.uint32, np.size(arrived))
    out, back = np.empty(size + 1, np.uint32), np.empty(size + 1, np.float32)  # written first, counted after
    m = _settle(indices, values, lost, arrived, out, back)
    return out[:m], back[:m]
