"""Metrics against scikit-learn's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn import metrics as sk

from hogwild import metrics

scores = st.one_of(st.floats(-5, 5), st.sampled_from([-1.0, 0.0, 0.5, 1.0]))
rows = st.lists(st.tuples(scores, st.sampled_from([-1.0, 1.0])), min_size=1, max_size=60)


def both(rows):
    z, y = np.array(rows, np.float64).T
    return z, y


@given(rows)
def test_classification(rows):
    z, y = both(rows)
    found = metrics.classification(z, y)
    assert list(found) == ["accuracy", "log_loss", "auc"]
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, np.where(z > 0, 1.0, -1.0)))
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, expit(z), labels=[-1.0, 1.0]))
    if len(set(y)) == 2:
        assert found["auc"] == pytest.approx(sk.roc_auc_score(y, z))
    else:
        assert math.isnan(found["auc"])


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=40))
def test_regression(rows):
    z, y = both(rows)
    assert metrics.regression(z, y) == {"rmse": pytest.approx(sk.root_mean_squared_error(y, z))}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_margins(dtype):
    z, y = np.array([3e38, -3e38, 800.0, -800.0], dtype), np.array([1.0, -1.0, -1.0, 1.0], np.float32)
    found = metrics.classification(z, y)
    assert found["log_loss"] == pytest.approx(400.0)  # two rows at 0 and two at their margin
    assert found["accuracy"] == 0.5 and found["auc"] == 0.75


def test_float32_tallies_do_not_stall():
    n = 1 << 22
    z = np.full(n, 0.1, np.float32)
    assert metrics.log_loss(z, np.ones(n, np.float32)) == pytest.approx(math.log1p(math.exp(-np.float64(z[0]))), 1e-12)
    labels = np.where(np.arange(n) % 2, 1.0, -1.0)
    assert metrics.auc(z, labels) == 0.5


def test_no_rows():
    for found in (metrics.classification([], []), metrics.regression([], [])):
        assert found and all(map(math.isnan, found.values()))
