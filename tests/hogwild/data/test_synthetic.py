"""The synthetic data: RCV1's shape, the stream's independence of chunks and threads, and labels as planted."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from scipy.special import expit
from sklearn.linear_model import SGDClassifier

from hogwild.data.synthetic import FEATURES, LONGEST, OFFSET, ZIPF, _dataset, _recipe, rcv1_like
from hogwild.kernels.compiler.jit import kernel
from hogwild.kernels.data.synthetic import mix, trailing_zeros

pytestmark = pytest.mark.checked
ROWS = 40_000


@pytest.fixture(scope="module")
def made():
    return rcv1_like(ROWS, seed=3)


def matrix(data):
    return scipy.sparse.csr_matrix((data.values, data.indices, data.indptr), (data.labels.size, FEATURES))


@kernel
def ends(x):
    return trailing_zeros(x)


def test_splitmix64_reference_values():
    # First outputs for seed 1234567 of Vigna's public-domain splitmix64.c.
    step, state, expected = 0x9E3779B97F4A7C15, 1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for value in expected:
        state = (state + step) % 2**64
        assert mix(np.uint64(state)) == value


def test_trailing_zeros():
    assert [ends(np.uint64(1 << k)) for k in range(64)] == list(range(64)) and ends(np.uint64(0b101000)) == 3


def test_shape(made):
    data, planted = made
    assert data.indptr.dtype == np.int64 and data.indices.dtype == np.uint32
    assert data.values.dtype == np.float32 and data.labels.dtype == planted.dtype == np.float64
    assert planted.shape == (FEATURES + 1,) and data.n_features == FEATURES and "RCV1" in data.source
    lengths = np.diff(data.indptr)
    assert data.indptr[0] == 0 and data.indptr[-1] == data.indices.size == data.values.size
    assert abs(lengths.mean() - 75) < 1.5 and lengths.min() >= 1 and 400 < lengths.max() <= LONGEST
    assert abs(np.log(lengths).std() - 0.6) < 0.02  # log-normal


def test_rows_are_sorted_unique_positive_and_of_unit_norm(made):
    data, _ = made
    inside = np.ones(data.indices.size, bool)
    inside[data.indptr[:-1]] = False  # the first of a row may be below the last of the row before
    assert np.all(np.diff(data.indices.astype(np.int64), prepend=-1)[inside] > 0)
    assert data.indices.max() < FEATURES and np.all(data.values > 0)
    assert np.allclose(scipy.sparse.linalg.norm(matrix(data), axis=1), 1, atol=1e-5)


def test_zipf(made):
    data, _ = made
    count = np.bincount(data.indices, minlength=FEATURES)
    frequency = np.sort(count)[::-1]
    ranks = np.arange(200, 5000)
    slope = np.polyfit(np.log(ranks), np.log(frequency[ranks]), 1)[0]
    assert -1.2 < slope < -0.95
    assert 0.3 < frequency[0] / ROWS < 0.6 and np.mean(count > 0) > 0.95
    common = np.argsort(count)[-1000:]
    assert abs(np.corrcoef(np.arange(1000), common)[0, 1]) < 0.15  # ids tell nothing about frequency
    assert 0.4 < common.mean() / FEATURES < 0.6


def test_features_are_drawn_with_their_probabilities():
    """Rows of one feature have exactly the table's probabilities: compare their first ranks by chi-square."""
    recipe = _recipe(0)._replace(longest=1)
    count = np.bincount(_dataset(recipe, 200_000, 0, 0, 1).indices, minlength=FEATURES)[recipe.feature]
    chance = 1 / (np.arange(1, FEATURES + 1) + OFFSET) ** ZIPF
    edges = np.r_[0:100, 100:1000:50, 1000:FEATURES:1000]
    found, expected = np.add.reduceat(count, edges), np.add.reduceat(chance / chance.sum(), edges) * 200_000
    cells = len(edges) - 1
    assert abs(np.sum((found - expected) ** 2 / expected) - cells) < 5 * np.sqrt(2 * cells)


@pytest.mark.parametrize(("start", "rows", "workers"), [(0, 500, 1), (137, 200, 3), (499, 1, 2), (250, 0, 1)])
def test_a_row_depends_on_its_number_alone(made, start, rows, workers):
    whole, planted = made
    part, same = rcv1_like(rows, seed=3, start=start, workers=workers)
    a, b = whole.indptr[start], whole.indptr[start + rows]
    assert np.array_equal(part.indptr, whole.indptr[start:start + rows + 1] - a) and np.array_equal(same, planted)
    assert np.array_equal(part.indices, whole.indices[a:b]) and np.array_equal(part.values, whole.values[a:b])
    assert np.array_equal(part.labels, whole.labels[start:start + rows])


def test_seeds_differ(made):
    data, planted = rcv1_like(100, seed=4)
    assert not np.array_equal(data.indptr, made[0].indptr[:101]) and not np.array_equal(planted, made[1])


def test_labels_follow_the_planted_weights(made):
    data, planted = made
    z = matrix(data) @ planted[:-1] + planted[-1]
    right = (z > 0) == (data.labels > 0)
    assert abs(right.mean() - 0.95) < 0.006 and 0.45 < np.mean(data.labels > 0) < 0.55
    chance = expit(z)
    for low, high in [(0, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.9), (0.9, 1)]:  # calibrated in every band
        band = (low <= chance) & (chance < high)
        error = np.sqrt(np.sum(chance[band] * (1 - chance[band]))) / band.sum()
        assert abs(np.mean(data.labels[band] > 0) - chance[band].mean()) < 4 * error


def test_a_foreign_learner_finds_them(made):
    data, _ = made
    x, y, cut = matrix(data), data.labels, ROWS - 5000
    learner = SGDClassifier(loss="log_loss", alpha=1e-5, max_iter=5, tol=None, random_state=0).fit(x[:cut], y[:cut])
    assert 0.88 < learner.score(x[cut:], y[cut:]) < 0.95
