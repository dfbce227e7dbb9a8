"""Learning rates and epochs for those who name none, and what the sizes of rows and columns say about a rate."""

from typing import NamedTuple

import numpy as np

# For rows of unit length, which want larger steps than dense networks; chosen on imdb, 20newsgroups, a9a and RCV1's sample.
UNIT = {"AdaGrad": 0.1, "SGD": 0.5, "Momentum": 0.05, "Nesterov": 0.05, "Apollo": 0.01} | dict.fromkeys(
    ("RMSProp", "Adam", "AdamW", "Nadam", "RAdam", "AdaBelief"), 3e-3)
PLAIN = {"SGD", "Momentum", "Nesterov"}
STEPS = 50_000
SAMPLE = 2000  # rows
OFTEN = 0.01  # of the rows, that a column has an entry in to count among the scales
APART = 100.0  # ratio of columns' scales, or of rows' lengths, from which it is said
# Lengths of rows between which the rate of rules that scale their steps follows them up to 1, where below it the intercept
# would feel more, and from where above it these rules no longer make up for what is too large by themselves.
SHORT, LONG = 0.1, 4.0
MOST = 1e30  # a rate that float32 holds
BEYOND, FEW = 1e6, 0.01  # times the median of what a row counts by, that such a share of rows has who do not count at all


def default_epochs(examples) -> int:
    """Passes that make 50,000 steps, with which AdaGrad is about as good as a converged solver; at least 5, at most 200."""
    return min(max(-(-STEPS // max(examples, 1)), 5), 200)


def is_plain(rule) -> bool:
    """Whether the rule's step grows with the gradient."""
    return type(rule).__name__ in PLAIN


class Sizes(NamedTuple):
    """Of a sample of the rows that have entries and weight."""

    rows: int
    typical: float  # median length
    square: float  # mean of weight times squared length
    steep: float  # the same, each row counted by it: what decides whether steps are stable on average
    strongest: float  # the largest mean square of a column, times the mean weight
    longest: float  # length of the longest row, of the typical one's
    scales: np.ndarray  # root mean squares of the columns' entries, of those columns that have them often

    def joined(self, other):
        """Those of both samples together, with what is only hinted at of the other."""
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
    """Up to 1 / which steps of plain SGD are stable on average; the intercept counts as a column as strong as any."""
    return min(getattr(loss, "curvature", 1.0), 1.0) * (sizes.steep + sizes.strongest)


def default_lr(rule, loss, sizes) -> float:
    """The rate of a rule for rows of these sizes: that for unit length, as if the data were divided by their rows' length.

    What a step of plain rules changes in a score grows with the square of the length, of the others with the length.
    """
    unit = UNIT.get(type(rule).__name__)
    if unit is None:  # a rule of the user's own
        return float(getattr(rule, "default_lr", 0.01))
    if type(rule).__name__ == "Apollo":  # while its B is below sigma = 0.01 it is SGD at 100 times the rate, with momentum
        return unit / max(sizes.square, 2 * steepness(loss, sizes), 1.0)
    if not is_plain(rule):
        return unit / max(min(sizes.typical, 1.0), sizes.typical / LONG, SHORT)
    return float(min(unit / max(sizes.square, steepness(loss, sizes), 1 / MOST), MOST))


def hint(rule, loss, sizes, lr) -> str | None:
    """What speaks against a rule at the rate lr on such data, in a line; None: nothing does."""
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
    if lr > 4 * UNIT[type(rule).__name__] / max(steepness(loss, sizes), 1 / MOST) and lr > 4 * good:
        return (f"learning rate {lr:g} may be too large for rows as long as these (about {sizes.typical:.3g}): {long}, or "
                f"use one of about {good:.2g}")
    if sizes.longest > APART:
        return f"a few rows are up to {sizes.longest:,.0f} times as long as others, and no rate suits both: {long}"
    return None
