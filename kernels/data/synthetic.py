"""Sparse rows drawn from a planted logistic model. Every row has its own random stream, so no chunk changes another.

The stream is SplitMix64 (Steele, Lea, Flood 2014): a counter through a mixing function, started at a hash of seed, row.
"""

import math
from typing import NamedTuple

import numpy as np

from hogwild.kernels.compiler.bit_intrinsics import trailing_zeros
from hogwild.kernels.compiler.jit import kernel

ZERO, ONE = np.uint64(0), np.uint64(1)
STEP, MIX_1, MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Recipe(NamedTuple):
    """What rows are drawn from; d features, a table of n slots with one feature each."""

    alias: np.ndarray  # uint32[d]: Walker's alias of each rank
    stay: np.ndarray  # float32[d]: probability to stay at the drawn rank rather than go to its alias
    feature: np.ndarray  # uint32[d]: rank -> feature id, a permutation
    idf: np.ndarray  # float32[d], by feature
    weights: np.ndarray  # float64[d + 1] planted, by feature, the intercept last
    log_mean: float  # of a row's number of features, log-normal
    log_std: float
    longest: int


@kernel
def mix(z):
    """SplitMix64's output function on uint64."""
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * MIX_2
    return z ^ (z >> np.uint64(31))


@kernel
def uniform(bits):
    """The upper 53 bits as a number in (0, 1)."""
    return (np.float64(bits >> np.uint64(11)) + 0.5) * 2.0**-53


@kernel
def stream(seed, row):
    """State before the first draw of a row's stream."""
    return mix(mix(np.uint64(seed) + STEP) + np.uint64(row) * STEP)


@kernel
def lengths(recipe, seed, start, out):
    """Write to out (int64[n]) the number of features of rows start … start + n - 1."""
    for i in range(out.size):
        state = stream(seed, start + i)
        radius = math.sqrt(-2.0 * math.log(uniform(mix(state + STEP))))
        normal = radius * math.cos(2.0 * math.pi * uniform(mix(state + STEP * np.uint64(2))))
        wanted = math.exp(recipe.log_mean + recipe.log_std * normal)
        out[i] = min(max(np.int64(wanted), 1), recipe.longest)


@kernel
def _draw(recipe, state, row, seen):
    """Fill row (uint32[m]) with distinct features, ascending; the stream's new state. seen: see `generate`."""
    d, found = np.uint64(recipe.alias.size), 0
    while found < row.size:
        state += STEP
        bits = mix(state)
        rank = np.uint32(((bits >> np.uint64(32)) * d) >> np.uint64(32))
        if np.float32(bits & np.uint64(0xFFFFFF)) * np.float32(2.0**-24) >= recipe.stay[rank]:
            rank = recipe.alias[rank]
        j = recipe.feature[rank]
        word, bit = np.uint64(j) >> np.uint64(6), ONE << (np.uint64(j) & np.uint64(63))
        found += seen[word] & bit == ZERO
        seen[word] |= bit
    k = 0
    for word in range(seen.size):  # reads the features back in order: a third of the time that sorting takes
        bits, seen[word] = seen[word], ZERO
        while bits != ZERO:
            row[k] = np.uint32(64 * word + trailing_zeros(bits))
            bits &= bits - ONE
            k += 1
    return state


@kernel
def _weigh(recipe, state, row, out):
    """Write the row's tf-idf values (float32[m]) at unit L2 norm; (the stream's new state, w·x + b)."""
    square = 0.0
    for k in range(row.size):
        state += STEP
        value = recipe.idf[row[k]] * (1.0 - 0.5 * math.log(uniform(mix(state))))  # 1 + log tf has about this tail
        out[k] = value
        square += value * value
    scale, score = 1.0 / math.sqrt(square), recipe.weights[recipe.weights.size - 1]
    for k in range(row.size):
        out[k] = np.float32(out[k] * scale)
        score += recipe.weights[row[k]] * out[k]
    return state, score


@kernel
def generate(recipe, seed, start, indptr, indices, values, labels, seen):
    """Fill indices, values and labels (±1, float32[n]) of rows start … start + n - 1.

    indptr [n + 1]: sums of `lengths`, of these rows within indices and values. P(label = 1) = sigmoid(w·x + b).
    seen: uint64[d / 64 rounded up], zero before and after: the bit set of a row's features, one for each thread.
    """
    for i in range(labels.size):
        row = indices[indptr[i]:indptr[i + 1]]
        state = stream(seed, start + i) + STEP * np.uint64(2)  # `lengths` has taken two
        state = _draw(recipe, state, row, seen)
        state, score = _weigh(recipe, state, row, values[indptr[i]:indptr[i + 1]])
        chance = 1.0 / (1.0 + math.exp(-score))
        labels[i] = 1.0 if uniform(mix(state + STEP)) < chance else -1.0
