"""Metrics against scikit-learn's."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn import metrics as sk

from hogwild.training import metrics

scores = st.one_of(st.floats(-5, 5), st.sampled_from([-1.0, 0.0, 0.5, 1.0]))
weights = st.one_of(st.floats(0.125, 8), st.just(0.0))
rows = st.lists(st.tuples(scores, st.sampled_from([-1.0, 1.0]), weights), min_size=1, max_size=60)
reals = st.one_of(st.floats(-1e6, 1e6), st.integers(-3, 3))


@st.composite
def many_classes(draw):
    """(scores [n, K] with ties, labels [n], weights [n] or None); often some classes do not occur."""
    n, k = draw(st.integers(1, 25)), draw(st.integers(1, 5))
    z = draw(st.lists(scores, min_size=n * k, max_size=n * k))
    y = draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n))
    w = draw(st.none() | st.lists(weights, min_size=n, max_size=n).filter(any))
    return np.reshape(z, (n, k)), np.array(y), None if w is None else np.array(w)


def columns(rows, weighted):
    z, y, w = np.array(rows, np.float64).T
    return z, y, w if weighted and w.any() else None


@given(rows, st.booleans())
def test_classification(rows, weighted):
    z, y, w = columns(rows, weighted)
    found = metrics.classification(z, y, w)
    guess = np.where(z > 0, 1.0, -1.0)
    assert list(found) == ["accuracy", "f1", "auc", "log_loss"]
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, guess, sample_weight=w))
    assert found["f1"] == pytest.approx(sk.f1_score(y, guess, sample_weight=w, zero_division=0.0))
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, expit(z), labels=[-1.0, 1.0], sample_weight=w))
    if len(set(y if w is None else y[w > 0])) == 2:
        assert found["auc"] == pytest.approx(sk.roc_auc_score(y, z, sample_weight=w))
    else:
        assert math.isnan(found["auc"])


@given(many_classes())
def test_multiclass(case):
    z, y, w = case
    found, guess = metrics.multiclass(z, y, sample_weight=w), z.argmax(1)
    assert list(found) == ["accuracy", "f1", "log_loss"]
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, guess, sample_weight=w))
    assert found["f1"] == pytest.approx(sk.f1_score(y, guess, average="macro", sample_weight=w, zero_division=0.0))
    if z.shape[1] > 1:
        classes = list(range(z.shape[1]))
        assert found["log_loss"] == pytest.approx(sk.log_loss(y, softmax(z, axis=1), labels=classes, sample_weight=w))
    else:
        assert found["log_loss"] == 0.0


@given(many_classes())
def test_log_loss_of_each_class_against_the_rest(case):
    """As of scikit-learn's OneVsRestClassifier: each class's own probability, scaled to a sum of 1."""
    z, y, w = case
    own, found = expit(z), metrics.multiclass(z, y, sample_weight=w, each=True)
    if z.shape[1] > 1:
        p = own / own.sum(axis=1, keepdims=True)
        assert found["log_loss"] == pytest.approx(sk.log_loss(y, p, labels=list(range(z.shape[1])), sample_weight=w))
    assert metrics.softmax_log_loss(1e30 * z, y, w, each=True) < np.inf


@given(rows, st.booleans())
def test_two_classes_are_the_binary_case(rows, weighted):
    z, y, w = columns(rows, weighted)
    binary = metrics.classification(z, y, w)
    many = metrics.multiclass(np.stack([np.zeros_like(z), z], 1), (y > 0).astype(int), sample_weight=w)
    assert many["accuracy"] == binary["accuracy"] and many["log_loss"] == pytest.approx(binary["log_loss"])


@given(st.lists(st.tuples(reals, reals, weights), min_size=2, max_size=40), st.booleans())
def test_regression(rows, weighted):
    z, y, w = columns(rows, weighted)
    found = metrics.regression(z, y, w)
    assert list(found) == ["rmse", "mae", "r2"]
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(y, z, sample_weight=w))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(y, z, sample_weight=w))
    if np.ptp(y if w is None else y[w > 0]) > 1e-3:  # below, scikit-learn divides rounding errors
        assert found["r2"] == pytest.approx(sk.r2_score(y, z, sample_weight=w), rel=1e-5, abs=1e-9)


def test_r2_where_the_targets_have_no_spread():
    y = np.full(7, 0.1)
    assert metrics.r2(y, y) == 1.0 == sk.r2_score(y, y)
    assert metrics.r2(y + 1, y) == 0.0
    assert math.isnan(metrics.regression([1.0], [1.0])["r2"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_margins(dtype):
    z, y = np.array([3e38, -3e38, 800.0, -800.0], dtype), np.array([1.0, -1.0, -1.0, 1.0], np.float32)
    found = metrics.classification(z, y)
    assert found["log_loss"] == pytest.approx(400.0)  # two rows at 0 and two at their margin
    assert found["accuracy"] == 0.5 and found["auc"] == 0.75 and found["f1"] == 0.5
    many = metrics.multiclass(np.stack([-z, z], 1) / 2, np.array([1, 0, 0, 1]))
    assert many["log_loss"] == pytest.approx(400.0)


def test_float32_tallies_do_not_stall():
    n = 1 << 22
    z = np.full(n, 0.1, np.float32)
    exact = math.log1p(math.exp(-np.float64(z[0])))
    assert metrics.log_loss(z, np.ones(n, np.float32)) == pytest.approx(exact, 1e-12)
    assert metrics.log_loss(z, np.ones(n, np.float32), np.full(n, 0.1, np.float32)) == pytest.approx(exact, 1e-12)
    pairs = np.stack([np.zeros(n, np.float32), z], 1)  # more than one block
    assert metrics.softmax_log_loss(pairs, np.ones(n, np.int64)) == pytest.approx(exact, 1e-12)
    labels = np.where(np.arange(n) % 2, 1.0, -1.0)
    assert metrics.auc(z, labels) == 0.5


def test_no_log_loss_where_scores_are_no_probabilities():
    assert list(metrics.classification([1.0], [1.0], probabilities=False)) == ["accuracy", "f1", "auc"]
    assert list(metrics.multiclass([[1.0, 0.0]], [0], probabilities=False)) == ["accuracy", "f1"]


def test_nothing_to_say_is_nan_without_a_warning():
    nan, w = [math.nan, 1.0], [0.0, 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for found in (metrics.classification([], []), metrics.regression([], []), metrics.multiclass(np.zeros((0, 3)), []),
                      metrics.classification(nan, [1, -1]), metrics.regression(nan, [1.0, 1.0]),
                      metrics.multiclass([nan, [0.0, 1.0]], [0, 1]),
                      metrics.classification([1, 2], [1, -1], w), metrics.regression([1, 2], [1, -1], w),
                      metrics.multiclass([[0, 1], [1, 0]], [0, 1], sample_weight=w)):
            assert len(found) >= 3 and all(map(math.isnan, found.values())), found


def test_default_watched_metric_and_direction():
    firsts = [next(iter(found)) for found in (metrics.classification([1.0], [1.0]), metrics.multiclass([[1.0, 2.0]], [1]),
                                              metrics.regression([1.0, 2.0], [1.0, 2.0]))]
    assert firsts == ["accuracy", "accuracy", "rmse"]
    worse = metrics.regression([1.0, 3.0], [1.0, 2.0]), metrics.classification([-1.0, 1.0, -1.0], [1.0, 1.0, -1.0])
    better = metrics.regression([1.0, 2.0], [1.0, 2.0]), metrics.classification([1.0, 1.0, -1.0], [1.0, 1.0, -1.0])
    for low, high in zip(worse, better):
        for name in low.keys() - {"auc"}:
            assert (high[name] > low[name]) == (name in metrics.MAXIMISED), name
