"""What a worker keeps for itself of the parameters, and when it brings that together with the others'.

A worker works on its own copy of some rows, or of all. What it has changed in them is added to the common ones now and
then, and the others' changes are read: after each has had as many updates of its own, so that all are equally fresh.
Without this a core would fetch nearly every coordinate from the other's cache, however rarely both change one at a time.
Rows as common as one another are a tier, and a tier consists of blocks that are merged under a spin lock each: no change
is lost. They are small, so that workers seldom meet at one.

Between two moments at which all workers stand still, a round, the shared parameters stay as they are. The common values of
a block are taken from there when it is first merged, and put there at the end. Most blocks are not merged within a round:
of these the workers sum up, each in its part of the parameters, what the copies have become.

Where a worker's steps go far in the direction that all rows have in common, the sum of all workers' would go beyond what
each of them aims at: `tone_down`.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from kernels.atomics import acquire, atomic_add, atomic_load, atomic_store, reached, release, try_acquire
from kernels.jit import INLINE, LOOP, kernel, prefetch_to_write
from kernels.outputs import score
from kernels.sharing import count, part, width

NEVER = 2.0**62
MEASURE = 64.0  # examples between two looks at how far a step goes
ROUND, CLOSED, EARLY, DONE, NEXT, OUT = 0, 1, 2, 8, 16, 24  # places in a team's gate
FIRST = 16.0  # updates of its own that a row may get before it is merged for the first time; 1 converges no better
PART = 4096  # parameters that a worker sums up at a time
LITTLE = 1e-3  # of the way along what all rows have in common: too short to tone it down


class Team(NamedTuple):
    """What W workers have in common."""

    theta: np.ndarray  # [rows x values a row]: the shared parameters
    copies: np.ndarray  # [W, as many or some more]: each worker's; none where they share
    common: np.ndarray  # [m x values a row]: what all have made of the m rows that are merged, block after block
    locks: np.ndarray  # uint32[16 T], a cache line a block: its lock, and the round in which it was merged
    # int64[32]: the round; whether it has ended for one, so that no block may be merged for the first time; how many have
    # left while the others go on; for how many it has ended; parameters of which some worker takes the sum; workers that
    # will not look here again in this round
    gate: np.ndarray
    came: np.ndarray  # int64[W]: the last round that each worker was in


class Private(NamedTuple):
    """A worker's copies. The arrays are its own; T blocks of m rows, the commonest first."""

    number: int
    team: Team
    rows: np.ndarray  # uint32[m]: each one's row in the worker's parameters
    names: np.ndarray  # uint32[m]: and in the shared ones
    seen: np.ndarray  # [m x values a row]: the common values when this worker last saw them
    known: np.ndarray  # int64[T]: the round for which that holds
    ends: np.ndarray  # int64[T]: the first row behind each block
    spacing: np.ndarray  # float64[T]: examples of this worker for an update of its rows
    due: np.ndarray  # float64[T]: the worker's example after which the block is merged
    merges: np.ndarray  # float64[T]: how often it was
    met: np.ndarray  # float64[T]: the example after which it last was, of the first `bent`
    # float64[8]: examples; the one after which something is due, and at which a step is measured; changes of the scores,
    # and the gradients that made them; the one after which a block is due that is not of the first
    state: np.ndarray
    share: float  # what slots count by: running means that every worker has taken are not to be summed, sums of squares are
    most: float  # updates of its own that a row gets between two merges, at most and on average
    bend: float  # how much one worker's step turns the others' gradients, in the first blocks: see `merge_due`
    bent: int  # those are so many
    rest: float  # `bend` of the others
    pull: float  # how much a step turns the worker's own next gradients, along `along`
    along: np.ndarray  # float32[m]: what all rows have in common, of length 1 in each block


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


@overload(merge_due, **INLINE)
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
            _blocks(place.flat, private, count(outputs) * columns, columns, width(scratch, None) - 1, _number(tau))
    return due


def _number(tau):
    """0 for None."""


@overload(_number, **LOOP)
def _number_impl(tau):
    if isinstance(tau, types.NoneType):
        return lambda tau: 0.0
    return lambda tau: tau


@kernel(inline=True)
def _period(private, k, now):
    """Examples between two merges of block k: as many as the steps' size allows updates of its own."""
    state, spacing = private.state, private.spacing[k]
    turn = (private.bend if k < private.bent else private.rest) * state[3]
    allowed = private.most if turn * private.most <= state[4] else state[4] / turn
    # The first ones change most: after half as many as before, at the latest.
    return max(min(allowed, max(0.5 * now / spacing, FIRST)) * spacing, 1.0)


@kernel(inline=True)
def _blocks(flat, private, size, columns, slots, tau):
    """Merge the blocks that are due; one that another worker is at may wait for as long again."""
    state, due, locks = private.state, private.due, private.team.locks
    if _present(private.team) < 2:
        state[1] = NEVER
        return
    now, soonest, later, first = state[0], state[2], NEVER, 0
    every, current = now >= state[5], private.team.gate[ROUND]
    for k in range(private.ends.shape[0] if every else private.bent):
        last, again = private.ends[k], due[k]
        if now >= again:
            period = _period(private, k, now)
            late = now >= due[k] + period
            if late:
                acquire(locks, 16 * k)
            if late or try_acquire(locks, 16 * k):
                if private.known[k] == current or _opened(private, k, first, last, size, True):
                    if k < private.bent:
                        tone_down(flat, private, k, first, last, size, columns, tau)
                    _merge(private.team.common, flat, private.seen, private.rows, first, last, size, columns, slots,
                           private.share, True)
                    private.merges[k] += 1.0
                release(locks, 16 * k)
                due[k] = again = now + period
            else:
                again = now + max(0.125 * period, 1.0)  # not at once: to ask takes as long as an example
        soonest = min(soonest, again)
        later = min(later, again) if k >= private.bent else later
        first = last
    if every:
        state[5] = later
    state[1] = min(soonest, state[5])


@kernel(inline=True)
def _present(team):
    """Workers that have not left early."""
    return team.came.size - atomic_load(team.gate, EARLY)


@kernel
def tone_down(flat, private, k, first, last, size, columns, tau):
    """Shorten what this worker has changed in block k along what all rows have in common, for all changes are summed.

    If its n steps have gone 1 - e^-κ of the way to where the gradients along it vanish, κ = n `pull` |step| / |gradient|,
    W workers' steps one after another would have gone 1 - e^-Wκ, not W times as far. tau: the averaging column's, or 0.
    """
    state, team, along = private.state, private.team, private.along
    if private.known[k] != team.gate[ROUND]:
        pack(team.theta, private.names, first, last, size, private.seen)  # what it began with
    n, private.met[k] = (state[0] - private.met[k]) / private.spacing[k], state[0]
    workers = _present(team)
    kappa = private.pull * state[3] * n / state[4]
    if workers < 2 or not LITTLE < kappa < np.inf:
        return
    like = flat.dtype.type
    excess = like(1.0 - math.expm1(-workers * kappa) / (workers * math.expm1(-kappa)))
    first, last, columns = np.uint64(first), np.uint64(last), np.uint64(columns)
    for o in range(np.uint64(0), np.uint64(size), columns):
        far = like(0.0)
        for h in range(first, last):
            far += (flat[private.rows[h] * np.uint64(size) + o] - private.seen[h * np.uint64(size) + o]) * along[h]
        for h in range(first, last):
            a, back = private.rows[h] * np.uint64(size) + o, excess * far * along[h]
            flat[a] -= back
            flat[a + columns - np.uint64(1)] += like(tau) * back


@kernel
def _opened(private, k, first, last, size, new):
    """Whether the block, whose lock this worker has, is one to merge in this round; new: also for the first time.

    Not for the first time when a worker has ended: what it changed in the block is to be summed up.
    """
    team, names = private.team, private.names
    current = team.gate[ROUND]
    if team.locks[16 * k + 1] != current:
        if not new or atomic_load(team.gate, CLOSED) != 0:
            return False
        pack(team.theta, names, first, last, size, team.common)
        team.locks[16 * k + 1] = current
    if private.known[k] != current:
        pack(team.theta, names, first, last, size, private.seen)
        private.known[k] = current
    return True


def come(private, flat):
    """A round begins for the worker: its copies in `flat` are those of the shared parameters."""


@overload(come, **LOOP)
def _come(private, flat):
    if isinstance(private, types.NoneType):
        return lambda private, flat: None

    def start(private, flat):
        team, state, finite = private.team, private.state, True
        for x in state:
            finite &= abs(x) < np.inf
        if not finite:  # from before a rollback
            state[:] = 0.0
        state[1] = state[5] = state[0]
        for k in range(private.ends.shape[0]):
            private.due[k] = state[0] + _period(private, k, state[0])
            private.met[k] = state[0]
        if team.copies.size:
            flat[:] = team.theta
        else:
            last = private.rows.size
            size = private.seen.size // last
            pack(team.theta, private.names, 0, last, size, private.seen)
            spread_out(private.seen, private.rows, 0, last, size, flat)
        team.came[private.number] = team.gate[ROUND]
    return start


def go(private, place, scratch, outputs, tau, early):
    """The round ends for the worker, for all, or `early` for this one alone: bring what it has changed together with the
    others' changes. It need not have come.
    """


@overload(go, **LOOP)
def _go(private, place, scratch, outputs, tau, early):
    if isinstance(private, types.NoneType):
        return lambda private, place, scratch, outputs, tau, early: None

    def merged(private, place, scratch, outputs, tau, early):
        columns = width(scratch, tau)
        size, slots, team = count(outputs) * columns, width(scratch, None) - 1, private.team
        if team.came[private.number] == team.gate[ROUND]:
            merge_all(place.flat, private, size, columns, slots, early, _number(tau))
        if early:
            atomic_add(team.gate, EARLY, 1)
        atomic_add(team.gate, DONE, 1)
        if team.copies.size and not early and reached(team.gate, DONE, team.came.size):
            sum_up(team, size, columns, slots, private.share)
        atomic_add(team.gate, OUT, 1)
    return merged


@kernel
def merge_all(flat, private, size, columns, slots, early, tau):
    """Merge every block that is merged in this round; others, if it is not over, too. What is summed is toned down as well.

    size: values a row; columns: values a coordinate, its weight, `slots` slots, maybe one more.
    """
    team, blocks = private.team, private.ends.shape[0]
    summed = team.copies.size > 0 and not early
    if summed:
        atomic_store(team.gate, CLOSED, 1)
    turn = private.number * blocks // team.came.size  # or workers that began with the same would queue for each
    for j in range(blocks):
        k = (turn + j) % blocks
        first, last = private.ends[k - 1] if k else 0, private.ends[k]
        if k < private.bent:
            tone_down(flat, private, k, first, last, size, columns, tau)
        acquire(team.locks, 16 * k)
        if _opened(private, k, first, last, size, not summed):
            _merge(team.common, flat, private.seen, private.rows, first, last, size, columns, slots, private.share, False)
        release(team.locks, 16 * k)
        private.merges[k] += 1.0


@kernel
def sum_up(team, size, columns, slots, share):
    """Add what the copies have changed to the shared parameters, part by part that no other worker has taken.

    Not yet right for rows of blocks that were merged: `put_back`.
    """
    length = max(PART // size, 1) * size
    before = np.empty(length, team.theta.dtype)
    while True:
        first = atomic_add(team.gate, NEXT, length)
        if first >= team.theta.size:
            return
        theta = team.theta[first:min(first + length, team.theta.size)]
        before[:theta.size] = theta
        for k in range(team.came.size):
            if team.came[k] == team.gate[ROUND]:
                _merge(theta, team.copies[k, first:first + theta.size], before, None, 0, theta.size // size, size, columns,
                       slots, share, False)


@kernel
def put_back(private, size, columns, slots):
    """When all workers stand still: sum up what they have not, and put the merged blocks to the shared parameters."""
    team, first = private.team, 0
    if team.copies.size:
        sum_up(team, size, columns, slots, private.share)
    for k in range(private.ends.shape[0]):
        last = private.ends[k]
        if team.locks[16 * k + 1] == team.gate[ROUND]:
            spread_out(team.common, private.names, first, last, size, team.theta)
        first = last


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


@kernel
def _merge(common, flat, seen, rows, first, last, size, columns, slots, share, back):
    """Add the changes of the rows first … last - 1 to the common ones, and bring these `back`.

    The simplest loop for what is to be merged most often: four times faster than the last, which does it all.
    """
    first, last, size, columns = np.uint64(first), np.uint64(last), np.uint64(size), np.uint64(columns)
    for k in range(first * size, last * size, np.uint64(16)):  # all at once, as they come from another core
        prefetch_to_write(common, k)
    if size == 1:
        for h in range(first, last):
            a = _row(rows, h)
            new = common[h] + (flat[a] - seen[h])
            common[h] = new
            if back:
                seen[h] = flat[a] = new
    elif share == 1.0:  # the first slot is a sum of squares, whose root has divided this worker's steps
        one = np.uint64(1)
        for h in range(first, last):
            a, b = _row(rows, h) * size, h * size
            for k in range(np.uint64(0), size, columns):
                own, change = flat[a + k + one], flat[a + k + one] - seen[b + k + one]
                if change > 0 or flat[a + k] != seen[b + k]:
                    total = common[b + k + one] + change
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
            a, b = _row(rows, h) * size, h * size
            for k in range(size):
                column = k % columns
                factor = like(share if np.uint64(0) < column and column <= np.uint64(slots) else 1.0)
                common[b + k] += (flat[a + k] - seen[b + k]) * factor
                if back:
                    seen[b + k] = flat[a + k] = common[b + k]
