"""How workers share parameters: how a change reaches a coordinate (kernels/sharing/parameters.py), a sparse row's step."""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.atomics import acquire, atomic_add, atomic_store, release, wait_for
from hogwild.kernels.compiler.jit import INLINE, LOOP
from hogwild.kernels.optim import rules
from hogwild.kernels.optim.steps import _cast, _decay_terms, _gradient, _most, _moved, _weighed, step
from hogwild.kernels.sharing.parameters import count, part, row_of, width


class Alone(NamedTuple):
    """One worker: plain stores, exactly the sequential algorithm."""


class Wild(NamedTuple):
    """Plain loads and stores (Hogwild, Niu et al. 2011): a value never tears, an update may be lost."""


class Counted(NamedTuple):
    """`Wild`, where every change is also counted, as plainly in memory that all share and in the worker's own."""

    shadow: np.ndarray  # uint32[2^k], one for every so many parameters
    made: np.ndarray  # int64[8], [0]: this worker's changes


class Atomic(NamedTuple):
    """Compare-and-swap additions: no update is lost; every value is the sum of all changes made to it."""


class Locked(NamedTuple):
    """AIG of Niu et al. 2011: a row's coordinates are all locked while it updates them.

    A coordinate's weight and slots change together and no update is lost; the gradient may be of older weights.
    """

    locks: np.ndarray  # uint32[rows + 1], 0 is free; the last one is the intercept's
    halt: np.ndarray  # int64[8]: from halt[0] = 1 on nobody waits for a lock


class RoundRobin(NamedTuple):
    """RR (Langford et al. 2009): workers update in strict turn, step t after step t - 1; no update is lost."""

    turn: np.ndarray  # int64[8], [0]: the step whose turn it is
    halt: np.ndarray  # int64[8]: from halt[0] = 1 on nobody waits for a turn


def add(mode, flat, at, change):
    """`flat[at] += change` as the mode does it."""


@overload(add, **LOOP)
def _add(mode, flat, at, change):
    if mode.instance_class is Atomic:
        def plus(mode, flat, at, change):
            atomic_add(flat, np.intp(at), change)
    elif mode.instance_class is Counted:
        def plus(mode, flat, at, change):
            flat[at] += change
            mode.shadow[np.uint64(at) & np.uint64(mode.shadow.shape[0] - 1)] += np.uint32(1)
            mode.made[0] += 1
    else:
        def plus(mode, flat, at, change):
            flat[at] += change
    return plus


def enter(mode, indices, start, stop, t):
    """What a worker does before it updates a row at step t."""


@overload(enter, **LOOP)
def _enter(mode, indices, start, stop, t):
    if mode.instance_class is Locked:
        def lock(mode, indices, start, stop, t):
            for i in range(start, stop):  # in rising order in every row: no two workers wait for each other
                acquire(mode.locks, np.intp(indices[i]), mode.halt)
            if start <= stop:
                acquire(mode.locks, np.intp(mode.locks.shape[0] - 1), mode.halt)
        return lock
    if mode.instance_class is RoundRobin:
        def wait(mode, indices, start, stop, t):
            wait_for(mode.turn, 0, t, mode.halt)
        return wait
    return lambda mode, indices, start, stop, t: None


def leave(mode, indices, start, stop, t):
    """What it does after."""


@overload(leave, **LOOP)
def _leave(mode, indices, start, stop, t):
    if mode.instance_class is Locked:
        def unlock(mode, indices, start, stop, t):
            for i in range(start, stop):
                release(mode.locks, np.intp(indices[i]))
            if start <= stop:
                release(mode.locks, np.intp(mode.locks.shape[0] - 1))
        return unlock
    if mode.instance_class is RoundRobin:
        return lambda mode, indices, start, stop, t: atomic_store(mode.turn, 0, t + 1)
    return lambda mode, indices, start, stop, t: None


def _load(columns, flat, q, at):
    """Copy a coordinate's columns from flat[at] on into position q of the scratch."""


@overload(_load, **LOOP)
def _load_impl(columns, flat, q, at):
    if len(columns) == 0:
        return lambda columns, flat, q, at: None

    def load(columns, flat, q, at):
        columns[0][q] = flat[at]
        _load(columns[1:], flat, q, at + np.uint64(1))
    return load


def _copy(target, source, m):
    """Copy the first m values of each array."""


@overload(_copy, **LOOP)
def _copy_impl(target, source, m):
    if len(target) == 0:
        return lambda target, source, m: None

    def copy(target, source, m):
        a, b = target[0], source[0]
        for q in range(np.uint64(m)):
            a[q] = b[q]
        _copy(target[1:], source[1:], m)
    return copy


def _changes(after, before, m):
    """after -= before, for the modes that add changes."""


@overload(_changes, **LOOP)
def _changes_impl(after, before, m):
    if len(after) == 0:
        return lambda after, before, m: None

    def subtract(after, before, m):
        a, b = after[0], before[0]
        for q in range(np.uint64(m)):
            a[q] -= b[q]
        _changes(after[1:], before[1:], m)
    return subtract


def _put(mode, columns, flat, q, at):
    """Bring position q of the scratch to the coordinate at flat[at]: new values when alone, else what changed."""


@overload(_put, **LOOP)
def _put_impl(mode, columns, flat, q, at):
    if len(columns) == 0:
        return lambda mode, columns, flat, q, at: None
    if mode.instance_class is Alone:
        def put(mode, columns, flat, q, at):
            flat[at] = columns[0][q]
            _put(mode, columns[1:], flat, q, at + np.uint64(1))
    else:
        def put(mode, columns, flat, q, at):
            add(mode, flat, at, columns[0][q])
            _put(mode, columns[1:], flat, q, at + np.uint64(1))
    return put


def _averaged(mode, scratch, flat, q, at, tau):
    """Add -tau times the weight's change to the averaging column behind the others."""


@overload(_averaged, **LOOP)
def _averaged_impl(mode, scratch, flat, q, at, tau):
    if isinstance(tau, types.NoneType):
        return lambda mode, scratch, flat, q, at, tau: None
    behind = len(scratch.types[0])
    if mode.instance_class is Alone:
        def average(mode, scratch, flat, q, at, tau):
            flat[at + np.uint64(behind)] -= tau * (scratch.after[0][q] - scratch.before[0][q])
    else:
        def average(mode, scratch, flat, q, at, tau):
            add(mode, flat, at + np.uint64(behind), -tau * scratch.after[0][q])
    return average


def _stepped(rule, mode, scratch, m, lr, t, decay, clip, weight, tau):
    """Step the m coordinates in the scratch: new values into `after` for one alone, for others what changed."""


@overload(_stepped, **LOOP)
def _stepped_impl(rule, mode, scratch, m, lr, t, decay, clip, weight, tau):
    weighted, alone = not isinstance(weight, types.NoneType), mode.instance_class is Alone

    def stepped(rule, mode, scratch, m, lr, t, decay, clip, weight, tau):
        after = scratch.after
        _copy(after, scratch.before, m)
        step(rule, after[0], after[1:], None, scratch.gradient, 0, m, 1.0, lr, t, decay, clip,
             scratch.weight if weighted else None)
        if not alone:
            _changes(after, scratch.before, m)

    def in_place(rule, mode, scratch, m, lr, t, decay, clip, weight, tau):
        before = scratch.before
        step(rule, before[0], before[1:], None, scratch.gradient, 0, m, 1.0, lr, t, decay, clip,
             scratch.weight if weighted else None)
    return in_place if alone and isinstance(tau, types.NoneType) else stepped


def _result(mode, scratch, tau):
    """Where `_stepped` leaves it."""


@overload(_result, **LOOP)
def _result_impl(mode, scratch, tau):
    if mode.instance_class is Alone and isinstance(tau, types.NoneType):
        return lambda mode, scratch, tau: scratch.before
    return lambda mode, scratch, tau: scratch.after


def gather(place, scratch, outputs, indices, start, stop, intercept, tau):
    """Copy the coordinates of a row, and the intercept's behind them, into the scratch; nothing without one."""


@overload(gather, **INLINE)
def _gather(place, scratch, outputs, indices, start, stop, intercept, tau):
    if isinstance(scratch, types.NoneType):
        return lambda place, scratch, outputs, indices, start, stop, intercept, tau: None

    def copy(place, scratch, outputs, indices, start, stop, intercept, tau):
        flat, n = place.flat, np.uint64(stop - start)
        outs, columns = np.uint64(count(outputs)), np.uint64(width(scratch, tau))
        for q in range(n):
            at = row_of(place, indices, np.uint64(start) + q, start) * outs
            for o in range(outs):
                _load(scratch.before, flat, q * outs + o, (at + o) * columns)
        if intercept:
            at = np.uint64(place.first) * outs
            for o in range(outs):
                _load(scratch.before, flat, n * outs + o, (at + o) * columns)
    return copy


def again(mode, place, scratch, outputs, indices, start, stop, intercept, tau):
    """`gather` once more where a mode has waited for its turn since."""


@overload(again, **LOOP)
def _again(mode, place, scratch, outputs, indices, start, stop, intercept, tau):
    if mode.instance_class in (Locked, RoundRobin):
        return lambda mode, place, scratch, outputs, indices, start, stop, intercept, tau: gather(
            place, scratch, outputs, indices, start, stop, intercept, tau)
    return lambda mode, place, scratch, outputs, indices, start, stop, intercept, tau: None


def row_step(rule, place, scratch, outputs, indices, x, start, stop, intercept, factor, lr, t, decay, clip, weight, tau):
    """Step the coordinates of one sparse row, and the intercept, with gradient factor[k] x[i], after `gather`.

    intercept: what its gradient is multiplied by; 0: there is none. scratch: None only for a rule without slots, not
    clipped and not averaged. factor: a number, or K of them. weight: float[features] that multiplies the decay, None only
    without decay; the intercept never decays. tau: share of the run, for averaging, or None. Nothing is checked.
    """


@overload(row_step, **INLINE)
def _row_step(rule, place, scratch, outputs, indices, x, start, stop, intercept, factor, lr, t, decay, clip, weight, tau):
    if isinstance(scratch, types.NoneType):
        def direct(rule, place, scratch, outputs, indices, x, start, stop, intercept, factor, lr, t, decay, clip, weight,
                   tau):
            flat, mode, outs = place.flat, place.mode, np.uint64(count(outputs))
            like = flat.dtype.type
            c, k = _cast(rules.prepare(rule, lr, t), like), _cast(_decay_terms(decay, lr), like)
            most = like(_most(decay, lr))
            for i in range(np.uint64(start), np.uint64(stop)):
                j = indices[i]
                at, s = row_of(place, indices, i, start) * outs, _weighed(weight, j, most)
                for o in range(outs):
                    w = flat[at + o]
                    g = _gradient(like(part(factor, o)) * x[i], w, k, (), s)
                    add(mode, flat, at + o, _moved(rule, c, g, w, (), k, s)[0] - w)
            if intercept:
                at = np.uint64(place.first) * outs
                for o in range(outs):
                    w = flat[at + o]
                    g = like(part(factor, o) * intercept)
                    add(mode, flat, at + o, _moved(rule, c, g, w, (), (), like(1))[0] - w)
        return direct

    weighted = not isinstance(weight, types.NoneType)

    def gathered(rule, place, scratch, outputs, indices, x, start, stop, intercept, factor, lr, t, decay, clip, weight,
                 tau):
        flat, mode, outs, columns = place.flat, place.mode, np.uint64(count(outputs)), np.uint64(width(scratch, tau))
        like, n = flat.dtype.type, np.uint64(stop - start)
        for o in range(outs):
            f = like(part(factor, o))
            for q in range(n):
                scratch.gradient[q * outs + o] = f * x[np.uint64(start) + q]
            if intercept:
                scratch.gradient[n * outs + o] = f * like(intercept)
        if weighted:
            for q in range(n):
                for o in range(outs):
                    scratch.weight[q * outs + o] = weight[indices[np.uint64(start) + q]]
            if intercept:
                for o in range(outs):
                    scratch.weight[n * outs + o] = 0
        _stepped(rule, mode, scratch, (n + np.uint64(intercept != 0)) * outs, lr, t, decay, clip, weight, tau)
        result = _result(mode, scratch, tau)
        for q in range(n):
            at = row_of(place, indices, np.uint64(start) + q, start) * outs
            for o in range(outs):
                _put(mode, result, flat, q * outs + o, (at + o) * columns)
                _averaged(mode, scratch, flat, q * outs + o, (at + o) * columns, tau)
        if intercept:
            at = np.uint64(place.first) * outs
            for o in range(outs):
                _put(mode, result, flat, n * outs + o, (at + o) * columns)
                _averaged(mode, scratch, flat, n * outs + o, (at + o) * columns, tau)
    return gathered
