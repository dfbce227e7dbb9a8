"""Mode deterministic: the same bits for any number of workers, and after any stop."""

import numpy as np
import pytest
from teams import COUNTS, sparse, within

from hogwild.data.dataset import from_arrays
from hogwild.families import linear as family
from hogwild.kernels.losses import Hinge, Logistic, SoftmaxCrossEntropy, Squared
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import RULES, SGD, AdaGrad, Momentum
from hogwild.kernels.optim.schedules import Constant, InverseSqrt
from hogwild.kernels.optim.steps import Clip, Decay, array_step
from hogwild.training.loop import Run, train
from hogwild.training.stopping import Stop, Stopper

EVERYTHING = {"l1": 1e-3, "average": 50, "decay": Decay(l2=1e-3, wd=1e-3), "clip": Clip(value=0.8, norm=1.0)}


def equal_bits(x, y, loss, rule, counts=COUNTS, lr=0.05, **options):
    """Theta of mode deterministic, after it was the same for all counts of workers; and the recorded losses."""
    results, data = [], from_arrays(x, y)
    for workers in counts:
        schedule = InverseSqrt(lr, 0.01)
        linear = family.Linear(data, None, loss, rule, workers=workers, mode="deterministic", **options)
        history = within(120, lambda: train(linear, rule, schedule, epochs=2, workers=workers))  # noqa: B023
        results.append((linear, [epoch.loss for epoch in history]))
    for linear, losses in results[1:]:
        assert linear.shared.tobytes() == results[0][0].shared.tobytes() and losses == results[0][1]
    return results[0]


@pytest.mark.parametrize("name", RULES)
def test_deterministic_with_every_rule_and_option(name):
    """At 60 features a row has more of them than a vector has lanes, and is split anywhere."""
    x, y = sparse(500, 60, 7, density=0.5)
    linear, losses = equal_bits(x, y, Logistic(), RULES[name](), **EVERYTHING)
    assert np.isfinite(linear.shared).all() and losses[1] < losses[0] and np.any(linear.w != linear.shared[:, 0, 0])


@pytest.mark.parametrize("rule, lr", [(SGD(), 0.02), (AdaGrad(), 0.02), (Momentum(), 0.002)])
def test_deterministic_is_blocks_of_examples(rule, lr):
    """A transcription: 32 examples are judged with the weights before them, then their updates are made in order."""
    x, y = sparse(300, 60, 8, density=0.5)
    linear, losses = equal_bits(x, y, Squared(), rule, lr=lr)
    d, theta, t, total, schedule = 60, np.zeros((61, 1 + len(rule.start()))), 0, [], checked(InverseSqrt(lr, 0.01))
    for epoch in (1, 2):
        order, loss = np.random.default_rng((0, epoch)).permutation(300), 0.0
        for at in range(0, 300, 32):
            r = [x[i] @ theta[:d, 0] + theta[d, 0] - y[i] for i in order[at:at + 32]]
            for slope, i in zip(r, order[at:at + 32]):
                j = np.append(np.flatnonzero(x[i]), d)
                part = theta[j].T.copy()
                array_step(rule, part[0], slope * np.append(x[i], linear.model.intercept)[j], part[1:], schedule.rate(t), t)
                theta[j] = part.T
                loss, t = loss + slope**2 / 2, t + 1
        total.append(loss / 300)
    assert np.allclose(linear.shared[:, 0], theta, rtol=1e-3, atol=2e-5) and losses == pytest.approx(total, rel=1e-4)


def test_deterministic_softmax():
    x, _ = sparse(400, 40, 9)
    y = np.argmax(x @ np.random.default_rng(0).standard_normal((40, 3)), 1)
    linear, losses = equal_bits(x, y, SoftmaxCrossEntropy(), AdaGrad(), lr=0.1)
    assert losses[1] < losses[0] and linear.w.shape == (41, 3)


class Kept:
    """An in-memory checkpoint that is due whenever asked, and stops the run after some."""

    def __init__(self, most):
        self.most, self.saved = most, []

    def due(self):
        return True

    def save(self, tensors, state):
        self.saved.append(({name: x.copy() for name, x in tensors.items()}, state))
        if len(self.saved) >= self.most:
            raise StopIteration


def test_deterministic_resumes_with_other_numbers_of_workers(monkeypatch):
    monkeypatch.setattr("hogwild.training.workers.WATCH_SECONDS", 0.004)  # checkpoints inside epochs, on fast machines too
    monkeypatch.setattr("hogwild.training.workers.CHUNK_SECONDS", 0.002)
    x, y = sparse(20_000, 60, 7, density=0.5)
    data, rule, schedule = from_arrays(x, y), AdaGrad(), InverseSqrt(0.05, 0.01)

    def run(workers, resume=None, checkpoint=None):
        linear = family.Linear(data, None, Logistic(), rule, workers=workers, mode="deterministic", **EVERYTHING)
        history = within(120, lambda: train(linear, rule, schedule, epochs=3, workers=workers, resume=resume,
                                            checkpoint=checkpoint))
        return linear, [epoch.loss for epoch in history]
    whole, losses = run(2)
    at, inside = None, 0
    for workers in (3, 1, 7, 2):
        keeper = Kept(2)
        with pytest.raises(RuntimeError) as stopped:
            try:
                run(workers, at, keeper)
            except StopIteration:
                raise RuntimeError("stopped at a checkpoint") from None
        assert "stopped" in str(stopped.value)
        at = keeper.saved[-1]
        inside += at[1]["at"] > 0
    assert inside  # not all of them at an end
    resumed, again = run(3, at)
    assert resumed.shared.tobytes() == whole.shared.tobytes() and again == pytest.approx(losses, rel=1e-12)


def test_max_steps_and_checkpoints_within_an_epoch_make_each_example_once():
    """What was done is cut from the epoch's order, which max_steps had shortened."""
    seen = []

    class Log(family.Linear):
        def run(self, rule, schedule, own, order, t, stride, tally):
            seen.append(order.copy())
            super().run(rule, schedule, own, order, t, stride, tally)
    x, y = sparse(30_000, 8, 3)
    keeper, rule, schedule = Kept(10**9), SGD(), Constant(0.01)
    linear = Log(from_arrays(x, y), None, Hinge(), rule, workers=3, mode="round-robin")
    run = Run(linear, rule, checked(schedule), 5, 3, 0, None, Stopper(Stop(max_steps=20_001)), 5, keeper)
    within(120, run.go)
    assert run.t == 20_001 and len(np.unique(np.concatenate(seen))) == len(np.concatenate(seen)) == 20_001
