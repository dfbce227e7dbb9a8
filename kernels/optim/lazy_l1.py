"""What a sparse step owes to coordinates that it does not touch: the L1 penalty, and the average of the weights."""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.atomics import atomic_add
from hogwild.kernels.compiler.jit import LOOP
from hogwild.kernels.optim import rules
from hogwild.kernels.optim.steps import _cast
from hogwild.kernels.sharing.modes import RoundRobin, add
from hogwild.kernels.sharing.parameters import count, row_of, width

POOL = 16  # examples after which the workers tell each other how far they are


class Lasso(NamedTuple):
    """L1 penalty, applied to a coordinate when it is touched, for all the steps since it last was."""

    l1: float
    paid: np.ndarray  # float64[d]: the sum of learning rates up to which each feature has been shrunk
    clock: np.ndarray  # float64[8], [0]: the sum of learning rates of all workers that share the weights


class Penalty(NamedTuple):
    """What there is to know for a weight that is to shrink by itself."""

    lasso: Lasso
    rule: tuple
    scratch: tuple  # Scratch, or None
    t: float


class Average(NamedTuple):
    """Weights averaged over the steps from `start` on; `scale` keeps the numbers small. Polyak & Juditsky 1992."""

    start: float
    scale: float


def tau_at(average, like, t):
    """What `row_step` takes as tau at step t."""


@overload(tau_at, **LOOP)
def _tau_at(average, like, t):
    if isinstance(average, types.NoneType):
        return lambda average, like, t: None
    return lambda average, like, t: like(max(t - average.start, 0.0) / average.scale)


def pooled(lasso, mode, base, own, done):
    """(sum of all workers' learning rates as last heard, what this one has not told yet of its own).

    It tells and hears now and then, in strict turn each time, and at once for done = 0. Its own steps times the number of
    workers would not do for the sum: one that runs ahead of the others would pay for all of them while a weight is still 0.
    """


@overload(pooled, **LOOP)
def _pooled(lasso, mode, base, own, done):
    if isinstance(lasso, types.NoneType):
        return lambda lasso, mode, base, own, done: (base, own)
    every = 1 if mode.instance_class is RoundRobin else POOL

    def pool(lasso, mode, base, own, done):
        if done % every == 0:
            return atomic_add(lasso.clock, 0, own) + own, 0.0
        return base, own
    return pool


def kept(lasso, now):
    """Let `now` be the sum of all workers' learning rates."""


@overload(kept, **LOOP)
def _kept(lasso, now):
    if isinstance(lasso, types.NoneType):
        return lambda lasso, now: None

    def keep(lasso, now):
        lasso.clock[0] = now
    return keep


def shrink(lasso, rule, place, scratch, outputs, tau, indices, start, stop, now, t):
    """Soft-threshold a row's features by what they owe: l1, times each one's own pace, times the rates up to `now`."""


@overload(shrink, **LOOP)
def _shrink(lasso, rule, place, scratch, outputs, tau, indices, start, stop, now, t):
    if isinstance(lasso, types.NoneType):
        return lambda lasso, rule, place, scratch, outputs, tau, indices, start, stop, now, t: None

    def soft(lasso, rule, place, scratch, outputs, tau, indices, start, stop, now, t):
        flat, outs, columns = place.flat, np.uint64(count(outputs)), np.uint64(width(scratch, tau))
        like = flat.dtype.type
        c = _cast(rules.prepare(rule, 1.0, t), like)
        for i in range(np.uint64(start), np.uint64(stop)):
            j = indices[i]
            owed, at = lasso.l1 * (now - lasso.paid[j]), row_of(place, indices, i, start) * outs
            if owed > 0.0:  # another worker may have been here later
                lasso.paid[j] = now
                for o in range(outs):
                    here = (at + o) * columns
                    w = flat[here]
                    if w != 0:
                        change = -like(min(owed * rules.pace(rule, c, slots_at(scratch, flat, here)), abs(w)))
                        change = change if w > 0 else -change
                        add(place.mode, flat, here, change)
                        _average(scratch, place.mode, flat, here, tau, change)
    return soft


def flush(lasso, rule, place, scratch, outputs, tau, t):
    """Have all features pay what they owe after step t."""


@overload(flush, **LOOP)
def _flush(lasso, rule, place, scratch, outputs, tau, t):
    if isinstance(lasso, types.NoneType):
        return lambda lasso, rule, place, scratch, outputs, tau, t: None

    def all_of_them(lasso, rule, place, scratch, outputs, tau, t):
        features = lasso.paid.shape[0]
        shrink(lasso, rule, place, scratch, outputs, tau, np.arange(features), 0, features, lasso.clock[0], t)
    return all_of_them


def due_of(lasso, rule, scratch, t):
    """The Penalty; None without one."""


@overload(due_of, **LOOP)
def _due_of(lasso, rule, scratch, t):
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
