"""Where to cut: the threshold that a share of |residual + gradient| passes, without storing that sum.

From a sample (Aji & Heafield 2017), from a histogram of the floats' bits, or exact. x passes T > 0 when it is finite and
|x| >= T, so of equal values all pass or none, and zeros never do. Tensors are flat contiguous float32 arrays; in place of
a gradient, None: the residual already holds the sum.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.jit import LOOP, kernel, prefetch
from hogwild.kernels.compression.select_simd import INFINITY, MAGNITUDE, WIDTH, scan, take

METHODS = "sample", "histogram", "exact"
SHARE = 0.001  # of the elements is sampled, as in the paper; more where that is needed so that
HITS = 800  # elements of the sample pass: the kept share then deviates by 4 to 7%
TINY = np.float32(1e-45)  # the smallest float32 above 0: everything but zeros passes
AHEAD = 8  # blocks whose cache lines are asked for early
SMALL = 64  # a tensor of fewer elements is sampled whole or not at all
SHIFT = 13  # floats whose bits differ in the lowest 13 only share a bin of the histogram: at most 0.1% apart
WIDER = 1.5  # the exact threshold is looked for among the elements above that of a sample, of so many times the share
GOLDEN = 0x9E3779B97F4A7C15


class Estimate(NamedTuple):
    """A threshold, and how it depends on the share around that: T ~ share ** -exponent."""

    threshold: np.float32
    exponent: float


def _sum(residual, gradient, i):
    """residual[i] + gradient[i], resolved when a kernel is compiled."""


@overload(_sum, **LOOP)
def _sum_impl(residual, gradient, i):
    if isinstance(gradient, types.NoneType):
        return lambda residual, gradient, i: residual[i]
    return lambda residual, gradient, i: residual[i] + gradient[i]


@kernel
def _mixed(key, t):
    """A random number that depends on key and t alone (splitmix64)."""
    z = np.uint64(key) + (np.uint64(t) + np.uint64(1)) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def _place(stride, t, key):
    """A random one of the t-th group of blocks; groups are of stride * 2**-32 blocks."""
    width, low = np.uint64(stride), (np.uint64(t) * np.uint64(stride)) >> np.uint64(32)
    chosen = low + ((_mixed(key, t) >> np.uint64(32)) * (width >> np.uint64(32)) >> np.uint64(32))
    return np.int64(chosen) * WIDTH


@kernel
def _sample(residual, gradient, least, values, blocks, key):
    """(count, finite): values gets |s| of what passes, of so many blocks of WIDTH; finite: how many of them all are."""
    stride, count, finite = ((residual.size // WIDTH) << 32) // blocks, 0, 0
    for t in range(blocks):
        ahead = _place(stride, min(t + AHEAD, blocks - 1), key)
        prefetch(residual, ahead)
        if gradient is not None:
            prefetch(gradient, ahead)
        hits, bad = take(residual, gradient, _place(stride, t, key), least, None, values, count, 0)
        count, finite = count + hits, finite + WIDTH - bad
    return count, finite


@kernel
def _count(residual, gradient, bins):
    """(finite, top): count every finite |s| in the bin (uint32[INFINITY >> SHIFT]) of its bits; top: the highest one used."""
    block, finite, top = np.empty(256, np.float32), 0, np.uint32(0)
    bits = block.view(np.uint32)
    for start in range(0, residual.size, block.size):
        width = np.uint64(min(block.size, residual.size - start))
        for j in range(width):
            block[j] = _sum(residual, gradient, np.uint64(start) + j)
        for j in range(width):
            magnitude = bits[j] & np.uint32(MAGNITUDE)
            if magnitude < np.uint32(INFINITY):
                bins[magnitude >> np.uint32(SHIFT)] += np.uint32(1)
                finite, top = finite + 1, max(top, magnitude)
    return finite, top >> np.uint32(SHIFT)


@kernel
def _bins_of(bins, top, ranks, found):
    """found[i] becomes the bin of the ranks[i]-th largest element; ranks ascend, from 1; top: the highest bin used."""
    b, above = np.int64(top) + 1, np.int64(0)
    for i in range(ranks.size):
        while above < ranks[i] and b > 0:
            b -= 1
            above += bins[b]
        found[i] = b


def key_of(*numbers) -> int:
    """A random number in [0, 2**63) that depends on these integers alone."""
    key = 0
    for number in numbers:
        key = int(_mixed(key, number & (2**63 - 1))) >> 1
    return key


def least_bits(threshold) -> int:
    """The bits of the smallest |x| that passes; at least 1, so that zeros do not. Raises ValueError on NaN."""
    if not threshold <= math.inf:
        raise ValueError(f"a threshold must be a number, got {threshold!r}")
    return max(1, int(np.float32(max(threshold, 0.0)).view(np.uint32)))


def checked_share(keep) -> float:
    """`keep` as a float, if it is in (0, 1]. Raises ValueError."""
    if not 0.0 < keep <= 1.0:
        raise ValueError(f"the kept share must be in (0, 1], got {keep!r}")
    return float(keep)


def flat(name, array, size=None, dtype=np.float32):
    """`array` itself, if the kernels can take it. Raises ValueError."""
    good = isinstance(array, np.ndarray) and array.dtype == dtype and array.ndim == 1 and array.flags.c_contiguous
    if not good or size is not None and array.size != size:
        got = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        wanted = "" if size is None else f" of {size} elements"
        raise ValueError(f"{name} must be a flat contiguous {np.dtype(dtype)} array{wanted}, got {got}")
    return array


def pairs_of(residuals, gradients, sizes=None) -> list:
    """[(residual, gradient or None)], checked. Raises ValueError."""
    sizes = sizes or [None] * len(residuals)
    if not len(residuals) == len(gradients) == len(sizes):
        raise ValueError(f"residuals and gradients must be lists of {len(sizes)} arrays each, got {len(residuals)} and "
                         f"{len(gradients)}")
    return [(flat("a residual", r, size), g if g is None else flat("a gradient", g, r.size))
            for r, g, size in zip(residuals, gradients, sizes)]


def threshold(residuals, gradients, keep, method="sample", share=SHARE, hits=HITS, seed=0) -> np.float32:
    """The threshold that a share `keep` of all elements of these lists of arrays together passes.

    sample: of a random `share` of the elements, or of more, so that about `hits` elements of the sample pass; of all,
    where that would be half of them; the same seed draws the same sample. histogram: one pass; the lower edge of the bin
    that holds the exact one, so that no fewer pass, but a bin's more may. exact: of n finite elements, the round(keep
    n)-th largest, or the largest. NaN and infinities are left out. Infinity, where all are; keep 1 lets all but zeros
    pass. Raises ValueError.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    return estimate(pairs_of(residuals, gradients), checked_share(keep), method, share, hits, seed).threshold


def estimate(pairs, keep, method, share, hits, seed, guess=0.0) -> Estimate:
    """`threshold` of checked arguments. guess: a threshold that more will pass; saves time, and changes no threshold."""
    if keep == 1.0:
        return Estimate(TINY, 0.0)
    if method == "histogram":
        return _by_histogram(pairs, keep)
    n = sum(r.size for r, _ in pairs)

    def everything(least):
        return _all(pairs, least, 2 * keep * n)

    def sample(passing):
        rate = max(share, hits / (passing * n))
        return _among(lambda least: _draw(pairs, rate, seed, least), passing, guess)
    if max(share, hits / (keep * max(n, 1))) > 0.5:
        return _among(everything, keep, guess)
    found = sample(keep if method == "sample" else min(1.0, WIDER * keep))
    if method == "sample" and found.threshold < np.inf:
        return found
    return _among(everything, keep, found.threshold)


def _among(draw, keep, guess) -> Estimate:
    """Estimate from `draw(least)`: (|s| of what passes, number of finite elements); again with less, if that is too few."""
    for least in (guess, 0.5 * guess, 0.0):
        values, finite = draw(least_bits(least))
        rank = _rank(keep, finite)
        if rank <= values.size or least == 0.0:
            break
    if not finite:
        return Estimate(np.float32(np.inf), 0.0)
    if rank > values.size:  # the others are zeros
        return Estimate(TINY, 0.0)
    ranks = np.array([max(1, rank // 2), rank, min(2 * rank, values.size)])
    places = values.size - ranks
    return _estimate(np.partition(values, places)[places], ranks)


def _rank(keep, finite):
    return max(1, round(keep * finite))


def _estimate(values, ranks):
    high, middle, low = (max(value, TINY) for value in values)
    slope = (math.log(high) - math.log(low)) / math.log(ranks[2] / ranks[0]) if ranks[2] > ranks[0] else 0.0
    return Estimate(np.float32(middle), slope)


def _by_histogram(pairs, keep):
    bins, found = np.zeros(INFINITY >> SHIFT, np.uint32), np.zeros(3, np.uint32)
    counted = [_count(r, g, bins) for r, g in pairs]
    finite = sum(count for count, _ in counted)
    if not finite:
        return Estimate(np.float32(np.inf), 0.0)
    rank = _rank(keep, finite)
    ranks = np.array([max(1, rank // 2), rank, min(2 * rank, finite)])
    _bins_of(bins, max(top for _, top in counted), ranks, found)
    return _estimate((found << np.uint32(SHIFT)).view(np.float32), ranks)


def _draw(pairs, rate, seed, least):
    """(|s| of what passes, finite elements) of a random share `rate` of the elements, at most half."""
    blocks = [r.size * rate / WIDTH for r, _ in pairs]
    values, count, finite = np.empty(WIDTH + sum(SMALL + WIDTH * int(b) for b in blocks), np.float32), 0, 0
    for t, ((r, g), expected) in enumerate(zip(pairs, blocks)):
        key = key_of(seed, t)
        chance = (key & 0xFFFFFF) / 0x1000000
        if r.size < SMALL:  # by chance, for else many small tensors would outweigh the large ones
            found, stop, bad = scan(r, g, least, None, values[count:], 0, 0) if chance < rate else (0, 0, 0)
            drawn = stop - bad
        elif expected + chance < 1:
            continue
        else:
            found, drawn = _sample(r, g, least, values[count:], int(expected + chance), key)
        count, finite = count + found, finite + drawn
    return values[:count], finite


def _all(pairs, least, room):
    """(|s| of what passes, finite elements) of all elements; room: about how many will pass."""
    values, count, finite = np.empty(int(room) + SMALL, np.float32), 0, 0
    for r, g in pairs:
        start = 0
        while start < r.size:
            found, stop, bad = scan(r, g, least, None, values[count:], start, 0)
            count, finite, start = count + found, finite + stop - start - bad, stop
            if start < r.size:
                values = grown(values, count, 2 * values.size)
    return values[:count], finite


def grown(array, count, room):
    """An array of `room` elements, of which the first `count` elements are those of `array`."""
    larger = np.empty(room, array.dtype)
    larger[:count] = array[:count]
    return larger
