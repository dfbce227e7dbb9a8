"""Losses of one example: each a NamedTuple whose `evaluate` gives the value and the derivative by the score together.

    evaluate(loss, z, y)                    -> (value, derivative by z); z is the score, y = ±1 or the target
    evaluate(softmax, scores, y, gradient)  -> value; writes the gradient by the K scores into `gradient`

Both work in Python and inside kernels, and there compute in float64 whatever the dtype of the score. A NaN or infinite
score never gives a finite value, even where the limit is finite (a hinge at +inf): a diverged model must not look
perfect.
"""

import math
from typing import NamedTuple

import numpy as np

from hogwild.kernels.compiler.jit import by_type


@by_type
def evaluate(loss, z, y):
    """`(value, derivative by z)` of `loss` at score z for label y; SoftmaxCrossEntropy has its own arguments."""


def value(loss, z, y) -> float:
    """The loss at score z for label y (Python; not for softmax)."""
    return evaluate(loss, float(z), float(y))[0]


def derivative(loss, z, y) -> float:
    """Derivative of the loss by the score z (Python; not for softmax)."""
    return evaluate(loss, float(z), float(y))[1]


# `curvature` bounds the second derivative (1 where there is none). A regression loss may say how it changes with the unit of
# score and target: L(s z, s y) = s^degree L(z, y), where the hyper-parameters named in `lengths` are divided by s, too.
# In each: `1.0 *` makes a kernel's float32 scores float64, and `0.0 * z` is 0 for a finite z and NaN otherwise.


class Logistic(NamedTuple):
    """log(1 + exp(-y z)), y = ±1."""

    task = "classification"
    curvature = 0.25

    def evaluate(self, z, y):
        margin = 1.0 * y * z
        e = math.exp(-abs(margin)) + 0.0 * z  # never overflows
        return math.log1p(e) + max(-margin, 0.0), -y * (e if margin > 0.0 else 1.0) / (1.0 + e)


class Hinge(NamedTuple):
    """max(0, 1 - y z), y = ±1; the derivative at the kink is 0."""

    task = "classification"
    curvature = 1.0

    def evaluate(self, z, y):
        slack = 1.0 - 1.0 * y * z
        return max(slack, 0.0) + 0.0 * z, (-1.0 * y if slack > 0.0 else 0.0) + 0.0 * z


class SquaredHinge(NamedTuple):
    """max(0, 1 - y z)², y = ±1."""

    task = "classification"
    curvature = 2.0

    def evaluate(self, z, y):
        slack = max(1.0 - 1.0 * y * z, 0.0) + 0.0 * z
        return slack * slack, -2.0 * y * slack


class ModifiedHuber(NamedTuple):
    """max(0, 1 - y z)² where y z >= -1, else -4 y z, y = ±1. Zhang 2004."""

    task = "classification"
    curvature = 2.0

    def evaluate(self, z, y):
        margin = 1.0 * y * z
        slack = min(max(1.0 - margin, 0.0), 2.0) + 0.0 * z
        return (slack * slack if margin >= -1.0 else -4.0 * margin) + 0.0 * z, -2.0 * y * slack


class Perceptron(NamedTuple):
    """max(0, -y z), y = ±1; the derivative at the kink is -y, or no weight would ever leave 0. Rosenblatt 1958."""

    task = "classification"
    curvature = 1.0

    def evaluate(self, z, y):
        margin = 1.0 * y * z
        return max(-margin, 0.0) + 0.0 * z, (-1.0 * y if margin <= 0.0 else 0.0) + 0.0 * z


class Squared(NamedTuple):
    """(z - y)² / 2."""

    task = "regression"
    curvature = 1.0
    degree = 2

    def evaluate(self, z, y):
        r = 1.0 * z - y
        return 0.5 * r * r, r


class Huber(NamedTuple):
    """r² / 2 where |r| <= delta, else delta (|r| - delta/2), with r = z - y. Huber 1964; torch's huber_loss.

    The default delta has 95% efficiency under unit normal noise.
    """

    delta: float = 1.35

    ranges = {"delta": "(0, inf)"}
    task = "regression"
    curvature = 1.0
    degree = 2
    lengths = ("delta",)

    def evaluate(self, z, y):
        r = 1.0 * z - y
        c = min(abs(r), self.delta) + 0.0 * z
        return c * (abs(r) - 0.5 * c), c if r > 0.0 else -c


class EpsilonInsensitive(NamedTuple):
    """max(0, |z - y| - epsilon); the derivative at the kinks is 0. Vapnik 1995; scikit-learn's default epsilon."""

    epsilon: float = 0.1

    ranges = {"epsilon": "[0, inf)"}
    task = "regression"
    curvature = 1.0
    degree = 1
    lengths = ("epsilon",)

    def evaluate(self, z, y):
        r = 1.0 * z - y
        excess = abs(r) - self.epsilon
        return max(excess, 0.0) + 0.0 * z, ((1.0 if r > 0.0 else -1.0) if excess > 0.0 else 0.0) + 0.0 * z


class SquaredEpsilonInsensitive(NamedTuple):
    """max(0, |z - y| - epsilon)²."""

    epsilon: float = 0.1

    ranges = {"epsilon": "[0, inf)"}
    task = "regression"
    curvature = 2.0
    degree = 2
    lengths = ("epsilon",)

    def evaluate(self, z, y):
        r = 1.0 * z - y
        excess = max(abs(r) - self.epsilon, 0.0) + 0.0 * z
        return excess * excess, 2.0 * excess if r > 0.0 else -2.0 * excess


class SoftmaxCrossEntropy(NamedTuple):
    """-log softmax(scores)[y], y the class in [0, K), not checked."""

    task = "classification"
    curvature = 0.5

    def evaluate(self, scores, y, gradient):
        """The value; `gradient[K]` becomes softmax(scores) - onehot(y)."""
        y, top = int(y), 0
        for k in range(1, len(scores)):
            if scores[k] > scores[top]:
                top = k
        high = np.float64(scores[top])
        rest = 0.0  # what the top class, whose term is 1, does not have: the difference 1 - p would lose it
        for k in range(len(scores)):
            gap = scores[k] - high
            gradient[k] = e = math.exp(gap)
            rest += 0.0 * gap + (e if k != top else 0.0)
        scale = 1.0 / (1.0 + rest)
        for k in range(len(scores)):
            gradient[k] *= scale
        gradient[y] = -rest * scale if y == top else gradient[y] - 1.0
        # max changes nothing, but keeps the compiler from adding the logarithm to a large score first
        return math.log1p(rest) + max(high - scores[y], 0.0)


LOSSES = {"logistic": Logistic, "hinge": Hinge, "squared-hinge": SquaredHinge, "modified-huber": ModifiedHuber,
          "perceptron": Perceptron, "softmax": SoftmaxCrossEntropy, "squared": Squared, "huber": Huber,
          "epsilon-insensitive": EpsilonInsensitive, "squared-epsilon-insensitive": SquaredEpsilonInsensitive}
