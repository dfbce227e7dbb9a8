"""The rows of one example: copied into a worker's scratch, stepped there, and brought back as the mode of sharing does it."""

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.jit import INLINE, LOOP
from hogwild.kernels.optim.steps import step as step_coordinates
from hogwild.kernels.sharing.modes import Alone, Locked, RoundRobin, add
from hogwild.kernels.sharing.parameters import columns_of, field_type, row_width


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
        step_coordinates(rule, after[0], after[1:], None, scratch.gradient, 0, m, 1.0, lr, t, decay, clip,
                         scratch.weight if weighted else None)
        if not alone:
            _changes(after, scratch.before, m)

    def in_place(rule, mode, scratch, m, lr, t, decay, clip, weight, tau):
        before = scratch.before
        step_coordinates(rule, before[0], before[1:], None, scratch.gradient, 0, m, 1.0, lr, t, decay, clip,
                         scratch.weight if weighted else None)
    return in_place if alone and isinstance(tau, types.NoneType) else stepped


def _result(mode, scratch, tau):
    """Where `_stepped` leaves it."""


@overload(_result, **LOOP)
def _result_impl(mode, scratch, tau):
    if mode.instance_class is Alone and isinstance(tau, types.NoneType):
        return lambda mode, scratch, tau: scratch.before
    return lambda mode, scratch, tau: scratch.after


def load_row(space, row, q, tau):
    """Copy the coordinates of a row (as numbered in view.flat) into the scratch, if there is one, as the example's row q."""


@overload(load_row, **INLINE)
def _load_row(space, row, q, tau):
    if isinstance(field_type(space, "scratch"), types.NoneType):
        return lambda space, row, q, tau: None

    def load(space, row, q, tau):
        width, columns = np.uint64(row_width(space.params)), np.uint64(columns_of(space.scratch, tau))
        first, at = np.uint64(q) * width, np.uint64(row) * width
        for k in range(width):
            _load(space.scratch.before, space.params.flat, first + k, (at + k) * columns)
    return load


def waits(mode):
    """Whether the mode waits between the scores of an example and its update, so that its rows have to be loaded again."""


@overload(waits, **LOOP)
def _waits(mode):
    answer = mode.instance_class in (Locked, RoundRobin)
    return lambda mode: answer


def step_scratch(step, space, rows, weight):
    """Step the coordinates of the example's first rows in the scratch, with gradient scratch.gradient, one a coordinate.

    step: a Step. weight: None, or an array: scratch.weight then multiplies the decay.
    """


@overload(step_scratch, **INLINE)
def _step_scratch(step, space, rows, weight):
    def call(step, space, rows, weight):
        coordinates = np.uint64(rows) * np.uint64(row_width(space.params))
        _stepped(step.rule, space.params.mode, space.scratch, coordinates, step.lr, step.t, step.decay, step.clip, weight,
                 step.tau)
    return call


def store_row(space, row, q, tau):
    """Bring row q of the example from the scratch, stepped, to where the row is in view.flat; the average sees the change."""


@overload(store_row, **INLINE)
def _store_row(space, row, q, tau):
    def store(space, row, q, tau):
        mode, flat = space.params.mode, space.params.flat
        width, columns = np.uint64(row_width(space.params)), np.uint64(columns_of(space.scratch, tau))
        first, at, result = np.uint64(q) * width, np.uint64(row) * width, _result(mode, space.scratch, tau)
        for k in range(width):
            _put(mode, result, flat, first + k, (at + k) * columns)
            _averaged(mode, space.scratch, flat, first + k, (at + k) * columns, tau)
    return store
