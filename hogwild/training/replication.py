"""Which rows of the parameters workers replicate, all or the hottest, and how often these are merged."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.optim.steps import aligned
from hogwild.kernels.sharing.parameters import slot_of
from hogwild.training.machine import demand_memory

# What each mode of sharing promises where two workers change one row at once.
MODES = {
    "wild": "plain loads and stores, no lock: no worker waits for another, and a change of a shared row may be lost",
    "atomic": "compare-and-swap additions: no change is ever lost",
    "locked": "a spin lock a row: an example's rows change together, and no change is lost (the paper's AIG)",
    "round-robin": "updates in strict turn: step t after step t - 1, and no change is lost (the paper's RR)",
    "deterministic": "the same bits for a seed, whatever the number of workers",
}
# What each worker has a replica of, and the modes in which it can.
REPLICAS = {
    "auto": "all where they are few beside the data, else hot; none in the modes that lock or take turns",
    "none": "everything is shared: with mode wild, the paper's lock-free algorithm to the letter",
    "hot": "the rows that many examples touch, merged every few hundred updates",
    "all": "all parameters, merged block by block under locks, so that no change is lost",
}
ALLOWED = {"auto": tuple(MODES), "none": tuple(MODES), "hot": ("wild", "atomic"), "all": ("wild",)}

SMALL, SHARE = 64e6, 6  # bytes that replicas of all parameters may take, or that share of the data's
ROWS, BLOCKS = 1024, 128  # rows that are merged at once: so many, or more, to have no more than so many blocks
FEW = 64  # rows: to merge more of them takes less time than to get another block from another core's cache
PAID = 2  # float32 that a row's account of the L1 penalty takes
TINY = 1e-30  # a sum of squares of a block that no example of a sample touches
DENSE = 0.9  # share of the overlap that is held to what the steps' size allows for it: see `Plan`
HOT, VALUES = 4096, 1 << 16  # rows that workers replicate beside shared ones, and float32 of these, at most
COMMON = 1024  # examples, of which one at least touches such a row: others have left a core's cache before they are needed
OFTEN = 16  # updates of it by each worker in an epoch, or to merge it would take as long
NONE = np.uint32(2**32 - 1)  # no row
EASE = 8.0  # gradients that unseen steps may take, as they are damped; they may take 1 that are not


class Coupling(NamedTuple):
    """How much a step on one example changes the gradient of another, as a share of what it changes its own, in a sample."""

    overlap: np.ndarray  # float64[rows]: through each row, at most
    mean: np.ndarray  # float64[rows]: the mean gradient's direction; its square is the share that all examples have in common
    beside: Callable  # beside(scale float64[rows]): beside the mean, where row j is scaled by scale[j]
    own: float  # through a rare row, of one example
    sampled: int  # examples


class Touches(NamedTuple):
    """How the examples touch the rows of the parameters."""

    examples: int
    counts: np.ndarray  # int64[rows]: examples that touch each row
    coupling: Coupling | None = None  # None: not known, at most all of a gradient


def check_sharing(mode, replicas):
    """Raise UserError for a mode or replicas that do not exist, or not together."""
    for what, value, known in (("mode", mode, MODES), ("replicas", replicas, REPLICAS)):
        if value not in known:
            raise UserError(f"unknown {what} '{value}': choose from {', '.join(known)}")
    if mode not in ALLOWED[replicas]:
        raise UserError(f"replicas '{replicas}' need mode {' or '.join(ALLOWED[replicas])}, got mode '{mode}': use replicas "
                        "auto or none, or another mode")


def few_enough(rows, touched, workers, size=1) -> bool:
    """Whether each of `workers` may replicate all rows, `size` float32 each, that are `touched` so often in an epoch.

    An epoch has to be longer than what it takes to merge them, and they may not take much memory.
    """
    values = workers * size * rows
    return workers > 1 and values <= touched and (SHARE * values <= touched or 8 * values <= SMALL)


def choose(sharing, size, touches, lasso=False, averaged=False) -> str:
    """none, hot or all, where replicas may be auto. Training and `hogwild inspect` ask here.

    sharing: with its `workers`, `mode`, `replicas`; size: float32 a row; touches: number of rows, and how often examples
    touch any in an epoch. Raises UserError where they were asked for and cannot be.
    """
    workers, mode, replicas = sharing[:3]
    check_sharing(mode, replicas)
    rows, touched = touches
    shrunk_average = lasso and averaged
    if replicas == "all" and shrunk_average:
        # Weights that a penalty holds at 0 come and go in replicas, and the average would see it: objectives 3 to 11% higher.
        raise UserError("replicas 'all' cannot have an L1 penalty and an average: use replicas auto, hot or none")
    if workers == 1 or replicas == "none" or mode not in ALLOWED["hot"]:
        return "none"
    if replicas == "all":
        what = f"replicas of {rows:,} rows with {size} float32 each, for {workers} workers,"
        demand_memory(4.0 * workers * rows * (size + PAID * lasso), what, "use replicas hot or none, or fewer workers")
        return "all"
    if replicas == "auto" and mode == "wild" and not shrunk_average and few_enough(rows, touched, workers,
                                                                                  size + PAID * lasso):
        return "all"
    return "hot"


def columns_of(rule, averaged=False) -> int:
    """float32 that a coordinate has: its weight, the rule's slots, and its average."""
    return 1 + len(rule.start()) + averaged


def hottest(counts, examples, workers, size):
    """(hot_rows, counts): the rows that workers replicate where they share the others, as View.hot_rows of
    kernels/sharing/parameters.py wants them, and how many examples touch each row (int64[rows]), 0 for those that are shared.

    counts: of all rows; size: float32 a row. Of several that have one slot there it is the commonest.
    """
    hot_rows = aligned((1 << min(HOT, max(VALUES // size, 1)).bit_length() - 1,), np.uint32)
    hot_rows.fill(NONE)
    found = np.flatnonzero((counts >= max(examples / COMMON, OFTEN * workers)) | (counts >= max(examples, 1)))
    found = found[np.argsort(counts[found], kind="stable")]
    hot_rows[slot_of.py_func(hot_rows, found)] = found
    replicated, found = np.zeros_like(counts), hot_rows[hot_rows != NONE]
    replicated[found] = counts[found]
    return hot_rows, replicated


def _together(tiers, first):
    """Which of the tiers, whose rows begin there, begin a block: behind FEW rows or more, or where they are more than four
    times rarer than its first."""
    begin = [0]
    for k in range(1, len(tiers)):
        if first[k] - first[begin[-1]] >= FEW or tiers[k] > tiers[begin[-1]] + 2:
            begin.append(k)
    return first[begin]


class Plan(NamedTuple):
    """m rows of the parameters in T blocks, the commonest first.

    Steps that workers have not merged turn each other's gradients: of what one step takes from its own gradient, an unseen
    one of another takes as much from that as two examples overlap, at most (mean of |x|)² in each row, against x². Most of it
    comes from few rows, the first `dense_blocks`. Part of it, (mean of x)², is along the mean example; this part is damped
    when replicas are summed (kernels/sharing/replicas.py), so that it may be large. They are merged so often that unseen
    steps take no more than all of a gradient beside it. What the other blocks add may come late: x' = -a x(t) - b x(t - τ)
    is stable for any τ where b < a. They count by what they have in common beside the mean example: the largest eigenvalue of
    their covariance, each row weighted by the number of examples in which it is updated once, since a block is merged after
    so many updates.
    """

    shared_rows: np.ndarray  # uint32[m]
    ends: np.ndarray  # int64[T]: the first row behind each block
    free: np.ndarray  # int64[T]: rows of each block, its first, that have no L1 penalty
    spacing: np.ndarray  # float64[T]: examples for an update of its commonest rows
    updates: np.ndarray  # float64[T]: of all its rows in an epoch
    dense_blocks: int
    dense_coupling: float  # what an unseen step takes of a gradient, of what it takes of its own: in those, beside the mean
    sparse_coupling: float  # the same in the other blocks
    mean_curvature: float  # the same along the mean example, which is damped
    mean_direction: np.ndarray  # float32[m]: the mean example, scaled to a length of 1 in each block


def plan(touches, counts, penalized) -> Plan | None:
    """What there is to merge: the rows whose counts (int64[rows]) are not 0; None where there are none.

    penalized: rows before this one have an L1 penalty.
    """
    found = np.flatnonzero(counts)
    if not len(found):
        return None
    tier = np.floor(np.log2(max(touches.examples, 1) / counts[found])).astype(np.int8)
    order = np.lexsort((found < penalized, tier))
    shared_rows, tiers = found[order], tier[order]
    first, step = _together(*np.unique(tiers, return_index=True)), max(ROWS, len(shared_rows) // BLOCKS)
    starts = np.concatenate([np.arange(at, end, step) for at, end in zip(first, np.append(first[1:], len(shared_rows)))])
    spacing, ends = 2.0 ** tiers[starts], np.append(starts[1:], len(shared_rows))
    lengths = np.diff(ends, prepend=0)
    shared_rows = shared_rows[np.lexsort((shared_rows < penalized, np.repeat(np.arange(len(starts)), lengths)))]
    free = np.add.reduceat((shared_rows >= penalized).astype(np.int64), starts)
    updates = np.add.reduceat(counts[shared_rows].astype(np.float64), starts)
    return Plan(shared_rows.astype(np.uint32), ends, free, spacing, updates,
                *_couplings(touches.coupling, shared_rows, starts, ends, spacing))


def _couplings(coupling, shared_rows, starts, ends, spacing):
    """The last five fields of a Plan."""
    if coupling is None:
        return len(ends), 1.0, 1.0, 0.0, np.zeros(len(shared_rows), np.float32)
    lengths, overlap = np.diff(ends, prepend=0), coupling.overlap[shared_rows]
    common = np.cumsum(np.add.reduceat(overlap, starts))
    dense_blocks = int(np.searchsorted(common, DENSE * common[-1])) + 1
    mean, overlap = coupling.mean[shared_rows], overlap.sum()
    late = np.repeat(spacing * (spacing <= coupling.sampled / 10), lengths)  # rarer ones are too few in a sample to tell

    def beside(first, last):
        scale = np.zeros(len(coupling.mean))
        scale[shared_rows[first:last]] = late[first:last]
        return coupling.beside(scale) if scale.any() else 0.0
    alone = len(shared_rows) == 1  # a row that all steps change alike is merged often enough in place of damped
    dense = overlap if alone else np.clip(beside(0, ends[dense_blocks - 1]), overlap / EASE, overlap)
    sparse = max(beside(ends[dense_blocks - 1], None), coupling.own)
    curvature = 0.0 if alone else np.square(mean).sum()  # BLAS would leave its threads beside the workers
    direction = mean / np.repeat(np.sqrt(np.maximum(np.add.reduceat(np.square(mean), starts), TINY)), lengths)
    return dense_blocks, float(dense), float(sparse), float(curvature), direction.astype(np.float32)
