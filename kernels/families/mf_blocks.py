"""Ratings sorted into the blocks of a grid, in random order within each."""

import numpy as np

from hogwild.kernels.compiler.jit import kernel
from hogwild.kernels.families.mf_negatives import GOLDEN, hash_of, mixed


@kernel
def count_blocks(users, items, user_band, item_band, starts):
    """starts[b + 1] += ratings of block b; users, items [n]; their bands; starts int64[side² + 1], zeros."""
    side = np.int64(np.sqrt(float(starts.shape[0])))
    for i in range(users.shape[0]):
        starts[user_band[users[i]] * side + item_band[items[i]] + 1] += 1


@kernel
def fill_blocks(given, grid, starts, out):
    """Ratings to where their block is: starts int64[side² + 1], its first b + 1 entries the places of the next of block b.

    given, out: (users uint32[n], items uint32[n], values float32[n]) as the caller numbers them, and as rows of parameters;
    grid: (band of each user, of each item, row of each user, of each item).
    """
    side = np.int64(np.sqrt(float(starts.shape[0])))
    users, items, values = given
    for i in range(users.shape[0]):
        u, v = users[i], items[i]
        block = grid[0][u] * side + grid[1][v]
        at = starts[block]
        starts[block] = at + 1
        out[0][at], out[1][at], out[2][at] = grid[2][u], grid[3][v], values[i]


@kernel
def shuffle_blocks(starts, seed, out):
    """Each block in random order. Fisher & Yates; Durstenfeld 1964."""
    users, items, values = out
    for b in range(starts.shape[0] - 1):
        for i in range(starts[b + 1] - 1, starts[b], -1):
            number = mixed(np.uint64(seed) + np.uint64(i) * GOLDEN) >> np.uint64(32)
            j = starts[b] + np.int64((number * np.uint64(i + 1 - starts[b])) >> np.uint64(32))
            users[i], users[j] = users[j], users[i]
            items[i], items[j] = items[j], items[i]
            values[i], values[j] = values[j], values[i]


@kernel
def set_bits(users, items, bits):
    """The bits of all pairs' hashes: bits uint64[2^k]."""
    for i in range(users.shape[0]):
        word, bit = hash_of(bits, users[i], items[i])
        bits[word] |= np.uint64(1) << bit
