"""hogwild.load: what Python predicts is what `hogwild predict` prints, to the last digit."""

import csv
import io
import warnings

import numpy as np
import pytest
from command import own_cache, run, svm  # noqa: F401
from scipy import sparse
from sklearn.datasets import load_svmlight_file
from sklearn.metrics import accuracy_score

import hogwild
from hogwild.data.dataset import from_arrays
from hogwild.errors import UserError
from hogwild.families import linear_model
from hogwild.training import model_files


def table(path, rows=150, seed=0, header=True):
    """A CSV of two columns of numbers and one of text; labels low, mid and high, "mid dle" being one word of a line."""
    rng = np.random.default_rng(seed)
    with open(path, "w") as file:
        file.writelines(["size,town,age,y\n"] * header)
        for _ in range(rows):
            size, age, town = rng.normal(), rng.normal(), rng.choice(["Bonn", "Kiel", "Ulm"])
            z = 2 * size - age + 3 * (town == "Ulm")
            file.write(f"{size:.4f},{town},{age:.4f},{'low' if z < 0 else 'mid dle' if z < 3 else 'high'}\n")
    return path


def printed(capsys, *arguments):
    """The rows that `hogwild predict m FILE` prints, as lists of words."""
    capsys.readouterr()
    assert run("predict", "m", *arguments) == 0
    return list(csv.reader(io.StringIO(capsys.readouterr().out), delimiter=" "))


def agrees(model, X, capsys, path):
    """Assert that a loaded model's predictions of X are what the command prints of the file `path`."""
    rows = printed(capsys, path)
    if not hasattr(model, "classes_"):
        assert [repr(float(value)) for value in model.predict(X)] == [value for value, in rows]
        return
    names = [name if isinstance(name, str) else f"{name:g}" for name in model.predict(X)]
    assert names == [row[0] for row in rows]
    scores = model.decision_function(X)
    if hasattr(model, "predict_proba"):
        header, *table = printed(capsys, path, "--probabilities")
        likely = model.predict_proba(X)
        assert [[repr(float(p)) for p in row] for row in likely] == table
        assert header == [name if isinstance(name, str) else f"{name:g}" for name in model.classes_]
        shown = likely.max(axis=1)
    else:
        shown = scores if scores.ndim == 1 else scores.max(axis=1)
    assert [repr(float(x)) for x in shown] == [row[1] for row in rows]
    best = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
    assert np.array_equal(model.classes_[best], model.predict(X))


def relabelled(loss):
    """The model in the file m made one of another loss, to spare the kernels that would train it; loaded."""
    tensors, header = model_files.load("m")
    w = tensors["weights"].reshape(len(tensors["weights"]), -1)[:, -1]
    tensors["weights"] = np.stack([-w / 3, w], axis=1) if loss == "softmax" else w
    header |= {"loss": loss, "classes": None if loss == "squared" else [-1.0, 1.0]}
    model_files.save("m", tensors, header)
    return hogwild.load("m")


@pytest.mark.parametrize("transform", ["none", "log,l2", "tfidf,scale"])
def test_svmlight(tmp_path, capsys, transform):
    data, new = svm(tmp_path / "a.svm"), svm(tmp_path / "b.svm", rows=50, seed=1)
    assert run("train", "linear", data, "--transform", transform, "--epochs", 20, "--workers", 1, "--model", "m") == 0
    X, y = load_svmlight_file(str(new), n_features=30)
    assert accuracy_score(y, hogwild.load("m").predict(X)) > 0.8
    for loss in "logistic", "softmax", "modified-huber", "squared", "hinge":
        model = relabelled(loss)
        for given in X, X.toarray(), new:
            agrees(model, given, capsys, new)
        if transform == "none":  # nothing stands between X and its scores
            z = (X @ model.coef_.T).reshape(len(y)) + model.intercept_
            mine = model.predict(X) if loss == "squared" else model.decision_function(X)
            assert np.allclose(z, mine, atol=1e-4) and model.n_features_in_ == 30
    assert not hasattr(model, "predict_proba")
    with pytest.raises(AttributeError, match="m has no probabilities, its loss is Hinge: train with --loss logistic"):
        model.predict_proba(X)


def test_a_table_with_categories_and_three_classes(tmp_path, capsys):
    data, new = table(tmp_path / "a.csv"), table(tmp_path / "b.csv", 40, 1)
    assert run("train", "linear", data, "--loss", "softmax", "--epochs", 20, "--workers", 1, "--model", "m") == 0
    tensors, header = model_files.load("m")
    for loss in "hinge", "logistic", "softmax":
        model_files.save("m", tensors, header | {"loss": loss})
        model = hogwild.load("m")
        agrees(model, new, capsys, new)
    assert model.classes_.tolist() == ["high", "low", "mid dle"] and model.coef_.shape == (3, 5)
    frame = {"size": [0.5], "age": [-1.0], "town=Kiel": [0], "town=Bonn": [0], "town=Ulm": [1]}
    names = [name for name, _ in sum(model.top_features(9, "high"), [])]
    assert sorted(names) == sorted(frame)
    import pyarrow as pa
    with pytest.raises(UserError, match="X has column '.*' where the model has feature '.*'; give its columns in the model's "
                                        r"order \(size, age, town=.*\), or the path of a file"):
        model.predict(pa.table({name: frame[name] for name in reversed(frame)}))
    order = hogwild.models.registry.load("m").schema.columns
    right = pa.table({name: frame[name] for name in order})
    assert model.predict(right).tolist() == ["high"] == model.predict(np.array([[frame[name][0] for name in order]])).tolist()


def test_features_that_training_had_not(tmp_path, capsys):
    data, new = svm(tmp_path / "a.svm"), svm(tmp_path / "b.svm", d=40, rows=50, seed=1)
    assert run("train", "linear", data, "--transform", "l2", "--epochs", 2, "--workers", 1, "--model", "m") == 0
    model, X = hogwild.load("m"), load_svmlight_file(str(new))[0]
    with pytest.warns(UserWarning, match=r"X: \d+ features \(the first is 30\) that training had not, in \d+ entries"):
        agrees(model, X, capsys, new)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        some = X[:, :20]
        wide = sparse.csr_array((some.data, some.indices, some.indptr), (50, 30))
        assert np.array_equal(model.decision_function(some), model.decision_function(wide))
    with pytest.raises(UserError, match="X has 40 columns, the model 30 features; only a sparse matrix may have another"):
        model.predict(X.toarray())
    with pytest.raises(UserError, match="X, row 1.* not finite"):
        model.predict(np.where(np.arange(60).reshape(2, 30) == 33, np.nan, 1.0))


def test_few_features_of_many(tmp_path, capsys):
    """An id of two million is a column of two million, of which the model has none that training had not."""
    text = "".join(f"{y} 7:{1 + k % 3} 2000000:{2 * y}\n" for k, y in enumerate([1, -1] * 40))
    (tmp_path / "a.svm").write_text(text)
    assert run("train", "linear", "a.svm", "--epochs", 5, "--workers", 1, "--model", "m") == 0
    model, X = hogwild.load("m"), load_svmlight_file("a.svm")[0]
    assert len(model_files.load("m")[0]["weights"]) == 3
    agrees(model, X, capsys, "a.svm")
    assert model.coef_.shape == (1, 2_000_000) and set(np.flatnonzero(model.coef_[0])) <= {6, 1_999_999}
    assert model.top_features().positive[0] == (1_999_999, float(model.coef_[0, -1]))


def saved(weights, loss, classes, **more):
    """A model of these weights in the file m, loaded."""
    d = from_arrays(np.eye(len(weights) - 1), np.zeros(len(weights) - 1))
    model_files.save("m", *linear_model.contents(np.array(weights, np.float32), d, loss, (), {}, classes))
    return hogwild.load("m")


def test_top_features():
    two = saved([0.5, -2, 0, 3, -1, 3, 9], "logistic", np.array([-1.0, 1.0]))
    assert two.top_features() == ([(3, 3.0), (5, 3.0), (0, 0.5)], [(1, -2.0), (4, -1.0)])
    assert two.top_features(1) == two.top_features(1, 1) == ([(3, 3.0)], [(1, -2.0)])
    assert two.top_features(1, class_=-1) == ([(1, 2.0)], [(3, -3.0)])
    assert repr(two.top_features(1)) == "TopFeatures(positive=[(3, 3.0)], negative=[(1, -2.0)])"
    log_odds = saved([[1, 3], [2, -1], [0, 0]], "softmax", np.array(["a", "b"]))
    assert log_odds.top_features() == ([(0, 2.0)], [(1, -3.0)]) and log_odds.coef_.tolist() == [[2, -3]]
    three = saved([[1, 3, 0], [2, -1, 1], [0, 0, 0]], "hinge", np.array(["a", "b", "c"]))
    assert three.top_features(class_="b") == ([(0, 3.0)], [(1, -1.0)])
    real = saved([1, -1, 4], "huber", None)
    assert real.top_features(n=5) == ([(0, 1.0)], [(1, -1.0)]) and real.intercept_.tolist() == [4]
    for model, arguments, says in ((three, {}, "class_ must be one of 'a', 'b', 'c', got None"),
                                   (two, {"class_": 7}, "class_ must be one of -1.0, 1.0, got 7"),
                                   (real, {"class_": 1}, "class_ must be None: a regression has no classes, got 1"),
                                   (two, {"n": 0}, "n must be a whole number of at least 1, got 0")):
        with pytest.raises(UserError, match=says):
            model.top_features(**arguments)


def test_what_is_no_model(tmp_path):
    with pytest.raises(UserError, match="none: no such file; give a model written by --model"):
        hogwild.load("none")
    model_files.save("net", {"w": np.zeros(3)}, {"family": "mlp"})
    with pytest.raises(UserError, match="net: is a model of family 'mlp', hogwild knows linear"):
        hogwild.load("net")
    assert repr(saved([1, 2, 3], "squared", None)) == "<LoadedRegressor m: Squared, 2 features>"
