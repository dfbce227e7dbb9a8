"""Selection in plain NumPy."""

import numpy as np


def twin(residual, gradient, cut):
    """(indices, values, bad, residual after) of one selection, in plain NumPy."""
    with np.errstate(over="ignore", invalid="ignore"):
        s = residual if gradient is None else residual + gradient
    finite = np.isfinite(s)
    hit = finite & (np.abs(s) >= cut) & (s != 0)
    rest = np.where(hit, np.float32(0), np.where(finite, s, residual))
    return np.flatnonzero(hit), s[hit], np.sum(~finite), rest


def same_bits(a, b):
    return a.dtype == b.dtype == np.float32 and np.array_equal(a.view(np.uint32), b.view(np.uint32))


def buffers(room):
    return np.empty(room, np.uint32), np.empty(room, np.float32)
