"""Task `linear`: it is the ground floor's problem, and its model the ground floor's model."""

import re

import jobs
import numpy as np
import pytest
import scipy.sparse
from sklearn import metrics as theirs

from hogwild.cli import main
from hogwild.data import splits, synthetic, transforms
from hogwild.kernels.optim.steps import Clip, Decay
from hogwild.training import model_files
from sparsecomm.tasks.options import LinearOptions
from sparsecomm.tasks.registry import build

LINEAR = ("logistic", "one-against-rest", "softmax", "huber")


@pytest.mark.parametrize("name", LINEAR)
def test_learns_and_its_model_is_hogwilds(tmp_path, name, capsys):
    """`hogwild evaluate` measures on the held-out file what the task does, `hogwild predict` has as many right."""
    classes = {"logistic": 2, "huber": 0}.get(name, 4)
    x, y = jobs.rows(classes, n=300)
    train, test = (jobs.svmlight(tmp_path / part, x[own], y[own]) for part, own in (
        ("train.svm", slice(200)), ("test.svm", slice(200, 300))))
    options = LinearOptions(train, test=test, transform="tfidf,l2", cache=False, batch=10,
                            loss=name if name in ("softmax", "huber") else "logistic")
    task = jobs.trained(build("linear", options), 20, 0.2)
    found = task.evaluate()
    assert found["r2"] > 0.5 if name == "huber" else found["accuracy"] > 0.7
    model_files.save(tmp_path / "model", *task.export())
    main.main(["evaluate", str(tmp_path / "model"), str(test), "--no-cache"])
    said = dict(re.findall(r"^(\w+) +([\d.]+)$", capsys.readouterr().out, re.M))
    assert {metric: float(value) for metric, value in said.items()} == pytest.approx(found, abs=2e-6)
    main.main(["predict", str(tmp_path / "model"), str(test), "--no-cache"])
    guesses = np.array([line.split()[0] for line in capsys.readouterr().out.splitlines()], float)
    if name == "huber":
        assert theirs.r2_score(y[200:], guesses) == pytest.approx(found["r2"], abs=1e-4)
    else:
        assert np.mean(guesses == y[200:]) == pytest.approx(found["accuracy"])


@pytest.mark.parametrize("name", LINEAR)
def test_data_are_those_of_hogwild(tmp_path, name):
    """The same rows are trained on and held out, with the same transforms."""
    task = jobs.made(name, tmp_path, seed=5)
    whole, rows, held, _ = splits.read(task.options, task.options.seed)
    log = transforms.apply(("log",), {}, held)
    assert np.array_equal(task.rows, rows) and task.examples == len(rows)
    assert np.array_equal(task.test.values, log.values) and np.array_equal(task.test.labels, held.labels)
    assert task.metric == ("rmse" if name == "huber" else "accuracy")


@pytest.mark.parametrize("name", LINEAR)
def test_a_gradient_needs_no_parameters_but_those_named(tmp_path, name):
    """And is 0 elsewhere; also for a rank without examples in the last batch."""
    for rank, size in ((0, 1), (0, 3)):
        task = jobs.made(name, tmp_path, rank, size, batch=6 // size)
        x, start = jobs.dense(task)[0] != 0, task.flat.copy()
        task.begin(2)
        for k in range(task.steps):
            task.flat[:] = start + 0.1
            features = np.flatnonzero(x[task.own_share(k)[0]].any(0))
            loss, _, whole = jobs.taken(task, k)
            needs = task.needs(k)
            assert needs["weights"].dtype == np.uint32 and needs["intercept"] is None
            want = (features[:, None] * task.count + np.arange(task.count)).ravel()
            assert np.array_equal(needs["weights"], want)
            others = np.delete(np.arange(len(whole["weights"])), want)
            task.tensors()["weights"][others] = np.nan
            again, _, part = jobs.taken(task, k)
            assert again == loss and all(np.array_equal(part[tensor], g) for tensor, g in whole.items())
            assert not whole["weights"][others].any()


@pytest.mark.parametrize("name", LINEAR)
def test_what_a_constant_prediction_gets(tmp_path, name):
    task = jobs.made(name, tmp_path)
    found, y = task.reference(), task.train.labels if task.rows is None else task.train.labels[task.rows]
    if name == "huber":
        def mean(z):
            return np.mean([task.loss.evaluate(z, target)[0] for target in y])
        assert found.start == pytest.approx(mean(y.mean()), rel=1e-4)  # scaled targets have a mean of 0
        assert found.constant == pytest.approx(min(map(mean, (y.mean(), np.sort(y)[(len(y) - 1) // 2]))), rel=1e-4)
        return
    shares = np.unique(y, return_counts=True)[1] / len(y)
    alone = -(shares * np.log(shares) + (1 - shares) * np.log(1 - shares))  # of each class against the rest
    want = {"logistic": alone[0], "softmax": -(shares * np.log(shares)).sum()}.get(name, alone.sum())
    assert found.constant == pytest.approx(want)
    assert found.worse(1.2 * want) and not found.worse(want)


def test_no_intercept(tmp_path):
    task, usual = (jobs.made("softmax", tmp_path, intercept=intercept) for intercept in (False, True))
    assert list(task.tensors()) == ["weights"] and list(usual.tensors()) == ["weights", "intercept"]
    assert usual.undecayed == {"intercept"} and usual.facts["parameters"] - task.facts["parameters"] == 4
    jobs.trained(task, 2, 0.2)
    weights = task.export()[0]["weights"]
    assert weights.shape == (13, 4) and not weights[-1].any() and weights[:-1].any()


def test_synthetic_data():
    """Without DATA: the ground floor's, of which the best accuracy is known."""
    task = build("linear", LinearOptions(rows=2000, batch=50, seed=1))
    assert task.examples == 2000 and task.test.rows == 200 and task.facts["best_accuracy"] > 0.9
    planted = synthetic.rcv1_like(10, seed=1)[1]
    task.tensors()["weights"][:], task.tensors()["intercept"][:] = planted[:-1], planted[-1]
    assert task.evaluate()["accuracy"] == task.facts["best_accuracy"]


def test_converges_to_scikit_learns_optimum(tmp_path):
    """Full batches with momentum-free steps: the minimum of the same strongly convex function."""
    from sklearn.linear_model import LogisticRegression
    x, y = jobs.rows(2, n=80)
    task = build("linear", LinearOptions(jobs.svmlight(tmp_path / "a.svm", x, y), holdout=0.0, batch=80, cache=False))
    w, l2 = task.tensors(), 0.05
    for epoch in range(1, 1500):
        task.begin(epoch)
        _, _, given = jobs.taken(task, 0)
        w["weights"] -= np.float32(0.3) * (given["weights"] + np.float32(l2) * w["weights"])
        w["intercept"] -= np.float32(0.3) * given["intercept"]
    best = LogisticRegression(C=1 / (80 * l2), tol=1e-9, max_iter=1000).fit(scipy.sparse.csr_matrix(x), y)
    assert np.allclose(w["weights"], best.coef_.ravel(), atol=2e-3)
    assert np.isclose(w["intercept"][0], best.intercept_[0], atol=5e-3)


def test_names_and_ids_are_those_of_hogwild(tmp_path, capsys):
    """Text labels, columns found by name, a number far beyond the others: as on small numbers, on any rank, and the model
    tells `hogwild` of them."""
    x, y = jobs.rows(4, n=120)
    names = np.array(["ant", "bee", "cat", "dog"])
    columns = [f"c{j}" for j in range(12)]

    def table(path, order, labels=True):
        rows = [[*row[order].astype(int), *([names[label]] if labels else [])] for row, label in zip(x, y)]
        rows = [[*np.array(columns)[order], *["y"] * labels], *rows]
        path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
        return path
    train, mixed = table(tmp_path / "a.csv", np.arange(12)), table(tmp_path / "b.csv", np.arange(12)[::-1])
    task = jobs.trained(build("linear", LinearOptions(train, test=mixed, cache=False, batch=10)), 20, 0.2)
    assert task.evaluate()["accuracy"] > 0.7 and task.classes.tolist() == names.tolist()
    assert any("label: column 'y'" in note for note in task.notes)
    model_files.save(tmp_path / "model", *task.export())
    unlabelled = table(tmp_path / "c.csv", np.arange(12)[::-1], labels=False)
    main.main(["predict", str(tmp_path / "model"), str(unlabelled), "--no-cache"])
    guesses = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert np.mean(names[y] == guesses) == pytest.approx(task.evaluate()["accuracy"])
    ids = np.append(np.arange(1, 12), 4 * 10**9)
    for name, number in (("wide", ids), ("narrow", np.arange(1, 13))):
        (tmp_path / name).write_text("".join(f"{label} " + " ".join(f"{k}:{v:g}" for k, v in zip(number, row) if v) + "\n"
                                             for row, label in zip(x, y)))
    (tmp_path / "test").write_text("3 4000000000:1 4000000001:2\n7 1:1\n")
    wide, narrow = (build("linear", LinearOptions(tmp_path / name, cache=False, batch=10, test=test), rank, 2)
                    for name, test, rank in (("wide", tmp_path / "test", 0), ("narrow", None, 1)))
    assert wide.train.n_features == 12 and np.array_equal(wide.train.indices, narrow.train.indices)
    assert [note.partition(": ")[2] for note in wide.notes] == [
        "feature 4000000001 that training had not, in 1 entries, ignored",
        "of 4,000,000,000 features 12 occur, and only these need memory",
        "1 of 2 rows have a label that training had not (7); they count as wrong, and not at all in log-loss and AUC"]
    assert wide.export()[0]["ids"].tolist() == (ids - 1).tolist()


def test_targets_of_any_size(tmp_path):
    """Scaled alike on all ranks, and nothing that people see is: loss, metrics, penalties and the model are in y's unit."""
    x, y = jobs.rows(0, n=200)
    path = jobs.svmlight(tmp_path / "a.svm", x, 3e5 + 1e5 * y)
    options = LinearOptions(path, cache=False, batch=20, loss="squared", holdout=0.0, test=path)
    task, other = build("linear", options), build("linear", options, 1, 2)
    assert task.units == other.units and task.units.mean == pytest.approx(3e5 + 1e5 * y.mean(), rel=1e-3)
    task.begin(1)
    loss, count, _ = jobs.taken(task, 0)  # all weights are 0: the mean is predicted
    targets = 3e5 + 1e5 * y[task.order[:20]]
    assert loss == pytest.approx(np.square(targets - task.units.mean).sum() / 2, rel=1e-3) and count == 20
    assert jobs.trained(task, 20, 0.2).evaluate()["r2"] > 0.5
    assert task.export()[0]["weights"].dtype == np.float64 and np.abs(task.export()[0]["weights"][:-1]).max() > 1e4
    assert task.penalties(Decay(l2=0.5, wd=0.1), None) == (Decay(l2=0.5, wd=0.1), None)
    assert task.penalties(None, Clip(norm=2.0))[1].norm == pytest.approx(2.0 / task.units.scale)
