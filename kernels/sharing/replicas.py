"""What a worker keeps for itself of the parameters, and when it brings that together with the others'.

A worker works on its own copy of some rows, or of all. What it has changed in them is added to the common ones now and
then, and the others' changes are read: after each has had as many updates of its own, so that all are equally fresh.
Without this a core would fetch nearly every coordinate from the other's cache, however rarely both change one at a time.
Rows about as common as one another are in blocks, which are merged under a spin lock each: no change is lost. Blocks are
small, so that workers seldom meet at one.

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

from hogwild.kernels.compiler.atomics import acquire, atomic_add, atomic_load, atomic_store, reached, release
from hogwild.kernels.compiler.jit import INLINE, LOOP, kernel, where_given
from hogwild.kernels.families.scores import score
from hogwild.kernels.sharing.merging import (
    CLOSED,
    DONE,
    EARLY,
    OUT,
    ROUND,
    SUMMED,
    Layout,
    add_up,
    merge,
    pack,
    spread_out,
    sum_up,
)
from hogwild.kernels.sharing.parameters import count, part, width
from hogwild.kernels.sharing.parking import back_at, wait_at

NEVER = 2.0**62
MEASURE = 256.0  # examples between two looks at how far a step goes
FIRST = 16.0  # updates of its own that a row may get before it is merged for the first time; 1 converges no better
LITTLE = 1e-3  # of the way along what all rows have in common: too short to tone it down


class Private(NamedTuple):
    """A worker's copies. The arrays are its own; T blocks of m rows, the commonest first."""

    number: int
    team: tuple  # Team
    rows: np.ndarray  # uint32[m]: each one's row in the worker's parameters
    names: np.ndarray  # uint32[m]: and in the shared ones
    seen: np.ndarray  # [m x values a row]: the common values when this worker last saw them
    known: np.ndarray  # int64[T]: the round for which that holds
    ends: np.ndarray  # int64[T]: the first row behind each block
    spacing: np.ndarray  # float64[T]: examples of this worker for an update of its commonest rows
    due: np.ndarray  # float64[T]: the worker's example after which the block is merged
    merges: np.ndarray  # float64[T]: how often it was
    met: np.ndarray  # float64[T]: the example after which it last was, of the first `bent`
    # float64[8]: examples; the one after which something is due, and at which a step is measured; changes of the scores,
    # and the gradients that made them; the one after which a block is due that is not of the first
    state: np.ndarray
    share: float  # see Layout
    most: float  # updates of its own that a row gets between two merges, at most and on average
    bend: float  # how much one worker's step turns the others' gradients, in the first blocks: see `merge_due`
    bent: int  # those are so many
    rest: float  # `bend` of the others
    pull: float  # how much a step turns the worker's own next gradients, along `along`
    along: np.ndarray  # float32[m]: what all rows have in common, of length 1 in each block
    doors: np.ndarray  # int64[8 W] of all workers, see kernels/sharing/parking.py


def pause(private):
    """Examples to go until something is due."""


@overload(pause, **LOOP)
def _pause(private):
    if isinstance(private, types.NoneType):
        return lambda private: 1 << 62
    return lambda private: np.int64(max(private.state[1] - private.state[0], 1.0))


def look(private, place, scratch, outputs, tau, csr, start, stop, intercept, z, slope, done):
    """Count `done` more examples, the last of score z before its step, and sometimes measure how far that step went."""


@overload(look, **INLINE)
def _look(private, place, scratch, outputs, tau, csr, start, stop, intercept, z, slope, done):
    if isinstance(private, types.NoneType):
        return lambda private, place, scratch, outputs, tau, csr, start, stop, intercept, z, slope, done: None

    def measure(private, place, scratch, outputs, tau, csr, start, stop, intercept, z, slope, done):
        state = private.state
        state[0] += done
        if state[0] >= state[2]:
            state[2] = state[0] + min(state[0], MEASURE)
            before, push = part(z, 0), abs(part(slope, 0))
            after = part(score(place, scratch, outputs, tau, csr, start, stop, intercept), 0)
            state[3] = 0.8 * state[3] + abs(after - before)
            state[4] = 0.8 * state[4] + push
    return measure


@where_given
@kernel
def merge_due(private, flat, layout):
    """Merge the blocks that are due.

    The others do not know of a worker's steps until a merge, and all are summed. Together they may not go too far: of
    what one step takes from its own gradient, the others' take as much from theirs as the rows overlap. So the number of
    updates between two merges is what the steps' size allows. See hogwild/training/replication.py.
    """
    if private.state[0] >= private.state[1]:
        _blocks(flat, private, layout)


def layout_of(private, scratch, outputs, tau):
    """The Layout of what a worker trains; None where it has nothing for itself."""


@overload(layout_of, **INLINE)
def _layout_of(private, scratch, outputs, tau):
    if isinstance(private, types.NoneType):
        return lambda private, scratch, outputs, tau: None

    def layout(private, scratch, outputs, tau):
        columns = width(scratch, tau)
        return Layout(count(outputs) * columns, columns, width(scratch, None) - 1, private.share, _number(tau))
    return layout


def _number(tau):
    """0.0 for None."""


@overload(_number, **LOOP)
def _number_impl(tau):
    if isinstance(tau, types.NoneType):
        return lambda tau: 0.0
    return lambda tau: np.float64(tau)


@kernel(inline=True)
def _period(private, k, now):
    """Examples between two merges of block k: as many as the steps' size allows updates of its own."""
    state, spacing = private.state, private.spacing[k]
    turn = (private.bend if k < private.bent else private.rest) * state[3]
    allowed = private.most if turn * private.most <= state[4] else state[4] / turn
    # The first ones change most: after half as many as before, at the latest.
    return max(min(allowed, max(0.5 * now / spacing, FIRST)) * spacing, 1.0)


@kernel(inline=True)
def _blocks(flat, private, layout):
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
            if atomic_load(locks, 16 * k) == 0 or now >= due[k] + period:
                _exchanged(flat, private, k, first, last, layout, private.known[k] == current)
                due[k] = again = now + period
            else:
                again = now + max(0.5 * period, 1.0)  # not at once: to ask takes as long as an example
        soonest = min(soonest, again)
        later = min(later, again) if k >= private.bent else later
        first = last
    if every:
        state[5] = later
    state[1] = min(soonest, state[5])


@kernel(inline=True)
def _exchanged(flat, private, k, first, last, layout, known):
    """Merge block k; known: not for the first time. What others need not wait for is done without its lock."""
    team, rows, seen = private.team, private.rows, private.seen
    quick = known and layout.size == 1 and team.owed.size == 0
    if known and k < private.bent:
        tone_down(flat, private, k, first, last, layout)
    if quick:
        for h in range(first, last):
            seen[h] = flat[rows[h]] - seen[h]
    acquire(team.locks, 16 * k, team.halt)
    if quick:
        add_up(team.common, seen, first, last)
    elif known or _opened(private, k, first, last, layout.size, True):
        if not known and k < private.bent:
            tone_down(flat, private, k, first, last, layout)
        _merged(flat, private, k, first, last, layout, True)
    release(team.locks, 16 * k)
    private.merges[k] += private.known[k] == team.gate[ROUND]
    if quick:
        for h in range(first, last):
            flat[rows[h]] = seen[h]


@kernel(inline=True)
def _present(team):
    """Workers that have not left early."""
    return team.came.size - atomic_load(team.gate, EARLY)


@kernel(inline=True)
def _merged(flat, private, k, first, last, layout, back):
    """Merge block k, whose lock this worker has. The first row of all is the intercept, on which there is no penalty."""
    common, seen, features = private.team.common, private.seen, first + (k == 0)
    merge(common, flat, seen, private.rows, first, features, layout, False, back)
    merge(common, flat, seen, private.rows, features, last, layout, private.team.owed.size > 0, back)


@kernel
def tone_down(flat, private, k, first, last, layout):
    """Shorten what this worker has changed in block k along what all rows have in common, for all changes are summed.

    If its n steps have gone 1 - e^-κ of the way to where the gradients along it vanish, κ = n `pull` |step| / |gradient|,
    W workers' steps one after another would have gone 1 - e^-Wκ, not W times as far.
    """
    state, team, along, size = private.state, private.team, private.along, layout.size
    if private.known[k] != team.gate[ROUND]:
        pack(team.theta, private.names, first, last, size, private.seen)  # what it began with
    n, private.met[k] = (state[0] - private.met[k]) / private.spacing[k], state[0]
    workers = _present(team)
    kappa = private.pull * state[3] * n / state[4]
    if workers < 2 or not LITTLE < kappa < np.inf:
        return
    like = flat.dtype.type
    excess = like(1.0 - math.expm1(-workers * kappa) / (workers * math.expm1(-kappa)))
    first, last, columns = np.uint64(first), np.uint64(last), np.uint64(layout.columns)
    for o in range(np.uint64(0), np.uint64(size), columns):
        far = like(0.0)
        for h in range(first, last):
            far += (flat[private.rows[h] * np.uint64(size) + o] - private.seen[h * np.uint64(size) + o]) * along[h]
        for h in range(first, last):
            a, back = private.rows[h] * np.uint64(size) + o, excess * far * along[h]
            if flat[a] != 0:  # where a penalty holds it, it stays
                flat[a] -= back
                flat[a + columns - np.uint64(1)] += like(layout.tau) * back


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


def awaited(private, queue, t):
    """Steps done before the order; a worker that is at its door waits there for it, and -1 has it go back: see `wait_at`."""


@overload(awaited, **LOOP)
def _awaited(private, queue, t):
    if isinstance(private, types.NoneType):
        return lambda private, queue, t: t
    return lambda private, queue, t: wait_at(private.doors, private.number, queue, t)


def again_at(private):
    """Whether the worker goes back to its door, from which it had come."""


@overload(again_at, **LOOP)
def _again_at(private):
    if isinstance(private, types.NoneType):
        return lambda private: False
    return lambda private: back_at(private.doors, private.number)


def copied(private):
    """Whether the worker has copies of all parameters, and has come to this round."""


@overload(copied, **LOOP)
def _copied(private):
    if isinstance(private, types.NoneType):
        return lambda private: False
    return lambda private: private.team.copies.size > 0 and private.team.came[private.number] == private.team.gate[ROUND]


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
            for a in range(flat.size):  # not by one assignment: the message of its error takes seconds to compile
                flat[a] = team.theta[a]
        else:
            last = private.rows.size
            size = private.seen.size // last
            pack(team.theta, private.names, 0, last, size, private.seen)
            spread_out(private.seen, private.rows, 0, last, size, flat)
        team.came[private.number] = team.gate[ROUND]
    return start


def owe(private, lasso):
    """Tell the others what the L1 penalty has asked of the worker's weights in this round, all of which have paid it."""


@overload(owe, **LOOP)
def _owe(private, lasso):
    if isinstance(private, types.NoneType) or isinstance(lasso, types.NoneType):
        return lambda private, lasso: None

    def tell(private, lasso):
        private.team.owed[private.number] = lasso.l1 * (lasso.clock[0] - lasso.clock[1])
        lasso.clock[1] = lasso.clock[0]
    return tell


@where_given
@kernel
def go(private, flat, layout, penalty, early):
    """The round ends for the worker, for all, or `early` for this one alone: bring what it has changed together with the
    others' changes. It need not have come.

    Without a penalty the types do not tell what is trained, and by which rule: compiled once for all.
    """
    team = private.team
    if team.came[private.number] == team.gate[ROUND]:
        merge_all(flat, private, layout, early)
    if early:
        atomic_add(team.gate, EARLY, 1)
    atomic_add(team.gate, DONE, 1)
    if team.copies.size and not early and reached(team.gate, DONE, team.came.size):
        sum_up(team, penalty, layout)
    if atomic_add(team.gate, SUMMED, 1) == team.came.size - 1:
        put_back(private, penalty, layout)
        atomic_store(team.gate, OUT, 1)
    if team.copies.size and not early and private.number == 0:
        reached(team.gate, OUT, 1)  # or the caller would have to ask for it in Python


@kernel(once=True)
def merge_all(flat, private, layout, early):
    """Merge every block that is merged in this round; others, if it is not over, too. What is summed is toned down as well.
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
            tone_down(flat, private, k, first, last, layout)
        acquire(team.locks, 16 * k, team.halt)
        if _opened(private, k, first, last, layout.size, not summed):
            _merged(flat, private, k, first, last, layout, False)
        release(team.locks, 16 * k)
        private.merges[k] += 1.0


@kernel
def put_back(private, penalty, layout):
    """When no worker changes anything: sum up what is left, and put the merged blocks to the shared parameters."""
    team, first = private.team, 0
    if team.copies.size:
        sum_up(team, penalty, layout)
    for k in range(private.ends.shape[0]):
        last = private.ends[k]
        if team.locks[16 * k + 1] == team.gate[ROUND]:
            spread_out(team.common, private.names, first, last, layout.size, team.theta)
        first = last
