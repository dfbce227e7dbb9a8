"""Copies of the hottest features beside shared ones: which they are, and that a worker trains with them as without."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hogwild.data.dataset import Dataset, from_arrays
from hogwild.families import linear
from hogwild.kernels.losses import Hinge, SoftmaxCrossEntropy
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import SGD, AdaGrad
from hogwild.kernels.optim.schedules import Constant
from hogwild.kernels.optim.steps import Decay
from hogwild.kernels.sharing.parameters import LARGE, slot_of
from hogwild.training import replication
from hogwild.training.loop import train

N, D = 600, 40


def rows(outputs=1, seed=0):
    """Features that half of the rows have, down to none."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, D)) * (rng.random((N, D)) < 0.5 * 0.9 ** np.arange(D)) / 4
    return from_arrays(x, rng.integers(0, max(outputs, 2), N))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=3000), st.integers(2, 9), st.integers(1, 40), st.integers(0, 11))
def test_the_commonest_feature_has_a_place(degree, workers, size, log):
    """Whoever is left out is too rare, or there is none rarer at its place. No more than fit, at places that are theirs."""
    degree, rows = np.array(degree), 5000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replication, "HOT", 1 << log)
        hot, copied = replication.hottest(degree, rows, workers, size)
    found = np.flatnonzero(copied)
    assert sorted(hot[hot != replication.NONE]) == found.tolist() and np.array_equal(copied[found], degree[found])
    assert len(hot) * size <= replication.VALUES and len(hot) <= 1 << log
    assert all(hot[slot_of(hot, j)] == j for j in found)
    for j in np.flatnonzero((degree >= replication.OFTEN * workers) & (degree * replication.COMMON >= rows) & (copied == 0)):
        assert degree[hot[slot_of(hot, j)]] >= degree[j]


@pytest.mark.parametrize("mode, rule, outputs, options", [
    ("wild", SGD(), 1, {}), ("atomic", SGD(), 3, {"decay": Decay(0.1, 0.01)}),
    ("wild", AdaGrad(), 1, {"average": 0, "l1": 0.001, "decay": Decay(0.1)})], ids=["plain", "softmax", "penalties"])
def test_one_worker_trains_as_without_copies(mode, rule, outputs, options, monkeypatch):
    """Its copies are merged with nobody's: the parameters are those of the sequential algorithm."""
    monkeypatch.setattr(replication, "few_enough", lambda *_: False)
    data, loss, lr = rows(outputs), SoftmaxCrossEntropy() if outputs > 1 else Hinge(), checked(Constant(0.1))
    results = []
    for workers in (1, 3):
        made = linear.Linear(data, None, loss, rule, workers=workers, mode=mode if workers > 1 else "wild", **options)
        if workers > 1:
            made.mean_curvature, made.share = 0.0, max(made.share, 1 - 2**-20)  # the others do nothing
            assert 10 < len(made.plan.shared_rows) - 1 < D - 10 and "replicas hot (" in made.said()
        own, order, t = made.private(0), np.random.default_rng(1).integers(0, N, 2000), 0
        for part in np.split(order, [700, 1500]):
            made.begin(t)
            queue, tally = np.zeros(16, np.int64), np.zeros(8)
            made.work(checked(rule), lr, own, part, t, queue, len(part), True, tally)
            t += len(part)
            made.steps = t
            if workers > 1:
                made.leave(checked(rule), lr, own)
            made.end()
            assert tally[1] == len(part)
        made.settle(checked(rule), t)
        results.append(made.shared.copy())
    assert np.abs(results[0][:, :, 0]).max() > 0.03
    np.testing.assert_allclose(results[1], results[0], rtol=2e-3, atol=2e-5)


def test_far_parameters_are_fetched_and_otherwise_the_same():
    """The same rows, spread over more features than a cache holds."""
    near, step, rule = rows(), LARGE // D + 1, SGD()
    far = Dataset(near.indptr, near.indices * np.uint32(step), near.values, near.labels, D * step, "far")
    weights = []
    for data in (near, far):
        made = linear.Linear(data, None, Hinge(), rule)
        train(made, rule, Constant(0.1), epochs=2, workers=1, seed=1)
        weights.append(made.w[np.append(np.arange(D) * (data.n_features // D), data.n_features)])
        assert np.count_nonzero(made.w) == np.count_nonzero(weights[-1])
    assert (made.flat.size > LARGE) and np.abs(weights[0]).max() > 0.05
    np.testing.assert_allclose(*weights, rtol=1e-6)
