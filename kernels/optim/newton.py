"""Proximal Newton steps for a linear model under an L1 penalty, coordinate by coordinate of a quadratic model of the loss.

Friedman, Hastie & Tibshirani 2010, section 3; Yuan, Ho & Lin 2012. All sums over examples are float64.
"""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.jit import LOOP, kernel
from hogwild.kernels.families.scores import loss_and_dz, part, weight_of
from hogwild.kernels.losses import SoftmaxCrossEntropy, evaluate

NEAR = 0.1  # to both sides of a score, over which the loss's second derivative is taken: some losses have kinks
FLAT = 1e-3  # of the loss's largest second derivative, at least: a model that is flat would have no minimum


class Derivatives(NamedTuple):
    """Of the summed loss by the scores of each row, and by the weights."""

    dz: np.ndarray  # float64[n, K]
    dz2: np.ndarray  # float64[n, K]: second derivatives
    gradient: np.ndarray  # float64[d, K]
    curvature: np.ndarray  # float64[d, K]: second derivatives by each weight alone


def second(loss, outputs, z, o, y, slope):
    """Second derivative of the loss by score o."""


@overload(second, **LOOP)
def _second(loss, outputs, z, o, y, slope):
    if loss.instance_class is SoftmaxCrossEntropy:
        def softmax(loss, outputs, z, o, y, slope):
            p = part(slope, o) + (1.0 if o == int(y) else 0.0)
            return p * (1.0 - p)
        return softmax
    flat, alone = FLAT * getattr(loss.instance_class, "curvature", 1.0), isinstance(outputs, types.NoneType)

    def numerical(loss, outputs, z, o, y, slope):
        label = float(y) if alone else (1.0 if o == int(y) else -1.0)
        score = part(z, o)
        above, below = evaluate(loss, score + NEAR, label)[1], evaluate(loss, score - NEAR, label)[1]
        return max((above - below) / (2.0 * NEAR), flat)
    return numerical


def row_of_scores(outputs, scores, i):
    """The scores of row i as `loss_and_dz` wants them."""


@overload(row_of_scores, **LOOP)
def _row_of_scores(outputs, scores, i):
    if isinstance(outputs, types.NoneType):
        return lambda outputs, scores, i: scores[i, 0]
    return lambda outputs, scores, i: scores[i]


@kernel
def differentiate(loss, outputs, examples, rows, scores, out):
    """Loss sum of the rows int64[m], whose Derivatives `out` gets: set by row, added by weight.

    examples: (csr, labels, weights) as in kernels/families/linear.py; scores float64[n, K]; outputs: Outputs, or None for
    K = 1.
    """
    csr, labels, weights = examples
    total, outs = 0.0, scores.shape[1]
    for n in range(rows.shape[0]):
        i = rows[n]
        z, weight = row_of_scores(outputs, scores, i), weight_of(weights, i)
        value, slope = loss_and_dz(loss, outputs, z, labels[i], 1.0)
        total += value * weight
        for o in range(outs):
            out.dz[i, o] = part(slope, o) * weight
            out.dz2[i, o] = second(loss, outputs, z, o, labels[i], slope) * weight
        for e in range(csr.indptr[i], csr.indptr[i + 1]):
            j, x = csr.indices[e], csr.values[e]
            for o in range(outs):
                out.gradient[j, o] += out.dz[i, o] * x
                out.curvature[j, o] += out.dz2[i, o] * x * x
    return total


@kernel
def sweep(columns, at, o, w, moved, change, l1, l2, times):
    """Move output o's weights towards the minimum of the quadratic model and penalties, `times` times one after the other.

    columns: CSR of the transposed rows; at: the Derivatives at w [d, K]; moved [d, K] and change [n, K]: by what the
    weights, and so the scores, have moved. l1, l2 float64[d].
    """
    for _ in range(times):
        for j in range(w.shape[0]):
            bend = at.curvature[j, o] + l2[j]
            if bend <= 0.0:
                continue
            here = w[j, o] + moved[j, o]
            slope = at.gradient[j, o] + l2[j] * here
            for e in range(columns.indptr[j], columns.indptr[j + 1]):
                i = columns.indices[e]
                slope += columns.values[e] * at.dz2[i, o] * change[i, o]
            # The curvature along the way is that at w alone: what has moved since is in the slope.
            wanted = here - slope / bend
            wanted = np.sign(wanted) * max(abs(wanted) - l1[j] / bend, 0.0)
            if wanted != here:
                moved[j, o] += wanted - here
                if wanted == 0.0:
                    moved[j, o] = -w[j, o]
                for e in range(columns.indptr[j], columns.indptr[j + 1]):
                    change[columns.indices[e], o] += columns.values[e] * (wanted - here)
