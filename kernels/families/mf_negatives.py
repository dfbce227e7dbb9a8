"""Negatives of matrix factorization: items that a user does not have, drawn for a positive, and losses of such pairs.

What is drawn at step t depends on the seed and t alone, not on the worker: a number is made of both by splitmix64 (Steele,
Lea & Flood 2014).
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.jit import INLINE, LOOP
from hogwild.kernels.families.mf_rows import dot, inlined
from hogwild.kernels.sharing.parameters import field_type

GOLDEN, MIX, FINAL = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
BITS = 16  # of the table of hashes, for a positive: one in 16 of the others has to be looked up
DRAWS = 64  # of one negative; a user who has all items has none
CELLS, FAR = 4096, 8.0  # of the tables of the sigmoid and its logarithm, over scores from -FAR to FAR: errors below 1e-6


class BPR(NamedTuple):
    """log(1 + exp(-z)) of z, the positive's score less a negative's. Rendle et al. 2009."""

    ranges = {}


class WARP(NamedTuple):
    """L(r) max(0, 1 - z) of the first negative drawn, of at most `draws`, whose z is below 1; none: no loss.

    r = (items - 1) // draws needed, L(r) = log r / log(items - 1). Weston, Bengio & Usunier 2011; L as in LightFM, but for
    its divisor, with which the largest is 1.
    """

    draws: float = 10.0

    ranges = {"draws": "[1, 1000]"}


class Alias(NamedTuple):
    """Items by popularity: cell k of a band gives k with probability share[k], else other[k]. Walker 1977; Vose 1991."""

    share: np.ndarray  # float32[items]
    other: np.ndarray  # uint32[items]


class Bands(NamedTuple):
    """Bands of items, of which a positive's negatives are of its own."""

    number: np.ndarray  # uint32[items]: the band
    ends: np.ndarray  # uint32[bands + 1]


class Negatives(NamedTuple):
    """What negatives are drawn from, and the positives."""

    seed: int
    first: int  # the row of item 0
    count: int  # items
    starts: np.ndarray  # int64[users + 1]: the user's positives in `have`
    have: np.ndarray  # uint32[n]: rows of items, rising for each user
    bits: np.ndarray  # uint64[2^k]: the bits that positives' hashes have set
    alias: tuple  # Alias, or None: all alike
    bands: tuple  # Bands, or None: of all items
    table: np.ndarray  # float32[2, CELLS + 1]: log(1 + exp(-z)), and minus its derivative


def sigmoid_table():
    """`Negatives.table`."""
    z = np.linspace(-FAR, FAR, CELLS + 1)
    return np.array([np.logaddexp(0, -z), 1 / (1 + np.exp(z))], np.float32)


@inlined
def mixed(x):
    """splitmix64's number for x, uint64."""
    x = (x ^ (x >> np.uint64(30))) * MIX
    x = (x ^ (x >> np.uint64(27))) * FINAL
    return x ^ (x >> np.uint64(31))


@inlined
def hash_of(bits, u, v):
    """(word, bit) of the pair (u, v)."""
    h = mixed((np.uint64(u) << np.uint64(32)) + np.uint64(v))
    return (h >> np.uint64(6)) & np.uint64(bits.shape[0] - 1), h & np.uint64(63)


@inlined
def has(negatives, u, v):
    """Whether user u has the item of row v."""
    word, bit = hash_of(negatives.bits, u, v)
    if not (negatives.bits[word] >> bit) & np.uint64(1):
        return False
    low, high = negatives.starts[u], negatives.starts[u + np.uint64(1)]
    while low < high:
        middle = (low + high) // 2
        if negatives.have[middle] < v:
            low = middle + 1
        else:
            high = middle
    return low < negatives.starts[u + np.uint64(1)] and negatives.have[low] == v


def band_of(negatives, v):
    """(first item, items) of what negatives of the positive of row v are drawn from."""


@overload(band_of, **LOOP)
def _band_of_impl(negatives, v):
    if isinstance(field_type(negatives, "bands"), types.NoneType):
        return lambda negatives, v: (np.uint64(0), np.uint64(negatives.count))

    def own(negatives, v):
        bands = negatives.bands
        k = np.uint64(bands.number[v - np.uint64(negatives.first)])
        low = np.uint64(bands.ends[k])
        return low, np.uint64(bands.ends[k + np.uint64(1)]) - low
    return own


def _item(alias, cell, number):
    """The item that a cell gives for a random number uint64."""


@overload(_item, **LOOP)
def _item_impl(alias, cell, number):
    if isinstance(alias, types.NoneType):
        return lambda alias, cell, number: cell

    def drawn(alias, cell, number):
        if (number & np.uint64(0xFFFFFF)) * 2.0**-24 < alias.share[cell]:
            return cell
        return np.uint64(alias.other[cell])
    return drawn


@inlined
def candidate(negatives, band, t, k):
    """Row of the k-th item that is drawn at step t; band: as of `band_of`."""
    number = mixed(np.uint64(negatives.seed) + (np.uint64(t) * np.uint64(1024) + np.uint64(k)) * GOLDEN)
    cell = band[0] + (((number >> np.uint64(32)) * band[1]) >> np.uint64(32))
    return np.uint64(negatives.first) + _item(negatives.alias, cell, number)


def draw(model, flat, u, v, t):
    """(row of a negative for the positive (u, v) of step t, draws that were needed); (v, 0) where none was found."""


@overload(draw, **INLINE)
def _draw(model, flat, u, v, t):
    if field_type(model, "loss").instance_class is BPR:
        def any_negative(model, flat, u, v, t):
            negatives = model.negatives
            band = band_of(negatives, v)
            for k in range(DRAWS):
                w = candidate(negatives, band, t, k)
                if not has(negatives, u, w):
                    return w, k + 1
            return v, 0
        return any_negative

    def violating(model, flat, u, v, t):
        negatives = model.negatives
        band = band_of(negatives, v)
        z = dot(model.sizes, flat, u, v)
        for k in range(int(model.loss.draws)):
            w = candidate(negatives, band, t, k)
            if not has(negatives, u, w) and not z - dot(model.sizes, flat, u, w) >= 1:
                return w, k + 1
        return v, 0
    return violating


def pairwise(loss, model, z, tries):
    """(loss, its derivative by z) of a pair that took so many draws."""


@overload(pairwise, **INLINE)
def _pairwise(loss, model, z, tries):
    if loss.instance_class is BPR:
        def bpr(loss, model, z, tries):
            if tries == 0:
                return 0.0 * z, 0.0 * z
            if not abs(z) < FAR:
                e = math.exp(-abs(z)) + 0.0 * z
                return math.log1p(e) + max(-z, 0.0), -(e if z > 0.0 else 1.0) / (1.0 + e)
            table, place = model.negatives.table, (z + FAR) * (CELLS / (2 * FAR))
            k = np.uint64(place)
            rest, n = place - k, k + np.uint64(1)
            value = table[0, k] + rest * (table[0, n] - table[0, k])
            return value, -(table[1, k] + rest * (table[1, n] - table[1, k]))
        return bpr

    def warp(loss, model, z, tries):
        if tries == 0:
            return 0.0 * z, 0.0
        rest = max(model.negatives.count - 1, 2)
        weight = math.log(max(rest // tries, 1)) / math.log(rest)
        return weight * (max(1.0 - z, 0.0) + 0.0 * z), -weight
    return warp
