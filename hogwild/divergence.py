"""Whether a run gets anywhere: its losses beside those of predictions that know nothing of the rows."""

import math
from typing import NamedTuple

import numpy as np

FAR = 10.0  # times the loss of a run's start: parameters that give so much are no place to go back to
LOST = 1000.0  # the same, for those that no later steps will bring back: AdaGrad's first ones may well give FAR
NOISE = 0.05  # of the constant prediction's loss, that an epoch's may lie above it by chance


class Reference(NamedTuple):
    """Mean losses over the training examples, weighted as in training."""

    constant: float  # of the best constant prediction
    start: float  # of score 0, which a model gives before its first step

    def worse(self, loss, part=False) -> bool:
        """Whether an epoch's mean loss is above the constant prediction's; part: it was not a whole epoch."""
        bar = FAR * self.start if part else (1 + NOISE) * self.constant + 1e-3 * self.start
        return not loss <= max(bar, 1e-12)


def far(loss, losses, reference) -> bool:
    """Whether `loss` is far above the best of `losses` and of the run's start (a Reference, or None)."""
    best = [*losses] if reference is None else [*losses, reference.start]
    return bool(best) and not loss <= FAR * min(best)


def diverges(losses, reference) -> bool:
    """Whether the last two epochs were far above the run's start, and the last one more so."""
    if reference is None or len(losses) < 2:
        return False
    last, before = losses[-1], losses[-2]
    return not last <= before and before > LOST * max(reference.start, 1e-12)


def of_classes(loss, shares) -> Reference:
    """Of labels of which the class k has the share shares[k], float[K]: two classes one output, more one each.

    The constants that are tried for an output are the optima of the logistic, squared hinge, hinge and perceptron losses.
    """
    shares = np.asarray(shares, np.float64) / np.sum(shares)
    if type(loss).__name__ == "SoftmaxCrossEntropy":
        own = shares[shares > 0]
        return Reference(float(-(own * np.log(own)).sum()), math.log(len(shares)))

    def expected(z, p):
        return p * loss.evaluate(z, 1.0)[0] + (1 - p) * loss.evaluate(z, -1.0)[0]
    outputs = [float(p) for p in (shares if len(shares) > 2 else shares[1:])]
    constant = start = 0.0
    for p in outputs:
        inside = min(max(p, 1e-12), 1 - 1e-12)
        tried = math.log(inside / (1 - inside)), 2 * p - 1, math.copysign(1.0, p - 0.5), 0.0
        constant += min(expected(z, p) for z in tried)
        start += expected(0.0, p)
    return Reference(constant, start)


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
