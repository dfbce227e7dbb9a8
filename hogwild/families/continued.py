"""What a further call of fit or partial_fit goes on from: the weights, the rule's state, and what earlier calls have seen."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from hogwild.data import features
from hogwild.families.linear_statistics import SAMPLE, sizes_of
from hogwild.families.targets import Moments, Units
from hogwild.training.default_rates import Sizes


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
    average: tuple | None  # (start, scale) of hogwild.kernels.optim.lazy_l1.Average
    units: Units  # of theta
    seen: Seen
    sizes: Sizes
    epoch: int  # examples that count as an epoch of a schedule
    ids: np.ndarray | None  # of the features, as of a Dataset
    width: int
    rows: Any = slice(None)  # of a new problem's theta, those of this one

    def anew(self):
        """For another rule: the weights alone."""
        return self._replace(steps=0, average=None, lr=None)

    def demand(self, features, outputs):
        """Raise ValueError unless it has so many."""
        if (self.width, self.theta.shape[1]) != (features, outputs):
            raise ValueError(f"warm_start goes on from {self.width} features and {self.theta.shape[1]} outputs, "
                             f"got {features} and {outputs}: fit with warm_start=False, or a new estimator")

    def met(self, data):
        """(data, self) for the features of both, numbered alike."""
        if self.ids is None and data.ids is None:
            return data, self
        dense = self.ids is None or data.ids is None
        ids = None if dense else np.union1d(self.ids, data.ids)
        both = SimpleNamespace(n_features=self.width if dense else ids.size, width=self.width, ids=ids)
        own = SimpleNamespace(n_features=len(self.theta) - 1, ids=self.ids)
        rows = np.append(features.places(own, both), both.n_features)
        degree, squares = (np.zeros(both.n_features, x.dtype) for x in (self.seen.degree, self.seen.squares))
        degree[rows[:-1]], squares[rows[:-1]] = self.seen.degree, self.seen.squares
        return features.onto(data, both)[0], self._replace(seen=self.seen._replace(degree=degree, squares=squares), rows=rows)

    def put(self, problem, columns):
        """Weights and, so many columns, the rule's state into a new problem, in its unit."""
        theta, last = problem.shared, self.theta
        theta[self.rows, :, :columns] = last[:, :, :columns]
        # The rule's slots stay as they are: they belong to targets of about unit size, whatever the unit.
        old, new = self.units, problem.units
        theta[:, :, 0] = theta[:, :, 0] * (old.scale / new.scale)
        theta[-1, :, 0] += (old.mean - new.mean) / new.scale
        if problem.average and self.average:
            factor = self.average[1] / problem.average.scale * old.scale / new.scale
            theta[self.rows, :, -1] = last[:, :, -1] * np.float32(factor)


def widened(data, coef):
    """The data with the features of first weights, too, where those that occur are few."""
    if data.ids is None or coef is None or np.shape(coef)[-1:] != (data.width,):
        return data
    ids = np.union1d(data.ids, np.flatnonzero(np.atleast_2d(coef).any(0)).astype(np.uint32))
    return features.onto(data, SimpleNamespace(n_features=ids.size, width=data.width, ids=ids))[0]


def begin_at(problem, coef, intercept):
    """Have a new problem begin at weights [d], [1, d] or [K, d] and intercepts, numbers or None for those it has. Raises
    ValueError."""
    theta, (mean, scale, _), data = problem.shared, problem.units, problem.data
    outputs = theta.shape[1]
    shown = 1 if problem.classes is not None and len(problem.classes) == 2 else outputs  # softmax of two: its log-odds
    for name, given, shape in (("coef_init", coef, (shown, data.width)), ("intercept_init", intercept, (shown,))):
        if given is None:
            continue
        w = np.asarray(given, np.float64)
        if w.size != np.prod(shape) or w.ndim > len(shape) or not np.isfinite(w).all():
            raise ValueError(f"{name} must be finite numbers of shape {shape}, got shape {w.shape}")
        w = w.reshape(shape).T
        if shown < outputs:
            w = np.stack([-w[..., 0] / 2, w[..., 0] / 2], axis=-1)
        if name == "coef_init":
            theta[:-1, :, 0] = (w if data.ids is None else w[data.ids]) / scale
        else:
            theta[-1, :, 0] = (w - mean) / scale
