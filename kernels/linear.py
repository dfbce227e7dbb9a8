"""Sparse linear models: one pass of a Hogwild worker over its examples, and scores. Niu et al. 2011, section 2.

The parameters are theta [d + 1, 1 + S]; row d is the intercept.
"""

import numpy as np

from kernels.jit import kernel, prefetch
from kernels.losses import evaluate
from kernels.schedules import cycled, rate
from kernels.steps import columns, step

AHEAD = 4  # rows whose data is fetched into the cache early; 2 to 8 measure alike
FLUSH = 256  # examples between two flushes of a worker's private intercept


@kernel
def _score(w, indices, values, start, stop):
    """Dot product of the row between the bounds with the weights, in the weights' dtype."""
    z = w.dtype.type(0)
    for i in range(np.uint64(start), np.uint64(stop)):
        z += w[indices[i]] * values[i]
    return z


@kernel
def _flush(theta, d, private, seen):
    """Add what this worker changed in its private intercept row to the shared one, and read the others' changes."""
    for k in range(private.shape[1]):
        # In this order a lone worker gets exactly its private value back.
        theta[d, k] = private[0, k] + (theta[d, k] - seen[0, k])
        private[0, k] = seen[0, k] = theta[d, k]


@kernel
def train(rule, schedule, loss, decay, clip, intercept, theta, w, slots, private, one, csr, labels, weight, order, t,
          stride, tally):
    """Lock-free steps on the rows `order` of csr, plain stores (mode "wild").

    theta [d + 1, 1 + S] with its columns w and slots; private: (row, its w, its slots, a row), this worker's own;
    one: ([0], [1.0]); labels [n]; weight [d] or None (see `step`); order [m] row numbers; t: steps done before,
    raised by `stride` (the number of workers) per example; tally [3] float64: adds loss, examples, non-zeros.
    """
    indptr, indices, values = csr
    mine, mine_w, mine_slots, seen = private
    d, last = theta.shape[0] - 1, order.shape[0] - 1
    total, nonzeros = 0.0, 0
    for k in range(theta.shape[1]):
        mine[0, k] = seen[0, k] = theta[d, k]
    for n in range(order.shape[0]):
        ahead = order[min(n + AHEAD, last)]
        for k in range(indptr[ahead], indptr[ahead + 1], 16):
            prefetch(indices, k)
            prefetch(values, k)
        i = order[n]
        start, stop = indptr[i], indptr[i + 1]
        value, slope = evaluate(loss, float(_score(w, indices, values, start, stop) + mine_w[0]), float(labels[i]))
        total += value
        nonzeros += stop - start
        lr, now = rate(schedule, t), cycled(rule, schedule, t)
        step(now, w, slots, indices, values, start, stop, slope, lr, t, decay, clip, weight)
        if intercept:
            step(now, mine_w, mine_slots, one[0], one[1], 0, 1, slope, lr, t, None, clip, None)
            if n % FLUSH == FLUSH - 1:
                _flush(theta, d, mine, seen)
        t += stride
    if intercept:
        _flush(theta, d, mine, seen)
    tally[0] += total
    tally[1] += order.shape[0]
    tally[2] += nonzeros


@kernel
def scores(w, csr, start, stop, out):
    """out[i] = score of row i for start <= i < stop; w [d + 1] with the intercept last, out [n] float32."""
    intercept = w[w.shape[0] - 1]
    for i in range(start, stop):
        out[i] = _score(w, csr.indices, csr.values, csr.indptr[i], csr.indptr[i + 1]) + intercept


def private_row(theta):
    """A worker's own copy of the intercept row, as `train` wants it."""
    row = np.zeros((1, theta.shape[1]), theta.dtype)
    return (row, *columns(row), np.zeros_like(row))


def unit(dtype):
    """([0], [1.0]): the intercept's one feature."""
    return np.zeros(1, np.uint32), np.ones(1, dtype)
