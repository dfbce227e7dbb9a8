"""Real targets of any size: scaled for training, and nothing that people see is."""

import re

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import HuberRegressor, Ridge
from sklearn.svm import LinearSVR

from hogwild import HogwildRegressor
from hogwild.cli import main
from hogwild.errors import UserError
from hogwild.families.targets import Units, moments, units_of
from hogwild.kernels.losses import LOSSES, Huber, Logistic, Squared
from hogwild.kernels.optim.steps import Clip, Decay
from hogwild.training import model_files

SHIFT, SCALE = 3e5, 1e5


def rows(n=400, d=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    return x, SHIFT + SCALE * (x @ np.arange(1.0, d + 1) / 5 + 0.1 * rng.standard_normal(n))


def test_moments_are_weighted_and_join():
    rng = np.random.default_rng(0)
    y, w = 1e9 + rng.standard_normal(50), rng.random(50)
    mean = np.average(y, weights=w)
    deviation = np.average((y - mean)**2, weights=w)**0.5
    whole = moments(y, w)
    assert tuple(whole) == pytest.approx((w.sum(), mean, deviation), rel=1e-6)
    assert tuple(moments(y[:7], w[:7]).joined(moments(y[7:], w[7:]))) == pytest.approx(tuple(whole), rel=1e-6)
    assert moments(np.full(9, 0.1)) == (9, 0.1, 0) and moments([1e140, -1e140])[1:] == (0, 1e140)
    assert moments(np.array([3.0])).deviation == 0
    with pytest.raises(UserError, match="1e\\+200 in row 2"):
        moments([1.0, 1e200])


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].task == "regression"])
def test_the_objective_is_the_same_up_to_a_factor(name):
    """Loss and penalties in y's unit, and those of scaled targets, at the same weights."""
    rng = np.random.default_rng(1)
    x, y, w = rng.standard_normal((9, 3)), 50 + 7 * rng.standard_normal(9), rng.standard_normal(4)
    loss, l1, decay = LOSSES[name](), 0.3, Decay(l2=0.2)
    units = units_of(loss, moments(y), True)

    def objective(loss, u, y, l1, l2):
        z = x @ u[:-1] + u[-1]
        fit = np.mean([loss.evaluate(*pair)[0] for pair in zip(z, y)])
        return fit + l1 * np.abs(u[:-1]).sum() + l2 / 2 * np.square(u[:-1]).sum()
    own, _, own_l1 = units.penalties(decay, None, l1)
    scaled = objective(units.loss(loss), w, (y - units.mean) / units.scale, own_l1, own.l2)
    assert objective(loss, units.weights(w), y, l1, 0.2) == pytest.approx(units.of_loss * scaled)
    # A gradient that was clipped in y's unit: by w = scale u it is of_loss / scale times that by u.
    assert units.penalties(None, Clip(norm=2.0), 0)[1].norm * units.of_loss / units.scale == pytest.approx(2.0)


def test_what_is_not_scaled():
    known = moments([1.0, 2.0])
    assert units_of(Logistic(), known, True) == Units() == units_of(type("Own", (), {"task": "regression"})(), known, True)
    assert units_of(Squared(), known, False)[:2] == (0.0, pytest.approx(2.5**0.5))
    assert units_of(Huber(), moments([4.0, 4.0]), True)[:2] == (4.0, 1.0)


def test_the_command_at_its_defaults(tmp_path, capsys):
    x, y = rows()
    lines = [f"{target:.3f} " + " ".join(f"{j + 1}:{v:.6f}" for j, v in enumerate(row)) for row, target in zip(x, y)]
    (tmp_path / "a.svm").write_text("\n".join(lines) + "\n")
    path, saved = str(tmp_path / "a.svm"), str(tmp_path / "m")
    main.main(["train", "linear", path, "--loss", "squared", "--model", saved, "--no-cache", "--workers", "1",
              "--epochs", "20"])
    said = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss ([\d.e+]+)", said)]
    assert 0.3 * (0.1 * SCALE)**2 < losses[-1] < 0.8 * (0.1 * SCALE)**2  # half the noise's square, in y's unit
    best = Ridge(alpha=1e-6).fit(x, y)
    w = model_files.load(saved)[0]["weights"]
    assert np.allclose(w, [*best.coef_, best.intercept_], atol=0.03 * SCALE)
    main.main(["evaluate", saved, path, "--no-cache"])
    assert float(re.search(r"r2 +([\d.]+)", capsys.readouterr().out)[1]) > best.score(x, y) - 0.002


def of(loss, **options):
    return HogwildRegressor(loss=loss, epochs=100, workers=1, average=50, random_state=0, **options)


def test_penalties_keep_their_meaning():
    x, y = rows()
    ridge = Ridge(alpha=0.3 * len(y)).fit(x, y)
    ours = of("squared", l2=0.3).fit(x, y)
    assert np.allclose(ours.coef_, ridge.coef_, atol=0.01 * SCALE)
    assert ours.intercept_ == pytest.approx(ridge.intercept_, rel=0.02)
    delta, best = 0.05 * SCALE, HuberRegressor(epsilon=1.35, alpha=0).fit(x, y)
    assert np.allclose(of(f"huber:delta={delta}").fit(x, y).coef_, best.coef_, atol=0.02 * SCALE)


@pytest.mark.parametrize("loss, theirs", [("epsilon-insensitive", "epsilon_insensitive"),
                                          ("squared-epsilon-insensitive", "squared_epsilon_insensitive")])
def test_epsilon_insensitive_converges_to_liblinear(loss, theirs):
    x, y = rows()
    epsilon, scaled = 0.05 * SCALE, (y - SHIFT) / SCALE
    best = LinearSVR(epsilon=0.05, C=10, loss=theirs, intercept_scaling=10, max_iter=100_000, dual="auto").fit(x, scaled)
    ours = of(f"{loss}:epsilon={epsilon}").fit(x, y)
    assert np.allclose(ours.coef_ / SCALE, best.coef_, atol=0.02)


def test_partial_fit_scales_by_all_rows_so_far():
    """Sorted targets, the first batch a single row: as good as fit, and in y's unit from the first call."""
    x, y = rows()
    order, ours = np.argsort(y), HogwildRegressor(random_state=0, workers=1)
    ours.partial_fit(x[order[:1]], y[order[:1]])
    assert ours.predict(x[order[:1]]) == pytest.approx(y[order[:1]], rel=1e-4)
    for start in range(1, 400, 10):
        ours.partial_fit(x[order[start:start + 10]], y[order[start:start + 10]])
    assert ours._state.units[:2] == pytest.approx((y.mean(), y.std()), rel=1e-4)
    for start in [*range(0, 400, 10)] * 4:  # their order is random
        ours.partial_fit(x[start:start + 10], y[start:start + 10])
    assert ours.score(x, y) > 0.95


def test_warm_start_in_another_unit():
    """The second fit begins where the first ended, though its targets' unit differs; the average as well."""
    x, y = rows()
    ours = HogwildRegressor(random_state=0, workers=1, warm_start=True, average=0, epochs=20, lr=0.1).fit(x, y)
    first = ours.predict(x)
    ours.set_params(lr=1e-12, epochs=1).fit(x, 10 * y)
    assert np.allclose(ours.predict(x), first, atol=0.01 * SCALE)


def test_equal_targets_one_row_and_no_intercept():
    x, y = rows()
    one = HogwildRegressor(random_state=0, workers=1)
    assert np.allclose(one.fit(x, np.full(400, 7e8)).predict(x), 7e8)
    assert one.fit(x[:1], y[:1]).predict(x[:1]) == pytest.approx(y[:1], rel=1e-6)
    z = y - y.mean()
    without = HogwildRegressor(random_state=0, workers=1, fit_intercept=False).fit(x, z)
    best = minimize(lambda w: np.square(x @ w - z / SCALE).sum(), np.zeros(5)).x
    assert np.allclose(without.coef_ / SCALE, best, atol=0.03) and without.intercept_ == 0


def test_deterministic_and_weighted():
    x, y = rows()
    weights = np.where(np.arange(400) < 200, 2.0, 0.0)
    a, b = (HogwildRegressor(mode="deterministic", workers=k, random_state=0, epochs=40) for k in (1, 2))
    a, b = a.fit(x, y, weights), b.fit(x, y, weights)
    assert np.array_equal(a.coef_, b.coef_) and a._state.units.mean == pytest.approx(y[:200].mean())
    assert np.allclose(a.coef_, Ridge(alpha=1e-6).fit(x[:200], y[:200]).coef_, atol=0.03 * SCALE)
