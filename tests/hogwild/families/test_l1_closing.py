"""The end of a run with an L1 penalty: as many weights are 0 as at the optimum, and the objective is not higher."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import Lasso, LogisticRegression

from hogwild import HogwildClassifier, HogwildRegressor
from hogwild.cli import main
from hogwild.data.dataset import from_arrays
from hogwild.families import linear
from hogwild.kernels.losses import LOSSES, Logistic
from hogwild.kernels.optim.rules import SGD, AdaGrad
from hogwild.kernels.optim.schedules import Constant
from hogwild.kernels.optim.steps import Clip, Decay
from hogwild.training import model_files
from hogwild.training.loop import train

N, D, L1 = 600, 300, 0.003


def texts(classes=2, seed=0):
    """Rows of about 15 of 300 words, few of which tell anything."""
    rng = np.random.default_rng(seed)
    x = sp.random(N, D, 0.05, format="csr", random_state=seed, dtype=np.float32)
    x.data[:] = 0.25
    w = np.where(np.arange(D)[:, None] < 20, 20 * rng.standard_normal((D, max(classes, 2))), 0)
    z = x @ w + rng.gumbel(size=(N, max(classes, 2)))
    return x, z.argmax(1)


def objective(x, y, w, l1, l2=0.0):
    y = np.where(y > 0, 1, -1)
    fit = np.logaddexp(0, -y * (x @ w[:-1] + w[-1])).mean()
    return fit + l1 * np.abs(w[:-1]).sum() + l2 / 2 * np.square(w[:-1]).sum()


def optimum(x, y, **options):
    return LogisticRegression(C=1 / (N * L1), solver="saga", max_iter=5000, tol=1e-6, **options).fit(x, y)


@pytest.mark.parametrize("rule, mode, workers, more", [
    (AdaGrad(), "wild", 1, {}), (SGD(), "wild", 1, {"average": 1000}), (AdaGrad(), "wild", 2, {}),
    (AdaGrad(), "deterministic", 2, {"decay": Decay(), "clip": Clip(), "average": 10**9}), (AdaGrad(), "locked", 2, {}),
    (AdaGrad(), "wild", 1, {"decay": Decay(l2=0.001)})])
def test_as_sparse_as_the_optimum(rule, mode, workers, more):
    x, y = texts()
    l2 = more["decay"].l2 if "decay" in more else 0.0
    best = optimum(x, y, l1_ratio=1.0) if not l2 else LogisticRegression(
        C=1 / (N * (L1 + l2)), l1_ratio=L1 / (L1 + l2), solver="saga", max_iter=5000, tol=1e-6).fit(x, y)
    least = objective(x, y, np.append(best.coef_, best.intercept_), L1, l2)
    made = linear.Linear(from_arrays(x, y), None, Logistic(), rule, workers=workers, mode=mode, l1=L1, **more)
    train(made, rule, Constant(0.2), epochs=5, workers=workers)
    before, (noisy, left) = made.w.copy(), made.close()
    assert noisy == np.count_nonzero(before[:-1]) > 2 * left == 2 * np.count_nonzero(made.w[:-1])
    assert left <= 1.5 * np.count_nonzero(best.coef_) and left >= 5
    assert objective(x, y, made.w, L1, l2) <= objective(x, y, before, L1, l2)
    assert objective(x, y, made.w, L1, l2) < 1.01 * least
    made.begin(made.steps)  # training goes on from the weights as they were
    assert np.array_equal(made.w, before)


def test_softmax_and_one_against_the_rest():
    x, y = texts(4)
    best = optimum(x, y, l1_ratio=1.0)
    soft = HogwildClassifier(loss="softmax", l1=L1, epochs=5, workers=1, random_state=0).fit(x, y)
    rest = HogwildClassifier(l1=L1, epochs=5, workers=1, random_state=0).fit(x, y)
    assert 5 <= np.count_nonzero(soft.coef_) <= 1.5 * np.count_nonzero(best.coef_)

    def value(fitted):
        p = fitted.predict_proba(x)
        return -np.log(p[np.arange(N), y]).mean() + L1 * np.abs(fitted.coef_).sum()
    assert value(soft) < 1.01 * value(best)
    for k in range(4):
        least = optimum(x, y == k, l1_ratio=1.0)
        w, of_best = np.append(rest.coef_[k], rest.intercept_[k]), np.append(least.coef_, least.intercept_)
        assert objective(x, y == k, w, L1) < 1.01 * objective(x, y == k, of_best, L1)
        assert np.count_nonzero(rest.coef_[k]) <= 1.5 * max(np.count_nonzero(least.coef_), 2)


def test_lasso_of_targets_of_any_size():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 40))
    y = 1e4 + 100 * (x[:, :5] @ np.arange(1.0, 6) + 3 * rng.standard_normal(200))
    ours, best = HogwildRegressor(l1=30.0, workers=1, random_state=0).fit(x, y), Lasso(alpha=30.0).fit(x, y)
    assert np.array_equal(ours.coef_ == 0, best.coef_ == 0) and 3 <= np.count_nonzero(best.coef_) <= 30
    assert np.allclose(ours.coef_, best.coef_, atol=1)


@pytest.mark.parametrize("name", ["hinge", "squared-hinge", "modified-huber", "perceptron"])
def test_losses_with_kinks(name):
    x, y = texts()
    made = linear.Linear(from_arrays(x, y), None, LOSSES[name](), AdaGrad(), l1=L1)
    train(made, AdaGrad(), Constant(0.2), epochs=5)
    sign = np.where(y > 0, 1.0, -1.0)

    def value(w):
        z = x @ w[:-1] + w[-1]
        return np.mean([LOSSES[name]().evaluate(*pair)[0] for pair in zip(z, sign)]) + L1 * np.abs(w[:-1]).sum()
    before = made.w.copy()
    made.close()
    assert value(made.w) <= value(before) * (1 + 1e-6)


def test_rows_left_out_and_without_weight_do_not_count():
    x, y = texts()
    rows, weights = np.arange(0, N, 2), np.where(np.arange(N) % 4 == 0, 1.0, 0.0)
    labels = np.where(np.arange(N) % 4 == 0, y, 1 - y)
    few = linear.Linear(from_arrays(x, labels), None, Logistic(), AdaGrad(), l1=L1, rows=rows, weights=weights)
    same = linear.Linear(from_arrays(x, y), None, Logistic(), AdaGrad(), l1=L1, rows=rows, weights=weights)
    for made in few, same:
        train(made, AdaGrad(), Constant(0.2), epochs=3)
        made.close()
    assert np.array_equal(few.w, same.w)


def test_the_command_says_and_saves_it(tmp_path, capsys):
    x, y = texts()
    lines = [f"{label} " + " ".join(f"{j + 1}:{v}" for j, v in zip(row.indices, row.data)) for row, label in zip(x, y)]
    (tmp_path / "a.svm").write_text("\n".join(lines) + "\n")
    run = ["train", "linear", str(tmp_path / "a.svm"), "--l1", str(L1), "--workers", "1", "--no-cache"]
    main.main([*run, "--model", str(tmp_path / "m")])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("l1: of ")]
    left = np.count_nonzero(model_files.load(tmp_path / "m")[0]["weights"][:-1])
    assert len(said) == 1 and f" were not 0, {left} help  accuracy " in said[0]


def test_partial_fit_goes_on_from_all_weights():
    x, y = texts()
    ours = HogwildClassifier(l1=L1, epochs=5, workers=1, random_state=0).fit(x, y)
    theta, steps = ours._state.theta[:-1, 0, 0].copy(), ours._state.steps
    assert np.count_nonzero(theta) > 2 * np.count_nonzero(ours.coef_) > 0 and steps == 5 * N
    ours.partial_fit(x[:10], y[:10])
    assert np.count_nonzero(ours.coef_) > 0.5 * np.count_nonzero(theta)
