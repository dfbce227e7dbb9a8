"""What a sparse step owes to coordinates that it does not touch: the L1 penalty, and the average of the weights."""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.atomics import atomic_add
from hogwild.kernels.compiler.jit import LOOP, elementwise
from hogwild.kernels.optim import protocol
from hogwild.kernels.optim.steps import cast
from hogwild.kernels.sharing.modes import RoundRobin, add
from hogwild.kernels.sharing.parameters import columns_of, field_type, located, row_width

POOL = 16  # examples after which the workers tell each other how far they are


class Lasso(NamedTuple):
    """L1 penalty, applied to the coordinates of a row when it is touched, for all the steps since it last was."""

    l1: float
    applied: np.ndarray  # float64[rows that are penalized]: the sum of learning rates up to which each has been shrunk
    clock: np.ndarray  # float64[8], [0]: the sum of learning rates of all workers that share the weights


class Penalty(NamedTuple):
    """What is needed to shrink a weight by itself."""

    lasso: Lasso
    rule: tuple
    scratch: tuple  # Scratch, or None
    t: float


class Average(NamedTuple):
    """Weights averaged over the steps from `start` on; `scale` keeps the numbers small. Polyak & Juditsky 1992."""

    start: float
    scale: float


def tau_at(average, like, t):
    """Share of the run behind `average.start` at step t, by which the averaging column counts a change; None without one."""


@overload(tau_at, **LOOP)
def _tau_at(average, like, t):
    if isinstance(average, types.NoneType):
        return lambda average, like, t: None
    return lambda average, like, t: like(max(t - average.start, 0.0) / average.scale)


def pooled_lr(lasso, mode, base, own, done):
    """(sum of all workers' learning rates when the worker last read it, its own that are not yet in that sum).

    The worker adds its own and reads the sum every POOL steps, in strict turn at each step, and at once for done = 0. Its own
    steps times the number of workers are no substitute: a fast worker would pay for all of them while a weight is still 0.
    """


@overload(pooled_lr, **LOOP)
def _pooled_lr(lasso, mode, base, own, done):
    if isinstance(lasso, types.NoneType):
        return lambda lasso, mode, base, own, done: (base, own)
    every = 1 if mode.instance_class is RoundRobin else POOL

    def pool(lasso, mode, base, own, done):
        if done % every == 0:
            return atomic_add(lasso.clock, 0, own) + own, 0.0
        return base, own
    return pool


@elementwise
def set_clock(lasso, now):
    """Let `now` be the sum of all workers' learning rates."""
    if lasso is not None:
        lasso.clock[0] = now


def shrink(space, rule, tau, rows, start, stop, now, t):
    """Soft-threshold the coordinates of rows[start:stop], after `locate`, by what they owe: l1, times each one's own pace,
    times the learning rates up to `now`. space: a Workspace (kernels/sharing/workspace.py).
    """


@overload(shrink, **LOOP)
def _shrink(space, rule, tau, rows, start, stop, now, t):
    if isinstance(field_type(space, "lasso"), types.NoneType):
        return lambda space, rule, tau, rows, start, stop, now, t: None

    def soft(space, rule, tau, rows, start, stop, now, t):
        view, lasso, scratch = space.params, space.lasso, space.scratch
        flat, width, columns = view.flat, np.uint64(row_width(view)), np.uint64(columns_of(scratch, tau))
        like = flat.dtype.type
        c = cast(protocol.prepare(rule, 1.0, t), like)
        for i in range(np.uint64(start), np.uint64(stop)):
            row = rows[i]
            owed, at = lasso.l1 * (now - lasso.applied[row]), located(view, rows, i, start) * width
            if owed > 0.0:  # another worker may have been here later
                lasso.applied[row] = now
                for k in range(width):
                    here = (at + k) * columns
                    w = flat[here]
                    if w != 0:
                        change = -like(min(owed * protocol.pace(rule, c, slots_at(scratch, flat, here)), abs(w)))
                        change = change if w > 0 else -change
                        add(view.mode, flat, here, change)
                        _average(scratch, view.mode, flat, here, tau, change)
    return soft


def flush(space, rule, tau, t):
    """Have all penalized rows pay what they owe after step t; the view has no replicas of a part of them."""


@overload(flush, **LOOP)
def _flush(space, rule, tau, t):
    if isinstance(field_type(space, "lasso"), types.NoneType):
        return lambda space, rule, tau, t: None

    def all_of_them(space, rule, tau, t):
        rows = space.lasso.applied.shape[0]
        shrink(space, rule, tau, np.arange(rows), 0, rows, space.lasso.clock[0], t)
    return all_of_them


def pending_penalty(lasso, rule, scratch, t):
    """The Penalty; None without one."""


@overload(pending_penalty, **LOOP)
def _pending_penalty(lasso, rule, scratch, t):
    if isinstance(lasso, types.NoneType):
        return lambda lasso, rule, scratch, t: None
    return lambda lasso, rule, scratch, t: Penalty(lasso, rule, scratch, t)


def slots_at(scratch, flat, at):
    """The slots of the coordinate at flat[at]."""


@overload(slots_at, **LOOP)
def _slots_impl(scratch, flat, at):
    number = 0 if isinstance(scratch, types.NoneType) else len(scratch.types[0]) - 1
    names = ", ".join(f"flat[at + np.uint64({s})]" for s in range(1, number + 1))
    scope = {"np": np}
    exec(f"def slots(scratch, flat, at): return ({names}{',' * (number == 1)})", scope)
    return scope["slots"]


def _average(scratch, mode, flat, at, tau, change):
    """What the averaging column sees of a weight's change."""


@overload(_average, **LOOP)
def _average_impl(scratch, mode, flat, at, tau, change):
    if isinstance(tau, types.NoneType):
        return lambda scratch, mode, flat, at, tau, change: None
    behind = len(scratch.types[0])

    def average(scratch, mode, flat, at, tau, change):
        add(mode, flat, at + np.uint64(behind), -tau * change)
    return average
