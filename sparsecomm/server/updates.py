"""From pushes to steps of a shard: how many pushes make one, and what staleness does to it.

Sums of pushes: Aji & Heafield 2019, "Making Asynchronous Stochastic Gradient Descent Work for Transformers". Steps divided
by staleness: Zhang et al. 2016, "Staleness-aware Async-SGD for Distributed Deep Learning"; theirs is 1 / staleness from 1 on.
Delayed momentum: Liu et al. 2024, see kernels/optim/delayed_nesterov.py.
"""

from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.optim.delayed_nesterov import DelayedNesterov
from hogwild.kernels.optim.rules import Nesterov

NOWHERE = np.zeros(0, np.uint32)


class Step(NamedTuple):
    """A step that is due, with `scale * gradient`."""

    gradient: np.ndarray  # float32[n]: the sum of the pushes; valid until `clear`
    touched: np.ndarray | None  # uint32[m], ascending: where it may differ from 0; None: anywhere
    scale: float  # 1 / pushes
    lr_factor: float


class Updates:
    """Sums the pushes of a shard of n elements, `pushes_per_step` for each step, in the order in which they are added.

    staleness_scaling: the learning rate of a step is divided by 1 + the staleness of its push; of several, by the mean.
    """

    def __init__(self, n, pushes_per_step=1, staleness_scaling=False):
        if pushes_per_step < 1:
            raise UserError(f"--pushes-per-step must be at least 1, got {pushes_per_step}")
        self.pushes_per_step, self.staleness_scaling = pushes_per_step, staleness_scaling
        self.sum, self.touched, self.count, self.factors = np.zeros(n, np.float32), NOWHERE, 0, 0.0

    def add(self, indices, values, staleness=0) -> Step | None:
        """Add a push: values float32[k] at indices (uint32[k], strictly ascending; None: k is n). The step, if one is due.

        staleness: steps of this shard since the pull on which the gradient was computed.
        """
        self.sum[slice(None) if indices is None else indices] += values
        if indices is None or self.touched is None:
            self.touched = None
        else:
            self.touched = np.union1d(self.touched, indices) if self.count else indices
        self.count += 1
        self.factors += 1.0 / (1.0 + staleness) if self.staleness_scaling else 1.0
        return self.due() if self.count >= self.pushes_per_step else None

    def due(self) -> Step:
        """A step with the pushes so far, at least one."""
        return Step(self.sum, self.touched, 1.0 / self.count, self.factors / self.count)

    def clear(self):
        """The step is made."""
        self.sum[slice(None) if self.touched is None else self.touched] = 0
        self.touched, self.count, self.factors = NOWHERE, 0, 0.0

    def state(self) -> dict[str, np.ndarray]:
        """Host arrays by name, not copied; `sum` and `touched` (uint8[n]) are laid out as the shard is."""
        touched = np.zeros(self.sum.size, np.uint8)
        touched[slice(None) if self.touched is None else self.touched] = 1
        return {"sum": self.sum, "touched": touched, "pushes": np.array([self.count, self.factors])}

    def load(self, state):
        """Continue from a `state` of as many elements."""
        self.sum[:] = state["sum"]
        touched = np.flatnonzero(state["touched"]).astype(np.uint32)
        self.touched = None if touched.size == self.sum.size else touched
        self.count, self.factors = int(state["pushes"][0]), float(state["pushes"][1])


def delayed(rule, every):
    """The rule whose momentum moves once in `every` pushes (--delayed-momentum). Raises UserError unless it is Nesterov."""
    if not isinstance(rule, Nesterov) or rule.lr_inside:
        raise UserError(f"--delayed-momentum needs rule nesterov (lr_inside=0), whose momentum it delays, got "
                        f"{type(rule).__name__.lower()}")
    if every < 1:
        raise UserError(f"--delayed-momentum must be at least 1 push, got {every}")
    return DelayedNesterov(mu=rule.mu, every=every)
