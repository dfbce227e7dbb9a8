"""Data-parallel training of equal replicas, stepped by a torch optimizer."""

import math

import numpy as np
import torch

from sparsecomm.replica.synchronizer import Synchronizer


class TorchStepped(Synchronizer):
    """`optimizer` (a WrappedOptimizer, set once made) gets the mean gradients and steps; the groups' rules are not used."""

    def _apply(self, lr_factor, idle, norm):
        shorten = min(1.0, norm / (self.norm() + 1e-6)) if norm < math.inf else 1.0
        value, means = self.clip.value if self.clip is not None else math.inf, {}
        for name in (name for bucket in self.reduced() for name in bucket.names if name not in idle):
            g = self.replaced[name] if name in self.replaced else self.mean(name)
            g = g if shorten == 1.0 else g * shorten
            g = g.clip(-value, value) if value < math.inf else g
            means[name] = torch.from_numpy(g) if isinstance(g, np.ndarray) else g
        self.optimizer._step_inner(means)
