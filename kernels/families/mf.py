"""Matrix factorization: a pass of a worker over ratings, or over positives with drawn negatives. Niu et al. 2011, section 2.

The score of user u and item i is mean + b_u + b_i + p_u·q_i. There is a row of parameters for each user and, behind these,
for each item (kernels/families/mf_rows.py). Ratings lie block by block, a block those of a band of users and a band of items.
"""

import math
from typing import NamedTuple

import numpy as np
from numba.extending import overload

from hogwild.kernels.compiler.jit import INLINE, prefetch
from hogwild.kernels.families.mf_negatives import band_of, candidate, draw, hash_of, pairwise
from hogwild.kernels.families.mf_rows import await_turn, dot, enter_rows, fetch, learn, leave_rows, shortened
from hogwild.kernels.losses import evaluate
from hogwild.kernels.optim import protocol
from hogwild.kernels.sharing.modes import skip_turns
from hogwild.kernels.sharing.parameters import LARGE
from hogwild.kernels.sharing.workspace import BAD, step_at

HOLD = 32  # steps in a row that are made at the learning rate of the first: to compute it takes as long as a step
AHEAD = 4  # ratings whose rows are fetched into the cache early


def learn_example(model, step, c, space, i, t):
    """Loss of example i, on which step t is made, without a gradient where the loss is not finite: the model's method.

    c: what the rule's `prepare` gives.
    """


@overload(learn_example, strict=False, **INLINE)
def _learn_example(model, step, c, space, i, t):
    return model.instance_class.learn_example


def fetch_rows(model, flat, i, t):
    """Ask for the rows of example i, which is that of step t."""


@overload(fetch_rows, **INLINE)
def _fetch_rows(model, flat, i, t):
    if model.instance_class is Explicit:
        def of_rating(model, flat, i, t):
            if flat.shape[0] > LARGE:
                fetch(model.sizes, flat, model.users[i])
                fetch(model.sizes, flat, model.items[i])
        return of_rating

    def of_positive(model, flat, i, t):
        fetch(model.sizes, flat, model.users[i])
        fetch(model.sizes, flat, model.items[i])
        w = candidate(model.negatives, band_of(model.negatives, model.items[i]), t, 0)
        fetch(model.sizes, flat, w)
        prefetch(model.negatives.bits, np.intp(hash_of(model.negatives.bits, model.users[i], w)[0]))
    return of_positive


def _train_examples(model, optimizer, worker, order, t, stride, tally):
    """As hogwild.kernels.sharing.worker.train_examples."""
    space, flat, last, total, done = worker.space, worker.space.params.flat, order.shape[0] - 1, 0.0, 0
    held = t - t % HOLD
    step = step_at(optimizer, flat.dtype.type, held)
    c = protocol.prepare(step.rule, step.lr, held)
    for n in range(order.shape[0]):
        if t - held >= HOLD:
            held = t - t % HOLD
            step = step_at(optimizer, flat.dtype.type, held)
            c = protocol.prepare(step.rule, step.lr, held)
        i, ahead = order[n], order[min(n + AHEAD, last)]
        fetch_rows(model, flat, ahead, t + stride * AHEAD)
        value = learn_example(model, step, c, space, i, t)
        if not abs(value) < math.inf:
            tally[BAD] = i + 1
            skip_turns(space.params.mode, order.shape[0] - n - 1, t + stride, stride)
            break
        total += value
        done += 1
        t += stride
    tally[0] += total
    tally[1] += done
    tally[2] += done


def _learn_rating(model, step, c, space, i, t):
    flat = space.params.flat
    u, v = np.uint64(model.users[i]), np.uint64(model.items[i])
    enter_rows(space, u, v, v, t)
    value, dz = evaluate(model.loss, float(dot(model.sizes, flat, u, v)), float(model.values[i]))
    dz = dz * shortened(step.clip, model.sizes, flat, (u, v), dz) if abs(value) < math.inf else 0.0
    learn(step, c, model, space, (u, v), flat.dtype.type(dz))
    leave_rows(space, u, v, v, t)
    return value


def _learn_positive(model, step, c, space, i, t):
    flat = space.params.flat
    u, v = np.uint64(model.users[i]), np.uint64(model.items[i])
    await_turn(space.params.mode, space.buffers.rows, t)
    w, tries = draw(model, flat, u, v, t)
    enter_rows(space, u, v, w, t)
    z = float(dot(model.sizes, flat, u, v)) - float(dot(model.sizes, flat, u, w))
    value, dz = pairwise(model.loss, model, z, tries)
    dz = dz * shortened(step.clip, model.sizes, flat, (u, v, w), dz) if abs(value) < math.inf else 0.0
    learn(step, c, model, space, (u, v, w), flat.dtype.type(dz))  # in a branch its loop would not become vectors
    leave_rows(space, u, v, w, t)
    return value


class Explicit(NamedTuple):
    """Ratings to predict: all workers share them."""

    sizes: tuple  # RowSizes
    loss: tuple
    users: np.ndarray  # uint32[n]: their rows
    items: np.ndarray  # uint32[n]
    values: np.ndarray  # float32[n]: less the mean; or ±1
    decay_weight: np.ndarray  # float32[rows] that multiplies the decay, or None
    biased: float  # what the biases' gradient is multiplied by: 1, or 0 where there are none

    train_examples, learn_example = _train_examples, _learn_rating


class Implicit(NamedTuple):
    """Positives to rank above negatives, items that the user does not have."""

    sizes: tuple
    loss: tuple  # BPR or WARP
    users: np.ndarray
    items: np.ndarray
    negatives: tuple  # Negatives
    decay_weight: np.ndarray
    biased: float

    train_examples, learn_example = _train_examples, _learn_positive
