"""A worker of any problem family: what it owns, and its round over chunk after chunk of an order of examples.

A family's model is a NamedTuple, whose methods are found by its type: see kernels/sharing/examples.py.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import overload

from hogwild.kernels.compiler.atomics import atomic_store
from hogwild.kernels.compiler.jit import INLINE, kernel
from hogwild.kernels.optim.lazy_l1 import flush, pending_penalty, tau_at
from hogwild.kernels.sharing.examples import train_rows
from hogwild.kernels.sharing.replicas import (
    end_round,
    layout_of,
    post_unpaid_l1,
    replicated,
    start_round,
)
from hogwild.kernels.sharing.work_queue import STOP, claim
from hogwild.kernels.sharing.workspace import BAD


class Worker(NamedTuple):
    """What one worker owns."""

    space: tuple  # Workspace
    replica: tuple  # Replica; or None: it works on the shared parameters alone
    clock: np.ndarray  # float64[8], [0]: the sum of learning rates
    workers: int


class Chunks(NamedTuple):
    """An order of examples, and how much of it a call does."""

    order: np.ndarray  # int64[n]
    t: int  # steps done before the order
    stride: int  # steps an example
    queue: np.ndarray  # see kernels/sharing/work_queue.py
    most: int  # examples of the call; 0: the worker ends its round early, while the others go on
    first: bool  # the worker's first call in the round


def train_examples(model, optimizer, worker, order, t, stride, tally):
    """One step on each example of `order` [m], one after another: the method of this name of the model, or `train_rows`.

    t: steps done before, raised by `stride` an example; tally float64[8]: adds loss, examples, and non-zeros or whatever the
    family's work is counted in. It stops at the first example whose loss is not finite, without a step: tally[BAD] is then
    its number + 1.
    """


@overload(train_examples, strict=False, **INLINE)
def _train_examples(model, optimizer, worker, order, t, stride, tally):
    return getattr(model.instance_class, "train_examples", train_rows)


@kernel
def work(model, optimizer, worker, chunks, tally):
    """`train_examples` on chunk after chunk; whether none is left.

    A worker's replicas begin a round as the shared parameters and are merged at its end.
    """
    order, t, stride, queue, most, first = chunks
    done, over = 0, most == 0
    while done < most:
        start, stop = claim(queue, order.shape[0], most - done)
        if start == stop:
            t, over = t + start * stride, True
            break
        if first:
            start_round(worker.replica, worker.space.params.flat)
            first = False
        train_examples(model, optimizer, worker, order[start:stop], t + start * stride, stride, tally)
        if tally[BAD] > 0:
            atomic_store(queue, STOP, 1)
        done += stop - start
    if over:
        leave_round(optimizer, worker, t, most == 0)
    return over


@kernel(inline=True)
def leave_round(optimizer, worker, t, early):
    """Merge the worker's replicas; early: the others go on."""
    space, replica = worker.space, worker.replica
    if replicated(replica):
        apply_pending(optimizer, space, t)
        post_unpaid_l1(replica, space.lasso)
    tau = tau_at(optimizer.average, space.params.flat.dtype.type, t)
    end_round(replica, space.params.flat, layout_of(replica, space, tau), pending_penalty(space.lasso, optimizer.rule,
                                                                                       space.scratch, t), early)


@kernel(inline=True)
def apply_pending(optimizer, space, t):
    """Apply the L1 penalty that rows still owe after step t to parameters at which no other worker is."""
    flush(space, optimizer.rule, tau_at(optimizer.average, space.params.flat.dtype.type, t), t)
