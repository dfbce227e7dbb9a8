"""A worker's replica of the parameters, and when it is merged with the others'.

A worker works on its own replica of some rows, or of all. What it has changed in them is added to the common ones now and
then, and the others' changes are read: after each has had as many updates of its own, so that all are equally fresh.
Without this a core would fetch nearly every coordinate from the other's cache, however rarely both change one at a time.
Rows about as common as one another are in blocks, which are merged under a spin lock each: no change is lost. Blocks are
small, so that workers seldom meet at one.

Between two moments at which all workers stand still, a round, the shared parameters stay as they are. The common values of
a block are taken from there when it is first merged, and put there at the end. Most blocks are not merged within a round:
of these the workers sum up, each in its part of the parameters, what the replicas have become.

Where a worker's steps go far in the direction that all rows have in common, the sum of all workers' would go beyond what
each of them aims at: `damp_along_mean`.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.atomics import acquire, atomic_add, atomic_load, atomic_store, reached, release
from hogwild.kernels.compiler.jit import INLINE, LOOP, kernel
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
from hogwild.kernels.sharing.parameters import columns_of, row_width

NEVER = 2.0**62
MEASURE = 256.0  # examples between two looks at how far a step goes
FIRST = 16.0  # updates of its own that a row may get before it is merged for the first time; 1 converges no better
LITTLE = 1e-3  # of the way along what all rows have in common: too short to tone it down


class Replica(NamedTuple):
    """A worker's replica of some rows, or of all. The arrays are its own; T blocks of m rows, the commonest first."""

    number: int
    group: tuple  # ReplicaGroup
    local_rows: np.ndarray  # uint32[m]: each one's row in the worker's parameters
    shared_rows: np.ndarray  # uint32[m]: and in the shared ones
    base: np.ndarray  # [m x values a row]: the common values when this worker last saw them
    synced_round: np.ndarray  # int64[T]: the round for which that holds
    ends: np.ndarray  # int64[T]: the first row behind each block
    free: np.ndarray  # int64[T]: rows of each block, its first, that have no L1 penalty
    spacing: np.ndarray  # float64[T]: examples of this worker for an update of its commonest rows
    due: np.ndarray  # float64[T]: the worker's example after which the block is merged
    merges: np.ndarray  # float64[T]: how often it was
    damped_at: np.ndarray  # float64[T]: the example after which it last was, of the first `dense_blocks`
    # float64[8]: examples; the one after which something is due, and at which a step is measured; changes of the scores,
    # and the gradients that made them; the one after which a block is due that is not of the first
    state: np.ndarray
    share: float  # see Layout
    most: float  # updates of its own that a row gets between two merges, at most and on average
    dense_coupling: float  # how much one worker's step turns the others' gradients, in the first blocks: see `merge_due`
    dense_blocks: int  # those are so many
    sparse_coupling: float  # `dense_coupling` of the others
    mean_curvature: float  # how much a step turns the worker's own next gradients, along `mean_direction`
    mean_direction: np.ndarray  # float32[m]: what all rows have in common, of length 1 in each block


def pause(replica):
    """Examples to go until something is due."""


@overload(pause, **LOOP)
def _pause(replica):
    if isinstance(replica, types.NoneType):
        return lambda replica: 1 << 62
    return lambda replica: np.int64(max(replica.state[1] - replica.state[0], 1.0))


@kernel(inline=True)
def measure_due(replica, examples):
    """Count the examples of the worker; whether it is time to measure how far a step goes, for `note_step`."""
    state = replica.state
    state[0] += examples
    if state[0] < state[2]:
        return False
    state[2] = state[0] + min(state[0], MEASURE)
    return True


@kernel
def note_step(replica, change, dz):
    """A step with gradient dz by a score has changed this score by `change`, both without their signs."""
    state = replica.state
    state[3] = 0.8 * state[3] + change
    state[4] = 0.8 * state[4] + dz


@kernel(inline=True)
def merge_due(replica, flat, layout):
    """Merge the blocks that are due, where the worker has a replica.

    The others do not know of a worker's steps until a merge, and all are summed. Together they may not go too far: of
    what one step takes from its own gradient, the others' take as much from theirs as the rows overlap. So the number of
    updates between two merges is what the steps' size allows. See hogwild/training/replication.py.
    """
    if replica is not None:
        if replica.state[0] >= replica.state[1]:
            _blocks(flat, replica, layout)


def layout_of(replica, space, tau):
    """The Layout of what a worker trains; None where it has no replica."""


@overload(layout_of, **INLINE)
def _layout_of(replica, space, tau):
    if isinstance(replica, types.NoneType):
        return lambda replica, space, tau: None

    def layout(replica, space, tau):
        columns = columns_of(space.scratch, tau)
        return Layout(row_width(space.params) * columns, columns, columns_of(space.scratch, None) - 1, replica.share,
                      _number(tau))
    return layout


def _number(tau):
    """0.0 for None."""


@overload(_number, **LOOP)
def _number_impl(tau):
    if isinstance(tau, types.NoneType):
        return lambda tau: 0.0
    return lambda tau: np.float64(tau)


@kernel(inline=True)
def _period(replica, k, now):
    """Examples between two merges of block k: as many as the steps' size allows updates of its own."""
    state, spacing = replica.state, replica.spacing[k]
    turn = (replica.dense_coupling if k < replica.dense_blocks else replica.sparse_coupling) * state[3]
    allowed = replica.most if turn * replica.most <= state[4] else state[4] / turn
    # The first ones change most: after half as many as before, at the latest.
    return max(min(allowed, max(0.5 * now / spacing, FIRST)) * spacing, 1.0)


@kernel(inline=True)
def _blocks(flat, replica, layout):
    """Merge the blocks that are due; one that another worker is at may wait for as long again."""
    state, due, locks = replica.state, replica.due, replica.group.locks
    if _present(replica.group) < 2:
        state[1] = NEVER
        return
    now, soonest, later, first = state[0], state[2], NEVER, 0
    every, current = now >= state[5], replica.group.gate[ROUND]
    for k in range(replica.ends.shape[0] if every else replica.dense_blocks):
        last, again = replica.ends[k], due[k]
        if now >= again:
            period = _period(replica, k, now)
            if atomic_load(locks, 16 * k) == 0 or now >= due[k] + period:
                _exchanged(flat, replica, k, first, last, layout, replica.synced_round[k] == current)
                due[k] = again = now + period
            else:
                again = now + max(0.5 * period, 1.0)  # not at once: to ask takes as long as an example
        soonest = min(soonest, again)
        later = min(later, again) if k >= replica.dense_blocks else later
        first = last
    if every:
        state[5] = later
    state[1] = min(soonest, state[5])


@kernel(inline=True)
def _exchanged(flat, replica, k, first, last, layout, known):
    """Merge block k; known: not for the first time. What others need not wait for is done without its lock."""
    group, rows, base = replica.group, replica.local_rows, replica.base
    quick = known and layout.size == 1 and group.unpaid_l1.size == 0
    if known and k < replica.dense_blocks:
        damp_along_mean(flat, replica, k, first, last, layout)
    if quick:
        for h in range(first, last):
            base[h] = flat[rows[h]] - base[h]
    acquire(group.locks, 16 * k, group.halt)
    if quick:
        add_up(group.common, base, first, last)
    elif known or _opened(replica, k, first, last, layout.size, True):
        if not known and k < replica.dense_blocks:
            damp_along_mean(flat, replica, k, first, last, layout)
        _merged(flat, replica, k, first, last, layout, True)
    release(group.locks, 16 * k)
    replica.merges[k] += replica.synced_round[k] == group.gate[ROUND]
    if quick:
        for h in range(first, last):
            flat[rows[h]] = base[h]


@kernel(inline=True)
def _present(group):
    """Workers that have not left early."""
    return group.last_round.size - atomic_load(group.gate, EARLY)


@kernel(inline=True)
def _merged(flat, replica, k, first, last, layout, back):
    """Merge block k, whose lock this worker has. Its first rows may be free of a penalty."""
    common, base, penalized = replica.group.common, replica.base, first + replica.free[k]
    merge(common, flat, base, replica.local_rows, first, penalized, layout, False, back)
    merge(common, flat, base, replica.local_rows, penalized, last, layout, replica.group.unpaid_l1.size > 0, back)


@kernel
def damp_along_mean(flat, replica, k, first, last, layout):
    """Shorten what this worker has changed in block k along what all rows have in common, for all changes are summed.

    If its n steps have gone 1 - e^-κ of the way to where the gradients along it vanish, κ = n `mean_curvature` |step| /
    |gradient|, W workers' steps one after another would have gone 1 - e^-Wκ, not W times as far.
    """
    state, group, along, size = replica.state, replica.group, replica.mean_direction, layout.size
    if replica.synced_round[k] != group.gate[ROUND]:
        pack(group.theta, replica.shared_rows, first, last, size, replica.base)  # what it began with
    n, replica.damped_at[k] = (state[0] - replica.damped_at[k]) / replica.spacing[k], state[0]
    workers = _present(group)
    kappa = replica.mean_curvature * state[3] * n / state[4]
    if workers < 2 or not LITTLE < kappa < np.inf:
        return
    like = flat.dtype.type
    excess = like(1.0 - math.expm1(-workers * kappa) / (workers * math.expm1(-kappa)))
    first, last, columns = np.uint64(first), np.uint64(last), np.uint64(layout.columns)
    for o in range(np.uint64(0), np.uint64(size), columns):
        far = like(0.0)
        for h in range(first, last):
            far += (flat[replica.local_rows[h] * np.uint64(size) + o] - replica.base[h * np.uint64(size) + o]) * along[h]
        for h in range(first, last):
            a, back = replica.local_rows[h] * np.uint64(size) + o, excess * far * along[h]
            if flat[a] != 0:  # where a penalty holds it, it stays
                flat[a] -= back
                flat[a + columns - np.uint64(1)] += like(layout.tau) * back


@kernel
def _opened(replica, k, first, last, size, new):
    """Whether the block, whose lock this worker has, is one to merge in this round; new: also for the first time.

    Not for the first time when a worker has ended: what it changed in the block is to be summed up.
    """
    group, shared_rows = replica.group, replica.shared_rows
    current = group.gate[ROUND]
    if group.locks[16 * k + 1] != current:
        if not new or atomic_load(group.gate, CLOSED) != 0:
            return False
        pack(group.theta, shared_rows, first, last, size, group.common)
        group.locks[16 * k + 1] = current
    if replica.synced_round[k] != current:
        pack(group.theta, shared_rows, first, last, size, replica.base)
        replica.synced_round[k] = current
    return True


def replicated(replica):
    """Whether the worker has replicas of all parameters, and has come to this round."""


@overload(replicated, **LOOP)
def _replicated(replica):
    if isinstance(replica, types.NoneType):
        return lambda replica: False

    def answer(replica):
        group = replica.group
        return group.replicas.size > 0 and group.last_round[replica.number] == group.gate[ROUND]
    return answer


def start_round(replica, flat):
    """A round begins for the worker: its replicas in `flat` are those of the shared parameters."""


@overload(start_round, **LOOP)
def _start_round(replica, flat):
    if isinstance(replica, types.NoneType):
        return lambda replica, flat: None

    def start(replica, flat):
        group, state, finite = replica.group, replica.state, True
        for x in state:
            finite &= abs(x) < np.inf
        if not finite:  # from before a rollback
            state[:] = 0.0
        state[1] = state[5] = state[0]
        for k in range(replica.ends.shape[0]):
            replica.due[k] = state[0] + _period(replica, k, state[0])
            replica.damped_at[k] = state[0]
        if group.replicas.size:
            for a in range(flat.size):  # not by one assignment: the message of its error takes seconds to compile
                flat[a] = group.theta[a]
        else:
            last = replica.local_rows.size
            size = replica.base.size // last
            pack(group.theta, replica.shared_rows, 0, last, size, replica.base)
            spread_out(replica.base, replica.local_rows, 0, last, size, flat)
        group.last_round[replica.number] = group.gate[ROUND]
    return start


def post_unpaid_l1(replica, lasso):
    """Tell the others what the L1 penalty has asked of the worker's weights in this round, all of which have paid it."""


@overload(post_unpaid_l1, **LOOP)
def _post_unpaid_l1(replica, lasso):
    if isinstance(replica, types.NoneType) or isinstance(lasso, types.NoneType):
        return lambda replica, lasso: None

    def tell(replica, lasso):
        replica.group.unpaid_l1[replica.number] = lasso.l1 * (lasso.clock[0] - lasso.clock[1])
        lasso.clock[1] = lasso.clock[0]
    return tell


@kernel
def end_round(replica, flat, layout, penalty, early):
    """The round ends for the worker, for all, or `early` for this one alone: bring what it has changed together with the
    others' changes. It need not have come.

    Without a penalty the types do not tell what is trained, and by which rule: compiled once for all.
    """
    if replica is None:
        return
    group = replica.group
    if group.last_round[replica.number] == group.gate[ROUND]:
        merge_all(flat, replica, layout, early)
    if early:
        atomic_add(group.gate, EARLY, 1)
    atomic_add(group.gate, DONE, 1)
    if group.replicas.size and not early and reached(group.gate, DONE, group.last_round.size):
        sum_up(group, penalty, layout)
    if atomic_add(group.gate, SUMMED, 1) == group.last_round.size - 1:
        put_back(replica, penalty, layout)
        atomic_store(group.gate, OUT, 1)


@kernel(inline=True)
def merge_all(flat, replica, layout, early):
    """Merge every block that is merged in this round; others, if it is not over, too. What is summed is toned down as well.
    """
    group, blocks = replica.group, replica.ends.shape[0]
    summed = group.replicas.size > 0 and not early
    if summed:
        atomic_store(group.gate, CLOSED, 1)
    turn = replica.number * blocks // group.last_round.size  # or workers that began with the same would queue for each
    for j in range(blocks):
        k = (turn + j) % blocks
        first, last = replica.ends[k - 1] if k else 0, replica.ends[k]
        if k < replica.dense_blocks:
            damp_along_mean(flat, replica, k, first, last, layout)
        acquire(group.locks, 16 * k, group.halt)
        if _opened(replica, k, first, last, layout.size, not summed):
            _merged(flat, replica, k, first, last, layout, False)
        release(group.locks, 16 * k)
        replica.merges[k] += 1.0


@kernel
def put_back(replica, penalty, layout):
    """When no worker changes anything: sum up what is left, and put the merged blocks to the shared parameters."""
    group, first = replica.group, 0
    if group.replicas.size:
        sum_up(group, penalty, layout)
    for k in range(replica.ends.shape[0]):
        last = replica.ends[k]
        if group.locks[16 * k + 1] == group.gate[ROUND]:
            spread_out(group.common, replica.shared_rows, first, last, layout.size, group.theta)
        first = last
