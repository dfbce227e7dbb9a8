"""Stopping criteria against torch's plateau scheduler, scikit-learn's SGD and runs written out by hand."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.linear_model import SGDClassifier

from hogwild.errors import UserError
from hogwild.training.stopping import Stop, Stopper

grid = st.integers(0, 40).map(lambda i: i / 40)  # coarse, so that equal values and steps of just min_delta occur
values = st.lists(st.one_of(grid, st.floats(-10, 10), st.just(math.nan)), max_size=25)


def run(stopper, metric, losses=None, name="accuracy", first=1):
    """(epoch, reason) of the stop, (None, None) without one; one metric an epoch."""
    for epoch, value in enumerate(metric, first):
        loss = losses[epoch - first] if losses else 1.0
        if reason := stopper.observe(epoch, {"other": 0.0, name: value}, loss, 100 * epoch, float(epoch)):
            return epoch, reason
    return None, None


@given(values, st.integers(1, 5), st.sampled_from([0.0, 0.025, 0.25]), st.booleans())
def test_patience_is_that_of_torchs_plateau(metric, patience, min_delta, maximise):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max" if maximise else "min", threshold=min_delta,
                                                        patience=patience - 1, threshold_mode="abs")
    expected = None
    for epoch, value in enumerate(metric, 1):
        oracle.step(value)
        if optimizer.param_groups[0]["lr"] < 1.0:
            expected = epoch
            break
    name = "accuracy" if maximise else "rmse"
    assert run(Stopper(Stop(name, patience, min_delta)), metric, name=name)[0] == expected


@given(values, st.booleans())
def test_best_is_the_first_of_the_best_by_any_margin(metric, maximise):
    name, better = ("f1", max) if maximise else ("log_loss", min)
    stopper, improved = Stopper(Stop(name, patience=100, min_delta=0.5)), []
    for epoch, value in enumerate(metric, 1):
        assert stopper.observe(epoch, {name: value}, 1.0, 0, 0.0) is None
        improved.append(stopper.improved)
    finite = [x for x in metric if math.isfinite(x)]
    if finite:
        assert stopper.best_epoch == metric.index(better(finite)) + 1 and stopper.best == better(finite)
        assert max(e for e, yes in enumerate(improved, 1) if yes) == stopper.best_epoch
    else:
        assert stopper.best_epoch is None and not any(improved)


@given(values, st.lists(st.floats(0, 2), min_size=25, max_size=25), st.integers(0, 25))
@example([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [1.0] * 25, 3)
def test_restored_goes_on_as_if_never_interrupted(metric, losses, cut):
    stop = Stop("accuracy", patience=4, min_delta=0.025, tol=0.01, target=0.99)
    whole, first = Stopper(stop), Stopper(stop)
    expected = run(whole, metric, losses)
    found = run(first, metric[:cut], losses)
    if found[0] is None:
        second = Stopper(stop)
        second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
        found = run(second, metric[cut:], losses[cut:], first=min(cut, len(metric)) + 1)
        assert second.state() == whole.state()
    assert found == expected


@pytest.mark.parametrize("tol, patience, lr", [(1e-3, 5, 0.5), (1e-3, 2, 2.0), (0.03, 1, 0.1), (1e-2, 3, 8.0), (0.0, 3, 8.0)])
def test_tol_is_that_of_scikit_learns_sgd(tol, patience, lr, capsys):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(400, 10))
    y = X @ rng.normal(size=10) + rng.normal(size=400) > 0
    oracle = SGDClassifier(loss="log_loss", penalty=None, tol=tol, n_iter_no_change=patience, learning_rate="constant",
                           eta0=lr, max_iter=300, random_state=0, verbose=1).fit(X, y)
    losses = [float(x) for x in re.findall(r"Avg\. loss: ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == oracle.n_iter_ < 300
    epoch, reason = run(Stopper(Stop(tol=tol, patience=patience)), [math.nan] * len(losses), losses)
    assert epoch == oracle.n_iter_ and "training loss" in reason and f"best {min(losses):g}" in reason


def test_a_loss_that_falls_by_just_tol_has_fallen():
    assert run(Stopper(Stop(tol=0.25, patience=1)), [0] * 4, [1.0, 0.75, 0.5, 0.375]) == (
        4, "the training loss has not fallen by 0.25 for 1 epoch (best 0.375)")


def test_losses_that_are_not_finite_are_no_improvement():
    assert run(Stopper(Stop(tol=0.0, patience=2)), [0] * 3, [1.0, math.inf, math.nan])[0] == 3
    epoch, reason = run(Stopper(Stop(tol=0.0, patience=2)), [0] * 3, [math.nan, -math.inf, 1.0])
    assert epoch == 2 and "never finite" in reason


@pytest.mark.parametrize("stop, metric, expected", [
    (Stop("accuracy", 3, 0.001), [0.5, 0.6, 0.7, 0.8871, 0.8872, 0.88, 0.5],
     (7, "accuracy has not risen by more than 0.001 for 3 epochs (best 0.8872 in epoch 5)")),
    (Stop("rmse", 1), [3.0, 2.0, 2.0], (3, "rmse has not fallen for 1 epoch (best 2 in epoch 2)")),
    (Stop("accuracy", 2), [math.nan] * 9, (2, "accuracy has not risen for 2 epochs (never finite)")),
    (Stop("accuracy", target=0.9), [0.8, 0.95], (2, "accuracy has reached 0.95 (target 0.9)")),
    (Stop("accuracy", target=0.9), [0.8, 0.9, 0.7], (2, "accuracy has reached 0.9 (target 0.9)")),
    (Stop("rmse", target=0.5), [0.8, 0.4], (2, "rmse has reached 0.4 (target 0.5)")),
    (Stop("accuracy", target=0.9), [0.8, math.inf, 0.85], (None, None)),
    (Stop("reward", mode="max", target=3), [1, 4], (2, "reward has reached 4 (target 3)")),
    (Stop("accuracy", 1, mode="min"), [0.5, 0.6], (2, "accuracy has not fallen for 1 epoch (best 0.5 in epoch 1)")),
    (Stop(max_steps=250), [0.5] * 9, (3, "300 steps are done (max_steps 250)")),
    (Stop(max_seconds=2.5), [0.5] * 9, (3, "3.0 s of training are over (max_seconds 2.5)")),
    (Stop(), [0.5] * 50, (None, None)),
])
def test_runs_by_hand(stop, metric, expected):
    assert run(Stopper(stop), metric, name=stop.metric or "accuracy") == expected


def test_an_observation_counts_even_when_a_budget_ends_the_run():
    stopper = Stopper(Stop("accuracy", max_steps=100))
    assert "steps" in run(stopper, [0.7])[1] and stopper.improved and stopper.best_epoch == 1


def test_budgets_within_an_epoch():
    stopper = Stopper(Stop("accuracy", max_steps=10, max_seconds=0.5))
    before = stopper.state()
    assert stopper.spent(9, 0.4) is None and "steps" in stopper.spent(10, 0.4) and "s of training" in stopper.spent(9, 0.5)
    assert stopper.state() == before


def test_wrong_names_are_told_with_those_known():
    with pytest.raises(UserError, match="'acuracy'.*accuracy, f1"):
        Stopper(Stop("acuracy"), known=["accuracy", "f1"])
    with pytest.raises(UserError, match="'auc'.*rmse"):
        Stopper(Stop("auc")).observe(1, {"rmse": 1.0}, 1.0, 1, 1.0)
    with pytest.raises(UserError, match="held-out"):
        Stopper(Stop("auc"), known=[])
    Stopper(Stop("auc"), known={"auc": 0.5})
    Stopper(Stop(), known=[])


@pytest.mark.parametrize("name, bad", [
    ("patience", (0, -1, 1.5, None, True, "3", math.nan)), ("min_delta", (-0.1, math.nan, math.inf, None, "0")),
    ("max_steps", (0, 2.5, math.inf)), ("max_seconds", (-1.0, math.nan, math.inf)), ("target", (math.nan, math.inf, "x")),
    ("tol", (-1e-9, math.nan, False)), ("mode", ("up", 1))])
def test_numbers_outside_their_range(name, bad):
    for value in bad:
        with pytest.raises(UserError) as caught:
            Stop(**{"metric": "auc", name: value})
        assert name in str(caught.value) and repr(value) in str(caught.value) and "\n" not in str(caught.value)


def test_target_needs_a_metric_and_state_its_version():
    with pytest.raises(UserError, match="target 0.9 .*metric"):
        Stop(target=0.9)
    with pytest.raises(UserError, match="version"):
        Stopper(Stop()).restore({"best": 1.0})
