"""Gradient of a linear model over a batch of sparse rows, for training where all steps are dense."""

import numpy as np

from hogwild.kernels.compiler.jit import kernel, prefetch
from hogwild.kernels.families.scores import count, loss_and_dz, part, score, weight_of

AHEAD = 4  # rows whose entries are fetched into the cache early, as in kernels/families/linear.py


@kernel
def add_gradient(model, space, order, factor, out):
    """Loss sum of the rows `order` (int64[m]); `factor` times its gradient is added to out float32[(d + 1) K].

    model: a Model of kernels/families/linear.py: its loss, rows, labels float32[n] (±1, a target, or a class number; a binary
    loss of K > 1 outputs judges each class against the rest), weights of the examples, and what the intercepts' gradient is
    multiplied by (0: there are none). space: of one worker alone, the weights in the form of `out`: K outputs of a feature
    side by side, the intercepts' last; no scratch. Nothing is checked.
    """
    indptr, indices, values = model.csr
    outputs, intercept, labels = space.buffers.outputs, model.intercept, model.labels
    like, outs, last = out.dtype.type, np.uint64(count(outputs)), order.shape[0] - 1
    bias, total = np.uint64(space.buffers.intercept_row) * outs, 0.0
    for n in range(order.shape[0]):
        prefetch(indptr, order[min(n + 2 * AHEAD, last)])
        ahead = order[min(n + AHEAD, last)]
        prefetch(labels, ahead)
        for k in range(indptr[ahead], indptr[ahead + 1], 16):
            prefetch(indices, k)
            prefetch(values, k)
        i = order[n]
        start, stop = indptr[i], indptr[i + 1]
        z = score(space, model.csr, start, stop, intercept, None)
        value, dz = loss_and_dz(model.loss, outputs, z, labels[i], weight_of(model.weights, i))
        total += value
        for k in range(np.uint64(start), np.uint64(stop)):
            at, x = np.uint64(indices[k]) * outs, values[k]
            for o in range(outs):
                out[at + o] += like(part(dz, o) * factor) * x
        for o in range(outs):
            out[bias + o] += like(part(dz, o) * factor * intercept)
    return total
