"""Rows of sparse features (CSR) and the few loops every reader and transform needs over them."""

from typing import NamedTuple

import numpy as np

from hogwild.kernels.compiler.jit import kernel

OK, BAD_INDPTR, UNSORTED, OVER_WIDTH, NOT_FINITE = range(5)


class CSR(NamedTuple):
    """Row i holds entries indptr[i] … indptr[i+1] - 1."""

    indptr: np.ndarray  # int64[n + 1], from 0
    indices: np.ndarray  # uint32[nnz], strictly increasing in a row
    values: np.ndarray  # float32[nnz]


@kernel
def degrees(csr, out):
    """Add to out[j] (int64[n_features]) the number of rows that store feature j; the indices must be below its size."""
    for k in range(csr.indptr[0], csr.indptr[-1]):
        out[csr.indices[k]] += 1


@kernel
def sizes(csr, rows, total, size, square):
    """Add to total, size, square (float64[n_features]) x, |x|, x² of each feature's values in the first `rows` rows."""
    for k in range(csr.indptr[0], csr.indptr[rows]):
        x = float(csr.values[k])
        total[csr.indices[k]] += x
        size[csr.indices[k]] += abs(x)
        square[csr.indices[k]] += x * x


@kernel
def strongest(csr, rows, scale, steps=4):
    """The largest eigenvalue of the covariance of sqrt(scale[j]) x_j in the first `rows` rows, by power iteration.

    scale: float64[n_features], 0 for features that do not count. Up to a tenth too small after 4 steps.
    """
    root, u, z, found = np.sqrt(scale), np.zeros(scale.size), np.zeros(rows), 0.0
    for j in range(scale.size):  # anything without a pattern
        u[j] = root[j] * (float((j * 2654435761) % 65536) - 32767.5)
    for _ in range(steps):
        norm = np.sqrt((u * u).sum())
        if not norm > 0.0:
            return 0.0
        for j in range(scale.size):
            u[j] *= root[j] / norm
        for i in range(rows):
            z[i] = 0.0
            for k in range(csr.indptr[i], csr.indptr[i + 1]):
                z[i] += csr.values[k] * u[csr.indices[k]]
        mean = z.sum() / rows
        u[:] = 0.0
        for i in range(rows):
            change = (z[i] - mean) / rows
            for k in range(csr.indptr[i], csr.indptr[i + 1]):
                u[csr.indices[k]] += csr.values[k] * change
        for j in range(scale.size):
            u[j] *= root[j]
        found = np.sqrt((u * u).sum())
    return found


@kernel
def check(csr, n_features):
    """(status, row): the first row whose pointers, index order, index range or values are wrong; (OK, n) if none is."""
    n, nnz = csr.indptr.size - 1, min(csr.indices.size, csr.values.size)
    if csr.indptr[0] != 0:
        return BAD_INDPTR, 0
    for i in range(n):
        start, stop = csr.indptr[i], csr.indptr[i + 1]
        if not start <= stop <= nnz:
            return BAD_INDPTR, i
        last = np.int64(-1)
        for k in range(start, stop):
            j = np.int64(csr.indices[k])
            if j <= last:
                return UNSORTED, i
            if j >= n_features:
                return OVER_WIDTH, i
            if not np.isfinite(csr.values[k]):
                return NOT_FINITE, i
            last = j
    return OK, n


@kernel
def scale_rows(csr, out):
    """Write to out (float32[nnz]) the values with every row at unit L2 norm; a row of zeros stays as it is."""
    for i in range(csr.indptr.size - 1):
        square = 0.0  # float64: the square of a float32 neither overflows nor vanishes in it
        for k in range(csr.indptr[i], csr.indptr[i + 1]):
            square += np.float64(csr.values[k]) * np.float64(csr.values[k])
        scale = 1.0 / np.sqrt(square) if square > 0.0 else 1.0
        for k in range(csr.indptr[i], csr.indptr[i + 1]):
            out[k] = np.float32(csr.values[k] * scale)
