"""Gradient of a linear model over a batch of sparse rows, for training where all steps are dense."""

import numpy as np

from hogwild.kernels.compiler.jit import kernel, prefetch
from hogwild.kernels.families.scores import judged, score, weight_of
from hogwild.kernels.sharing.parameters import count, part

AHEAD = 4  # rows whose entries are fetched into the cache early, as in kernels/families/linear.py


@kernel
def add_gradient(loss, place, outputs, csr, labels, weights, order, factor, intercept, out):
    """Loss sum of the rows `order` (int64[m]); `factor` times its gradient is added to out float32[(d + 1) K].

    place: of one worker alone, the weights in the form of `out`: K outputs of a feature side by side, the intercept's
    last. outputs: Outputs, or None for K = 1. labels float32[n]: ±1, a target, or a class number; a binary loss of K > 1
    outputs judges each class against the rest. weights: float32[n] factors of the losses, or None. intercept: what its
    gradient is multiplied by; 0: there is none. Nothing is checked.
    """
    indptr, indices, values = csr
    like, outs, last = out.dtype.type, np.uint64(count(outputs)), order.shape[0] - 1
    bias, total = np.uint64(place.first) * outs, 0.0
    for n in range(order.shape[0]):
        prefetch(indptr, order[min(n + 2 * AHEAD, last)])
        ahead = order[min(n + AHEAD, last)]
        prefetch(labels, ahead)
        for k in range(indptr[ahead], indptr[ahead + 1], 16):
            prefetch(indices, k)
            prefetch(values, k)
        i = order[n]
        start, stop = indptr[i], indptr[i + 1]
        z = score(place, None, outputs, None, csr, start, stop, intercept)
        value, slope = judged(loss, outputs, z, labels[i], weight_of(weights, i))
        total += value
        for k in range(np.uint64(start), np.uint64(stop)):
            at, x = np.uint64(indices[k]) * outs, values[k]
            for o in range(outs):
                out[at + o] += like(part(slope, o) * factor) * x
        for o in range(outs):
            out[bias + o] += like(part(slope, o) * factor * intercept)
    return total
