"""Factors of users and items that training had not: from a user's ratings, or from features."""

import numpy as np
from scipy.optimize import minimize
from scipy.sparse.linalg import lsqr

from hogwild.kernels.losses import Logistic, evaluate

NEGATIVES = 4096  # items, at random, against which each positive of a user is compared


def fold_in(model, items, values, per_row=False, biased=True):
    """(factors float64[rank], bias) of a user with these ratings: the minimum of the user's part of the training objective,
    the items as they are.

    model: an MFModel; items: int[n], numbers; values: float32[n]; per_row: the penalty is of the row, not of each rating.
    """
    factors, weight = model.factors, model.l2 * (1 if per_row else len(items))
    q, rank = factors.items.astype(np.float64), factors.items.shape[1]
    if model.implicit:
        others = np.setdiff1d(np.arange(len(q)), items)
        if len(others) > NEGATIVES:
            others = np.sort(np.random.default_rng(0).choice(others, NEGATIVES, replace=False))
        if not len(others):
            return np.zeros(rank), 0.0
        biases = factors.item_biases.astype(np.float64)

        def objective(p):
            margins = (q[items] @ p + biases[items])[:, None] - (q[others] @ p + biases[others])
            pull = -1 / (1 + np.exp(margins)) / len(others)
            gradient = pull.sum(1) @ q[items] - pull.sum(0) @ q[others] + weight * p
            return np.logaddexp(0, -margins).mean(1).sum() + weight / 2 * p @ p, gradient
        return _minimum(objective, rank), 0.0
    base, y = factors.mean + factors.item_biases[items].astype(np.float64), np.asarray(values, np.float64)
    if isinstance(model.loss, Logistic):
        y = np.where(y > 0, 1.0, -1.0)
    # Factors are trained in units of the scale's root, biases in its own: so are their penalties.
    x = np.column_stack((q[items], np.full(len(items), float(biased))))
    shrink = weight * np.append(np.ones(rank), 1 / model.units.scale)

    def objective(p):
        each = np.array([evaluate(model.loss, z, target) for z, target in zip((base + x @ p).tolist(), y.tolist())])
        return each[:, 0].sum() + shrink @ p**2 / 2, each[:, 1] @ x + shrink * p
    found = _minimum(objective, rank + 1)
    return found[:rank], float(found[rank]) if biased else 0.0


def _minimum(objective, size):
    return minimize(objective, np.zeros(size), jac=True, method="L-BFGS-B",
                    options={"maxiter": 500, "ftol": 1e-12, "gtol": 1e-8}).x


def feature_map(X, table, l2) -> np.ndarray:
    """float32[d + 1, r]: W and, as its last row, c, with which X W + c is nearest to the table [n, r], with penalty l2
    |W|²."""
    middle = table.mean(axis=0, dtype=np.float64)
    columns = [lsqr(X, column, damp=np.sqrt(l2), atol=1e-10, btol=1e-10)[0] for column in (table - middle).T]
    return np.vstack((np.array(columns).T, middle)).astype(np.float32)


def mapped(found, X) -> np.ndarray:
    """[n, r] that a `feature_map` gives for features X [n, d]."""
    return np.asarray(X @ found[:-1]) + found[-1]
