"""Scores of a sparse row, one or K of them, and what a loss says about them."""

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.jit import INLINE, LOOP
from hogwild.kernels.losses import evaluate
from hogwild.kernels.sharing.parameters import count, row_of, width


def score(place, scratch, outputs, tau, csr, start, stop, intercept):
    """w·x + b of a row: a number, or the array outputs.z."""


@overload(score, **INLINE)
def _score(place, scratch, outputs, tau, csr, start, stop, intercept):
    if isinstance(outputs, types.NoneType):
        def one(place, scratch, outputs, tau, csr, start, stop, intercept):
            flat, indices, values = place.flat, csr.indices, csr.values
            columns = np.uint64(width(scratch, tau))
            z = flat.dtype.type(0)
            for i in range(np.uint64(start), np.uint64(stop)):
                z += flat[row_of(place, indices, i, start) * columns] * values[i]
            return float(z + flat[np.uint64(place.first) * columns] if intercept else z)
        return one

    def many(place, scratch, outputs, tau, csr, start, stop, intercept):
        flat, z, outs, columns = place.flat, outputs.z, np.uint64(count(outputs)), np.uint64(width(scratch, tau))
        for o in range(outs):
            z[o] = flat[(np.uint64(place.first) * outs + o) * columns] if intercept else 0.0
        for i in range(np.uint64(start), np.uint64(stop)):
            at, x = row_of(place, csr.indices, i, start) * outs, csr.values[i]
            for o in range(outs):
                z[o] += flat[(at + o) * columns] * x
        return z
    return many


def gathered_score(place, scratch, outputs, tau, csr, start, stop, intercept):
    """`score` from what `gather` has brought, where there is a scratch."""


@overload(gathered_score, **INLINE)
def _gathered_score(place, scratch, outputs, tau, csr, start, stop, intercept):
    if isinstance(scratch, types.NoneType):
        return lambda place, scratch, outputs, tau, csr, start, stop, intercept: score(
            place, scratch, outputs, tau, csr, start, stop, intercept)
    if isinstance(outputs, types.NoneType):
        def one(place, scratch, outputs, tau, csr, start, stop, intercept):
            w, values, n = scratch.before[0], csr.values, np.uint64(stop - start)
            z = place.flat.dtype.type(0)
            for q in range(n):
                z += w[q] * values[np.uint64(start) + q]
            return float(z + w[n] if intercept else z)
        return one

    def many(place, scratch, outputs, tau, csr, start, stop, intercept):
        w, z, outs, n = scratch.before[0], outputs.z, np.uint64(count(outputs)), np.uint64(stop - start)
        for o in range(outs):
            z[o] = w[n * outs + o] if intercept else 0.0
        for q in range(n):
            x = csr.values[np.uint64(start) + q]
            for o in range(outs):
                z[o] += w[q * outs + o] * x
        return z
    return many


def judged(loss, outputs, z, y, weight):
    """(loss, its gradient by the scores), both times weight. A binary loss judges K outputs one against the rest."""


@overload(judged, **INLINE)
def _judged(loss, outputs, z, y, weight):
    if isinstance(outputs, types.NoneType):
        def one(loss, outputs, z, y, weight):
            value, slope = evaluate(loss, z, float(y))
            return value * weight, slope * weight
        return one
    if loss.instance_class.__name__ == "SoftmaxCrossEntropy":
        def softmax(loss, outputs, z, y, weight):
            value = evaluate(loss, z, int(y), outputs.gradient)
            for o in range(count(outputs)):
                outputs.gradient[o] *= weight
            return value * weight, outputs.gradient
        return softmax

    def one_against_the_rest(loss, outputs, z, y, weight):
        total = 0.0
        for o in range(count(outputs)):
            value, slope = evaluate(loss, z[o], 1.0 if o == int(y) else -1.0)
            total += value
            outputs.gradient[o] = slope * weight
        return total * weight, outputs.gradient
    return one_against_the_rest


def weight_of(weights, i):
    """Weight of example i."""


@overload(weight_of, **LOOP)
def _weight_of(weights, i):
    if isinstance(weights, types.NoneType):
        return lambda weights, i: 1.0
    return lambda weights, i: float(weights[i])




def square(outputs, slope):
    """Squared norm of the gradient by the scores."""


@overload(square, **LOOP)
def _square(outputs, slope):
    if isinstance(outputs, types.NoneType):
        return lambda outputs, slope: slope * slope
    return lambda outputs, slope: (slope * slope).sum()


def slope_of(outputs, slopes, n):
    """Example n's gradient by its scores, from the block's."""


@overload(slope_of, **LOOP)
def _slope_of(outputs, slopes, n):
    if isinstance(outputs, types.NoneType):
        return lambda outputs, slopes, n: slopes[n]

    def copied(outputs, slopes, n):
        outs = count(outputs)
        for o in range(outs):
            outputs.gradient[o] = slopes[n * outs + o]
        return outputs.gradient
    return copied
