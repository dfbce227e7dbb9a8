"""The best constant prediction of a linear problem: what it gets, and to begin with it."""

import math

import numpy as np

from hogwild.kernels.data.csr import CSR
from hogwild.kernels.losses import SoftmaxCrossEntropy
from hogwild.training.divergence import Reference, known

LEAST = 1e-12  # share of a class
NOWHERE = 25.0  # size of the log-odds of a class that no row has


def reference(problem) -> Reference | None:
    """Losses of a `hogwild.families.linear.Linear`'s best constant prediction and of score 0; None: would say nothing."""
    rows, labels, weights = _labels(problem)
    if weights is not None and not weights.any():
        return None
    if problem.classes is not None:
        mean = 1.0 if weights is None else weights.mean(dtype=np.float64)
        return known(*(mean * x for x in of_classes(problem.loss, _shares(problem, labels, weights))[0]))
    data = problem.data
    pointers = np.zeros(data.rows + 1, np.int64)
    pointers.flags.writeable = data.indptr.flags.writeable  # of one type for the kernel
    empty = CSR(pointers, data.indices[:0], data.values[:0])
    return known(*of_targets(lambda z: problem.mean_loss_of(empty, [z], rows), labels, weights))


def start(problem):
    """Let the intercepts of a new problem be the best constant scores, and return it: where rows are long, rules that scale
    their steps move an intercept slowly. Classes that no row has wait at 0, and scaled targets have a mean of 0 anyway."""
    if problem.classes is not None and problem.model.intercept:
        scores = of_classes(problem.loss, _shares(problem, *_labels(problem)[1:]))[1]
        problem.shared[-1, :, 0] = np.where(np.abs(scores) < NOWHERE, scores, 0.0)
    return problem


def _labels(problem):
    """(numbers of the rows to train on, their labels, their weights or None)."""
    rows, weights = np.arange(problem.data.rows) if problem.rows is None else problem.rows, problem.model.weights
    return rows, problem.model.labels[rows], None if weights is None else weights[rows]


def _shares(problem, labels, weights):
    numbers = (labels > 0 if problem.outputs == 1 else labels).astype(np.int64)
    return np.bincount(numbers, weights, max(problem.outputs, 2))


def of_classes(loss, shares) -> tuple[Reference, np.ndarray]:
    """(losses, the best constant scores float64[K], or [1] for two classes of one output) of labels of which the class k has
    the share shares[k], float[K].

    The constants that are tried for an output are the optima of the logistic, squared hinge, hinge and perceptron losses.
    """
    shares = np.asarray(shares, np.float64) / np.sum(shares)
    if isinstance(loss, SoftmaxCrossEntropy):
        logs = np.log(np.maximum(shares, LEAST))
        return Reference(float(-(shares * logs).sum()), math.log(len(shares))), logs

    def expected(z, p):
        return p * loss.evaluate(z, 1.0)[0] + (1 - p) * loss.evaluate(z, -1.0)[0]
    scores, constant, start = [], 0.0, 0.0
    for p in shares.tolist() if len(shares) > 2 else shares[1:].tolist():
        inside = min(max(p, LEAST), 1 - LEAST)
        tried = 0.0, math.log(inside / (1 - inside)), 2 * p - 1, math.copysign(1.0, p - 0.5)
        scores.append(min(tried, key=lambda z: expected(z, p)))
        constant += expected(scores[-1], p)
        start += expected(0.0, p)
    return Reference(constant, start), np.array(scores)


def of_targets(mean_loss, targets, weights) -> Reference:
    """Of targets float[n] with weights float[n], or None; mean_loss(z): the loss of predicting z for all.

    The constants that are tried are 0, the mean, and the median, of at most 100,000 of them.
    """
    part = slice(None, None, max(len(targets) // 100_000, 1))
    some, share = np.asarray(targets[part], np.float64), None if weights is None else np.asarray(weights[part], np.float64)
    order = np.argsort(some, kind="stable")
    total = np.arange(1, len(some) + 1) if share is None else np.cumsum(share[order])
    median = some[order[np.searchsorted(total, total[-1] / 2)]]
    mean, start = np.average(np.asarray(targets, np.float64), weights=weights), mean_loss(0.0)
    return Reference(min(start, mean_loss(float(mean)), mean_loss(float(median))), start)
