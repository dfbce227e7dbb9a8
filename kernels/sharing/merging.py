"""What the workers of one run have in common when each trains replicas of parameters, and how changes are added up."""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.atomics import atomic_add
from hogwild.kernels.compiler.jit import LOOP, kernel, prefetch_to_write
from hogwild.kernels.optim import protocol
from hogwild.kernels.optim.lazy_l1 import slots_at
from hogwild.kernels.optim.steps import cast

ROUND, CLOSED, EARLY, DONE, SUMMED, NEXT, OUT = 0, 1, 2, 8, 9, 16, 24  # places in a group's gate
PART = 4096  # parameters that a worker sums up at a time


class ReplicaGroup(NamedTuple):
    """What W workers have in common."""

    theta: np.ndarray  # [rows x values a row]: the shared parameters
    replicas: np.ndarray  # [W, as many or some more]: each worker's replica of all; none where they share
    common: np.ndarray  # [m x values a row]: what all have made of the m rows that are merged, block after block
    penalized: int  # rows before this one have an L1 penalty
    locks: np.ndarray  # uint32[16 T], a cache line a block: its lock, and the round in which it was merged
    # int64[32]: the round; whether it has ended for one, so that no block may be merged for the first time; how many have
    # left while the others go on; for how many it has ended; how many will sum up no more; parameters of which some worker
    # takes the sum; whether all is in theta
    gate: np.ndarray
    last_round: np.ndarray  # int64[W]: the last round that each worker was in
    unpaid_l1: np.ndarray  # float64[W]: l1 times the rates of each worker's steps in the round; none without a penalty
    halt: np.ndarray  # int64[8]: from halt[0] = 1 on nobody waits for a block


class Layout(NamedTuple):
    """What a row of the parameters consists of, and what its columns count by where changes are added up."""

    size: int  # values of a row
    columns: int  # values of a coordinate: its weight, its slots, and behind them maybe an averaging column
    slots: int
    share: float  # of slots: running means that every worker has taken are not to be summed, sums of squares are
    tau: float  # of the averaging column, in which a change of the weight is -tau times as large; 0 without one


@kernel
def sum_up(group, penalty, layout):
    """Add what the replicas have changed to the shared parameters, part by part that no other worker has taken.

    Not yet right for rows of blocks that were merged (kernels/sharing/replicas.py: `put_back`).
    """
    size, held = layout.size, group.unpaid_l1.size > 0
    length = max(PART // size, 1) * size
    before = np.empty(length, group.theta.dtype)
    while True:
        first = atomic_add(group.gate, NEXT, length)
        if first >= group.theta.size:
            return
        theta = group.theta[first:min(first + length, group.theta.size)]
        for a in range(theta.size):  # as in kernels/sharing/replicas.py: `come`
            before[a] = theta[a]
        rows = theta.size // size
        penalized = min(max(group.penalized - first // size, 0), rows)
        for k in range(group.last_round.size):
            if group.last_round[k] == group.gate[ROUND]:
                own = group.replicas[k, first:first + theta.size]
                merge(theta, own, before, None, 0, penalized, layout, held, False)
                merge(theta, own, before, None, penalized, rows, layout, False, False)
        shrink_new(penalty, group, first, theta, before, layout)


def shrink_new(penalty, group, first, theta, before, layout):
    """Have weights that are new in a round pay for the workers that did not have them, and so had none to shrink.

    theta: the part of a group's shared parameters from `first` on, summed up; before: what it was.
    """


@overload(shrink_new, **LOOP)
def _shrink_new(penalty, group, first, theta, before, layout):
    if isinstance(penalty, types.NoneType):
        return lambda penalty, group, first, theta, before, layout: None

    def shrunk(penalty, group, first, theta, before, layout):
        like = theta.dtype.type
        c, last = cast(protocol.prepare(penalty.rule, 1.0, penalty.t), like), group.penalized * layout.size - first
        for a in range(0, min(theta.size, last), layout.columns):
            w, owed = theta[a], 0.0
            if w != 0 and before[a] == 0:
                for k in range(group.last_round.size):
                    if group.last_round[k] == group.gate[ROUND] and group.replicas[k, first + a] == 0:
                        owed += group.unpaid_l1[k]
                pace = protocol.pace(penalty.rule, c, slots_at(penalty.scratch, theta, np.uint64(a)))
                less = like(min(owed * pace, abs(w)))
                theta[a] = w - less if w > 0 else w + less
    return shrunk


@kernel
def pack(flat, rows, first, last, size, packed):
    """Row h of `packed` becomes row rows[h] of flat, for first <= h < last; `size` values a row."""
    size = np.uint64(size)
    for h in range(np.uint64(first), np.uint64(last)):
        for k in range(size):
            packed[h * size + k] = flat[np.uint64(rows[h]) * size + k]


@kernel
def spread_out(packed, rows, first, last, size, flat):
    """The reverse."""
    size = np.uint64(size)
    for h in range(np.uint64(first), np.uint64(last)):
        for k in range(size):
            flat[np.uint64(rows[h]) * size + k] = packed[h * size + k]


def _row(rows, h):
    """Row h of those, or of all for None."""


@overload(_row, **LOOP)
def _row_impl(rows, h):
    if isinstance(rows, types.NoneType):
        return lambda rows, h: h
    return lambda rows, h: np.uint64(rows[h])


@kernel(inline=True)
def _summed(common, own, base, change, held):
    """common + change; held: what has brought the worker's own nearer to 0 than `base` may carry none beyond it.

    Where a penalty has shrunk several replicas of a weight, the sum of these changes would be on its other side.
    """
    new = common + change
    if held:
        if own >= 0 and base > own:
            new = max(new, min(common, common - common))
        elif own <= 0 and base < own:
            new = min(new, max(common, common - common))
    return new


@kernel(inline=True)
def _shortened(like, common, total, own, square, base, known, held):
    """(weight, sum of squares) of two numbers each: the common ones, the worker's own, and their base.

    With the others' squares in its sum, whose root has divided the worker's steps, they would have been so much shorter.
    """
    total = total + (square - known)
    shorter = like(np.sqrt(square / total) if square < total else 1.0)
    return _summed(common, own, base, (own - base) * shorter, held), total


@kernel
def add_up(common, change, first, last):
    """Add the changes first … last - 1 to the common numbers, which take their place."""
    for k in range(np.uint64(first), np.uint64(last), np.uint64(16)):
        prefetch_to_write(common, k)
    for h in range(np.uint64(first), np.uint64(last)):
        new = common[h] + change[h]
        common[h], change[h] = new, new


@kernel
def merge(common, flat, base, rows, first, last, layout, held, back):
    """Add the changes of the rows first … last - 1 to the common ones, and bring these `back`; held: see `_summed`.

    rows: see `_row`; without them nothing goes back. The loops for what is to be merged most often are simpler, four times
    faster than the last, which does it all.
    """
    first, last, size, columns = np.uint64(first), np.uint64(last), np.uint64(layout.size), np.uint64(layout.columns)
    like, one, behind = flat.dtype.type, np.uint64(1), np.uint64(layout.slots + 1)
    if rows is None:
        back = False  # known when it is compiled, so that the loops vectorize
    for k in range(first * size, last * size, np.uint64(16)):  # all at once, as they come from another core
        prefetch_to_write(common, k)
    if size == 1:
        for h in range(first, last):
            a = _row(rows, h)
            new = _summed(common[h], flat[a], base[h], flat[a] - base[h], held)
            common[h] = new
            if back:
                base[h] = flat[a] = new
    elif layout.share == 1.0 and size == 2:
        for h in range(first, last):
            a, b = _row(rows, h) * np.uint64(2), h * np.uint64(2)
            w, total = _shortened(like, common[b], common[b + one], flat[a], flat[a + one], base[b], base[b + one], held)
            common[b], common[b + one] = w, total
            if back:
                base[b], base[b + one], flat[a], flat[a + one] = w, total, w, total
    else:
        share, tau = like(layout.share), like(layout.tau)
        for h in range(first, last):
            for k in range(np.uint64(0), size, columns):
                a, b = _row(rows, h) * size + k, h * size + k
                before, change, slot = common[b], flat[a] - base[b], one
                if layout.share == 1.0:
                    common[b], common[b + one] = _shortened(like, before, common[b + one], flat[a], flat[a + one], base[b],
                                                            base[b + one], held)
                    slot += one
                else:
                    common[b] = _summed(before, flat[a], base[b], change, held)
                for m in range(slot, behind):
                    common[b + m] += (flat[a + m] - base[b + m]) * share
                if behind < columns:  # the average has to see what the weight has really changed by
                    common[b + behind] += flat[a + behind] - base[b + behind] + tau * (change - (common[b] - before))
                if back:
                    for m in range(columns):
                        base[b + m] = flat[a + m] = common[b + m]
