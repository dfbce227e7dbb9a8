"""What users of scikit-learn's SGDClassifier and SGDRegressor expect of the estimators beside its own checks."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hogwild import HogwildClassifier, HogwildRegressor

ONE = {"workers": 1, "random_state": 0}

pytestmark = pytest.mark.filterwarnings("ignore:the training loss of epoch")  # of few epochs, or none that moves anything


@pytest.fixture(scope="module")
def blobs():
    return make_classification(200, 6, n_informative=4, n_classes=3, random_state=0)


def batches(n, size, epochs):
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(n)
        yield from (order[start:start + size] for start in range(0, n, size))


@pytest.mark.parametrize("rule, penalty", [("sgd", {"l2": 0.01}), ("adagrad", {"l2": 0.01}),
                                           ("adagrad", {"weight_decay": 0.05})])
def test_penalties_do_not_depend_on_the_size_of_batches(rule, penalty):
    """How rare a feature is counts over all calls: of a batch of 10 one row has it, of all data one of twenty."""
    rng = np.random.default_rng(0)
    X = sp.random(600, 100, 0.05, format="csr", random_state=0)
    X.data[:] = 1
    y = (X @ rng.normal(size=100) * 2 + rng.normal(size=600) > 0).astype(int)
    whole, parts = (HogwildClassifier(rule=rule, epochs=10, **penalty, **ONE) for _ in range(2))
    norm = np.linalg.norm(whole.fit(X, y).coef_)
    for rows in batches(600, 10, 10):
        parts.partial_fit(X[rows], y[rows], classes=[0, 1])
    assert np.linalg.norm(parts.coef_) == pytest.approx(norm, rel=0.03)
    again = HogwildClassifier(rule=rule, epochs=1, warm_start=True, **penalty, **ONE)
    for rows in batches(600, 10, 10):
        if 0 < y[rows].sum() < len(rows):
            again.fit(X[rows], y[rows])
    assert np.linalg.norm(again.coef_) == pytest.approx(norm, rel=0.05)


@pytest.mark.parametrize("schedule", ["inverse-sqrt", "cosine", "step"])
def test_schedules_do_not_depend_on_the_size_of_batches(schedule, blobs):
    X, y = blobs
    norms = []
    for size in (10, 50):
        ours = HogwildClassifier(schedule=schedule, **ONE)
        for rows in batches(200, size, 5):
            ours.partial_fit(X[rows], y[rows], classes=[0, 1, 2])
        norms.append(np.linalg.norm(ours.coef_))
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


@pytest.mark.parametrize("loss", ["modified-huber", "perceptron"])
def test_classification_losses_are_those_of_scikit_learn(loss, blobs):
    X, y = blobs
    ours = HogwildClassifier(loss=loss, **ONE).fit(X, y)
    theirs = SGDClassifier(loss=loss.replace("-", "_"), random_state=0).fit(X, y)
    assert ours.score(X, y) > theirs.score(X, y) - 0.1
    if loss == "perceptron":
        assert not hasattr(ours, "predict_proba")
        return
    theirs.coef_, theirs.intercept_ = ours.coef_.astype(float), ours.intercept_.astype(float)
    wide = np.concatenate([X, 100 * X, 0 * X])  # some rows have all classes at 0
    assert np.allclose(ours.predict_proba(wide), theirs.predict_proba(wide), atol=1e-6)
    two = HogwildClassifier(loss=loss, **ONE).fit(X, y > 0)
    theirs = SGDClassifier(loss="modified_huber", random_state=0).fit(X, y > 0)
    theirs.coef_, theirs.intercept_ = two.coef_.astype(float), two.intercept_.astype(float)
    assert np.allclose(two.predict_proba(wide), theirs.predict_proba(wide), atol=1e-6)


@pytest.mark.parametrize("loss, classes", [("logistic", 2), ("logistic", 3), ("softmax", 2), ("softmax", 3)])
def test_weights_to_begin_at(loss, classes, blobs):
    X, y = blobs
    y = np.minimum(y, classes - 1)
    best = LogisticRegression(max_iter=1000).fit(X, y)
    if loss == "logistic" and classes == 3:
        best.coef_, best.intercept_ = np.eye(3, 6), np.arange(3.0)
    still = HogwildClassifier(loss=loss, lr=1e-12, epochs=1, **ONE)
    still.fit(X, y, coef_init=best.coef_, intercept_init=best.intercept_)
    assert np.allclose(still.decision_function(X), best.decision_function(X), atol=1e-4)
    with pytest.raises(ValueError, match=r"coef_init must be finite numbers of shape \(\d, 6\), got shape \(5,\)"):
        still.fit(X, y, coef_init=np.zeros(5))


def test_weights_to_begin_at_are_in_the_targets_unit():
    X, y = make_regression(200, 4, random_state=0)
    y, w = 1e6 + 1e3 * y, np.array([1e4, 2e4, 0, -1e5])
    still = HogwildRegressor(lr=1e-12, epochs=1, **ONE).fit(X, y, coef_init=w, intercept_init=5e5)
    assert np.allclose(still.coef_, w, atol=1) and still.intercept_ == pytest.approx(5e5)


def test_sparse_coefficients(blobs):
    X, y = blobs
    for ours in HogwildClassifier(epochs=5, **ONE), HogwildRegressor(epochs=5, **ONE):
        before = ours.fit(X, y).predict(X)
        assert sp.issparse(ours.sparsify().coef_) and np.allclose(ours.predict(sp.csr_matrix(X)), before)
        assert np.allclose(ours.predict(X), before) and np.allclose(ours.densify().predict(X), before)


def test_balanced_without_a_class(blobs):
    X, y = blobs
    weights = (y != 1).astype(float)
    ours = HogwildClassifier(class_weight="balanced", epochs=5, **ONE).fit(X, y, weights)
    assert ours.classes_.tolist() == [0, 1, 2] and ours.score(X[y != 1], y[y != 1]) > 0.7
    given = HogwildClassifier(class_weight={0: 1.0, 1: 5.0, 2: 1.0}, epochs=5, **ONE).fit(X, y, weights)
    assert given.score(X[y != 1], y[y != 1]) > 0.7


def test_early_stopping_with_a_class_of_one_row(blobs):
    X, y = blobs
    y = np.where(np.arange(200) == 7, 3, y)
    ours = HogwildClassifier(early_stopping=True, epochs=5, **ONE)
    assert ours.fit(X, y).classes_.tolist() == [0, 1, 2, 3]
    bag = BaggingClassifier(ours, n_estimators=5, random_state=0).fit(X, y)  # some have the row not at all, with weight 0
    assert bag.score(X, y) > 0.5
    assert HogwildClassifier(early_stopping=True, validation_fraction=0.05, epochs=5, **ONE).fit(X[:30], y[:30]).n_iter_


def test_data_frames():
    rng = np.random.default_rng(0)
    frame = pa.table({"size": rng.random(40), "rooms": rng.integers(5, size=40), "city": ["here", "there"] * 20})
    ours = HogwildClassifier(epochs=5, **ONE)
    with pytest.raises(ValueError, match="columns 'city' of X hold no numbers: encode them first, say with .*OneHotEncoder"):
        ours.fit(frame, np.arange(40) % 2)
    ours.fit(frame.drop_columns(["city"]), np.arange(40) % 2)
    assert ours.feature_names_in_.tolist() == ["size", "rooms"]


def test_pipelines_searches_and_copies(blobs):
    X, y = blobs
    search = GridSearchCV(make_pipeline(StandardScaler(), HogwildClassifier(epochs=5, **ONE)),
                          {"hogwildclassifier__loss": ["logistic", "modified-huber"]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.5
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    assert np.array_equal(again.predict(X), search.predict(X))
    last = again[-1]
    assert clone(last).get_params() == last.get_params() and last.partial_fit(X, y).score(X, y) > 0.3


@pytest.mark.parametrize("verbose, lines", [(0, 1), (-1, 0)])
def test_the_first_fit_says_that_it_compiles(tmp_path, verbose, lines):
    code = f"""import numpy as np
from hogwild import HogwildClassifier
model = HogwildClassifier(workers=1, epochs=1, verbose={verbose})
X, y = np.eye(4), [0, 1, 0, 1]
model.fit(X, y)
model.fit(X[:, :3], y)"""
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert ended.stderr.count("compiling kernels") == lines and not ended.stdout


def test_one_worker_for_small_data():
    ours = HogwildClassifier()
    assert [ours._workers(n) for n in (1, 100, 3999)] == [1, 1, 1] and HogwildClassifier(workers=5)._workers(3) == 3


def test_without_sklearn_the_remedy_is_named():
    code = "import sys; sys.modules['sklearn'] = None; import hogwild, hogwild.families.linear; import hogwild.estimators"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode and "need scikit-learn 1.6 or newer: pip install --upgrade scikit-learn" in ended.stderr


def test_the_loss_curve_is_that_of_sequential_sgd():
    """One number an epoch: the mean of the examples' losses, each before its own step."""
    X, y = make_classification(120, 5, random_state=1)
    ours = HogwildClassifier(rule="sgd", lr=0.05, epochs=3, fit_intercept=False, **ONE).fit(X, y)
    seed, w = np.random.RandomState(0).randint(2**31), np.zeros(5)
    for epoch, found in enumerate(ours.loss_curve_, 1):
        order, losses = np.arange(120), []
        np.random.default_rng((seed, epoch)).shuffle(order)
        for i in order:
            margin = (2 * y[i] - 1) * (w @ X[i])
            losses.append(np.log1p(np.exp(-margin)))
            w = w + 0.05 * (2 * y[i] - 1) / (1 + np.exp(margin)) * X[i]
        assert type(found) is float and found == pytest.approx(np.mean(losses), rel=1e-6)
    assert epoch == ours.n_iter_ == 3
    y = 1e6 + 1e3 * (X @ np.arange(5))
    still = HogwildRegressor(lr=0.0, epochs=2, **ONE).fit(X, y)  # stays at the mean
    assert still.loss_curve_ == pytest.approx([y.var() / 2] * 2, rel=1e-4)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("ours", [HogwildClassifier(epochs=2, **ONE), MLPClassifier(max_iter=2)])
def test_the_loss_curve_goes_on_as_that_of_sklearns_mlp(blobs, ours):
    lengths = []
    for call, more in ((ours.partial_fit, {"classes": [0, 1, 2]}), (ours.partial_fit, {}), (ours.fit, {}),
                       (ours.partial_fit, {}), (ours.set_params(warm_start=False).fit, {})):
        call(*blobs, **more)
        lengths.append(len(ours.loss_curve_))
    ours.set_params(warm_start=True).fit(*blobs)
    assert [*lengths, len(ours.loss_curve_)] == [1, 2, 2, 3, 2, 4]
    assert pickle.loads(pickle.dumps(ours)).loss_curve_ == ours.loss_curve_


def test_top_features(blobs):
    X, y = blobs
    names = ["a", "b", "c", "d", "e", "f"]
    ours = HogwildClassifier(epochs=5, **ONE).fit(pa.table(dict(zip(names, X.T))), y)
    for k in range(3):
        found = ours.top_features(n=9, class_=k)
        order = np.argsort(-ours.coef_[k])
        assert [name for name, _ in found.positive + found.negative[::-1]] == [names[j] for j in order]
        assert [w for _, w in found.positive] == [w for w in ours.coef_[k][order].tolist() if w > 0]
    two = HogwildClassifier(epochs=5, **ONE).fit(X, np.array(["no", "yes"])[(y == 1).astype(int)])
    best, w = two.top_features(1, "yes").positive[0]
    assert best == two.coef_[0].argmax() and two.top_features(1, "no").negative == [(best, -w)]
    before = two.top_features()
    assert two.sparsify().top_features() == before
    real = HogwildRegressor(epochs=5, **ONE).fit(X, X[:, 2] - 2 * X[:, 4])
    assert (real.top_features(1).positive[0][0], real.top_features(1).negative[0][0]) == (2, 4)
    for model, arguments, says in ((ours, {}, "class_ must be one of 0, 1, 2, got None"),
                                   (real, {"n": 1.5}, "n must be a whole number"),
                                   (two, {"class_": 1}, "class_ must be one of 'no', 'yes', got 1")):
        with pytest.raises(ValueError, match=says):
            model.top_features(**arguments)
    with pytest.raises(NotFittedError):
        HogwildClassifier().top_features()
