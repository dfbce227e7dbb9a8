"""Where the rows of matrix factorization lie, and its ratings: users and items in random order, in bands of a grid.

The ratings of a block of the grid touch few rows, which fit a core's cache; blocks of other rows and columns touch none of
these. Chin et al. 2015, "A fast parallel stochastic gradient method for matrix factorization in shared memory systems".
"""

import math
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.families.mf_blocks import count_blocks, fill_blocks, set_bits, shuffle_blocks
from hogwild.kernels.families.mf_negatives import BITS, Alias, Bands, Negatives, sigmoid_table
from hogwild.kernels.optim.steps import aligned
from hogwild.training.machine import demand_memory

LEAST_SIDE = 16  # of the grid, so that several workers find blocks without common rows
CACHE = 512e3  # bytes of rows that the blocks of a row of the grid touch
LEAST_BLOCK = 1024  # ratings of a block, on average
MOST = 2**32 - 1  # ratings, users and items: they are counted in uint32


class Ratings(NamedTuple):
    """Known pairs, each once."""

    users: np.ndarray  # uint32[n]
    items: np.ndarray  # uint32[n]
    values: np.ndarray  # float32[n]
    n_users: int
    n_items: int
    had: tuple | None = None  # (users, items) of all that users have, these among them, where that is more


class Grid(NamedTuple):
    """Ratings in their blocks, and the rows of users and items."""

    side: int
    user_rows: np.ndarray  # uint32[users]
    item_rows: np.ndarray  # uint32[items]: behind the users'
    item_ends: np.ndarray  # int64[side + 1]: the first item of each band, in the order of rows
    starts: np.ndarray  # int64[side² + 1]: the first rating of each block, row behind row of the grid
    users: np.ndarray  # uint32[n]: rows
    items: np.ndarray  # uint32[n]
    values: np.ndarray  # float32[n]


def check(ratings):
    """Raise UserError for ratings that cannot be trained on."""
    n = len(ratings.users)
    if not n:
        raise UserError("got no ratings, needed at least one")
    if max(n, ratings.n_users + ratings.n_items) >= MOST:
        raise UserError(f"got {n:,} ratings of {ratings.n_users:,} users and {ratings.n_items:,} items, needed fewer than "
                        f"{MOST:,} of each: split the file")
    demand_memory(24.0 * n, f"{n:,} ratings in blocks", "train on a sample of them")


def side_of(ratings, width) -> int:
    """Blocks in a row of the grid, for rows of so many float32: the same whatever the number of workers."""
    rows = ratings.n_users + ratings.n_items
    wanted = max(LEAST_SIDE, math.ceil(4 * width * rows / CACHE))
    return max(1, min(wanted, int(math.sqrt(len(ratings.users) / LEAST_BLOCK)), ratings.n_users, ratings.n_items))


def _bands(numbers, count, side, rng):
    """(row of each of `count`, at random; its band; first row of each band): bands have about as many ratings."""
    order = rng.permutation(count)
    times = np.bincount(numbers, minlength=count)[order]
    ends = np.cumsum(times)
    band_of_row = np.minimum((ends - times) * side // max(int(ends[-1]), 1), side - 1)
    row, band = np.empty((2, count), np.uint32)
    row[order], band[order] = np.arange(count), band_of_row
    return row, band, np.searchsorted(band_of_row, np.arange(side + 1))


def grid(ratings, side, seed) -> Grid:
    """The Grid of Ratings, side x side."""
    rng = np.random.default_rng((seed, 0))
    user_rows, user_band, _ = _bands(ratings.users, ratings.n_users, side, rng)
    item_rows, item_band, item_ends = _bands(ratings.items, ratings.n_items, side, rng)
    item_rows += np.uint32(ratings.n_users)
    given = tuple(np.ascontiguousarray(x, kind) for x, kind in zip(ratings[:3], (np.uint32, np.uint32, np.float32)))
    starts, n = np.zeros(side * side + 1, np.int64), len(given[0])
    count_blocks(*given[:2], user_band, item_band, starts)
    starts = np.cumsum(starts)
    out = tuple(aligned((n,), x.dtype) for x in given)
    fill_blocks(given, (user_band, item_band, user_rows, item_rows), starts.copy(), out)
    shuffle_blocks(starts, seed, out)
    return Grid(side, user_rows, item_rows, item_ends, starts, *out)


def order(made, rng) -> np.ndarray:
    """uint32[n]: the ratings, stratum after stratum of blocks that share neither users nor items, all in random order."""
    side = np.arange(made.side)
    columns, blocks = rng.permutation(side), []
    for stratum in rng.permutation(side):
        rows = rng.permutation(side)
        blocks.append(rows * made.side + columns[(rows + stratum) % made.side])
    blocks = np.concatenate(blocks)
    first, lengths = made.starts[blocks], np.diff(made.starts)[blocks]
    shift = first - np.cumsum(lengths) + lengths
    return np.arange(len(made.users), dtype=np.uint32) + np.repeat(shift.astype(np.uint32), lengths)


def negatives(made, counts, power, banded, seed, had=None) -> Negatives:
    """What negatives are drawn from: items by popularity^power, counts int64[items in the order of rows]; banded: each from
    its positive's band."""
    n_users, n_items = len(made.user_rows), len(made.item_rows)
    users, items = (made.users, made.items) if had is None else (made.user_rows[had[0]], made.item_rows[had[1]])
    by_user = np.lexsort((items, users))
    starts = np.concatenate(([0], np.cumsum(np.bincount(users, minlength=n_users))))
    bits = np.zeros(1 << max(math.ceil(math.log2(BITS * len(users) / 64)), 0), np.uint64)
    set_bits(users, items, bits)
    ends = made.item_ends if banded else np.array([0, n_items])
    bands = np.repeat(np.arange(len(ends) - 1), np.diff(ends)).astype(np.uint32)
    bands = Bands(bands, ends.astype(np.uint32)) if banded else None
    alias = _alias(np.maximum(counts, 1.0)**power, ends) if power else None
    return Negatives(seed * 7919 + 1, n_users, n_items, starts, items[by_user], bits, alias, bands, sigmoid_table())


def _alias(weights, ends) -> Alias:
    """Alias table of each band by itself."""
    share, other = np.ones(len(weights), np.float32), np.arange(len(weights), dtype=np.uint32)
    for first, last in zip(ends[:-1], ends[1:]):
        w = weights[first:last] * ((last - first) / weights[first:last].sum()) if last > first else weights[:0]
        small, large = [list(np.flatnonzero(mask)) for mask in (w < 1, w >= 1)]
        while small and large:
            a, b = small.pop(), large[-1]
            share[first + a], other[first + a] = w[a], first + b
            w[b] -= 1 - w[a]
            if w[b] < 1:
                small.append(large.pop())
    return Alias(share, other)
