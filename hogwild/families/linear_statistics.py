"""What there is to know of sparse rows before a linear model is trained on them: sizes of features, and how rows overlap."""

import numpy as np

from hogwild.kernels.data.csr import sizes, strongest
from hogwild.training import default_rates
from hogwild.training.replication import Coupling, Touches

SAMPLE = 1000  # rows


def sizes_of(data):
    """Means of (x, |x|, x²) of each feature over all rows of a sample, float64[n_features] each."""
    rows, total = min(data.rows, SAMPLE), np.zeros((3, data.n_features))
    sizes(data.csr, rows, *total)
    return total / max(rows, 1)


def rarity(rows, degree):
    """What multiplies the decay of each feature when it is touched, float32[d]: rows for each that has it."""
    return (rows / np.maximum(degree, 1)).astype(np.float32)


def pace_of(square, rule) -> float:
    """What the intercept's gradient is multiplied by: the strongest feature's mean square, and at least a hundredth of the
    rows' mean squared length. square: float64[d], each feature's mean square.

    With rows of unit length a step of full size would throw the intercept about: it is 1 in every row where each feature
    is small. scikit-learn uses 0.01 on sparse data. Rules that scale their steps do not feel it, unless it changes from
    call to call: for them it is at most 1.
    """
    pace = max(square.max(initial=0), 0.01 * square.sum())
    return float(pace if default_rates.is_plain(rule) else np.clip(pace, 0.01, 1.0)) if pace else 1.0


def touches(data, degree, sample, pace) -> Touches:
    """Of the rows of a linear model's parameters: a row for each feature, then the intercept's.

    degree: int64[d], rows that have each feature; sample: as of `sizes_of`; pace: the intercept's, 0 for none.
    """
    d, rows = data.n_features, min(data.rows, SAMPLE)
    mean, size, square = np.minimum(sample, 1e30)
    x = min(pace, pace**0.5)  # beside features: in their unit, not its square
    total = square.sum() + x**2 or 1.0
    overlap = np.append(np.square(size), x**2) / total if square.any() else np.append(np.zeros(d), 1.0)
    coupling = Coupling(overlap, np.append(mean, x) / total**0.5, lambda scale: strongest(data.csr, rows, scale[:d]) / total,
                        rows / max(data.indptr[rows] - data.indptr[0], 1), rows)
    return Touches(data.rows, np.append(degree, data.rows if pace else 0), coupling)
