"""What workers keep copies of, all parameters or the hottest: what is brought together with the others', and how often."""

from typing import NamedTuple

import numpy as np

from hogwild.kernels.data.csr import sizes, strongest
from hogwild.kernels.optim.steps import aligned
from hogwild.kernels.sharing.parameters import slot_of

SMALL, SHARE = 64e6, 6  # bytes that copies of the parameters may take, or that share of the data's
ROWS, BLOCKS = 1024, 128  # rows that are merged at once: so many, or more, to have no more than so many blocks
FEW = 64  # rows: to merge more of them takes less time than to get another block from another core's cache
PAID = 2  # float32 that a feature's account of the L1 penalty takes
SAMPLE, TINY = 1000, 1e-30  # rows; a sum of squares of a block that none of them has
BENT = 0.9  # share of the overlap that is held to what the steps' size allows for it: see `Plan`
HOT, VALUES = 4096, 1 << 16  # features that workers keep copies of beside shared ones, and float32 of these, at most
COMMON = 1024  # rows, of which such a feature is in one at least: others have left a core's cache before it comes again
OFTEN = 16  # updates of it by each worker in an epoch, or to merge it would take as long
NONE = np.uint32(2**32 - 1)  # no feature
EASE = 8.0  # gradients that unseen steps may take, as they are toned down; they may take 1 that are not


def few_enough(data, workers, size=1) -> bool:
    """Whether each of `workers` may train a copy of the parameters, `size` a feature.

    An epoch has to be longer than what it takes to bring them together, and they may not take much memory.
    """
    copied = workers * size * data.n_features
    return workers > 1 and copied <= data.nnz and (SHARE * copied <= data.nnz or 8 * copied <= SMALL)


def columns_of(rule, averaged=False) -> int:
    """float32 that an output has for each feature: its weight, the rule's slots, and its average."""
    return 1 + len(rule.start()) + averaged


def keeps_copies(data, workers, size, lasso=False, averaged=False, wanted=None) -> bool:
    """Whether each worker of mode wild trains a copy of the parameters, `size` float32 a feature. Training and `hogwild
    inspect` ask here. wanted: True or False in place of what the sizes say."""
    if workers == 1 or lasso and averaged:
        # Weights that a penalty holds at 0 come and go in copies, and the average would see it: objectives 3 to 11% higher.
        return False
    return few_enough(data, workers, size + PAID * lasso) if wanted is None else wanted


def hottest(degree, rows, workers, size):
    """(hot, degree): the features that workers keep copies of where they share the others, as Place.hot of
    kernels/sharing/parameters.py wants them, and of each feature how many rows have it (int64[n_features]), 0 for those
    that are shared.

    degree: of all; size: float32 a feature. Of several that have one place there it is the commonest.
    """
    hot = aligned((1 << min(HOT, max(VALUES // size, 1)).bit_length() - 1,), np.uint32)
    hot.fill(NONE)
    found = np.flatnonzero(degree >= max(rows / COMMON, OFTEN * workers))
    found = found[np.argsort(degree[found], kind="stable")]
    hot[slot_of.py_func(hot, found)] = found
    copied, found = np.zeros_like(degree), hot[hot != NONE]
    copied[found] = degree[found]
    return hot, copied


def sizes_of(data):
    """Means of (x, |x|, x²) of each feature over all rows of a sample, float64[n_features] each."""
    rows, total = min(data.rows, SAMPLE), np.zeros((3, data.n_features))
    sizes(data.csr, rows, *total)
    return total / max(rows, 1)


def rarity(rows, degree):
    """What multiplies the decay of each feature when it is touched, float32[d]: rows for each that has it."""
    return (rows / np.maximum(degree, 1)).astype(np.float32)


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

    What workers have not told each other bends their steps: of what one step takes from its own gradient, an unseen one
    of another takes as much from that as two rows overlap, at most (mean of |x|)² in each feature, against x². Most of it
    comes from few features, the first `bent` blocks. Part of it, (mean of x)², is along the mean row; this part is toned
    down when copies are summed (kernels/sharing/replicas.py), so that it may be large. They are merged so often that
    unseen steps take no more than all of a gradient beside it. What the other blocks add may come late:
    x' = -a x(t) - b x(t - τ) is stable for any τ where b < a. They count by what they have in common beside the mean row:
    the largest eigenvalue of their covariance, each feature weighted by the number of examples in which it is updated
    once, since a block is merged after so many updates.
    """

    names: np.ndarray  # uint32[m]: each row, the intercept's first
    ends: np.ndarray  # int64[T]: the first row behind each block
    spacing: np.ndarray  # float64[T]: examples for an update of its commonest rows
    updates: np.ndarray  # float64[T]: of all its rows in an epoch
    bent: int
    bend: float  # what an unseen step takes of a gradient, of what it takes of its own: in those, beside what is toned down
    rest: float  # the same in the other blocks
    alike: float  # the same along the mean row, which is toned down
    along: np.ndarray  # float32[m]: the mean row, scaled to a length of 1 in each block


def plan(data, degree, mean, size, square, pace) -> Plan:
    """What there is to merge: the intercept, and of data the features that have so many rows (int64[n_features]), not 0.

    mean, size, square: as of `sizes_of`; pace: the intercept's x.
    """
    d, total = data.n_features, square.sum() + pace**2 or 1.0
    overlap = np.append(np.square(size), pace**2) / total if square.any() else np.append(np.zeros(d), 1.0)
    found = np.flatnonzero(degree)
    often = degree[found]
    tier = np.floor(np.log2(data.rows / often)).astype(np.uint8)
    order = np.argsort(tier, kind="stable")
    names, tiers = np.append(d, found[order]).astype(np.uint32), np.append(np.uint8(0), tier[order])
    first, step = _together(*np.unique(tiers, return_index=True)), max(ROWS, len(names) // BLOCKS)
    starts = np.concatenate([np.arange(at, end, step) for at, end in zip(first, np.append(first[1:], len(names)))])
    spacing, ends = 2.0 ** tiers[starts], np.append(starts[1:], len(names))
    common = np.cumsum(np.add.reduceat(overlap[names], starts))
    bent = int(np.searchsorted(common, BENT * common[-1])) + 1
    along, rows = np.append(mean, pace)[names], min(data.rows, SAMPLE)
    alike, overlap = np.square(along).sum() / total, overlap[names].sum()  # BLAS would leave its threads beside the workers
    late = np.repeat(spacing * (spacing <= rows / 10), np.diff(ends, prepend=0))  # rarer ones are too few in a sample to tell

    def beside(first, last):
        scale = np.zeros(d + 1)
        scale[names[first:last]] = late[first:last]
        return strongest(data.csr, rows, scale[:d]) / total if scale[:d].any() else 0.0
    bend = np.clip(beside(0, ends[bent - 1]), overlap / EASE, overlap) if len(found) else overlap
    rest = max(beside(ends[bent - 1], None), rows / max(data.indptr[rows] - data.indptr[0], 1))  # a feature's own share
    along /= np.repeat(np.sqrt(np.maximum(np.add.reduceat(np.square(along), starts), TINY)), np.diff(ends, prepend=0))
    updates = np.add.reduceat(np.append(data.rows, often[order]), starts)
    return Plan(names, ends, spacing, updates, bent, float(bend), float(rest), float(alike) if len(found) else 0.0,
                along.astype(np.float32))
