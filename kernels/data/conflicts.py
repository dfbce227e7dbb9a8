"""How rows of sparse features meet: the loops behind the Hogwild paper's ρ and the prediction of lost updates."""

import numpy as np

from hogwild.kernels.compiler.jit import kernel

BATCH = 64  # rows that `meet` counts for together: one bit each


@kernel
def degrees_of(csr, rows, out):
    """Add to out[j] (int64[n_features]) the number of the given rows (int64) that store feature j."""
    indices = csr.indices
    for i in rows:
        for k in range(np.uint64(csr.indptr[i]), np.uint64(csr.indptr[i + 1])):
            out[indices[k]] += 1


@kernel
def reach(csr, rows, degrees, out):
    """Write to out[r] (int64) the most rows that rows[r] can meet, itself included; 0 for an empty row.

    It is 1 + Σ (degree - 1) over the row's features: reached where no other row shares two of them.
    """
    indices = csr.indices
    for r in range(rows.size):
        start, stop = np.uint64(csr.indptr[rows[r]]), np.uint64(csr.indptr[rows[r] + 1])
        total = np.int64(0)
        for k in range(start, stop):
            total += degrees[indices[k]] - 1
        out[r] = total + 1 if stop > start else 0


@kernel
def meet(csr, rows, batch, mask, out):
    """Write to out[b] (int64[BATCH]) how many of `rows` share a feature with row batch[b]; at most BATCH of them.

    mask: uint64[n_features] of zeros, and zeros again afterwards. Bit b of mask[j] says that batch[b] stores j, so one
    pass over the rows counts for the whole batch.
    """
    indices, everyone = csr.indices, np.uint64(0)
    for b in range(batch.size):
        bit = np.uint64(1) << np.uint64(b)
        everyone |= bit
        for k in range(np.uint64(csr.indptr[batch[b]]), np.uint64(csr.indptr[batch[b] + 1])):
            mask[indices[k]] |= bit
    out[:] = 0
    for i in rows:
        met = np.uint64(0)
        for k in range(np.uint64(csr.indptr[i]), np.uint64(csr.indptr[i + 1])):
            met |= mask[indices[k]]
            if met == everyone:
                break
        if met:
            for b in range(BATCH):
                out[b] += np.int64((met >> np.uint64(b)) & np.uint64(1))
    for i in batch:
        for k in range(np.uint64(csr.indptr[i]), np.uint64(csr.indptr[i + 1])):
            mask[indices[k]] = 0


@kernel
def lost_updates(degrees, rate, most):
    """Σ d x / (1 + x / most) with x = rate d, over degrees d (int64): see hogwild.training.preflight.lost_share."""
    total = 0.0
    for j in range(degrees.size):
        d = np.float64(degrees[j])
        total += d * d * rate / (1.0 + d * rate / most)
    return total


@kernel
def squares(degrees):
    """Σ d² over degrees d (int64), as float64: the integer would pass 2^63 on large data."""
    total = 0.0
    for j in range(degrees.size):
        total += np.float64(degrees[j]) * np.float64(degrees[j])
    return total
