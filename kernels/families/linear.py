"""Sparse linear models: one pass of a Hogwild worker over its examples, and scores. Niu et al. 2011, section 2.

Two tables of parameters: a row for each of the d features, and one row, d, of the intercepts; a row is K outputs wide.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.jit import INLINE, LOOP, kernel, prefetch
from hogwild.kernels.families.linear_step import gather, gather_again, row_step
from hogwild.kernels.families.scores import (
    count,
    dz_norm_sq,
    gathered_score,
    loss_and_dz,
    part,
    score,
    stored_dz,
    weight_of,
)
from hogwild.kernels.optim.lazy_l1 import pooled_lr, shrink, tau_at
from hogwild.kernels.optim.steps import shorten
from hogwild.kernels.sharing.modes import enter, enter_row, leave, leave_row, skip_turns
from hogwild.kernels.sharing.parameters import columns_of, locate, prefetch_rows, row_width
from hogwild.kernels.sharing.replicas import layout_of, measure_due, merge_due, note_step, pause
from hogwild.kernels.sharing.workspace import BAD, step_at

AHEAD = 4  # rows whose entries are fetched into the cache early; 2 to 16 measure alike


def _train_examples(model, optimizer, worker, order, t, stride, tally):
    """As hogwild.kernels.sharing.worker.train_examples."""
    space, replica, csr, intercept, lasso = worker.space, worker.replica, model.csr, model.intercept, worker.space.lasso
    view, indptr, indices = space.params, csr.indptr, csr.indices
    mode, like = view.mode, view.flat.dtype.type
    last, total, nonzeros, done = order.shape[0] - 1, 0.0, 0, 0
    base, own = pooled_lr(lasso, mode, 0.0, 0.0, 0)
    first = 0
    while first < order.shape[0] and not tally[BAD] > 0:
        until = min(first + pause(replica), order.shape[0])
        for n in range(first, until):
            # The pointers of a row come from far away too: first they, then what they point to.
            prefetch(indptr, order[min(n + 2 * AHEAD, last)])
            ahead = order[min(n + AHEAD, last)]
            prefetch(model.labels, ahead)
            for k in range(indptr[ahead], indptr[ahead + 1], 16):
                prefetch(indices, k)
                prefetch(csr.values, k)
            i = order[n]
            start, stop = indptr[i], indptr[i + 1]
            step, following = step_at(optimizer, like, t), order[min(n + 1, last)]
            size = row_width(view) * columns_of(space.scratch, step.tau)
            prefetch_rows(view.flat, size, indices, indptr[following], indptr[following + 1])
            locate(view, indices, start, stop)
            if given(lasso):
                enter(mode, indices, start, stop, t)
                enter_row(mode, space.buffers.intercept_row)
                base, own = pooled_lr(lasso, mode, base, own, done)
            shrink(space, step.rule, step.tau, indices, start, stop, base + own, t)
            gather(space, indices, start, stop, intercept, step.tau)
            z = gathered_score(space, csr, start, stop, intercept, step.tau)
            value, dz = loss_and_dz(model.loss, space.buffers.outputs, z, model.labels[i], weight_of(model.weights, i))
            if not abs(value) < math.inf:  # math.isfinite subtracts x from x, which the reassociation of FASTMATH makes 0
                tally[BAD] = i + 1
                if given(lasso):
                    leave_row(mode, space.buffers.intercept_row)
                    leave(mode, indices, start, stop, t)
                skip_turns(mode, order.shape[0] - n - given(lasso), t + stride * given(lasso), stride)
                break
            if not given(lasso):
                enter(mode, indices, start, stop, t)
                enter_row(mode, space.buffers.intercept_row)
            gather_again(space, indices, start, stop, intercept, step.tau)
            row_step(step, space, model, start, stop, intercept, dz)
            own += step.lr
            base, own = pooled_lr(lasso, mode, base, own, done)
            leave_row(mode, space.buffers.intercept_row)
            leave(mode, indices, start, stop, t)
            total += value
            nonzeros += stop - start
            done += 1
            t += stride
            if n + 1 == until:
                measure(worker, model, step.tau, start, stop, z, dz, until - first)
        merge_due(replica, view.flat, layout_of(replica, space, tau_at(optimizer.average, like, t)))
        first = until
    pooled_lr(lasso, mode, base, own, 0)
    tally[0] += total
    tally[1] += done
    tally[2] += nonzeros


def _judge_example(model, step, space, i, gradients, k):
    start, stop = model.csr.indptr[i], model.csr.indptr[i + 1]
    outputs, intercept = space.buffers.outputs, model.intercept
    z = score(space, model.csr, start, stop, intercept, step.tau)
    value, dz = loss_and_dz(model.loss, outputs, z, model.labels[i], weight_of(model.weights, i))
    shorter = shorten(step.clip, model.csr.values, start, stop, dz_norm_sq(outputs, dz), intercept)
    for o in range(count(outputs)):
        gradients[k, o] = part(dz, o) * shorter
    return value


def _apply_example(model, step, space, i, owned, gradients, k):
    start, stop = _owned(model.csr, i, owned)
    row = space.buffers.intercept_row
    intercept = model.intercept * (owned[0] <= row and row < owned[1])
    gather(space, model.csr.indices, start, stop, intercept, step.tau)
    row_step(step, space, model, start, stop, intercept, stored_dz(space.buffers.outputs, gradients, k))


def _shrink_example(model, step, space, i, owned, now):
    start, stop = _owned(model.csr, i, owned)
    shrink(space, step.rule, step.tau, model.csr.indices, start, stop, now, step.t)


def _example_size(model, i):
    return model.csr.indptr[i + 1] - model.csr.indptr[i]


class Model(NamedTuple):
    """What is trained on: all workers share it."""

    loss: tuple
    csr: tuple
    labels: np.ndarray  # float32[n]: ±1, a target, or a class number
    weights: np.ndarray  # float32[n] of the examples, or None
    decay_weight: np.ndarray  # float32[d] that multiplies the decay, or None
    intercept: float  # what its gradient is multiplied by; 0: there is none

    train_examples, judge_example, apply_example = _train_examples, _judge_example, _apply_example
    shrink_example, example_size = _shrink_example, _example_size


def measure(worker, model, tau, start, stop, z, dz, done):
    """Count `done` more examples, the last of score z before its step; sometimes measure how far that step went."""


@overload(measure, **INLINE)
def _measure(worker, model, tau, start, stop, z, dz, done):
    if isinstance(worker.types[worker.fields.index("replica")], types.NoneType):
        return lambda worker, model, tau, start, stop, z, dz, done: None

    def call(worker, model, tau, start, stop, z, dz, done):
        if measure_due(worker.replica, done):
            before, push = part(z, 0), abs(part(dz, 0))
            after = part(score(worker.space, model.csr, start, stop, model.intercept, tau), 0)
            note_step(worker.replica, abs(after - before), push)
    return call


def given(x):
    """Whether x is not None, known when the kernel is compiled."""


@overload(given, **LOOP)
def _given(x):
    answer = not isinstance(x, types.NoneType)
    return lambda x: answer


@kernel
def _owned(csr, i, owned):
    """Bounds of row i's entries with owned[0] <= feature < owned[1]."""
    start, stop = csr.indptr[i], csr.indptr[i + 1]
    return _first(csr.indices, start, stop, owned[0]), _first(csr.indices, start, stop, owned[1])


@kernel
def _first(indices, start, stop, j):
    """First entry of the row whose feature is at least j."""
    while start < stop:
        middle = (start + stop) // 2
        if indices[middle] < j:
            start = middle + 1
        else:
            stop = middle
    return start


@kernel
def scores(w, csr, start, stop, out):
    """out[i, k] = score k of row i for start <= i < stop; w [d + 1, K] with the intercept last, out [n, K] float32."""
    d, outs = w.shape[0] - 1, w.shape[1]
    for i in range(start, stop):
        for o in range(outs):
            out[i, o] = w[d, o]
        for k in range(np.uint64(csr.indptr[i]), np.uint64(csr.indptr[i + 1])):
            j, x = csr.indices[k], csr.values[k]
            for o in range(outs):
                out[i, o] += w[j, o] * x
