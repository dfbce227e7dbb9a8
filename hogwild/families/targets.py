"""Real targets of any size: trained on as (y - mean) / scale, while losses, penalties and the model stay in y's unit.

The objective is the same up to a factor: with w = scale u, the loss is scale^degree times that of the scaled targets, its
own lengths (Huber's delta) divided by the scale, and the penalties are divided by that factor.
"""

import math
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError

LARGEST = 1e150  # target, whose square is far from what float64 can hold


class Moments(NamedTuple):
    """Of targets, weighted by their rows' weights, in float64."""

    weight: float  # sum of weights
    mean: float
    deviation: float  # standard

    def joined(self, other):
        """Those of both sets of rows together. Chan, Golub & LeVeque 1979."""
        total, apart = self.weight + other.weight, other.mean - self.mean
        share = other.weight / total
        deviation = math.hypot(math.sqrt(1 - share) * self.deviation, math.sqrt(share) * other.deviation,
                               math.sqrt(share * (1 - share)) * apart)
        return Moments(total, self.mean + share * apart, deviation)


def moments(y, weights=None) -> Moments:
    """Of targets y [n], n >= 1; weights [n] not all zero. Raises UserError where losses would not be finite."""
    y = np.asarray(y, np.float64)
    if np.abs(y).max() > LARGEST:
        worst = int(np.abs(y).argmax())
        raise UserError(f"targets must lie within ±{LARGEST:g}, got {y[worst]:g} in row {worst + 1}")
    total = float(len(y) if weights is None else np.sum(weights, dtype=np.float64))
    apart = y - y[0]  # of equal targets exactly 0
    size = float(np.abs(apart).max()) or 1.0  # no square is beyond what float64 can hold
    mean = float(np.average(apart / size, weights=weights))
    square = float(np.average((apart / size - mean)**2, weights=weights))
    return Moments(total, float(y[0]) + mean * size, math.sqrt(square) * size)


class Units(NamedTuple):
    """The unit in which a run counts its targets; the default leaves everything as it is."""

    mean: float = 0.0
    scale: float = 1.0
    degree: int = 0  # of the loss, see kernels/losses.py

    @property
    def of_loss(self) -> float:
        """What a loss of scaled targets is multiplied by to be one of the targets themselves."""
        return self.scale**self.degree

    def said(self) -> str:
        """What is done, for a line on the console."""
        shift = f"(y - {self.mean:g})" if self.mean else "y"
        return f"targets are trained on as {shift} / {self.scale:g}; losses, penalties, metrics and the model are in y's unit"

    def loss(self, loss):
        """The loss for scaled targets."""
        return loss._replace(**{name: getattr(loss, name) / self.scale for name in getattr(loss, "lengths", ())})

    def targets(self, y):
        """Targets float32[n] as they are trained on."""
        return y if self == AS_GIVEN else ((np.asarray(y, np.float64) - self.mean) / self.scale).astype(np.float32)

    def penalties(self, decay, clip, l1):
        """(decay, clip, l1) for scaled targets."""
        gradient = self.scale**(1 - self.degree) if self.degree else 1.0  # of scaled targets, for one of the targets
        decay = decay and decay._replace(l2=decay.l2 * gradient * self.scale if self.degree else decay.l2)
        return decay, clip and type(clip)(*(bound * gradient for bound in clip)), l1 * gradient

    def weights(self, w):
        """Weights [d + 1, …] of scaled targets, the intercepts last, as float64 ones of the targets themselves."""
        if self == AS_GIVEN:
            return w
        w = w * np.float64(self.scale)
        w[-1] += self.mean
        return w


AS_GIVEN = Units()


def units_of(loss, moments, intercept) -> Units:
    """Mean and standard deviation, but without an intercept 0 and the root of the mean square; AS_GIVEN where the loss does
    not say how it changes with them. Where all targets are equal, the scale is 1."""
    degree = getattr(loss, "degree", 0)
    if loss.task != "regression" or not degree:
        return AS_GIVEN
    mean = moments.mean if intercept else 0.0
    scale = moments.deviation if intercept else math.hypot(moments.mean, moments.deviation)
    return Units(mean, scale or 1.0, degree)
