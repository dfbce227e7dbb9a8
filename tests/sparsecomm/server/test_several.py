"""Delayed momentum: against the paper's algorithm, and torch's SGD with Nesterov momentum."""

import numpy as np
import pytest
import torch

from hogwild.errors import UserError
from hogwild.kernels.optim.catch_up import catches_up
from hogwild.kernels.optim.delayed_nesterov import DelayedNesterov
from hogwild.kernels.optim.rules import SGD, Momentum, Nesterov
from hogwild.kernels.optim.steps import dense_step, new_slots
from sparsecomm.server.several import delayed

N = 50


@pytest.mark.parametrize("c", [0.0, 0.1])
def test_delayed_nesterov_is_the_papers_algorithm(c):
    """A transcription of Liu et al. 2024, and torch's Nesterov on the mean gradient of every 4 pushes where c is 0."""
    rng, every, lr, mu = np.random.default_rng(3), 4, 0.1, 0.9
    w = rng.standard_normal(N)
    rule, slots = DelayedNesterov(mu, every, c), new_slots(DelayedNesterov(), N, np.float64)
    own, theta, m, total = w.copy(), w.copy(), np.zeros(N), np.zeros(N)
    p = torch.tensor(w, requires_grad=True)
    twin = torch.optim.SGD([p], lr=lr, momentum=mu, nesterov=True)
    for t in range(20):
        g = rng.standard_normal(N)
        dense_step(rule, own, g.copy(), slots, lr, t, None, None, 1.0)
        total += g
        if (t + 1) % every:
            theta -= lr * (c * mu * m + g / every)
        else:
            m = mu * m + total / every
            theta -= lr * ((1 - c * every + c) * mu * m + g / every)
            p.grad = torch.tensor(total / every)
            twin.step()
            total = np.zeros(N)
            if not c:
                np.testing.assert_allclose(own, p.detach().numpy(), rtol=1e-12)
        np.testing.assert_allclose(own, theta, rtol=1e-12)


def test_the_rule_of_delayed_momentum():
    rule = delayed(Nesterov(0.8), 7)
    assert rule == DelayedNesterov(0.8, 7) and not catches_up(rule) and catches_up(Nesterov())
    for other in SGD(), Momentum(), Nesterov(lr_inside=True):
        with pytest.raises(UserError, match="needs rule nesterov"):
            delayed(other, 7)
    with pytest.raises(UserError, match="at least 1"):
        delayed(Nesterov(), 0)
