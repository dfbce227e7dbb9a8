"""Several outputs: softmax and one against the rest, against a twin step by step and against scikit-learn."""

import numpy as np
import pytest

from hogwild.data.dataset import from_arrays
from hogwild.families import linear as family
from hogwild.kernels.losses import Hinge, Logistic, SoftmaxCrossEntropy
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import SGD, AdaGrad
from hogwild.kernels.optim.schedules import InverseSqrt
from hogwild.kernels.optim.steps import Clip, Decay
from hogwild.training.loop import train


def made(n=300, d=15, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, d)) * (rng.random((n, d)) < 0.4)).astype(np.float32).astype(float)
    x[::11] = 0
    return x, 3 + 2 * np.argmax(x @ rng.standard_normal((d, classes)) + 0.3 * rng.standard_normal((n, classes)), 1)


def gradient(loss, z, k):
    """By the scores z, of the class k, in the textbooks' form."""
    if isinstance(loss, SoftmaxCrossEntropy):
        p = np.exp(z - z.max())
        return p / p.sum() - np.eye(len(z))[k]
    y = np.where(np.arange(len(z)) == k, 1.0, -1.0)
    return -y * (y * z < 1) if isinstance(loss, Hinge) else -y / (1 + np.exp(y * z))


def twin(x, y, loss, rule, schedule, epochs=2, decay=None, norm=np.inf, weights=None, share=1.0):
    names, (n, d) = np.unique(y), x.shape
    w, G, t = np.zeros((d + 1, len(names))), np.zeros((d + 1, len(names))), 0
    often = np.append(n / (x != 0).sum(0), 0.0)[:, None]
    for epoch in range(1, epochs + 1):
        for i in np.random.default_rng((0, epoch)).permutation(n):
            row, touched = np.append(x[i], 1.0), np.append(x[i] != 0, True)[:, None]
            g = np.outer(np.append(x[i], share), gradient(loss, row @ w, np.searchsorted(names, y[i])))
            g *= 1.0 if weights is None else weights[i]
            g *= min(1.0, norm / (np.sqrt((g**2).sum()) + 1e-6))
            g += touched * decay.l2 * often * w if decay else 0.0
            G += g**2
            w = w - schedule.rate(t) * g / (np.sqrt(G) + 1e-10 if isinstance(rule, AdaGrad) else 1.0)
            t += 1
    return w


@pytest.mark.parametrize("loss, rule", [  # a rule sees of a loss only the slopes
    (SoftmaxCrossEntropy(), SGD()), (Hinge(), SGD()), (SoftmaxCrossEntropy(), AdaGrad()), (Logistic(), AdaGrad())])
def test_each_step_is_the_twins(loss, rule):
    x, y = made()
    schedule = checked(InverseSqrt(0.2, 0.01))
    linear = family.Linear(from_arrays(x, y), None, loss, rule)
    train(linear, rule, schedule, epochs=2)
    assert linear.classes.tolist() == [3, 5, 7, 9]
    assert np.allclose(linear.w, twin(x, y, loss, rule, schedule, share=linear.model.intercept), rtol=2e-4, atol=2e-5)


def test_options_with_several_outputs():
    """The norm that is clipped is that of all outputs together; decay and weights are as with one output."""
    x, y = made(seed=1)
    schedule, weights = checked(InverseSqrt(0.2, 0.01)), np.random.default_rng(2).integers(0, 3, len(y))
    linear = family.Linear(from_arrays(x, y), None, SoftmaxCrossEntropy(), SGD(), Decay(l2=0.01), Clip(norm=0.9),
                           weights=weights)
    train(linear, SGD(), schedule, epochs=2)
    want = twin(x, y, SoftmaxCrossEntropy(), SGD(), schedule, decay=Decay(l2=0.01), norm=0.9, weights=weights,
                share=linear.model.intercept)
    assert np.allclose(linear.w, want, rtol=2e-4, atol=2e-5)


def test_softmax_of_two_classes_is_logistic_regression():
    """Its two outputs are opposite, each with half of the score; so twice the rate gives the same odds."""
    x, y = made(classes=2)
    schedule = checked(InverseSqrt(0.1, 0.01))
    soft = family.Linear(from_arrays(x, y), None, SoftmaxCrossEntropy(), SGD())
    train(soft, SGD(), schedule, epochs=2)
    assert soft.w.shape == (16, 2) and np.allclose(soft.w[:, 0], -soft.w[:, 1], atol=1e-6)
    twice = checked(InverseSqrt(0.2, 0.01))
    one = family.Linear(from_arrays(x, y), None, Logistic(), SGD())
    train(one, SGD(), twice, epochs=2)
    assert one.w.shape == (16,) and np.allclose(soft.w[:, 1] - soft.w[:, 0], one.w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss, counts", [(SoftmaxCrossEntropy(), (1, 3)), (Logistic(), (1,))])
def test_digits_as_scikit_learn_classifies_them(loss, counts):
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    x, y = load_digits(return_X_y=True)
    x, order = x / 16, np.random.default_rng(0).permutation(len(y))
    a, b = order[:1300], order[1300:]
    rule, schedule = AdaGrad(), InverseSqrt(0.3, 0.0)
    theirs = LogisticRegression(C=10, max_iter=3000, tol=1e-2)
    theirs = (theirs if isinstance(loss, SoftmaxCrossEntropy) else OneVsRestClassifier(theirs)).fit(x[a], y[a])
    for workers in counts:
        linear = family.Linear(from_arrays(x[a], y[a]), from_arrays(x[b], y[b]), loss, rule, workers=workers)
        metrics = train(linear, rule, schedule, epochs=20, workers=workers)[-1].metrics
        assert metrics["accuracy"] > theirs.score(x[b], y[b]) - 0.02
        scores = family.scores(linear.w, from_arrays(x[b], y[b]))
        assert np.mean(scores.argmax(1) == y[b]) == pytest.approx(metrics["accuracy"])
        assert np.allclose(scores, x[b] @ linear.w[:-1] + linear.w[-1], rtol=1e-4, atol=1e-4)

