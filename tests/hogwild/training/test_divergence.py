"""Runs that diverge, or learn less than a constant prediction would: what they say, and where they go back to."""

import numpy as np
import pytest
from log import Log
from scipy.optimize import minimize_scalar
from sklearn.dummy import DummyClassifier
from sklearn.metrics import log_loss

from hogwild.data.dataset import from_arrays
from hogwild.errors import UserError
from hogwild.families import constant
from hogwild.families import linear as family
from hogwild.kernels.losses import Hinge, Huber, Logistic, SoftmaxCrossEntropy, Squared, SquaredHinge
from hogwild.kernels.optim.rules import SGD
from hogwild.kernels.optim.schedules import Constant, InverseTime, Plateau
from hogwild.training.divergence import Reference
from hogwild.training.loop import Problem, train
from hogwild.training.stopping import Stop


class Played(Problem):
    """A family whose epochs have these mean losses, one attempt after the other, and weights that count the attempts."""

    examples = 4

    def __init__(self, losses, reference=None):
        self.losses, self.w, self.kept, self.known = list(losses), np.zeros(3), [], reference

    def run(self, rule, schedule, own, order, t, stride, tally):
        if len(order):
            self.kept.append(self.w[0])
            self.w[:] = np.arange(3) + len(self.kept)
            tally[0] += len(order) * self.losses.pop(0)
            tally[1] += len(order)

    def parameters(self):
        return {"w": self.w}

    def reference(self):
        return self.known


def test_losses_after_a_huge_one_are_their_own():
    history = train(Played([2e72, 0.005, 1e-9]), SGD(), Constant(1.0), epochs=3)
    assert [epoch.loss for epoch in history] == [2e72, 0.005, 1e-9]


@pytest.mark.parametrize("losses, starts", [
    ([2e72, np.nan, 0.3, 0.2, 0.1], [0, 1, 0, 3, 4]),  # not to weights that had 2e72, though finite
    ([0.4, 3e3, 1e9, 0.3, 0.2], [0, 1, 2, 1, 4]),  # finite, but growing: to the last good ones
    ([1e9, 3e3, 0.3, 0.2], [0, 1, 2, 3]), ([0.4, 9.0, 300.0, 0.1], [0, 1, 2, 3])])  # it heals itself; it does not diverge
def test_where_a_run_goes_back_to(losses, starts):
    played, log = Played(losses, Reference(0.5, 0.7)), Log()
    train(played, SGD(), Constant(1.0), epochs=4 if starts == sorted(starts) else 3, report=log)
    assert played.kept == starts and [name for name, _ in log.events] == ["rollback"] * (starts != sorted(starts))


def test_the_rate_is_said_at_the_step_that_the_run_goes_back_to():
    log, played = Log(), Played([0.6, np.nan, 0.5], Reference(0.5, 0.7))
    train(played, SGD(), InverseTime(3.0, 1.0), epochs=2, report=log)  # at step 4: 3 / 5
    assert "back to step 4, with half the learning rate, there 0.3 in place of 0.6" in log.lines[0]


def test_growing_for_ever_is_an_error():
    with pytest.raises(UserError, match="the mean loss grows to 1e.09.*halved 1 times before.*smaller lr"):
        train(Played([8e3, 1e9] * 2, Reference(0.5, 0.7)), SGD(), Constant(1.0), epochs=3, retries=1)


@pytest.mark.parametrize("losses, steps, warned", [([0.4, 0.6], None, True), ([0.8, 0.51], None, False), ([0.9], 2, False),
                                                   ([1e5], 2, True)])
def test_worse_than_a_constant_is_said(losses, steps, warned):
    log = Log()
    train(Played(losses, Reference(0.5, 0.7)), SGD(), Constant(1.0), epochs=len(losses), report=log,
          stop=Stop(max_steps=steps))
    said = [fields["text"] for name, fields in log.events if name == "warning"]
    assert len(said) == warned and all("constant prediction 0.5" in line and "smaller lr" in line for line in said)
    assert sum("warning" in line for line in log.lines) == warned


@pytest.mark.parametrize("loss", [Logistic(), Hinge(), SquaredHinge()])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.7])
def test_the_best_constant_score_of_two_classes(loss, share):
    best = minimize_scalar(lambda z: share * loss.evaluate(z, 1.0)[0] + (1 - share) * loss.evaluate(z, -1.0)[0],
                           bounds=(-30, 30), method="bounded")
    found, scores = constant.of_classes(loss, [1 - share, share])
    assert scores == pytest.approx([best.x], abs=0.05) or share in (0.0, 0.5)
    assert found.constant == pytest.approx(best.fun, abs=1e-5) and found.start == pytest.approx(loss.evaluate(0.0, 1.0)[0])


@pytest.mark.parametrize("loss", [Logistic(), SoftmaxCrossEntropy()])
def test_a_constant_prediction_of_classes(loss):
    rng = np.random.default_rng(0)
    x, y, weights = rng.standard_normal((60, 3)), rng.integers(0, 3, 60), rng.random(60).astype(np.float32)
    rows = np.arange(40)
    found = family.Linear(from_arrays(x, y), None, loss, SGD(), weights=weights, rows=rows).reference()
    x, y, weights = x[:40], y[:40], weights[:40]
    dummy = DummyClassifier(strategy="prior").fit(x, y, weights)

    def expected(k):  # a class against the rest
        p = dummy.class_prior_[k]
        return log_loss(y == k, np.tile([1 - p, p], (40, 1)), sample_weight=weights)
    several = type(loss) is SoftmaxCrossEntropy
    truth = log_loss(y, dummy.predict_proba(x), sample_weight=weights) if several else sum(map(expected, range(3)))
    assert found.constant == pytest.approx(truth * weights.mean(), rel=1e-5)
    assert found.start == pytest.approx((np.log(3) if several else 3 * np.log(2)) * weights.mean())


@pytest.mark.parametrize("loss, weighted", [(Squared(), False), (Squared(), True), (Huber(1.0), False)])
def test_a_constant_prediction_of_targets(loss, weighted):
    rng = np.random.default_rng(0)
    y, weights = rng.exponential(3.0, 51).astype(np.float32) + 7, rng.random(51).astype(np.float32) if weighted else None
    found = family.Linear(from_arrays(np.eye(51), y), None, loss, SGD(), weights=weights).reference()
    def mean(c):
        return np.average([loss.evaluate(c, float(v))[0] for v in y], weights=weights) * (weights.mean() if weighted else 1)
    best = minimize_scalar(mean, bounds=(0, 60), method="bounded")
    assert found.start == pytest.approx(mean(0.0), rel=1e-5)
    assert best.fun * (1 - 1e-6) <= found.constant <= best.fun * (1.1 if type(loss) is Huber else 1 + 1e-5)


def test_plateau_without_a_metric_watches_the_loss():
    history = train(Played([0.5, 0.4, 0.4, 0.4, 0.3, 0.2]), SGD(), Plateau(1.0, factor=0.5, patience=1), epochs=6)
    assert [epoch.lr for epoch in history] == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]
