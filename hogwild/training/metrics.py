"""Metrics of scores, in float64; rows may have weights, not negative.

Binary scores are margins, positive for the class +1; a multiclass row has one score per class. An undefined metric
(no rows, no weight, a score that is NaN) is NaN. Definitions are scikit-learn's.

No product of arrays here (@, dot): BLAS threads spin for a while after one and share the cores with the workers of the
next epoch, two of which were half as fast.
"""

import math

import numpy as np

MAXIMISED = {"accuracy", "f1", "auc", "r2", "precision@10", "recall@10", "ndcg@10"}  # all others are minimised
BLOCK = 1 << 20  # scores whose softmax is in memory at a time


def accuracy(scores, labels, sample_weight=None) -> float:
    """Share of rows whose score has the sign of its ±1 label; a score of 0 counts as -1, as in scikit-learn."""
    return _mean((np.asarray(scores) > 0) == (np.asarray(labels) > 0), sample_weight)


def f1(scores, labels, sample_weight=None) -> float:
    """2 TP / (2 TP + FP + FN) of the class +1; 0 where neither labels nor predictions have it."""
    found, true = np.asarray(scores) > 0, np.asarray(labels) > 0
    weight = _weights(sample_weight, len(found))
    either = weight[found].sum() + weight[true].sum()
    return float(2 * weight[found & true].sum() / either) if either else 0.0


def log_loss(scores, labels, sample_weight=None) -> float:
    """Mean of log(1 + exp(-y z)) in nats; finite for every finite score."""
    return _mean(np.logaddexp(0.0, -np.asarray(scores, np.float64) * np.asarray(labels)), sample_weight)


def auc(scores, labels, sample_weight=None) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties count half. NaN for one class."""
    values, inverse = np.unique(scores, return_inverse=True)
    true, weight = np.asarray(labels) > 0, _weights(sample_weight, len(inverse))
    positive = np.bincount(inverse, weight * true, len(values))
    negative = np.bincount(inverse, weight * ~true, len(values))
    pairs = positive.sum() * negative.sum()
    below = np.concatenate(([0.0], np.cumsum(negative)[:-1]))  # not less itself: a large weight would cancel small ones
    return float((positive * (below + negative / 2)).sum() / pairs) if pairs else math.nan


def macro_f1(predicted, labels, classes, sample_weight=None) -> float:
    """Mean of the F1 of every class that occurs among labels or predictions (ints [n] in 0 … classes - 1)."""
    weight, hit = _weights(sample_weight, len(labels)), predicted == labels
    both = np.bincount(labels[hit], weight[hit], classes)
    either = np.bincount(predicted, weight, classes) + np.bincount(labels, weight, classes)
    occurs = np.bincount(predicted, minlength=classes) + np.bincount(labels, minlength=classes) > 0
    return float(np.mean((2 * both / np.where(either > 0, either, 1.0))[occurs]))


def softmax_log_loss(scores, labels, sample_weight=None, each=False) -> float:
    """Mean of -log softmax(scores [n, K])[label] in nats, labels int [n]; finite for finite scores.

    each: the scores are log-odds of each class against the rest, whose probabilities are scaled to a sum of 1.
    """
    losses, rows = np.empty(len(labels)), max(1, BLOCK // scores.shape[1])
    for start in range(0, len(labels), rows):
        z = np.asarray(scores[start:start + rows], np.float64)
        z = -np.logaddexp(0.0, -z) if each else z  # softmax of log p is p, scaled
        z = z - z.max(axis=1, keepdims=True)
        own = z[np.arange(len(z)), labels[start:start + rows]]
        losses[start:start + rows] = np.log(np.exp(z).sum(axis=1)) - own
    return _mean(losses, sample_weight)


def rmse(scores, targets, sample_weight=None) -> float:
    """Root of the mean squared difference, in the targets' unit."""
    return math.sqrt(_mean(np.square(np.asarray(scores, np.float64) - targets), sample_weight))


def mae(scores, targets, sample_weight=None) -> float:
    """Mean absolute difference, in the targets' unit."""
    return _mean(np.abs(np.asarray(scores, np.float64) - targets), sample_weight)


def r2(scores, targets, sample_weight=None) -> float:
    """1 - (squared error) / (squared error of the mean target); all targets equal: 1 if predicted exactly, else 0."""
    targets = np.asarray(targets, np.float64)
    error = _mean(np.square(scores - targets), sample_weight)
    shifted = targets - targets[0]  # so that equal targets have a spread of exactly 0
    spread = _mean(np.square(shifted - _mean(shifted, sample_weight)), sample_weight)
    if len(targets) < 2:
        return math.nan
    return 1 - error / spread if spread else float(error == 0)


def classification(scores, labels, sample_weight=None, probabilities=True) -> dict[str, float]:
    """Accuracy (first: what schedules and stopping watch), F1, AUC and log-loss of margins [n] against ±1 labels [n].

    probabilities: the margins are log-odds; the log-loss is left out where they are not.
    """
    measures = {"accuracy": accuracy, "f1": f1, "auc": auc} | ({"log_loss": log_loss} if probabilities else {})
    return _all(measures, scores, labels, sample_weight)


def multiclass(scores, labels, probabilities=True, sample_weight=None, each=False) -> dict[str, float]:
    """Accuracy (first), macro F1 and log-loss of scores [n, K] against labels int [n] in 0 … K - 1; a label from K on, of a
    class without a score, is never right, and forbids the log-loss.

    The prediction is the largest score, the first of equal ones. probabilities: softmax(scores) are the classes'
    probabilities, or as `each` of softmax_log_loss says; the log-loss is left out where they are not.
    """
    scores, labels = np.asarray(scores), np.asarray(labels, np.int64)
    predicted = scores.argmax(axis=1)
    measures = {"accuracy": lambda z, y, w: _mean(predicted == y, w),
                "f1": lambda z, y, w: macro_f1(predicted, y, max(z.shape[1], int(y.max()) + 1), w)}
    if probabilities:
        measures["log_loss"] = lambda z, y, w: softmax_log_loss(z, y, w, each)
    return _all(measures, scores, labels, sample_weight)


def regression(scores, targets, sample_weight=None) -> dict[str, float]:
    """RMSE (first), MAE and R² of predictions [n] against targets [n]; R² needs two rows."""
    return _all({"rmse": rmse, "mae": mae, "r2": r2}, scores, targets, sample_weight)


def _all(measures, scores, labels, weight):
    blank = not len(labels) or np.isnan(np.asarray(scores)).any() or (weight is not None and not np.sum(weight))
    return {name: math.nan if blank else measure(scores, labels, weight) for name, measure in measures.items()}


def _weights(sample_weight, n):
    return np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)


def _mean(x, sample_weight) -> float:
    return float(np.average(x, weights=None if sample_weight is None else np.asarray(sample_weight, np.float64)))
