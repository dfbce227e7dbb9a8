"""Scores of a sparse row, one or K of them, and what a loss says about them."""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.jit import INLINE, LOOP
from hogwild.kernels.losses import SoftmaxCrossEntropy, evaluate
from hogwild.kernels.sharing.parameters import columns_of, field_type, located


class Outputs(NamedTuple):
    """A worker's scores and their gradient, where there are K > 1 outputs (None: one output, plain numbers)."""

    z: np.ndarray  # float64[K]
    dz: np.ndarray  # float64[K]: the gradient by the scores


class Buffers(NamedTuple):
    """What a worker of a linear model needs beside its view of the parameters."""

    outputs: tuple  # Outputs or None
    intercept_row: int  # the intercepts' row in view.flat


def count(outputs):
    """K."""


@overload(count, **LOOP)
def _count(outputs):
    if isinstance(outputs, types.NoneType):
        return lambda outputs: 1  # a constant, so that loops over outputs vanish
    return lambda outputs: outputs.z.shape[0]


def part(dz, k):
    """Element k of the gradient by the scores, which is a number where there is one output."""


@overload(part, **LOOP)
def _part(dz, k):
    if isinstance(dz, types.Array):
        return lambda dz, k: dz[k]
    return lambda dz, k: dz


def _one_output(space):
    return isinstance(field_type(field_type(space, "buffers"), "outputs"), types.NoneType)


def score(space, csr, start, stop, intercept, tau):
    """w·x + b of a row, after `locate`: a number, or the array outputs.z. space: a Workspace with linear models' Buffers."""


@overload(score, **INLINE)
def _score(space, csr, start, stop, intercept, tau):
    if _one_output(space):
        def one(space, csr, start, stop, intercept, tau):
            view, indices, values = space.params, csr.indices, csr.values
            flat, columns = view.flat, np.uint64(columns_of(space.scratch, tau))
            z = flat.dtype.type(0)
            for i in range(np.uint64(start), np.uint64(stop)):
                z += flat[located(view, indices, i, start) * columns] * values[i]
            return float(z + flat[np.uint64(space.buffers.intercept_row) * columns] if intercept else z)
        return one

    def many(space, csr, start, stop, intercept, tau):
        view, z = space.params, space.buffers.outputs.z
        flat, outs, columns = view.flat, np.uint64(z.shape[0]), np.uint64(columns_of(space.scratch, tau))
        for o in range(outs):
            z[o] = flat[(np.uint64(space.buffers.intercept_row) * outs + o) * columns] if intercept else 0.0
        for i in range(np.uint64(start), np.uint64(stop)):
            at, x = located(view, csr.indices, i, start) * outs, csr.values[i]
            for o in range(outs):
                z[o] += flat[(at + o) * columns] * x
        return z
    return many


def gathered_score(space, csr, start, stop, intercept, tau):
    """`score` from the scratch, where there is one, into which the row's coordinates were copied."""


@overload(gathered_score, **INLINE)
def _gathered_score(space, csr, start, stop, intercept, tau):
    if isinstance(field_type(space, "scratch"), types.NoneType):
        return lambda space, csr, start, stop, intercept, tau: score(space, csr, start, stop, intercept, tau)
    if _one_output(space):
        def one(space, csr, start, stop, intercept, tau):
            w, values, n = space.scratch.before[0], csr.values, np.uint64(stop - start)
            z = space.params.flat.dtype.type(0)
            for q in range(n):
                z += w[q] * values[np.uint64(start) + q]
            return float(z + w[n] if intercept else z)
        return one

    def many(space, csr, start, stop, intercept, tau):
        w, z, n = space.scratch.before[0], space.buffers.outputs.z, np.uint64(stop - start)
        outs = np.uint64(z.shape[0])
        for o in range(outs):
            z[o] = w[n * outs + o] if intercept else 0.0
        for q in range(n):
            x = csr.values[np.uint64(start) + q]
            for o in range(outs):
                z[o] += w[q * outs + o] * x
        return z
    return many


def loss_and_dz(loss, outputs, z, y, weight):
    """(loss, its gradient by the scores), both times weight. A binary loss judges K outputs one against the rest."""


@overload(loss_and_dz, **INLINE)
def _loss_and_dz(loss, outputs, z, y, weight):
    if isinstance(outputs, types.NoneType):
        def one(loss, outputs, z, y, weight):
            value, dz = evaluate(loss, z, float(y))
            return value * weight, dz * weight
        return one
    if loss.instance_class is SoftmaxCrossEntropy:
        def softmax(loss, outputs, z, y, weight):
            value = evaluate(loss, z, int(y), outputs.dz)
            for o in range(count(outputs)):
                outputs.dz[o] *= weight
            return value * weight, outputs.dz
        return softmax

    def one_against_the_rest(loss, outputs, z, y, weight):
        total = 0.0
        for o in range(count(outputs)):
            value, dz = evaluate(loss, z[o], 1.0 if o == int(y) else -1.0)
            total += value
            outputs.dz[o] = dz * weight
        return total * weight, outputs.dz
    return one_against_the_rest


def weight_of(weights, i):
    """Weight of example i."""


@overload(weight_of, **LOOP)
def _weight_of(weights, i):
    if isinstance(weights, types.NoneType):
        return lambda weights, i: 1.0
    return lambda weights, i: float(weights[i])


def dz_norm_sq(outputs, dz):
    """Squared norm of the gradient by the scores."""


@overload(dz_norm_sq, **LOOP)
def _dz_norm_sq(outputs, dz):
    if isinstance(outputs, types.NoneType):
        return lambda outputs, dz: dz * dz
    return lambda outputs, dz: (dz * dz).sum()


def stored_dz(outputs, gradients, k):
    """Row k of gradients float64[n, K], as a gradient by the scores."""


@overload(stored_dz, **LOOP)
def _stored_dz(outputs, gradients, k):
    if isinstance(outputs, types.NoneType):
        return lambda outputs, gradients, k: gradients[k, 0]

    def copied(outputs, gradients, k):
        for o in range(count(outputs)):
            outputs.dz[o] = gradients[k, o]
        return outputs.dz
    return copied
