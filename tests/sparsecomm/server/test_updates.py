"""How pushes become steps: against sums in NumPy, and torch's SGD with Nesterov momentum."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hogwild.errors import UserError
from hogwild.kernels.optim.catch_up import catches_up
from hogwild.kernels.optim.delayed_nesterov import DelayedNesterov
from hogwild.kernels.optim.rules import SGD, Momentum, Nesterov
from hogwild.kernels.optim.steps import array_step, new_slots
from sparsecomm.server.updates import Updates, delayed

N = 50


@settings(deadline=None, max_examples=60)
@given(pushes=st.lists(st.none() | st.sets(st.integers(0, N - 1), max_size=9), min_size=1, max_size=12),
       each=st.integers(1, 4), cut=st.integers(0, 12))
def test_steps_have_the_sum_of_their_pushes_also_from_a_checkpoint(pushes, each, cut):
    rng, updates, total, expected, count = np.random.default_rng(0), Updates(N, each, True), np.zeros(N), np.zeros(N), 0
    factors, waiting = [], set()
    for k, push in enumerate(pushes):
        if k == cut:
            fresh = Updates(N, each, True)
            fresh.load({name: x.copy() for name, x in updates.state().items()})
            updates = fresh
        indices = None if push is None else np.array(sorted(push), np.uint32)
        values = rng.standard_normal(N if push is None else len(push)).astype(np.float32)
        expected[slice(None) if push is None else indices] += values
        factors.append(1 / (1 + k))
        waiting |= set(range(N) if push is None else push)
        step = updates.add(indices, values, staleness=k)
        assert (step is not None) == ((k + 1) % each == 0)
        if step is not None:
            touched = np.arange(N) if step.touched is None else step.touched
            assert set(touched) == waiting and list(touched) == sorted(waiting)
            assert not np.delete(step.gradient, touched).any()
            assert step.scale == 1 / each and step.lr_factor == pytest.approx(np.mean(factors))
            total += step.gradient
            updates.clear()
            factors, waiting, count = [], set(), count + 1
            assert not updates.sum.any()
    np.testing.assert_allclose(total + updates.sum, expected, atol=1e-5)
    assert count == len(pushes) // each


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
        array_step(rule, own, g, slots, lr, t)
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
