"""L1, elastic net, averages and example weights, against dense twins that touch every coordinate at every step."""

import numpy as np
import pytest
from teams import in_turn

from hogwild.data.dataset import from_arrays
from hogwild.families import linear as family
from hogwild.kernels.losses import Logistic, Squared
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import RULES, SGD, AdaGrad
from hogwild.kernels.optim.schedules import InverseSqrt, InverseTime
from hogwild.kernels.optim.steps import Clip, Decay, array_step
from hogwild.training.loop import train
from hogwild.training.stopping import Stop

N, D = 400, 12


def made(n=N, d=D, seed=0, density=0.3):
    """Rows with rare features, and without any; targets of a sparse model. float32 values, as training has them."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, d)) * (rng.random((n, d)) < density * np.linspace(2, 0.1, d))).astype(np.float32)
    x[::9] = 0
    truth = rng.standard_normal(d) * (np.arange(d) % 2)
    return x.astype(np.float64), (x @ truth + 0.1 * rng.standard_normal(n)).astype(np.float32).astype(np.float64)


def constant(lr):
    """Of the type that most tests here use: each type of a schedule is compiled anew."""
    return checked(InverseSqrt(lr, 0.0))


def trained(x, y, loss, rule, schedule, epochs=2, workers=1, **options):
    linear = family.Linear(from_arrays(x, y), None, loss, rule, workers=workers, **options)
    train(linear, rule, schedule, epochs=epochs, workers=workers)
    return linear


def twin(x, y, rule, schedule, epochs=2, l1=0.0, decay=None, start=None, weights=None, share=1.0):
    """(w, mean of the iterates after the steps from `start` on): least squares by SGD or AdaGrad, FOBOS for the L1.

    Every coordinate is shrunk at every step. SGD's and AdaGrad's formulas are written out here. share: the intercept's.
    """
    n, d = x.shape
    w, G, t, iterates = np.zeros(d + 1), np.zeros(d + 1), 0, []
    counts = np.maximum((x != 0).sum(0), 1)
    for epoch in range(1, epochs + 1):
        for i in np.random.default_rng((0, epoch)).permutation(n):
            lr, row, touched = schedule.rate(t), np.append(x[i], 1.0), np.append(x[i] != 0, True)
            most = 1 / (lr * (decay.l2 + decay.wd)) if decay else 0.0
            often = np.append(np.minimum(n / counts, most), 0.0)
            g = (weights[i] if weights is not None else 1.0) * (row @ w - y[i]) * np.append(x[i], share)
            g += touched * decay.l2 * often * w if decay else 0.0
            G += g * g
            pace = 1 / (np.sqrt(G) + 1e-10) if isinstance(rule, AdaGrad) else np.ones(d + 1)
            w = w - lr * pace * g - (touched * lr * decay.wd * often * w if decay else 0.0)
            owed = np.append(lr * l1 * pace[:d], 0.0)
            w = np.sign(w) * np.maximum(np.abs(w) - owed, 0.0)
            if start is not None and t >= start:
                iterates.append(w)
            t += 1
    return w, np.mean(iterates, 0) if iterates else w


@pytest.mark.parametrize("rule, decay", [(SGD(), None), (SGD(), Decay(l2=0.01)), (SGD(), Decay(wd=0.02)), (AdaGrad(), None)])
def test_l1_and_elastic_net_are_fobos(rule, decay):
    """Owed shrinkage, paid when a feature is next touched, comes to the same as shrinking at every step."""
    x, y = made()
    schedule = checked(InverseTime(0.1, 0.02))
    linear = trained(x, y, Squared(), rule, schedule, l1=0.1, decay=decay)
    want, _ = twin(x, y, rule, schedule, l1=0.1, decay=decay, share=linear.model.intercept)
    assert np.allclose(linear.w, want, rtol=1e-5, atol=2e-6)
    zero = want[:D] == 0
    assert 2 <= zero.sum() <= D - 2 and (linear.w[:D][zero] == 0).all()


def test_l1_reaches_the_minimum_of_sklearns_lasso():
    from sklearn.linear_model import Lasso
    x, y = made(1500, 20, 1)
    linear = trained(x, y, Squared(), SGD(), InverseTime(0.1, 0.002), l1=0.02, epochs=60)
    lasso = Lasso(alpha=0.02, tol=1e-10).fit(x, y)
    objective = lambda w, b: ((x @ w + b - y) ** 2).mean() / 2 + 0.02 * np.abs(w).sum()  # noqa: E731
    best = objective(lasso.coef_, lasso.intercept_)
    assert objective(linear.w[:20], linear.w[20]) < 1.002 * best
    assert np.allclose(linear.w[:20], lasso.coef_, atol=0.01)
    sure = (lasso.coef_ == 0) & (np.abs(x.T @ (x @ lasso.coef_ + lasso.intercept_ - y)) / 1500 < 0.015)
    assert sure.sum() >= 5 and np.abs(linear.w[:20][sure]).max() < 1e-3 and (linear.w[:20] == 0).sum() >= 4


@pytest.mark.parametrize("workers", [1, 3])
def test_l1_reaches_the_minimum_of_sklearns_logistic_regression(workers):
    from sklearn.linear_model import LogisticRegression
    x, y = made(1500, 20, 2)
    y, l1 = np.where(y > 0.3, 1.0, -1.0), 0.01
    linear = trained(x, y, Logistic(), SGD(), InverseTime(0.5, 0.002), l1=l1, epochs=60, workers=workers)
    saga = LogisticRegression(l1_ratio=1.0, C=1 / (1500 * l1), solver="saga", max_iter=5000, tol=1e-8).fit(x, y)

    def objective(w, b):
        return np.logaddexp(0, -y * (x @ w + b)).mean() + l1 * np.abs(w).sum()
    assert objective(linear.w[:20], linear.w[20]) < 1.003 * objective(saga.coef_[0], saga.intercept_[0])
    # Whether a weight is at exactly 0 at the end is up to its last few gradients, and to who came last with 3 workers.
    unused = saga.coef_[0] == 0
    assert unused.sum() >= 3 and np.abs(linear.w[:20][unused]).max() < 0.02


@pytest.mark.parametrize("name", RULES)
def test_l1_makes_every_rule_sparse(name):
    """Noise, half of the features, is at exactly 0 after training; a strong penalty leaves nothing.

    The mode and the options without effect are those of tests/kernels/sharing/test_deterministic.py, whose machine code
    then serves here.
    """
    rng = np.random.default_rng(3)
    x = (np.eye(8) * [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1])[rng.integers(8, size=1200)] * rng.choice([-1.0, 1.0], (1200, 1))
    y = np.where(rng.random(1200) < 1 / (1 + np.exp(-(x @ [3, -3, 3, -3, 0, 0, 0, 0]))), 1.0, -1.0)
    rule, plain = RULES[name](), {"decay": Decay(), "clip": Clip(), "average": 10**9, "mode": "deterministic"}
    schedule = InverseSqrt({"sgd": 0.5, "adagrad": 0.5, "momentum": 0.05, "nesterov": 0.05}.get(name, 0.02), 0.01)
    w = trained(x, y, Logistic(), rule, schedule, l1=0.02, epochs=4, intercept=False, **plain).w
    assert (w[4:8] == 0).sum() >= 3 and (np.sign(w[:4]) == [1, -1, 1, -1]).all() and np.abs(w[:4]).min() > 0.3
    strong = trained(x, y, Logistic(), rule, schedule, l1=10.0, epochs=2, intercept=False, **plain).w
    assert (strong == 0).all()


@pytest.mark.parametrize("rule, start, decay", [(SGD(), 0, None), (SGD(), 350, None), (AdaGrad(), 0, Decay(l2=0.01))])
def test_the_average_is_the_mean_of_the_iterates(rule, start, decay):
    x, y = made(seed=4)
    schedule = checked(InverseSqrt(0.1, 0.01))
    linear = trained(x, y, Squared(), rule, schedule, average=start, decay=decay)
    last, mean = twin(x, y, rule, schedule, decay=decay, start=start, share=linear.model.intercept)
    assert np.allclose(linear.shared[:, 0, 0], last, rtol=1e-4, atol=1e-5)
    assert np.allclose(linear.w, mean, rtol=1e-4, atol=1e-5) and not np.allclose(mean, last, atol=1e-3)


@pytest.mark.parametrize("name", RULES)
def test_every_rules_average_is_the_mean_of_its_iterates(name):
    """In mode deterministic, with the code of tests/kernels/sharing/test_deterministic.py: 32 examples are judged with the
    weights before."""
    x, y = made(seed=9)
    y, rule, schedule, theta = np.where(y > 0, 1.0, -1.0), RULES[name](), checked(InverseSqrt(0.05, 0.01)), None
    plain = {"decay": Decay(), "clip": Clip(), "l1": 1e-12}
    linear = trained(x, y, Logistic(), rule, schedule, epochs=1, average=50, mode="deterministic", **plain)
    rule, order, seen = checked(rule), np.random.default_rng((0, 1)).permutation(N), []
    theta = np.tile(np.append(0.0, rule.start()), (D + 1, 1))
    for t, i in enumerate(order):
        if t % 32 == 0:
            z = x @ theta[:D, 0] + theta[D, 0]
        j = np.append(np.flatnonzero(x[i]), D)
        part = theta[j].T.copy()
        g = -y[i] / (1 + np.exp(y[i] * z[i])) * np.append(x[i], linear.model.intercept)[j]
        array_step(rule, part[0], g, part[1:], schedule.rate(t), t)
        theta[j] = part.T
        seen.append(theta[:, 0].copy())
    mean = np.mean(seen[50:], axis=0)
    assert np.allclose(linear.shared[:, 0, 0], theta[:, 0], rtol=1e-3, atol=1e-4)
    assert np.allclose(linear.w, mean, rtol=1e-3, atol=1e-4) and not np.allclose(mean, theta[:, 0], atol=1e-3)


def test_before_its_start_there_is_no_average():
    x, y = made(seed=4)
    linear = trained(x, y, Squared(), SGD(), constant(0.1), average=1000)
    assert np.array_equal(linear.w, linear.shared[:, 0, 0])


@pytest.mark.parametrize("mode", ["wild", "locked"])
def test_workers_average_too(mode):
    """Three workers' mean is one worker's, nearly: by half nearer than the last weights are."""
    x, y = made(3000, D, 5)
    many = family.Linear(from_arrays(x, y), None, Squared(), SGD(), workers=3, mode=mode, average=3000)
    in_turn(many, SGD(), constant(0.1), epochs=3, burst=5)
    last, mean = twin(x, y, SGD(), constant(0.1), start=3000, epochs=3, share=many.model.intercept)
    assert np.abs(many.w - mean).max() < 0.5 * np.abs(last - mean).max() and np.abs(mean).max() > 0.5


def test_the_best_epochs_average_is_restored():
    x, y = made(seed=6)
    data, rule, schedule, means = from_arrays(x, y), SGD(), constant(0.05), []

    class Worsens(family.Linear):
        def evaluate(self):
            means.append(self.w.copy())
            return {"rmse": [3.0, 2.0, 4.0, 5.0][len(means) - 1]}
    linear = Worsens(data, None, Squared(), rule, average=0)
    train(linear, rule, schedule, epochs=9, stop=Stop(metric="rmse", patience=2))
    assert len(means) == 4 and np.array_equal(linear.w, means[1]) and not np.allclose(linear.w, means[3], atol=1e-5)


@pytest.mark.parametrize("rule", [SGD(), AdaGrad()])
def test_weights_multiply_the_derivative(rule):
    x, y = made(seed=7)
    weights = np.random.default_rng(0).integers(0, 4, N)
    schedule = checked(InverseSqrt(0.05, 0.01))
    linear = trained(x, y, Squared(), rule, schedule, weights=weights)
    want, _ = twin(x, y, rule, schedule, weights=weights, share=linear.model.intercept)
    assert np.allclose(linear.w, want, rtol=1e-4, atol=1e-5)


def test_weight_two_is_twice_the_rate_and_weight_zero_nothing():
    x, y = made(seed=8)
    twice = trained(x, y, Squared(), SGD(), constant(0.05), weights=np.full(N, 2.0))
    assert np.array_equal(twice.w, trained(x, y, Squared(), SGD(), constant(0.1), weights=np.ones(N)).w)
    assert np.allclose(twice.w, trained(x, y, Squared(), SGD(), constant(0.1)).w, rtol=1e-5, atol=1e-6)
    weights = (np.arange(N) % 2).astype(float)
    wrong = np.where(weights > 0, y, 1e6)
    assert np.array_equal(trained(x, y, Squared(), SGD(), constant(0.05), weights=weights).w,
                          trained(x, wrong, Squared(), SGD(), constant(0.05), weights=weights).w)
    assert not trained(x, y, Squared(), SGD(), constant(0.05), weights=np.zeros(N)).w.any()
