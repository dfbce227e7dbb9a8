"""What a worker keeps for itself of the parameters, and when it brings that together with the others'.

A worker works on its own copy of some rows, or of all. What it has changed in them is added to the common ones now and
then, and the others' changes are read: after each has had as many updates of its own, so that all are equally fresh.
Without this a core would fetch nearly every coordinate from the other's cache, however rarely both change one at a time.
Rows as common as one another are a tier, and a tier consists of blocks that are merged under a spin lock each: no change
is lost. They are small, so that workers seldom meet at one.
"""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from kernels.atomics import acquire, release, try_acquire
from kernels.jit import LOOP, kernel, prefetch_to_write
from kernels.outputs import score
from kernels.sharing import count, part, width

NEVER = 2.0**62
MEASURE = 64.0  # examples between two looks at how far a step goes


class Private(NamedTuple):
    """A worker's copies. Arrays but `common` and `locks` are its own; T blocks of m rows, the commonest first."""

    rows: np.ndarray  # uint32[m]: each one's row in the worker's parameters
    common: np.ndarray  # [m x values a row]: what all have made of them, in the same order
    seen: np.ndarray  # the same when this worker last saw it
    ends: np.ndarray  # int64[T]: the first row behind each block
    spacing: np.ndarray  # float64[T]: examples of this worker for an update of its rows
    due: np.ndarray  # float64[T]: the worker's example after which the block is merged
    merges: np.ndarray  # float64[T]: how often it was
    locks: np.ndarray  # uint32[16 T]: one a block, a cache line apart
    # float64[8]: examples; the one after which something is due, and at which a step is measured; changes of the scores,
    # and the gradients that made them; the one after which a block is due that is not of the first
    state: np.ndarray
    share: float  # what slots count by: running means that every worker has taken are not to be summed, sums of squares are
    most: float  # updates of its own that a row gets between two merges, at most and on average
    bend: float  # how much one worker's step turns the others' gradients, in the first blocks: see `merge_due`
    bent: int  # those are so many
    rest: float  # `bend` of the others


def pause(private):
    """Examples to go until something is due."""


@overload(pause, **LOOP)
def _pause(private):
    if isinstance(private, types.NoneType):
        return lambda private: 1 << 62
    return lambda private: np.int64(max(private.state[1] - private.state[0], 1.0))


def merge_due(private, place, scratch, outputs, tau, csr, start, stop, intercept, z, slope, done):
    """Count `done` more examples, the last of score z before its step, and merge the blocks that are due.

    The others do not know of a worker's steps until a merge, and all are summed. Together they may not go too far: of
    what one step takes from its own gradient, the others' take as much from theirs as the rows overlap. So the number of
    updates between two merges is what the steps' size allows. See hogwild/copies.py.
    """


@overload(merge_due, **LOOP)
def _merge_due(private, place, scratch, outputs, tau, csr, start, stop, intercept, z, slope, done):
    if isinstance(private, types.NoneType):
        return lambda private, place, scratch, outputs, tau, csr, start, stop, intercept, z, slope, done: None

    def due(private, place, scratch, outputs, tau, csr, start, stop, intercept, z, slope, done):
        state = private.state
        state[0] += done
        if state[0] >= state[2]:
            state[2] = state[0] + min(state[0], MEASURE)
            before, push = part(z, 0), abs(part(slope, 0))
            after = part(score(place, scratch, outputs, tau, csr, start, stop, intercept), 0)
            state[3] = 0.9 * state[3] + abs(after - before)
            state[4] = 0.9 * state[4] + push
        if state[0] >= state[1]:
            columns = width(scratch, tau)
            _blocks(place.flat, private, count(outputs) * columns, columns, width(scratch, None) - 1)
    return due


@kernel
def _allowed(state, bend, most):
    """Updates of its own that a row may get between two merges."""
    turn = bend * state[3]
    return most if turn * most <= state[4] else state[4] / turn


@kernel
def _blocks(flat, private, size, columns, slots):
    """Merge the blocks that are due; one that another worker is at may wait for as long again."""
    state, due, locks = private.state, private.due, private.locks
    now, soonest, later, first = state[0], state[2], NEVER, 0
    first_blocks, others = _allowed(state, private.bend, private.most), _allowed(state, private.rest, private.most)
    every = now >= state[5]
    for k in range(private.ends.shape[0] if every else private.bent):
        last, again = private.ends[k], due[k]
        if now >= again:
            # At first every update matters: after half as many as before, at the latest.
            updates = min(first_blocks if k < private.bent else others, max(0.5 * now / private.spacing[k], 1.0))
            period = max(updates * private.spacing[k], 1.0)
            late = now >= due[k] + period
            if late:
                acquire(locks, 16 * k)
            if late or try_acquire(locks, 16 * k):
                _merge(flat, private, first, last, size, columns, slots, True)
                release(locks, 16 * k)
                due[k] = again = now + period
                private.merges[k] += 1.0
            else:
                again = now + max(0.125 * period, 1.0)  # not at once: to ask takes as long as an example
        soonest = min(soonest, again)
        later = min(later, again) if k >= private.bent else later
        first = last
    if every:
        state[5] = later
    state[1] = min(soonest, state[5])


def come(private, flat, fresh, shared):
    """`start_from`, for one that has something of its own."""


@overload(come, **LOOP)
def _come(private, flat, fresh, shared):
    if isinstance(private, types.NoneType):
        return lambda private, flat, fresh, shared: None
    return lambda private, flat, fresh, shared: start_from(private, flat, fresh, shared)


def go(private, place, scratch, outputs, tau, turn):
    """`merge_all`, for one that has something of its own."""


@overload(go, **LOOP)
def _go(private, place, scratch, outputs, tau, turn):
    if isinstance(private, types.NoneType):
        return lambda private, place, scratch, outputs, tau, turn: None

    def merged(private, place, scratch, outputs, tau, turn):
        columns = width(scratch, tau)
        merge_all(place.flat, private, count(outputs) * columns, columns, width(scratch, None) - 1, turn)
    return merged


@kernel
def start_from(private, flat, fresh, shared):
    """The worker's parameters `flat` begin as `shared`; `fresh`: the rows that are merged, in their order."""
    state, finite = private.state, True
    for x in state:
        finite &= abs(x) < np.inf
    if not finite:  # from before a rollback
        state[:] = 0.0
        private.due[:] = 0.0
    state[1] = min(state[1], state[0])
    private.seen[:] = fresh
    if flat.size == shared.size:
        flat[:] = shared
    else:
        spread_out(flat, private.rows, fresh)


@kernel
def merge_all(flat, private, size, columns, slots, turn):
    """Merge every block, from number `turn` on: workers that began with the same would queue for each.

    size: values a row; columns: values a coordinate, its weight, `slots` slots, maybe one more.
    """
    blocks = private.ends.shape[0]
    for j in range(blocks):
        k = (turn + j) % blocks
        acquire(private.locks, 16 * k)
        _merge(flat, private, private.ends[k - 1] if k else 0, private.ends[k], size, columns, slots, False)
        release(private.locks, 16 * k)
        private.merges[k] += 1.0


@kernel
def spread_out(flat, rows, packed):
    """Row rows[h] of flat, for each h, becomes row h of packed."""
    size = np.uint64(packed.size // rows.size)
    for h in range(np.uint64(rows.size)):
        for k in range(size):
            flat[np.uint64(rows[h]) * size + k] = packed[h * size + k]


@kernel
def pack(flat, rows, packed):
    """The reverse."""
    size = np.uint64(packed.size // rows.size)
    for h in range(np.uint64(rows.size)):
        for k in range(size):
            packed[h * size + k] = flat[np.uint64(rows[h]) * size + k]


@kernel
def _merge(flat, private, first, last, size, columns, slots, back):
    """Add the changes of the rows first … last - 1 to the common ones, and bring these `back`.

    The simplest loop for what is to be merged most often: four times faster than the last, which does it all.
    """
    rows, common, seen = private.rows, private.common, private.seen
    first, last, size, columns = np.uint64(first), np.uint64(last), np.uint64(size), np.uint64(columns)
    for k in range(first * size, last * size, np.uint64(16)):  # all at once, as they come from another core
        prefetch_to_write(common, k)
    if size == 1:
        for h in range(first, last):
            a = np.uint64(rows[h])
            new = common[h] + (flat[a] - seen[h])
            common[h] = new
            if back:
                seen[h] = flat[a] = new
    elif private.share == 1.0:  # the first slot is a sum of squares, whose root has divided this worker's steps
        one = np.uint64(1)
        for h in range(first, last):
            a, b = np.uint64(rows[h]) * size, h * size
            for k in range(np.uint64(0), size, columns):
                own = flat[a + k + one]
                total = common[b + k + one] + (own - seen[b + k + one])
                # With the others' squares in it the steps would have been so much shorter.
                shorter = flat.dtype.type(np.sqrt(own / total) if own < total else 1.0)
                common[b + k] += (flat[a + k] - seen[b + k]) * shorter
                common[b + k + one] = total
                for m in range(k + one + one, k + columns):
                    common[b + m] += flat[a + m] - seen[b + m]
                if back:
                    for m in range(k, k + columns):
                        seen[b + m] = flat[a + m] = common[b + m]
    else:
        like = flat.dtype.type
        for h in range(first, last):
            a, b = np.uint64(rows[h]) * size, h * size
            for k in range(size):
                column = k % columns
                share = like(private.share if np.uint64(0) < column and column <= np.uint64(slots) else 1.0)
                common[b + k] += (flat[a + k] - seen[b + k]) * share
                if back:
                    seen[b + k] = flat[a + k] = common[b + k]
