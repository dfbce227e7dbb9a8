"""What the options of `hogwild train linear` do, through the command line; lr="auto" by itself."""

import json
import lzma

import numpy as np
import pytest
from command import fails, own_cache, run, svm  # noqa: F401
from sklearn.metrics import log_loss

from hogwild.data.dataset import from_arrays
from hogwild.errors import UserError
from hogwild.families import linear
from hogwild.kernels.losses import Logistic, SoftmaxCrossEntropy, Squared
from hogwild.kernels.optim.rules import SGD, AdaGrad, Momentum
from hogwild.kernels.optim.schedules import Constant
from hogwild.training import lr_search, replication
from hogwild.training.loop import train
from hogwild.training.model_files import load


def digits(path, classes=3, rows=300, seed=0):
    """Three classes, told apart by which third of the features is large; labels 2, 4, 6."""
    rng = np.random.default_rng(seed)
    with open(path, "w") as file:
        for _ in range(rows):
            k, x = rng.integers(classes), rng.random(9).round(2) + 0.01
            x[3 * k:3 * k + 3] += 0.5
            file.write(f"{2 * k + 2} " + " ".join(f"{j + 1}:{v:.2f}" for j, v in enumerate(x)) + "\n")
    return path


@pytest.mark.parametrize("loss", ["logistic", "softmax", "hinge"])
def test_several_classes_train_evaluate_predict(tmp_path, capsys, loss):
    data, test = digits(tmp_path / "a.svm"), digits(tmp_path / "b.svm", seed=1)
    assert run("train", "linear", data, "--test", test, "--loss", loss, "--epochs", 30, "--model", "m", "--workers", 2) == 0
    capsys.readouterr()
    assert load("m")[0]["weights"].shape == (10, 3) and load("m")[1]["classes"] == [2, 4, 6]
    assert run("evaluate", "m", test) == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert float(said["accuracy"]) > 0.9 and ("log_loss" in said) == (loss != "hinge")
    assert run("predict", "m", test) == 0
    found, shown = np.array([line.split() for line in capsys.readouterr().out.splitlines()], float).T
    truth = np.array([line.split()[0] for line in test.read_text().splitlines()], float)
    assert np.mean(found == truth) == pytest.approx(float(said["accuracy"]), abs=1e-6)
    if loss != "hinge":
        assert run("predict", "m", test, "--probabilities") == 0
        header, *lines = capsys.readouterr().out.splitlines()
        p = np.array([line.split() for line in lines], float)
        assert header == "2 4 6" and np.allclose(p.sum(1), 1) and np.array_equal(shown, p.max(1))
        assert np.array_equal(found, 2 + 2 * p.argmax(1))
        assert float(said["log_loss"]) == pytest.approx(log_loss(truth, p), rel=1e-3)


@pytest.mark.parametrize("mode", replication.MODES)
def test_every_mode_learns(tmp_path, capsys, mode):
    record = tmp_path / "r.jsonl"
    assert run("train", "linear", svm(tmp_path / "a.svm"), "--transform", "log,l2", "--mode", mode, "--epochs", 8,
               "--workers", 2, "--record", record) == 0
    events = [json.loads(line) for line in record.read_text().splitlines()]
    assert events[0]["mode"] == mode and events[0]["preflight"]["omega"] == 6 and events[-1]["metrics"]["accuracy"] > 0.85
    assert f"mode {mode}" in capsys.readouterr().out


def test_penalties_weights_and_averages_change_the_model(tmp_path):
    data, models = svm(tmp_path / "a.svm"), {}
    for name, more in {"plain": [], "l1": ["--l1", 0.02], "l2": ["--l2", 0.1], "average": ["--average", 1],
                       "weight": ["--class-weight", "-1=3,1=1"], "balanced": ["--class-weight", "balanced"],
                       "retries": ["--retries", 0]}.items():
        assert run("train", "linear", data, "--transform", "log,l2", "--workers", 1, "--model", "m", *more) == 0
        models[name] = load("m")[0]["weights"]
    plain = models["plain"]
    assert (models["l1"][:-1] == 0).sum() > (plain[:-1] == 0).sum()
    assert np.linalg.norm(models["l2"]) < np.linalg.norm(plain)
    assert models["weight"][-1] < plain[-1] and not np.array_equal(models["average"], plain)
    assert np.array_equal(models["retries"], plain)


def test_weights_of_rows(tmp_path, capsys):
    """As class weights of the same size, with which they are multiplied; each belongs to its row, held out or not."""
    labels = [line.split()[0] for line in svm(tmp_path / "a.svm").read_text().splitlines()]
    train = "train", "linear", "a.svm", "--transform", "log,l2", "--workers", 1, "--epochs", 3
    for name, weights in {"six": {"+1": 6, "-1": 1}, "two": {"+1": 2, "-1": 1}, "none": {"+1": 0, "-1": 0}}.items():
        (tmp_path / name).write_text("".join(f"{weights[label]:.1f}\n" for label in labels))
    (tmp_path / "six.xz").write_bytes(lzma.compress((tmp_path / "six").read_bytes()))
    models = []
    for options in (["--class-weight", "1=6"], ["--sample-weight", "six.xz"],
                    ["--class-weight", "1=3", "--sample-weight", "two"], []):
        assert run(*train, "--model", "m", *options) == 0
        models.append(load("m")[0]["weights"])
    assert all(np.array_equal(model, models[0]) for model in models[:3]) and not np.array_equal(models[0], models[3])
    assert "all rows of a.svm to train on have weight 0" in fails(capsys, *train, "--sample-weight", "none")
    kept = "--sample-weight", "six", "--checkpoint", "c"
    assert run(*train, *kept) == 0
    (tmp_path / "six").write_bytes((tmp_path / "two").read_bytes())
    assert "a run with other data" in fails(capsys, *train, *kept, "--resume")


@pytest.mark.parametrize("text, said", [
    ("1\n2\nnan\n4\n", "w, line 3: needed a finite number, not negative, got 'nan'"), ("1\n-2\n3\n4\n", "w, line 2"),
    ("1\n1e39\n3\n4\n", "w, line 2"), ("weight\n1\n2\n3\n4\n", "w, line 1: needed a finite number, not negative, got 'w"),
    ("1\n\n3\n4\n", "w, line 2"), ("1\n2 3\n3\n4\n", "w, line 2"), ("1\n2\n-inf\n4", "w, line 3"),
    ("1\n2\n3\n", "w: holds 3 weights, a.svm 4 rows"), ("", "w: is empty")])
def test_mistakes_in_weights_of_rows(tmp_path, capsys, text, said):
    (tmp_path / "a.svm").write_text("1 1:1\n-1 2:1\n1 1:2\n-1 2:2\n")
    (tmp_path / "w").write_text(text)
    assert said in fails(capsys, "train", "linear", "a.svm", "--sample-weight", "w")


def test_stopping(tmp_path, capsys):
    data = svm(tmp_path / "a.svm")
    assert run("train", "linear", data, "--max-steps", 500, "--workers", 2, "--epochs", 9) == 0
    out = capsys.readouterr().out
    assert "stopped: 500 steps are done" in out and "epoch 2/9" in out and "epoch 3/9" not in out
    assert run("train", "linear", data, "--max-seconds", 0, "--epochs", 9) == 0
    assert "epoch 2/9" not in capsys.readouterr().out
    assert run("train", "linear", data, "--early-stopping", "accuracy", "--patience", 2, "--epochs", 500) == 0
    out = capsys.readouterr().out
    assert "accuracy has not risen for 2 epochs" in out and "epoch 500/500" not in out
    assert run("train", "linear", data, "--early-stopping", "accuracy", "--target", 0.6, "--epochs", 50) == 0
    assert "has reached" in capsys.readouterr().out
    assert run("train", "linear", data, "--tol", 10, "--patience", 1, "--epochs", 50) == 0
    assert "training loss has not fallen" in capsys.readouterr().out


def test_a_row_that_explodes_is_named_by_its_line(tmp_path, capsys):
    data = svm(tmp_path / "a.svm", rows=200)
    lines = data.read_text().splitlines()
    lines[80] = "+1 3:3e38 4:3e38"
    data.write_text("\n".join(lines) + "\n")
    assert run("train", "linear", data, "--rule", "sgd", "--holdout", 0, "--epochs", 50, "--loss", "squared-hinge") == 2
    printed = capsys.readouterr()
    assert "a.svm, line " in printed.out and "half the learning rate, there " in printed.out
    assert "halved 5 times before" in printed.err and len(printed.err.strip().splitlines()) == 1


def test_mistakes_in_the_new_options(tmp_path, capsys):
    data = svm(tmp_path / "a.svm")
    train = "train", "linear", data
    assert "unknown mode 'tame': choose from wild" in fails(capsys, *train, "--mode", "tame")
    assert "--lr must be auto or a finite number" in fails(capsys, *train, "--lr", "fast")
    assert "--resume needs --checkpoint" in fails(capsys, *train, "--resume")
    assert "no metric 'speed'" in fails(capsys, *train, "--early-stopping", "speed")
    assert "needs held-out data" in fails(capsys, *train, "--early-stopping", "f1", "--holdout", 0)
    assert "patience" in fails(capsys, *train, "--patience", 0)
    assert "--class-weight must be" in fails(capsys, *train, "--class-weight", "1:2")
    assert "label 7, which no row of" in (said := fails(capsys, *train, "--class-weight", "7=2"))
    assert "a.svm" in said and "its labels are -1, 1" in said
    assert "--l1 must be" in fails(capsys, *train, "--l1", -1)
    assert "target" in fails(capsys, *train, "--target", 0.5)
    assert "seconds" in fails(capsys, *train, "--checkpoint", "c", "--checkpoint-seconds", -1)
    (tmp_path / "junk").write_bytes(b"junk")
    assert "junk" in fails(capsys, *train, "--checkpoint", "junk", "--resume")


def sample(scale=1.0, rows=2000):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 10)) * scale
    return from_arrays(x, np.where(x @ np.arange(10.0) > 0, 1, -1))


@pytest.mark.parametrize("rule", [SGD(), AdaGrad()])
def test_best_rate_is_the_best_of_those_tried(rule):
    data = sample()

    def make(rows):
        return linear.Linear(data, None, Logistic(), rule, rows=rows)
    best, losses = lr_search.best_rate(make, rule, 0.1, np.arange(2000), workers=2)
    assert len(losses) >= 8 and losses[best] == min(losses.values()) and losses[best] < 0.5 * max(losses.values())
    assert {best / 2, best * 2} & set(losses)

    def trained(lr):  # by other code than that which has tried them
        problem = linear.Linear(data, None, Logistic(), rule)
        train(problem, rule, Constant(lr), epochs=1)
        return problem.mean_loss(np.arange(2000))
    assert trained(best) < min(trained(best / 16), trained(best * 16))
    assert lr_search.best_rate(make, rule, 0.1, np.arange(2000), workers=1)[0] == best


@pytest.mark.parametrize("loss, weighted", [(Logistic(), False), (SoftmaxCrossEntropy(), True)])
def test_losses_are_those_that_scikit_learn_measures(loss, weighted):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 3)), rng.integers(0, 3 if weighted else 2, 60)
    weights = rng.random(60).astype(np.float32) if weighted else None
    problem = linear.Linear(from_arrays(x, y), None, loss, SGD(), weights=weights)
    problem.shared[:] = rng.standard_normal(problem.shared.shape)
    before, z = problem.shared.copy(), x @ problem.w[:-1] + problem.w[-1]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True) if weighted else 1 / (1 + np.exp(-z))
    truth = log_loss(y, p, sample_weight=weights) * (weights.mean() if weighted else 1)
    assert problem.mean_loss(np.arange(60)) == pytest.approx(truth, rel=1e-5)
    assert np.array_equal(problem.shared, before)


def test_the_best_rate_is_measured_without_a_step():
    """Where momentum has the rate inside, a run at rate 0 would go on: measured after it, another rate won."""
    data, rule = sample(rows=400), Momentum(lr_inside=True)
    order, problems = np.random.default_rng((0, 0)).permutation(400), []

    def make(rows):
        problems.append(linear.Linear(data, None, Logistic(), rule, rows=rows))
        return problems[-1]
    _, losses = lr_search.best_rate(make, rule, 0.01, np.arange(400))
    z = data.labels[order[:100]] * np.array([data_row @ p.w[:-1] + p.w[-1] for p in problems for data_row in
                                             data.values.reshape(400, 10)[order[:100]]]).reshape(len(problems), 100)
    assert sorted(losses.values()) == pytest.approx(sorted(np.logaddexp(0, -z).mean(1)), rel=1e-4)


def test_no_rate_is_finite():
    data = from_arrays(np.full((50, 2), 1e30), np.arange(50.0))
    with pytest.raises(UserError, match="no learning rate"):
        lr_search.best_rate(lambda rows: linear.Linear(data, None, Squared(), SGD(), rows=rows), SGD(), 0.1,
                       np.arange(50))


def test_lr_auto(tmp_path, capsys):
    assert run("train", "linear", svm(tmp_path / "a.svm"), "--lr", "auto", "--workers", 2) == 0
    assert "the best of" in capsys.readouterr().out


def test_rates_are_tried_beyond_the_grid():
    """Columns of 1e3: plain SGD wants a rate 1e6 times smaller than for columns of 1."""
    data = sample(scale=1e3)
    best, losses = lr_search.best_rate(lambda rows: linear.Linear(data, None, Logistic(), SGD(), rows=rows), SGD(), 5.0,
                                  np.arange(2000))
    assert min(losses) < best < max(losses) and best < 5.0 * lr_search.GRID[0] / 2 and len(losses) <= 20
