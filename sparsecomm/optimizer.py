"""Gradient dropping in a torch script of one's own: an optimizer that steps with the gradients of all ranks.

    optimizer = sparsecomm.DistributedOptimizer(model, "adam", lr=1e-3, config=Config(keep=0.01))
    optimizer = sparsecomm.DistributedOptimizer(torch.optim.Adam(model.parameters(), lr=1e-3), config=Config(keep=0.01))
    …
    loss.backward()
    optimizer.step()
"""

from sparsecomm.rule_optimizer import DistributedOptimizer
from sparsecomm.wrapped import WrappedOptimizer

__all__ = ["DistributedOptimizer", "WrappedOptimizer"]

DistributedOptimizer.wrapper = WrappedOptimizer
