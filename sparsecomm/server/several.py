"""Updates of asynchronous servers, as others found them to need them; see updates.py.

Sums of pushes: Aji & Heafield 2019, "Making Asynchronous Stochastic Gradient Descent Work for Transformers". Steps divided
by staleness: Zhang et al. 2016, "Staleness-aware Async-SGD for Distributed Deep Learning". Delayed momentum: Liu et al. 2024,
see kernels/optim/delayed_nesterov.py.
"""

from hogwild.errors import UserError
from hogwild.kernels.optim.delayed_nesterov import DelayedNesterov
from hogwild.kernels.optim.rules import Nesterov


def delayed(rule, every):
    """The rule whose momentum moves once in `every` pushes (--delayed-momentum). Raises UserError unless it is Nesterov."""
    if not isinstance(rule, Nesterov) or rule.lr_inside:
        raise UserError(f"--delayed-momentum needs rule nesterov (lr_inside=0), whose momentum it delays, got "
                        f"{type(rule).__name__.lower()}")
    if every < 1:
        raise UserError(f"--delayed-momentum must be at least 1 push, got {every}")
    return DelayedNesterov(mu=rule.mu, every=every)
