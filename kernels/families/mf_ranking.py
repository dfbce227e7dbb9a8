"""Where the held-out items of users stand among all items that they had not in training: a loop over whole score rows."""

from typing import NamedTuple

import numpy as np

from hogwild.kernels.compiler.jit import kernel


class Scored(NamedTuple):
    """Factors from which scores are made."""

    users: np.ndarray  # float32[users, rank]
    items: np.ndarray  # float32[rank, items]: a score row is a sum of `rank` contiguous rows
    biases: np.ndarray  # float32[items]


class Pairs(NamedTuple):
    """Items of users, as CSR."""

    indptr: np.ndarray  # int64[users + 1]
    items: np.ndarray  # uint32[n]


@kernel
def stand(scored, users, masked, held, out, scores):
    """Of each held-out pair k of the given users (int64[m]) write to out[k] (int64[3]) how many of the other items have a
    higher score, how many the same, and how many of these a smaller number; the user's masked items are left out.

    Of an item that is masked itself: -1. scores: float32[items], overwritten.
    """
    for u in users:
        scores[:] = scored.biases
        for r in range(scored.items.shape[0]):
            p, row = scored.users[u, r], scored.items[r]
            for i in range(scores.size):
                scores[i] += p * row[i]
        for k in range(masked.indptr[u], masked.indptr[u + 1]):
            scores[masked.items[k]] = np.nan
        for k in range(held.indptr[u], held.indptr[u + 1]):
            item = np.int64(held.items[k])
            own, higher, same, before = scores[item], np.int64(0), np.int64(0), np.int64(0)
            if np.isnan(own):
                out[k] = -1
                continue
            for i in range(scores.size):
                higher += np.int64(scores[i] > own)
                same += np.int64(scores[i] == own)
            for i in range(item if same > 1 else np.int64(0)):
                before += np.int64(scores[i] == own)
            out[k, 0], out[k, 1], out[k, 2] = higher, same - 1, before
