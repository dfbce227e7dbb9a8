"""What is taken where the user names nothing, and weights of rows of any size."""

import json
import re
import warnings

import numpy as np
import pytest
from command import own_cache, run, svm  # noqa: F401
from sklearn.exceptions import ConvergenceWarning

from hogwild.estimators import HogwildClassifier, HogwildRegressor
from hogwild.training import default_rates, preflight
from hogwild.training.model_files import load


def reals(rows=300, columns=8):
    x = np.random.default_rng(0).standard_normal((rows, columns))
    return x, 20 * x @ np.arange(1.0, columns + 1)


@pytest.mark.parametrize("rows, epochs", [(1, 200), (249, 200), (300, 167), (9_999, 6), (10_000, 5), (10**9, 5)])
def test_small_data_get_more_epochs(rows, epochs):
    assert default_rates.default_epochs(rows) == epochs


def test_the_command_line_says_how_many_epochs_and_a_schedule_spans_them(tmp_path, capsys):
    record = tmp_path / "r.jsonl"
    assert run("train", "linear", svm(tmp_path / "a.svm", rows=300), "--schedule", "polynomial", "--record", record,
               "--holdout", 0, "--checkpoint", "c") == 0
    out = capsys.readouterr().out
    assert ", 167 epochs, 1 worker," in out  # 2,000 examples a worker
    assert "epoch   1/167" in out and "epoch 167/167" in out and out.count("epoch ") < 100  # each is done in a millisecond
    epochs = [event for event in map(json.loads, record.read_text().splitlines()) if event["event"] == "epoch"]
    assert len(epochs) == 167 and epochs[-1]["lr"] == pytest.approx(epochs[0]["lr"] / (166 * 300 + 1), rel=1e-3)
    assert run("train", "linear", "a.svm", "--schedule", "polynomial", "--holdout", 0, "--checkpoint", "c", "--resume") == 0


def test_training_takes_as_many_workers_as_inspect_advises(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(preflight, "usable_cores", lambda: (2, "2 cores"))
    for rows in (3000, 5000):
        data = svm(tmp_path / f"{rows}.svm", rows=rows)
        assert run("inspect", data) == 0
        advised = re.search(r"workers +(\d) advised", capsys.readouterr().out)[1]
        assert run("train", "linear", data, "--holdout", 0, "--epochs", 1) == 0
        assert f", {advised} worker" in capsys.readouterr().out and advised == str(rows // 2000)


def test_plateau_without_held_out_data_watches_the_training_loss(tmp_path, capsys):
    assert run("train", "linear", svm(tmp_path / "a.svm", rows=100), "--holdout", 0, "--epochs", 5, "--lr", 0.1,
               "--schedule", "plateau:patience=0,threshold=9,factor=0.5") == 0
    assert re.findall(r"  lr (\S+)  ", capsys.readouterr().out) == ["0.1", "0.1", "0.05", "0.025", "0.0125"]
    x, y = reals()
    coefs = [HogwildRegressor(schedule=schedule, epochs=9, random_state=0, workers=1).fit(x, y).coef_
             for schedule in ("constant", "plateau:patience=0,threshold=0.9,factor=0.01")]
    assert not np.array_equal(*coefs)


@pytest.mark.parametrize("kind", [HogwildRegressor, HogwildClassifier])
@pytest.mark.parametrize("spoil", [lambda x: x, lambda x: x[:5], lambda x: x[:, :1], np.ones_like, lambda x: x * 1e3])
def test_apollo_stays_finite(kind, spoil):
    x, y = reals()
    x, y = spoil(x), y[:len(spoil(x))]
    y = y > np.median(y) if kind is HogwildClassifier else y
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the training loss of epoch")  # constant columns cannot do better
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the training loss of epoch")
        ours = kind(rule="apollo", random_state=0, workers=1).fit(x, y)
    assert np.isfinite(ours.coef_).all() and (len(np.unique(x)) < 9 or x.shape[1] < 8 or ours.score(x, y) > 0.9)


def test_epochs_that_run_out_under_tol_are_said():
    x, y = reals()
    with pytest.warns(ConvergenceWarning, match="all 2 epochs are done and the training loss still falls"):
        HogwildRegressor(tol=1e-9, epochs=2, random_state=0, workers=1).fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert HogwildRegressor(tol=1e6, epochs=20, patience=2, workers=1).fit(x, y).n_iter_ < 20
        HogwildRegressor(tol=1e-9, workers=1).partial_fit(x, y)


@pytest.mark.parametrize("weight", [1e-50, 1e-16, 1e20, 1e200])
def test_weights_out_of_range_are_named(tmp_path, capsys, weight):
    x, y = reals()
    with pytest.raises(ValueError, match=re.escape(f"is {weight:g} (row 1); needed one from 1e-15 to 1e+15: divide all")):
        HogwildRegressor(workers=1).fit(x, y, np.full(300, weight))
    svm(tmp_path / "a.svm", rows=50)
    (tmp_path / "w").write_text(f"{weight}\n" * 50)
    assert run("train", "linear", "a.svm", "--sample-weight", "w", "--epochs", 1) == 2
    said = capsys.readouterr().err
    assert f"{weight:g}" in said and "weight" in said


def test_single_weights_below_what_float32_holds(tmp_path, capsys):
    x, y = reals()
    weights = np.ones(300)
    weights[[3, 7]] = 1e-50, 0
    ours = HogwildRegressor(workers=1, random_state=0, epochs=2)
    with pytest.warns(UserWarning, match="weights below 1.2e-38 count as 0: 1 row"):
        tiny = ours.fit(x, y, weights).coef_
    weights[3] = 0
    assert np.array_equal(tiny, ours.fit(x, y, weights).coef_)
    svm(tmp_path / "a.svm", rows=50)
    (tmp_path / "w").write_text("1\n" * 30 + "1e-50\n" + "1\n" * 19)
    assert run("train", "linear", "a.svm", "--sample-weight", "w") == 2
    assert "row 31 has weight 1e-50, which float32 holds as 0" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_the_size_of_all_weights_does_not_matter_at_the_default_rate(tmp_path, size):
    svm(tmp_path / "a.svm", rows=200)
    models = []
    for factor in (1, size):
        (tmp_path / "w").write_text(f"{factor}\n{3 * factor}\n" * 100)
        assert run("train", "linear", "a.svm", "--sample-weight", "w", "--rule", "sgd", "--model", "m", "--epochs", 3) == 0
        models.append(load("m")[0]["weights"])
    assert np.allclose(*models, rtol=1e-3, atol=1e-3)
