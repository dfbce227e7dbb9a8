"""Metrics of scores, in float64. Scores of classification are margins: positive for the class +1."""

import math

import numpy as np


def accuracy(scores, labels) -> float:
    """Share of rows whose score has the sign of its ±1 label; a score of 0 counts as -1, as in scikit-learn."""
    return float(np.mean((np.asarray(scores) > 0) == (np.asarray(labels) > 0)))


def log_loss(scores, labels) -> float:
    """Mean of log(1 + exp(-y z)) in nats; finite for every finite score."""
    return float(np.mean(np.logaddexp(0.0, -np.asarray(scores, np.float64) * np.asarray(labels))))


def auc(scores, labels) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties count half. NaN for one class."""
    values, inverse, count = np.unique(scores, return_inverse=True, return_counts=True)
    positive = np.bincount(inverse, np.asarray(labels) > 0, len(values))
    negative = count - positive
    pairs = positive.sum() * negative.sum()
    below = np.cumsum(negative) - negative
    return float(positive @ (below + negative / 2) / pairs) if pairs else math.nan


def rmse(scores, targets) -> float:
    """Root of the mean squared difference, in the targets' unit."""
    return float(np.sqrt(np.mean(np.square(np.asarray(scores, np.float64) - targets))))


def classification(scores, labels) -> dict[str, float]:
    """Accuracy (first: what schedules watch), log-loss and AUC of margins [n] against ±1 labels [n]; NaN if n is 0."""
    if not len(scores):
        return dict.fromkeys(("accuracy", "log_loss", "auc"), math.nan)
    return {"accuracy": accuracy(scores, labels), "log_loss": log_loss(scores, labels), "auc": auc(scores, labels)}


def regression(scores, targets) -> dict[str, float]:
    """RMSE of predictions [n] against targets [n]; NaN if n is 0."""
    return {"rmse": rmse(scores, targets) if len(scores) else math.nan}
