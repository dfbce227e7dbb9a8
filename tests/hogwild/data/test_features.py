"""Features that occur: few of many are numbered densely, and files are brought onto each other's numbers."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from command import run
from scipy import sparse

from hogwild.data import dataset, features
from hogwild.data.dataset import from_arrays
from hogwild.data.schema import Schema
from hogwild.training import model_files


def drawn(width, distinct, entries, seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(rng.choice(width, distinct, replace=False).astype(np.uint32), entries)


@pytest.mark.parametrize("width,distinct,entries", [
    (2**32, 300, 2000), (3 << 20, 50, 900), (3 << 20, 1000, 1 << 20), (2**32, 1, 3), (1 << 21, 0, 0)])
def test_few_of_many_are_numbered_densely(monkeypatch, width, distinct, entries):
    """By sorting, or by a table of all: as np.unique does."""
    monkeypatch.setattr(features, "BLOCK", 700)
    indices = drawn(width, distinct, entries)
    ids, places = np.unique(indices, return_inverse=True)
    found = features.narrowed(indices, width)
    assert np.array_equal(found, ids) and found.dtype == np.uint32 and np.array_equal(indices, places)


@pytest.mark.parametrize("width,distinct", [(1 << 20, 5), ((1 << 20) + 8, (1 << 18) + 2)])
def test_many_of_them_are_left_alone(width, distinct):
    indices = np.arange(distinct, dtype=np.uint32)
    assert features.narrowed(indices, width) is None and np.array_equal(indices, np.arange(distinct))


def table(X, ids, width, counts_from=1):
    """A dataset with these original numbers of its columns; None: their own."""
    d = from_arrays(X, np.zeros(len(X)), "new.svm")
    ids = None if ids is None else np.array(ids, np.uint32)
    return replace(d, ids=ids, width=width, schema=Schema("svmlight", zero_based=counts_from == 0))


@pytest.mark.parametrize("own,known", [
    (None, None), ([2, 5, 9, 70], None), (None, [0, 2, 3, 9]), ([2, 5, 9, 70], [1, 5, 70, 90]), ([2, 5, 9, 70],) * 2,
    ([2, 5, 9, 70], [3]), ([2, 5, 9, 70], [2, 5, 9, 70, 71])])
@pytest.mark.parametrize("n", [3, 12])
def test_a_file_on_the_numbers_of_another(monkeypatch, own, known, n):
    """Against columns picked from a dense matrix; what the other has not is ignored and counted."""
    monkeypatch.setattr(features, "BLOCK", 7)
    rng = np.random.default_rng(1)
    X = rng.integers(0, 3, (20, 4)).astype(float)
    names = own or list(range(4))
    ids = known and np.array(known, np.uint32)
    like = SimpleNamespace(n_features=len(known) if known else n, width=known[-1] + 1 if known else n, ids=ids)
    wanted = known or list(range(n))
    found, line = features.onto(table(X, own, names[-1] + 1), like)
    got = sparse.csr_array((found.values, found.indices, found.indptr), (20, found.n_features)).toarray()
    for k, name in enumerate(wanted):
        assert np.array_equal(got[:, k], X[:, names.index(name)] if name in names else np.zeros(20)), name
    lacking = [name for name in names if name not in wanted]
    entries = int((X[:, [names.index(name) for name in lacking]] != 0).sum())
    assert found.nnz == (X != 0).sum() - entries and (found.ids is like.ids or np.array_equal(found.ids, ids))
    assert found.width == like.width and found.n_features == len(wanted)
    if not lacking:
        assert line is None
    elif len(lacking) == 1:
        assert line == f"new.svm: feature {lacking[0] + 1} that training had not, in {entries} entries, ignored"
    else:
        assert line.startswith(f"new.svm: {len(lacking)} features (the first is {lacking[0] + 1}) that training had not, in "
                               f"{entries} entries")


def test_a_feature_without_entries_is_not_counted():
    _, line = features.onto(table(np.array([[1.0, 0, 0, 0]]), None, 4), SimpleNamespace(n_features=1, width=1, ids=None))
    assert line is None
    _, line = features.onto(table(np.array([[0, 0, 0, 1.0]]), None, 4, 0), SimpleNamespace(n_features=1, width=1, ids=None))
    assert "feature 3 that" in line


def test_arrays_and_files_are_narrowed_alike(tmp_path):
    """And a file's features are counted by its own numbers, whatever --features says."""
    X = sparse.csr_array((np.arange(1.0, 7), [5, 3 << 30, 5, 9, 7, 3 << 30], [0, 2, 4, 6]), (3, 2**32))
    whole = from_arrays(X, [0, 1, 0])
    assert whole.ids.tolist() == [5, 7, 9, 3 << 30] and whole.indices.tolist() == [0, 3, 0, 2, 1, 3] and whole.width == 2**32
    assert from_arrays(X, [0, 1, 0], narrow=False).n_features == 2**32
    (tmp_path / "x.svm").write_text("0 6:1 3221225473:2\n1 6:3 10:4\n0 8:5 3221225473:6\n")
    read = dataset.read(tmp_path / "x.svm", cache=False, n_features=2**32 - 5)
    assert np.array_equal(read.ids, whole.ids) and (read.n_features, read.width) == (4, 2**32 - 5)
    with pytest.raises(dataset.UserError, match="x.svm, line 1: got index 3221225473, needed at most 10;"):
        dataset.read(tmp_path / "x.svm", cache=False, n_features=10)


def problem(width):
    """(X, X with its columns at numbers of a wide matrix, y, those numbers)."""
    rng = np.random.default_rng(0)
    X = sparse.random_array((300, 20), density=0.3, rng=rng, format="csr", dtype=np.float32)
    ids = np.sort(rng.choice(width, 20, replace=False))
    wide = sparse.csr_array((X.data, ids[X.indices], X.indptr), (300, width))
    return X, wide, np.where(X @ np.linspace(-1, 1, 20) > 0, 1, 0), ids


def test_estimators_with_a_hundred_million_columns():
    """The same weights as on the columns that occur, by fit and by batches that bring new ones; in the memory of those."""
    from hogwild.estimators import HogwildClassifier
    X, wide, y, ids = problem(10**8)
    make = lambda: HogwildClassifier(workers=1, random_state=0, epochs=2)  # noqa: E731
    narrow, ours = make().fit(X, y), make().fit(wide, y)
    assert ours.coef_.shape == (1, 10**8) and np.array_equal(ours.coef_[0, ids], narrow.coef_[0])
    assert np.count_nonzero(ours.coef_[0, ids]) == 20 and np.array_equal(ours.intercept_, narrow.intercept_)
    assert np.allclose(ours.decision_function(wide), narrow.decision_function(X), rtol=1e-5, atol=1e-6)
    narrow, ours = make(), make()
    for start in range(0, 300, 3):  # the first batches lack some
        part = slice(start, start + 3)
        narrow.partial_fit(X[part], y[part], classes=[0, 1])
        ours.partial_fit(wide[part], y[part], classes=[0, 1])
    assert np.allclose(ours.coef_[0, ids], narrow.coef_[0], rtol=1e-5) and len(ours._state.theta) == 21
    few = sparse.csr_array((300, 10**8), dtype=np.float32)
    assert np.allclose(ours.decision_function(few), ours.intercept_)


def test_what_does_not_fit_is_refused_before_it_is_taken(monkeypatch):
    from hogwild.families import linear
    from hogwild.kernels.losses import Logistic
    from hogwild.kernels.optim.rules import SGD
    monkeypatch.setattr("hogwild.training.machine.memory", lambda: 30)
    with pytest.raises(dataset.UserError, match="2 features that occur with 1 float32 each.* GiB, this machine has .*; hash"):
        linear.Linear(from_arrays(np.eye(2), [0, 1]), None, Logistic(), SGD())
    with pytest.raises(dataset.UserError, match="4,294,967,295 features that occur, needed fewer than"):
        linear.demand_room(2**32 - 1, 1)


def svmlight(path, X, y):
    rows = zip(y, X.indptr, X.indptr[1:])
    path.write_text("".join(f"{label} " + " ".join(f"{j + 1}:{v}" for j, v in zip(X.indices[a:b], X.data[a:b])) + "\n"
                            for label, a, b in rows))
    return path


def test_a_mistyped_id_costs_nothing(tmp_path, monkeypatch, capsys):
    """Trained, measured, predicted and inspected as on the columns that occur; so is a --features beyond them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    X, wide, y, ids = problem(4 * 10**9)
    narrow, ours = svmlight(tmp_path / "narrow.svm", X, y), svmlight(tmp_path / "wide.svm", wide, y)
    said = []
    for path, more in ((narrow, ()), (ours, ()), (ours, ("--features", 4 * 10**9)), (narrow, ("--features", 4 * 10**9))):
        assert run("train", "linear", path, "--model", "m", "--workers", 1, "--epochs", 2, "--transform", "tfidf", *more) == 0
        assert len(model_files.load("m")[0]["weights"]) == 21
        assert run("evaluate", "m", path) == 0 and run("predict", "m", path) == 0
        said.append([line for line in capsys.readouterr().out.splitlines()[-304:] if ".svm" not in line])
    assert said[0] == said[1] == said[2] == said[3] and len(said[0]) > 300
    (tmp_path / "new.svm").write_text(f"1 {ids[0] + 1}:1 {ids[3] + 2}:5\n0 4000000001:2 4000000002:1\n")
    assert run("train", "linear", ours, "--model", "m", "--workers", 1, "--epochs", 2, "--transform", "tfidf") == 0
    assert run("train", "linear", ours, "--test", "new.svm", "--workers", 1, "--epochs", 2, "--transform", "tfidf") == 0
    line = f"new.svm: 3 features (the first is {ids[3] + 2}) that training had not, in 3 entries, ignored"
    assert line in capsys.readouterr().out
    assert run("evaluate", "m", "new.svm") == 0 and line in capsys.readouterr().err
    assert run("inspect", ours) == 0 and f"features    {wide.indices.max() + 1:,} (20 occur)" in capsys.readouterr().out
