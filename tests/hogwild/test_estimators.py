"""The scikit-learn estimators: scikit-learn's own checks, and what they compute against its solvers."""

import inspect
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, make_classification, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import HuberRegressor, LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from hogwild.data import dataset
from hogwild.estimators import HogwildClassifier, HogwildRegressor

# The same two that scikit-learn declares for its SGDClassifier and SGDRegressor.
WEIGHTS = {f"check_sample_weight_equivalence_on_{kind}_data": "a weight of 2 is one larger step, not two steps"
           for kind in ("dense", "sparse")}


@parametrize_with_checks(
    [HogwildClassifier(), HogwildRegressor(), HogwildClassifier(mode="deterministic", workers=2, epochs=40)],
    expected_failed_checks=lambda _: WEIGHTS)
def test_sklearn_checks(estimator, check):
    check(estimator)


def test_the_check_that_scikit_learn_skips_without_a_variable():
    code = """from sklearn.utils.estimator_checks import check_array_api_input as check
from hogwild.estimators import HogwildClassifier, HogwildRegressor
for each in HogwildClassifier(epochs=9), HogwildRegressor(epochs=9):
    check(type(each).__name__, each, array_namespace="numpy", expect_only_array_outputs=False)"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "SCIPY_ARRAY_API": "1"}, check=True)


@pytest.fixture(scope="module")
def tumours():
    X, y = load_breast_cancer(return_X_y=True)
    return train_test_split(StandardScaler().fit_transform(X), y, random_state=0)


@pytest.fixture(scope="module")
def small():
    X, y = make_classification(200, 6, n_informative=4, n_classes=3, random_state=0)
    return X, y


def reals():
    X, y = make_regression(300, 8, noise=20.0, random_state=0)
    return X, y / y.std()


def same(a, b):
    return np.array_equal(a.coef_, b.coef_) and np.array_equal(a.intercept_, b.intercept_)


@pytest.mark.parametrize("loss", ["logistic", "hinge", "squared-hinge", "softmax"])
@pytest.mark.parametrize("load", [load_breast_cancer, load_digits])
def test_accuracy_of_a_converged_solver(loss, load):
    X, y = load(return_X_y=True)
    X, held, y, truth = train_test_split(StandardScaler().fit_transform(X), y, random_state=0, stratify=y)
    reference = LinearSVC(max_iter=5000) if "hinge" in loss else LogisticRegression(max_iter=5000)
    ours = HogwildClassifier(loss=loss, random_state=0).fit(X, y)
    assert ours.score(held, truth) > reference.fit(X, y).score(held, truth) - 0.015
    assert ours.score(held, truth) > SGDClassifier(random_state=0).fit(X, y).score(held, truth) - 0.015


def test_softmax_converges_to_logistic_regression():
    X, y = load_iris(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    reference = LogisticRegression(C=1 / (150 * 0.01), tol=1e-8, max_iter=10_000).fit(X, y)  # C: 1 / (n l2)
    ours = HogwildClassifier(loss="softmax", l2=0.01, lr=0.3, epochs=400, average=200, random_state=0)
    ours.fit(X, y)
    assert np.allclose(ours.coef_, reference.coef_, atol=0.03)
    assert np.allclose(ours.predict_proba(X), reference.predict_proba(X), atol=0.01)


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_two_classes_converge_to_logistic_regression(tumours, loss):
    X, held, y, _ = tumours
    # Softmax shrinks both classes' weights, which lie half as far from zero each: half the penalty on their difference.
    l2 = 0.01
    reference = LogisticRegression(C=1 / (len(y) * l2 * (0.5 if loss == "softmax" else 1)), max_iter=5000).fit(X, y)
    ours = HogwildClassifier(loss=loss, l2=l2, epochs=200, average=100, random_state=0).fit(X, y)
    assert np.allclose(ours.coef_, reference.coef_, atol=0.03)
    assert np.allclose(ours.predict_proba(held), reference.predict_proba(held), atol=0.02)
    assert ours.decision_function(held).shape == (len(held),)


def test_regressors_converge_to_ridge_and_huber():
    X, y = reals()
    ours = HogwildRegressor(l2=0.1, epochs=200, average=100, random_state=0).fit(X, y)
    reference = Ridge(alpha=0.1 * len(y)).fit(X, y)
    assert np.allclose(ours.coef_, reference.coef_, atol=0.02) and ours.intercept_.shape == (1,)
    y = np.where(np.arange(len(y)) % 20 == 0, 30, y)
    ours = HogwildRegressor(loss="huber:delta=0.5", epochs=200, average=100, random_state=0).fit(X, y)
    assert np.allclose(ours.coef_, HuberRegressor(alpha=0).fit(X, y).coef_, atol=0.1)
    assert not np.allclose(ours.coef_, Ridge(alpha=1e-6).fit(X, y).coef_, atol=0.1)


def test_one_against_the_rest_is_each_class_alone(small):
    X, y = small
    ours = HogwildClassifier(random_state=0, epochs=20).fit(X, y)
    for k in range(3):
        alone = HogwildClassifier(random_state=0, epochs=20).fit(X, y == k)
        assert np.allclose(ours.coef_[k], alone.coef_[0], atol=1e-4)
    p = ours.predict_proba(X)
    raw = 1 / (1 + np.exp(-ours.decision_function(X)))
    assert np.allclose(p, raw / raw.sum(axis=1, keepdims=True)) and np.allclose(ours.predict_log_proba(X), np.log(p))


@pytest.mark.parametrize("labels", [["no", "yes"], [10.0, -3.0], [True, False], ["a", "c", "b"]])
def test_labels_of_any_kind(small, labels):
    X, y = small
    names = np.array(labels)[y % len(labels)]
    ours = HogwildClassifier(epochs=5, random_state=0).fit(X, names)
    assert ours.classes_.tolist() == sorted(labels) and set(ours.predict(X)) <= set(labels)
    numbers = clone(ours).fit(X, np.searchsorted(ours.classes_, names))
    assert same(ours, numbers) and np.array_equal(ours.classes_[numbers.predict(X)], ours.predict(X))


@pytest.mark.parametrize("options", [{}, {"l2": 0.1}, {"loss": "softmax", "l1": 0.01}])
def test_weight_zero_removes_the_row(small, options):
    X, y = small
    weights = (np.arange(len(y)) % 4 > 0).astype(float)
    ours = HogwildClassifier(epochs=5, random_state=0, **options).fit(X, y, weights)
    assert same(ours, clone(ours).fit(X[weights > 0], y[weights > 0]))


def test_weight_two_repeats_the_row(tumours):
    X, held, y, _ = tumours
    weights = np.random.default_rng(0).integers(0, 4, len(y))
    ours = HogwildClassifier(l2=0.1, average=True, random_state=0)
    repeated = clone(ours).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    # l2 is a penalty on the mean of the weighted losses, so weights count by their size, too
    weighted = clone(ours).fit(X, y, weights / weights[weights > 0].mean())
    assert np.allclose(weighted.predict_proba(held), repeated.predict_proba(held), atol=0.02)


def test_class_weights(small):
    X, y = small
    rare = (y == 0) & (np.arange(len(y)) % 4 > 0)
    X, y = X[~rare], y[~rare]
    ours = HogwildClassifier(class_weight="balanced", epochs=10, random_state=0).fit(X, y)
    factors = len(y) / (3 * np.bincount(y))
    assert same(ours, clone(ours).set_params(class_weight=dict(enumerate(factors))).fit(X, y))
    assert same(ours, clone(ours).set_params(class_weight=None).fit(X, y, factors[y]))
    assert same(ours, clone(ours).set_params(class_weight={0: factors[0]}).fit(X, y, np.where(y == 0, 1, factors[y])))
    plain = clone(ours).set_params(class_weight=None).fit(X, y)
    assert (ours.predict(X) == 0).sum() > (plain.predict(X) == 0).sum()
    reference = LogisticRegression(class_weight="balanced").fit(X, y)
    assert np.mean(ours.predict(X) == reference.predict(X)) > 0.9


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix, sparse.coo_array, np.asfortranarray,
                                  np.ndarray.tolist])
def test_forms_of_input_give_the_same_bits(small, form):
    X, y = small
    X = np.where(np.abs(X) < 0.7, 0, X)
    dense, other = (HogwildClassifier(epochs=5, random_state=0).fit(x, y) for x in (X, form(X)))
    assert same(dense, other)
    assert np.allclose(dense.decision_function(X), dense.decision_function(form(X)), atol=1e-6)
    assert same(dense, clone(dense).fit(sparse.csr_array(X.astype(np.float32)), y))


def test_canonical_float32_csr_is_used_in_place(monkeypatch):
    X = sparse.random_array((50, 20), density=0.3, format="csr", dtype=np.float32, rng=0)
    y = np.arange(50) % 2.0
    for array in (X.data, X.indices, X.indptr, y):
        array.flags.writeable = False
    kept = X.data.copy(), X.indices.copy()
    data_set = dataset.from_arrays(X, y)
    assert all(np.shares_memory(a, b) for a, b in
               ((data_set.values, X.data), (data_set.indices, X.indices), (data_set.labels, y)))
    seen, make = [], dataset.from_arrays
    monkeypatch.setattr(dataset, "from_arrays", lambda *given: seen.append(make(*given)) or seen[-1])
    HogwildClassifier(epochs=3).fit(X, y)
    assert np.shares_memory(seen[0].values, X.data) and np.shares_memory(seen[0].indices, X.indices)
    assert np.array_equal(X.data, kept[0]) and np.array_equal(X.indices, kept[1])
    writeable = X.copy()
    shared = dataset.from_arrays(writeable, y)
    assert np.shares_memory(shared.values, writeable.data) and not shared.values.flags.writeable
    assert writeable.data.flags.writeable and writeable.indices.flags.writeable
    wide = X.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    large = dataset.from_arrays(wide, y)
    assert np.shares_memory(large.values, wide.data) and np.array_equal(large.indices, X.indices)
    assert same(*(HogwildClassifier(epochs=3, random_state=0).fit(x, y) for x in (X, wide)))


@pytest.mark.parametrize("spoil", [lambda X: X.indices.__setitem__(3, -1), lambda X: X.indices.__setitem__(3, 99),
                                   lambda X: X.data.__setitem__(3, np.inf)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_wrong_entries_in_place_are_found(spoil, dtype):
    from hogwild.errors import UserError
    X = sparse.csr_array(np.eye(6, dtype=np.float32))
    X.indices, X.indptr = X.indices.astype(dtype), X.indptr.astype(dtype)
    spoil(X)
    with pytest.raises(UserError, match="row 3"):
        dataset.from_arrays(X, np.arange(6))


def test_dense_blocks(monkeypatch):
    X = np.random.default_rng(0).integers(0, 2, (23, 5)) * 1.5
    whole = dataset.from_arrays(X, np.arange(23))
    monkeypatch.setattr(dataset, "SCAN", 15)
    parts = dataset.from_arrays(X, np.arange(23))
    for name in dataset.ARRAYS:
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


@pytest.mark.parametrize("options", [{}, {"rule": "adam"}, {"average": True, "l1": 0.01}, {"loss": "softmax"}])
def test_pickles_go_on_as_if_nothing_had_been(small, options):
    X, y = small
    ours = HogwildClassifier(epochs=2, random_state=0, **options).fit(X, y)
    loaded = pickle.loads(pickle.dumps(ours))
    assert same(ours, loaded) and np.array_equal(ours.predict(X), loaded.predict(X))
    before = ours.coef_.copy()
    assert same(ours.partial_fit(X, y), loaded.partial_fit(X, y)) and not np.array_equal(ours.coef_, before)
    assert not hasattr(clone(ours), "coef_") and b"Linear" not in pickle.dumps(ours)


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "adam"])
def test_partial_fit_is_an_epoch_of_fit(small, rule):
    """The first epoch of fit, then the state goes on: the second call's step is the smaller one of a grown AdaGrad."""
    X, y = small
    one = HogwildClassifier(epochs=1, rule=rule, random_state=0).fit(X, y)
    part = HogwildClassifier(epochs=1, rule=rule, random_state=0).partial_fit(X, y, classes=[0, 1, 2])
    assert same(one, part) and part._state.steps == len(y)
    warm = clone(one).set_params(warm_start=True).fit(X, y).fit(X, y)
    assert same(warm, part.partial_fit(X, y)) and warm._state.steps == 2 * len(y) and warm.n_iter_ == 1
    anew = clone(one).fit(X, y).fit(X, y)
    assert same(anew, one)


def test_partial_fit_of_batches_learns(tumours):
    X, held, y, truth = tumours
    ours = HogwildClassifier(random_state=0)
    for _ in range(20):
        for k in range(4):
            ours.partial_fit(X[k::4], y[k::4], classes=[0, 1])
    assert ours.score(held, truth) > 0.95
    X, y = reals()
    ours = HogwildRegressor(random_state=0)
    for k in range(60):
        ours.partial_fit(X[k % 3::3], y[k % 3::3])
    assert ours.score(X, y) > Ridge().fit(X, y).score(X, y) - 0.01


def test_schedules_leave_room_for_what_follows(small):
    X, y = small
    ours = HogwildClassifier(schedule="polynomial", epochs=3, warm_start=True, random_state=0).fit(X, y)
    before = ours.coef_.copy()
    assert np.abs(ours.fit(X, y).coef_ - before).max() > 0.01
    before = ours.coef_.copy()
    assert np.abs(ours.set_params(rule="sgd").fit(X, y).coef_ - before).max() > 0 and ours._state.steps == 3 * len(y)


def test_averages_go_on(small):
    """Over two batches of different sizes: the mean of the two parts' averages, weighted by their steps."""
    X, y = small
    ours, plain = (HogwildClassifier(average=average, random_state=0, lr=0.05) for average in (0.0, False))
    for model in ours, plain:
        model.partial_fit(X[:21], y[:21], classes=[0, 1, 2])
    first = ours.coef_
    ours.partial_fit(X[21:60], y[21:60])
    plain.set_params(average=0.0).partial_fit(X[21:60], y[21:60])  # here it begins now
    assert np.allclose(ours.coef_, (21 * first + 39 * plain.coef_) / 60, atol=1e-5)
    assert not np.allclose(ours.coef_, plain.coef_, atol=1e-3) and ours._state.steps == 60


def test_early_stopping_keeps_the_best_epoch(tumours):
    X, _, y, _ = tumours
    ours = HogwildClassifier(early_stopping=True, patience=2, epochs=50, average=0.0, random_state=0).fit(X, y)
    best = ours.n_iter_ - 2
    assert ours.n_iter_ < 50 and ours._state.steps == best * (len(y) - round(0.1 * len(y)))
    assert same(ours, clone(ours).set_params(epochs=best).fit(X, y))


def test_going_back_to_half_the_learning_rate_is_a_warning(capsys):
    """With the line of the console, without which nobody would hear that it was not `lr` that was trained with."""
    X, y = reals()
    options = {"rule": "sgd", "lr": 2.0, "random_state": 0, "workers": 1, "epochs": 20}
    with pytest.warns(ConvergenceWarning) as told:
        HogwildRegressor(**options).fit(X, y)
    assert capsys.readouterr().out == "" and 1 <= len(told) <= 5
    lines = [str(warning.message) for warning in told]
    assert all(re.match(r"the (loss is no longer finite at (X, row \d+|an example)|mean loss grows to .*) \(epoch \d+\): "
                        r"back to step \d+, "
                        f"with half the learning rate, there {1 / 2**i:g} in place of {2 / 2**i:g}$", line)
               for i, line in enumerate(lines))
    assert any("X, row" in line for line in lines)
    with pytest.warns(ConvergenceWarning):
        HogwildRegressor(**options, verbose=1).fit(X, y)
    said = capsys.readouterr().out.splitlines()
    assert [line.removeprefix("rollback: ") for line in said if "half the learning rate" in line] == lines


def test_pipeline_and_grid_search():
    X, y = load_breast_cancer(return_X_y=True)
    pipe = make_pipeline(StandardScaler(), HogwildClassifier(random_state=0, epochs=10))
    search = GridSearchCV(pipe, {"hogwildclassifier__loss": ["logistic", "hinge"], "hogwildclassifier__l2": [0, 1e-2]}, cv=3)
    search.fit(X, y)
    assert search.best_score_ > 0.96 and not hasattr(HogwildClassifier(loss="hinge"), "predict_proba")
    assert "loss='hinge'" in repr(HogwildClassifier(loss="hinge"))


VALUES = {"loss": "hinge", "rule": "sgd", "lr": 0.01, "schedule": "inverse-sqrt", "epochs": 2, "l1": 0.01, "l2": 0.1,
          "weight_decay": 0.1, "clip_norm": 0.1, "clip_value": 0.1, "fit_intercept": False, "mode": "deterministic",
          "random_state": 1, "average": True, "tol": 0.1, "early_stopping": True, "class_weight": {0: 5.0},
          "validation_fraction": 0.5, "metric": "f1", "patience": 1, "min_delta": 0.2, "warm_start": True, "verbose": 1,
          "workers": 3, "replicas": "none"}
COMPILED = {"rule", "schedule", "l1", "l2", "weight_decay", "clip_norm", "clip_value", "mode", "average", "workers"}


def test_both_estimators_give_their_parameters_on_by_the_same_code():
    """So what the regressor would have to compile for its loss anew is tried with the classifier alone."""
    assert HogwildRegressor._prepare is HogwildClassifier._prepare


def parameters():
    """(estimator, parameter) of all that are tried; none is left out but those of COMPILED."""
    for kind in (HogwildClassifier, HogwildRegressor):
        for name in inspect.signature(kind).parameters:
            if kind is HogwildClassifier or name not in COMPILED:
                yield pytest.param(kind, name, id=f"{kind.__name__}-{name}")


@pytest.mark.parametrize("kind, name", list(parameters()))
def test_every_parameter_does_something(small, capsys, kind, name):
    (X, y), value = small if kind is HogwildClassifier else reals(), VALUES[name]
    if kind is HogwildRegressor:
        value = {"loss": "huber:delta=0.1", "metric": "r2"}.get(name, value)
    base = {"epochs": 15, "random_state": 0, "workers": 1}
    base |= {"early_stopping": True, "patience": 3} if name in ("validation_fraction", "patience", "min_delta") else {}
    ours = kind(**base).fit(X, y)
    other = kind(**{**base, name: value}).fit(X, y)
    if name == "warm_start":
        other.fit(X, y)
    if name == "verbose":
        assert "epoch 15/15  loss" in capsys.readouterr().out and same(ours, other)
    elif name == "workers":  # lock-free: the same in expectation
        assert other.score(X, y) > ours.score(X, y) - 0.05
    elif name == "replicas":  # one worker has none
        with pytest.raises(ValueError, match="replicas"):
            kind(**base, replicas="some").fit(X, y)
        assert same(ours, other)
    elif name == "metric":
        with pytest.raises(ValueError, match="no metric 'nothing' is measured here; choose one of"):
            kind(**base, early_stopping=True, metric="nothing").fit(X, y)
        assert kind(**base, early_stopping=True, metric=value).fit(X, y).n_iter_ >= 1
    elif name == "min_delta":
        assert other.n_iter_ < ours.n_iter_
    else:
        assert not np.array_equal(ours.coef_, other.coef_)


def test_learning_rate_auto(tumours):
    X, held, y, truth = tumours
    ours = HogwildClassifier(lr="auto", epochs=10, random_state=0).fit(X, y)
    assert ours.score(held, truth) > 0.92 and ours._state.lr > 0
    found = ours._state.lr
    assert ours.partial_fit(X[:50], y[:50])._state.lr == found


@pytest.mark.parametrize("options, message", [
    ({"loss": "squared"}, "unknown loss 'squared': choose from logistic, hinge"), ({"rule": "adm"}, "did you mean adam"),
    ({"schedule": "slow"}, "unknown schedule"), ({"epochs": 0}, "epochs must be a whole number"), ({"lr": -1}, "lr must be"),
    ({"lr": "fast"}, "lr must be"), ({"workers": 1.5}, "workers must be"), ({"mode": "tame"}, "unknown mode 'tame'"),
    ({"l1": -1}, "L1 penalty"), ({"l2": -1}, "l2 must be"), ({"average": "yes"}, "average must be"),
    ({"tol": -1}, "tol must be"), ({"clip_norm": 0}, "norm must be"), ({"class_weight": {0: -1.0}}, "must not be negative"),
    ({"early_stopping": True, "metric": "rmse"}, "no metric 'rmse'"), ({"class_weight": {0: 0, 1: 0, 2: 0}}, "all be zero")])
def test_mistakes_are_value_errors(small, options, message):
    with pytest.raises(ValueError, match=message):
        HogwildClassifier(**options).fit(*small)


@pytest.mark.parametrize("call, message", [
    (lambda X, y: HogwildClassifier().fit(X, 0 * y), "1 class"),
    (lambda X, y: HogwildClassifier().partial_fit(X, y), "classes must be passed"),
    (lambda X, y: HogwildClassifier().partial_fit(X, y, classes=[0, 1]), "unseen labels"),
    (lambda X, y: HogwildClassifier(class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2]), "give a dict"),
    (lambda X, y: HogwildClassifier(warm_start=True, epochs=1).fit(X, y).fit(X, y + 1), "classes of the first fit"),
    (lambda X, y: HogwildRegressor(warm_start=True).fit(X, y).fit(X[:, :4], y), "goes on from 6 features and 1 outputs"),
    (lambda X, y: HogwildRegressor().fit(X * 1e200, y), "X, row 0 .*float32"),
    (lambda X, y: HogwildRegressor(rule="sgd", lr=1e30).fit(X, y), "no longer finite")])
def test_mistakes_in_calls(small, call, message):
    with pytest.raises(ValueError, match=message):
        call(*small)
