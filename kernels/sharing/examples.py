"""Training on examples that touch a few rows each, for any family whose model has two methods:

    rows_of(model, i, rows) -> n                    writes the rows of example i, in rising order, to rows uint32[n]
    gradient_of(model, scratch, i, width) -> loss   reads their weights from scratch.before[0] [n x width], row behind row,
                                                    and writes the gradient to scratch.gradient

A family whose examples touch many rows has its own loop (kernels/families/linear.py): methods `train_examples`,
`judge_example`, `apply_example` and `shrink_example` in place of these two.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.jit import INLINE, LOOP, by_type
from hogwild.kernels.optim.lazy_l1 import pooled_lr, shrink, tau_at
from hogwild.kernels.optim.steps import clip_terms
from hogwild.kernels.sharing.modes import enter, leave, skip_turns
from hogwild.kernels.sharing.parameters import field_type, locate, located, row_width
from hogwild.kernels.sharing.replicas import layout_of, measure_due, merge_due, note_step, pause
from hogwild.kernels.sharing.rows import load_row, step_scratch, store_row
from hogwild.kernels.sharing.workspace import BAD, step_at


class Rows(NamedTuple):
    """A worker's buffers."""

    rows: np.ndarray  # uint32[longest]: those of the example at work


@by_type
def rows_of(model, i, rows):
    """See above."""


@by_type
def gradient_of(model, scratch, i, width):
    """See above."""


def load_rows(space, n, tau):
    """Copy the coordinates of the example's n rows, after `locate`, into the scratch."""


@overload(load_rows, **INLINE)
def _load_rows(space, n, tau):
    def call(space, n, tau):
        for q in range(n):
            load_row(space, located(space.params, space.buffers.rows, q, 0), q, tau)
    return call


def store_rows(step, space, n):
    """Step the n rows in the scratch with the gradient there, and bring them to the parameters."""


@overload(store_rows, **INLINE)
def _store_rows(step, space, n):
    def call(step, space, n):
        step_scratch(step, space, n, None)
        for q in range(n):
            store_row(space, located(space.params, space.buffers.rows, q, 0), q, step.tau)
    return call


def shrink_rows(space, step, n, owned, now):
    """Apply the L1 penalty, up to the sum of learning rates `now`, to those of the n rows of an example that are owned."""


@overload(shrink_rows, **LOOP)
def _shrink_rows(space, step, n, owned, now):
    if isinstance(field_type(space, "lasso"), types.NoneType):
        return lambda space, step, n, owned, now: None

    def call(space, step, n, owned, now):
        rows, last = space.buffers.rows, min(owned[1], space.lasso.applied.shape[0])
        start = 0
        while start < n and rows[start] < owned[0]:
            start += 1
        stop = start
        while stop < n and rows[stop] < last:
            stop += 1
        shrink(space, step.rule, step.tau, rows, start, stop, now, step.t)
    return call


def train_rows(model, optimizer, worker, order, t, stride, tally):
    """`train_examples` (kernels/sharing/worker.py) of such a family."""
    space, replica, params = worker.space, worker.replica, worker.space.params
    mode, rows, everything = params.mode, space.buffers.rows, (0, 1 << 32)
    first, done, like = 0, 0, params.flat.dtype.type
    base, own = pooled_lr(space.lasso, mode, 0.0, 0.0, 0)
    while first < order.shape[0] and not tally[BAD] > 0:
        until = min(first + pause(replica), order.shape[0])
        for n in range(first, until):
            step, i = step_at(optimizer, like, t), order[n]
            touched = rows_of(model, i, rows)
            enter(mode, rows, 0, touched, t)
            base, own = pooled_lr(space.lasso, mode, base, own, done)
            locate(params, rows, 0, touched)
            shrink_rows(space, step, touched, everything, base + own)
            load_rows(space, touched, step.tau)
            loss = gradient_of(model, space.scratch, i, row_width(params))
            if not abs(loss) < math.inf:
                tally[BAD] = i + 1
                leave(mode, rows, 0, touched, t)
                skip_turns(mode, order.shape[0] - n - 1, t + stride, stride)
                break
            store_rows(step, space, touched)
            leave(mode, rows, 0, touched, t)
            own += step.lr
            done += 1
            t += stride
            tally[0] += loss
            if n + 1 == until:
                measure_rows(replica, model, space, i, touched, step.tau, loss, until - first)
        merge_due(replica, params.flat, layout_of(replica, space, tau_at(optimizer.average, like, t)))
        first = until
    pooled_lr(space.lasso, mode, base, own, 0)
    tally[1] += done
    tally[2] += done


def measure_rows(replica, model, space, i, touched, tau, loss, done):
    """Count `done` more examples; sometimes measure how far the last one's step went, as if the loss were a square."""


@overload(measure_rows, **INLINE)
def _measure_rows(replica, model, space, i, touched, tau, loss, done):
    if isinstance(replica, types.NoneType):
        return lambda replica, model, space, i, touched, tau, loss, done: None

    def call(replica, model, space, i, touched, tau, loss, done):
        if measure_due(replica, done):
            load_rows(space, touched, tau)
            now = gradient_of(model, space.scratch, i, row_width(space.params))
            note_step(replica, abs(math.sqrt(abs(now)) - math.sqrt(abs(loss))), math.sqrt(abs(loss)))
    return call


# Mode deterministic, see kernels/sharing/deterministic.py.


@by_type
def judge_example(model, step, space, i, gradients, k):
    """Loss of example i under the parameters as they are; what its update needs is stored in gradients[k].

    The gradient's norm is clipped here. Other workers read the parameters meanwhile: nothing may be changed.
    """
    touched = rows_of(model, i, space.buffers.rows)
    load_rows(space, touched, step.tau)
    width = row_width(space.params)
    loss, gradient = gradient_of(model, space.scratch, i, width), space.scratch.gradient
    factor = clip_terms(step.clip, gradient, 0, touched * width, 1.0)[1]
    for c in range(touched * width):
        gradients[k, c] = gradient[c] * factor
    return loss


@by_type
def apply_example(model, step, space, i, owned, gradients, k):
    """Update the rows owned[0] <= row < owned[1] of example i from gradients[k]; others change other rows."""
    rows, width, mine = space.buffers.rows, row_width(space.params), 0
    for q in range(rows_of(model, i, rows)):
        if owned[0] <= rows[q] and rows[q] < owned[1]:
            rows[mine] = rows[q]
            for c in range(width):
                space.scratch.gradient[mine * width + c] = gradients[k, q * width + c]
            mine += 1
    if mine > 0:
        load_rows(space, mine, step.tau)
        store_rows(step, space, mine)


@by_type
def shrink_example(model, step, space, i, owned, now):
    """Apply the L1 penalty up to the sum of learning rates `now` to those rows of example i."""
    shrink_rows(space, step, rows_of(model, i, space.buffers.rows), owned, now)


@by_type
def example_size(model, i):
    """Non-zeros of example i, or whatever the family's work is counted in."""
    return 1
