"""Default learning rates and epochs, and hints on a rate that does not suit the lengths of rows and the scales of columns."""

from typing import NamedTuple

import numpy as np

from hogwild.kernels.optim.rules import (
    SGD,
    AdaBelief,
    AdaGrad,
    Adam,
    AdamW,
    Apollo,
    Momentum,
    Nadam,
    Nesterov,
    RAdam,
    RMSProp,
)

# For rows of unit length, which want larger steps than dense networks; chosen on imdb, 20newsgroups, a9a and RCV1's sample.
UNIT = {AdaGrad: 0.1, SGD: 0.5, Momentum: 0.05, Nesterov: 0.05, Apollo: 0.01} | dict.fromkeys(
    (RMSProp, Adam, AdamW, Nadam, RAdam, AdaBelief), 3e-3)
PLAIN = SGD, Momentum, Nesterov  # rules whose step is linear in the gradient
STEPS = 50_000
SAMPLE = 2000  # rows
OFTEN = 0.01  # share of the rows in which a column needs an entry for its scale to count
APART = 100.0  # ratio of columns' scales, or of rows' lengths, from which a hint is printed
# Row lengths that bound the rate of adaptive rules. Up to length 1 the rate is proportional to the length, but not below
# SHORT: the intercept would learn too slowly. Above LONG, adaptive rules no longer correct a rate that is too large.
SHORT, LONG = 0.1, 4.0
MOST = 1e30  # a rate that float32 holds
BEYOND, FEW = 1e6, 0.01  # outliers: rows above BEYOND times the median curvature, ignored where they are at most a share FEW


def default_epochs(examples) -> int:
    """Passes that make 50,000 steps, with which AdaGrad is about as good as a converged solver; at least 5, at most 200."""
    return min(max(-(-STEPS // max(examples, 1)), 5), 200)


def is_plain(rule) -> bool:
    """Whether the rule's step grows with the gradient."""
    return isinstance(rule, PLAIN)


class Sizes(NamedTuple):
    """Statistics of a sample of the rows, without rows that have no entry or no weight."""

    rows: int
    typical: float  # median length
    square: float  # mean of weight times squared length
    steep: float  # mean of weight times squared length, weighted by itself: it bounds the rates that are stable on average
    strongest: float  # the largest mean square of a column, times the mean weight
    longest: float  # length of the longest row over the median length
    scales: np.ndarray  # float64[columns]: root mean square of the entries of each column with entries in OFTEN of the rows

    def joined(self, other):
        """The statistics of both samples; `longest` and `scales`, which only hints read, are those of `other`."""
        rows = self.rows + other.rows
        if not self.rows or not other.rows:
            return self if self.rows else other
        mean = [(self.rows * a + other.rows * b) / rows for a, b in
                ((self.typical, other.typical), (self.square, other.square), (self.strongest, other.strongest),
                 (self.square * self.steep, other.square * other.steep))]
        return Sizes(rows, mean[0], mean[1], mean[3] / mean[1], mean[2], other.longest, other.scales)


def sizes_of(data, rows=None, weights=None) -> Sizes:
    """Sizes of a Dataset. rows: int64[n] to train on, None for all; weights: float32[all rows] of the examples, or None."""
    count = data.rows if rows is None else len(rows)
    chosen = np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64))
    chosen = chosen if rows is None else rows[chosen]
    spans = [slice(data.indptr[i], data.indptr[i + 1]) for i in chosen]
    x2 = [np.square(data.values[span].astype(np.float64)) for span in spans]
    length2 = np.array([x.sum() for x in x2])
    factor = np.ones(len(chosen)) if weights is None else weights[chosen].astype(np.float64)
    having = (length2 > 0) & (factor > 0)
    if not having.any():
        return Sizes(0, 1.0, 1.0, 1.0, 0.0, 1.0, np.ones(0))
    columns, at, number = np.unique(np.concatenate([data.indices[span] for span in spans]), return_inverse=True,
                                    return_counts=True)
    sums = np.bincount(at, np.concatenate(x2), len(columns))
    often = (number >= OFTEN * len(chosen)) & (sums > 0)
    curved = (factor * length2)[having]
    longest = np.sqrt(curved.max() / np.median(curved))
    usual = curved <= BEYOND * np.median(curved)
    curved = curved[usual] if usual.mean() >= 1 - FEW else curved
    steep, strongest = np.square(curved).sum() / curved.sum(), sums.max() / len(chosen) * factor.mean()
    return Sizes(len(curved), float(np.median(np.sqrt(length2[having]))), float(curved.mean()), float(steep),
                 float(strongest), float(longest), np.sqrt(sums[often] / number[often]))


def steepness(loss, sizes) -> float:
    """Mean curvature: up to a rate of 1 / it SGD is stable on average. The intercept counts as the strongest column."""
    return min(getattr(loss, "curvature", 1.0), 1.0) * (sizes.steep + sizes.strongest)


def default_lr(rule, loss, sizes) -> float:
    """The default learning rate of a rule for rows of these sizes: its rate for rows of unit length, scaled by their length.

    A step of a plain rule changes the score of a row by the square of the row's length, a step of an adaptive rule by the
    length. A rule of the user's own has its attribute `default_lr`, else 0.01.
    """
    unit = UNIT.get(type(rule))
    if unit is None:  # a rule of the user's own
        return float(getattr(rule, "default_lr", 0.01))
    if isinstance(rule, Apollo):  # while its B is below sigma = 0.01 it is SGD at 100 times the rate, with momentum
        return unit / max(sizes.square, 2 * steepness(loss, sizes), 1.0)
    if not is_plain(rule):
        return unit / max(min(sizes.typical, 1.0), sizes.typical / LONG, SHORT)
    return float(min(unit / max(sizes.square, steepness(loss, sizes), 1 / MOST), MOST))


def hint(rule, loss, sizes, lr) -> str | None:
    """A line on why a rule at learning rate lr does not suit such data, and what to do; None: it does."""
    scaled = "scale the columns (--transform scale, scikit-learn's MaxAbsScaler)"
    long = "bring the rows to unit length (--transform l2, scikit-learn's Normalizer)"
    if sizes.typical < SHORT:
        return f"the rows are short, about {sizes.typical:.2g}: {scaled}, or {long}"
    if not is_plain(rule):
        return None
    apart = sizes.scales.max(initial=1.0) / sizes.scales.min(initial=np.inf)
    if apart > APART:
        return (f"the columns' scales differ {apart:,.0f} times, and rule {type(rule).__name__.lower()} hardly learns the "
                f"weights of small ones: {scaled}, or use rule adagrad")
    good = default_lr(rule, loss, sizes)
    if lr > 4 * UNIT[type(rule)] / max(steepness(loss, sizes), 1 / MOST) and lr > 4 * good:
        return (f"learning rate {lr:g} may be too large for rows as long as these (about {sizes.typical:.3g}): {long}, or "
                f"use one of about {good:.2g}")
    if sizes.longest > APART:
        return f"a few rows are up to {sizes.longest:,.0f} times as long as others, and no rate suits both: {long}"
    return None
