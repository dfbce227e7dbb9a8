"""Mode deterministic: the same bits for any number of workers.

The examples of a block are judged with the parameters before it, each by one worker. Then the updates of all of them are
applied in their order, each row by the worker that owns it.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.atomics import Gate, barrier
from hogwild.kernels.compiler.jit import LOOP, kernel
from hogwild.kernels.optim.lazy_l1 import set_clock
from hogwild.kernels.sharing.examples import apply_example, example_size, judge_example, shrink_example
from hogwild.kernels.sharing.parameters import field_type
from hogwild.kernels.sharing.workspace import BAD, clipped_step_at, step_at


class Blocks(NamedTuple):
    """What the workers share, and what one of them owns."""

    number: int  # of the worker
    low: int  # the worker owns the rows low <= row < high
    high: int
    gate: Gate
    gradients: np.ndarray  # float64[examples of a block, numbers an example]: what its update needs
    losses: np.ndarray  # float64[examples of a block]


def _barrier_where_lasso(space, gate, workers):
    """Wait for the others, where there is an L1 penalty."""


@overload(_barrier_where_lasso, **LOOP)
def _barrier_where_lasso_impl(space, gate, workers):
    if isinstance(field_type(space, "lasso"), types.NoneType):
        return lambda space, gate, workers: None
    return lambda space, gate, workers: barrier(gate, workers)


@kernel
def train_blocks(model, optimizer, worker, blocks, order, t, tally):
    """Steps on the examples of `order`, with which all workers call this. t, tally: as of `train_examples`, with stride 1;
    worker 0 alone adds to the tally."""
    space, workers, clock = worker.space, worker.workers, worker.clock
    me, low, high, gate, gradients, losses = blocks
    like, owned = space.params.flat.dtype.type, (low, high)
    for first in range(0, order.shape[0], losses.shape[0]):
        end, now = min(first + losses.shape[0], order.shape[0]), clock[0]
        for n in range(first, end):
            shrink_example(model, step_at(optimizer, like, t + n), space, order[n], owned, now)
        _barrier_where_lasso(space, gate, workers)
        for n in range(first + me, end, workers):
            losses[n - first] = judge_example(model, step_at(optimizer, like, t + n), space, order[n], gradients, n - first)
        barrier(gate, workers)
        for n in range(first, end):
            if not abs(losses[n - first]) < math.inf:
                tally[BAD] = order[n] + 1
        if tally[BAD] > 0:
            break
        for n in range(first, end):
            step = clipped_step_at(optimizer, like, t + n)
            apply_example(model, step, space, order[n], owned, gradients, n - first)
            clock[0] += step.lr
            if me == 0:
                tally[0] += losses[n - first]
                tally[1] += 1
                tally[2] += example_size(model, order[n])
        barrier(gate, workers)
    if me == 0 and order.shape[0]:
        set_clock(space.lasso, clock[0])
