"""One step on a tensor that processes (or threads) share, as the mode of sharing does it: Wild, Atomic, or Claimed.

A tensor is a flat array of rows of `width` coordinates, with a flat array for each of the rule's slots. A step goes through
it block by block; a sparse one through the rows that its gradient names, and leaves the others alone, as torch's SparseAdam.
"""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.atomics import atomic_add, compare_swap, release, wait_for
from hogwild.kernels.compiler.jit import LOOP, kernel
from hogwild.kernels.optim.steps import step as step_coordinates
from hogwild.kernels.sharing.modes import Atomic

BLOCK = 4096  # coordinates that are locked together: as many rows as fit, at least one


class Claimed(NamedTuple):
    """Every block has a lock, which says who holds it: that of a process that has died can be opened."""

    locks: np.ndarray  # uint32, 0 is free
    owner: int  # this worker, from 1
    halt: np.ndarray  # int64[8]: from halt[0] = 1 on nobody waits for a lock


class Tensor(NamedTuple):
    """A tensor of n coordinates and what belongs to it."""

    w: np.ndarray  # float32 or float64 [n]
    slots: tuple  # S arrays like w
    updates: np.ndarray  # int64[1]: how many there were; each takes the next number, for the rule's bias correction
    width: int  # coordinates of a row
    block: int  # coordinates of a block, a multiple of width
    lock: int  # number of its first block's lock


class Step(NamedTuple):
    """How a gradient changes a tensor."""

    rule: tuple
    lr: float
    factor: float  # of the gradient
    decay: tuple = None
    clip: tuple = None


def block_of(rule, size, width) -> int:
    """Coordinates of a block: about BLOCK, in whole rows; all where the rule looks at all of them together."""
    return max(size, 1) if hasattr(rule, "terms") else max(BLOCK // max(width, 1), 1) * max(width, 1)


def _part(arrays, start, stop):
    """The tuple of array[start:stop]."""


@overload(_part, **LOOP)
def _part_impl(arrays, start, stop):
    if len(arrays) == 0:
        return lambda arrays, start, stop: ()
    return lambda arrays, start, stop: (arrays[0][start:stop],) + _part(arrays[1:], start, stop)


def _copies(arrays):
    """The tuple of copies."""


@overload(_copies, **LOOP)
def _copies_impl(arrays):
    if len(arrays) == 0:
        return lambda arrays: ()
    return lambda arrays: (arrays[0].copy(),) + _copies(arrays[1:])


def _add_changes(arrays, after, before):
    """arrays += after - before, atomically."""


@overload(_add_changes, **LOOP)
def _add_changes_impl(arrays, after, before):
    if len(arrays) == 0:
        return lambda arrays, after, before: None

    def add(arrays, after, before):
        to, new, old = arrays[0], after[0], before[0]
        for i in range(to.shape[0]):
            change = new[i] - old[i]
            if change != 0:
                atomic_add(to, np.intp(i), change)
        _add_changes(arrays[1:], after[1:], before[1:])
    return add


def _step_part(mode, step, arrays, g, t, lock):
    """Step a block, (w, *slots), with its gradient."""


@overload(_step_part, **LOOP)
def _step_part_impl(mode, step, arrays, g, t, lock):
    if mode.instance_class is Atomic:
        def stepped(mode, step, arrays, g, t, lock):
            before = _copies(arrays)
            after = _copies(before)
            step_coordinates(step.rule, after[0], after[1:], None, g, 0, g.shape[0], step.factor, step.lr, t, step.decay,
                             step.clip, None)
            _add_changes(arrays, after, before)
    elif mode.instance_class is Claimed:
        def stepped(mode, step, arrays, g, t, lock):
            while not compare_swap(mode.locks, np.intp(lock), np.uint32(0), np.uint32(mode.owner)):
                if not wait_for(mode.locks, np.intp(lock), np.uint32(0), mode.halt):
                    return
            step_coordinates(step.rule, arrays[0], arrays[1:], None, g, 0, g.shape[0], step.factor, step.lr, t, step.decay,
                             step.clip, None)
            release(mode.locks, np.intp(lock))
    else:
        def stepped(mode, step, arrays, g, t, lock):
            step_coordinates(step.rule, arrays[0], arrays[1:], None, g, 0, g.shape[0], step.factor, step.lr, t, step.decay,
                             step.clip, None)
    return stepped


def _walk(mode, step, tensor, rows, g, t):
    """Step all blocks, or the rows."""


@overload(_walk, **LOOP)
def _walk_impl(mode, step, tensor, rows, g, t):
    if isinstance(rows, types.NoneType):
        def dense(mode, step, tensor, rows, g, t):
            arrays, n, block = (tensor.w,) + tensor.slots, tensor.w.shape[0], tensor.block
            for start in range(0, n, block):
                stop = min(start + block, n)
                _step_part(mode, step, _part(arrays, start, stop), g[start:stop], t, tensor.lock + start // block)
        return dense

    def sparse(mode, step, tensor, rows, g, t):
        arrays, width = (tensor.w,) + tensor.slots, tensor.width
        for q in range(rows.shape[0]):
            start = rows[q] * width
            part = _part(arrays, start, start + width)
            _step_part(mode, step, part, g[q * width:(q + 1) * width], t, tensor.lock + start // tensor.block)
    return sparse


@kernel
def step_tensor(mode, step, tensor, rows, g):
    """A step on all of a Tensor with gradient g [n]; or, where rows (int64[m], each once, below n / width) is not None, on
    these rows with g [m width]. Its number among the tensor's updates, from 0. Nothing is checked.
    """
    t = atomic_add(tensor.updates, 0, 1)
    _walk(mode, step, tensor, rows, g, t)
    return t
