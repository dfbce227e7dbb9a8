"""The data sets of the benchmarks: the encoding of kddcup99, and what is said of a set that is missing."""

import gzip

import numpy as np
import pytest

from hogwild.experiments.plan import datasets


def line(duration, protocol, label):
    return f"{duration},{protocol},http,SF,{','.join(['0'] * 36)},1.00,{label}.\n"


@pytest.fixture
def kdd(tmp_path, monkeypatch):
    monkeypatch.setenv("HOGWILD_DATA", str(tmp_path))
    path = tmp_path / datasets.KDD
    path.parent.mkdir()
    rows = [line(k, "tcp" if k % 2 else "udp", "normal" if k % 3 else "smurf") for k in range(100)]
    with gzip.open(path, "wt") as file:
        file.writelines(rows)


@pytest.mark.usefixtures("kdd")
def test_kddcup99_encoding():
    (name, train, test), = datasets.load(names=("kddcup99",))
    assert name == "kddcup99" and (train.rows, test.rows) == (80, 20)
    assert train.n_features == test.n_features == 38 + 2 + 1 + 1 and train.values.dtype == np.float32
    X, y = datasets.matrix(train).toarray(), train.labels
    assert X[:, 0].max() == X[:, 37].max() == 1 and X.min() == 0
    assert (X[:, 38:40].sum(axis=1) == 1).all() and (X[:, 40:] == 1).all()
    largest = max(np.expm1(d) for d in (np.log1p(99), np.log1p(98)))
    whole = np.concatenate([X, datasets.matrix(test).toarray()])
    duration = np.sort(np.rint(np.expm1(whole[:, 0] * np.log1p(largest))))
    assert set(np.unique(y)) == {-1, 1} and np.isclose(np.append(y, test.labels).mean(), (34 - 66) / 100)
    assert duration[0] == 0 and len(np.unique(duration)) == 100


def test_missing_sets_are_named_with_the_command_that_gets_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOGWILD_DATA", str(tmp_path))
    (name, *_), = datasets.load(100, ("imdb", "synthetic"))
    assert name == "synthetic, 100 rows"
    with pytest.raises(SystemExit, match="nothing to measure"):
        list(datasets.load(names=("imdb", "kddcup99")))
    assert capsys.readouterr().err.splitlines() == [
        f"skipped: no data set {name}: python -m hogwild.experiments fetch {name}" for name in ("imdb", "imdb", "kddcup99")]


def test_synthetic_split():
    (name, train, test), = datasets.load(rows=1000, names=("synthetic",))
    assert "1,000" in name and (train.rows, test.rows) == (1000, 50)
    assert (datasets.matrix(train).sum(axis=1) > 0).all()
