"""Modes of sharing: how a change reaches a coordinate, and how a worker enters and leaves rows."""

from typing import NamedTuple

import numpy as np
from numba.extending import overload

from hogwild.kernels.compiler.atomics import acquire, atomic_add, atomic_store, release, wait_for
from hogwild.kernels.compiler.jit import LOOP


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
    """AIG of Niu et al. 2011: an example's rows are all locked while it updates them.

    A row's weights and slots change together and no update is lost; the gradient may be of older weights.
    """

    locks: np.ndarray  # uint32[rows], 0 is free
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


def enter(mode, rows, start, stop, t):
    """What a worker does before it updates rows[start:stop] at step t; to be locked they must rise."""


@overload(enter, **LOOP)
def _enter(mode, rows, start, stop, t):
    if mode.instance_class is Locked:
        def lock(mode, rows, start, stop, t):
            for i in range(start, stop):  # in rising order in every example: no two workers wait for each other
                acquire(mode.locks, np.intp(rows[i]), mode.halt)
        return lock
    if mode.instance_class is RoundRobin:
        def wait(mode, rows, start, stop, t):
            wait_for(mode.turn, 0, t, mode.halt)
        return wait
    return lambda mode, rows, start, stop, t: None


def leave(mode, rows, start, stop, t):
    """What it does after."""


@overload(leave, **LOOP)
def _leave(mode, rows, start, stop, t):
    if mode.instance_class is Locked:
        def unlock(mode, rows, start, stop, t):
            for i in range(start, stop):
                release(mode.locks, np.intp(rows[i]))
        return unlock
    if mode.instance_class is RoundRobin:
        return lambda mode, rows, start, stop, t: atomic_store(mode.turn, 0, t + 1)
    return lambda mode, rows, start, stop, t: None


def enter_row(mode, row):
    """Lock one more row, behind all that `enter` has locked, where the mode locks rows."""


@overload(enter_row, **LOOP)
def _enter_row(mode, row):
    if mode.instance_class is Locked:
        return lambda mode, row: acquire(mode.locks, np.intp(row), mode.halt)
    return lambda mode, row: None


def leave_row(mode, row):
    """Unlock it."""


@overload(leave_row, **LOOP)
def _leave_row(mode, row):
    if mode.instance_class is Locked:
        return lambda mode, row: release(mode.locks, np.intp(row))
    return lambda mode, row: None


def skip_turns(mode, turns, t, stride):
    """Let the turns t, t + stride, … pass for steps that will not be made, so that no worker waits for them."""


@overload(skip_turns, **LOOP)
def _skip_turns(mode, turns, t, stride):
    if mode.instance_class is not RoundRobin:
        return lambda mode, turns, t, stride: None

    def skip(mode, turns, t, stride):
        for _ in range(turns):
            wait_for(mode.turn, 0, t, mode.halt)
            atomic_store(mode.turn, 0, t + 1)
            t += stride
    return skip
