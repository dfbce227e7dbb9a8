"""What a further call of fit or partial_fit goes on from: the weights, the rule's state, and what earlier calls have seen."""

from typing import NamedTuple

import numpy as np

from hogwild.copies import SAMPLE, sizes_of
from hogwild.targets import Moments, Units


class Seen(NamedTuple):
    """Of the rows of all calls together."""

    rows: int
    degree: np.ndarray  # int64[d]: rows that have each feature
    sampled: int  # rows of which there are squares
    squares: np.ndarray  # float64[d]: sums of them
    targets: Moments | None  # of real targets

    def joined(self, other):
        targets = self.targets and other.targets and self.targets.joined(other.targets)
        return Seen(*(a + b for a, b in zip(self[:4], other[:4])), targets)


def seen(data, targets) -> Seen:
    """What there is to know of `data`."""
    rows = min(data.rows, SAMPLE)
    return Seen(data.rows, data.degrees(), rows, sizes_of(data)[2] * rows, targets)


class State(NamedTuple):
    """Where the last call ended."""

    theta: np.ndarray  # float32[d + 1, outputs, columns]
    steps: int
    rule: str  # as it was given
    lr: float | None  # that was found by lr="auto"
    average: tuple | None  # (start, scale) of kernels.lazy.Average
    units: Units  # of theta
    seen: Seen

    def anew(self):
        """For another rule: the weights alone."""
        return self._replace(steps=0, average=None, lr=None)

    def demand(self, features, outputs):
        """Raise ValueError unless it has so many."""
        if self.theta.shape[:2] != (features + 1, outputs):
            raise ValueError(f"warm_start goes on from {self.theta.shape[0] - 1} features and {self.theta.shape[1]} outputs, "
                             f"got {features} and {outputs}: fit with warm_start=False, or a new estimator")

    def put(self, problem, columns):
        """Weights and, so many columns, the rule's state into a new problem, in its unit."""
        theta, last = problem.shared, self.theta
        theta[:, :, :columns] = last[:, :, :columns]
        # The rule's slots stay as they are: they belong to targets of about unit size, whatever the unit.
        old, new = self.units, problem.units
        theta[:, :, 0] = theta[:, :, 0] * (old.scale / new.scale)
        theta[-1, :, 0] += (old.mean - new.mean) / new.scale
        if problem.average and self.average:
            factor = self.average[1] / problem.average.scale * old.scale / new.scale
            theta[:, :, -1] = last[:, :, -1] * np.float32(factor)
