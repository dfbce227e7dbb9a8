"""The rules on functions whose behaviour is known in closed form, as the experiments on optimizers measure it."""

import json
import math

import numpy as np
import pytest

from hogwild.experiments.programs import functions, optimizers
from hogwild.kernels.optim.rules import RULES
from hogwild.kernels.optim.schedules import Constant


@pytest.fixture
def measure(tmp_path, capsys):
    def run(*words):
        path = tmp_path / "run.jsonl"
        path.unlink(missing_ok=True)
        assert optimizers.main([*map(str, words), "--record", str(path)]) == 0, capsys.readouterr().err
        events = [json.loads(line) for line in path.read_text().splitlines()]
        points = [(event["step"], event["metrics"]) for event in events if event["event"] == "evaluation"]
        return events[-1]["metrics"], points
    return run


@pytest.mark.parametrize("condition", [10, 100])
def test_a_quadratic_contracts_as_the_eigenvalues_of_the_step_say(measure, condition):
    root = condition**0.5
    found, _ = measure("quadratic", "--rule", "sgd", "--condition", condition, "--steps", 10_000)
    assert found["factor"] == pytest.approx((condition - 1) / (condition + 1), rel=1e-9)
    # sum of |x_k - x_(k+1)| where x changes its sign and shrinks by that factor at each step
    assert found["swing"] == pytest.approx(condition, rel=1e-4)
    assert abs(found["needed"] - found["theory"]) <= 1
    factors = {"momentum": (root - 1) / (root + 1), "nesterov": 1 - 1 / root}
    for rule in "momentum", "nesterov", "slow-momentum":
        found, _ = measure("quadratic", "--rule", rule, "--condition", condition, "--steps", 10_000)
        best = functions.best_setting(rule, condition)
        ahead = rule == "nesterov"
        spectra = [abs(np.linalg.eigvals([[1 + best.mu - best.lr * c * (1 + best.mu * ahead), -best.mu * (
            1 - best.lr * c * ahead)], [1, 0]])).max() for c in (1.0, condition)]
        assert max(spectra) == pytest.approx(best.factor, rel=1e-6) and best.factor == pytest.approx(
            factors.get(rule, best.factor))
        assert found["factor"] == pytest.approx(best.factor, rel=0.07)  # a double root adds a factor k


def test_one_step_of_each_rule_is_its_closed_form():
    line = functions.Function(np.zeros(3), None, lambda w: np.array([3.0, -0.5, 1e-3]))
    def first(rule, **options):
        return next(w.copy() for _, w in functions.descent(rule, Constant(0.1), line, 1, **options))
    sign = np.array([-0.1, 0.1, -0.1])
    for rule in RULES["adam"](), RULES["adagrad"]():
        np.testing.assert_allclose(first(rule), sign, rtol=2e-5)
    np.testing.assert_allclose(first(RULES["rmsprop"](alpha=0.9)), sign / 0.1**0.5, rtol=4e-5)
    np.testing.assert_allclose(first(RULES["adam"](), offset=optimizers.UNBIASED), sign * 0.1 / 0.001**0.5, rtol=4e-4)


def test_memory_and_bias_correction_and_reversal(measure):
    found, points = measure("impulse", "--rule", "rmsprop:alpha=0.9", "--steps", 30)
    np.testing.assert_allclose([m["weight"] for _, m in points], 0.9 ** np.arange(31), rtol=1e-12)
    assert found["half"] == math.ceil(math.log(0.5) / math.log(0.9))
    _, points = measure("constant", "--rule", "adam", "--uncorrected", "--steps", 50)
    steps = np.arange(1, 51)
    np.testing.assert_allclose([m["move"] for _, m in points], (1 - 0.9**steps) / (1 - 0.999**steps) ** 0.5, rtol=1e-6)
    # the velocity 10 - 20 (1 - 0.9^k) of momentum is below 0 from k = 7 on; Nesterov adds the gradient once more
    assert measure("reversal", "--rule", "momentum", "--steps", 400)[0]["turn"] == 7
    assert measure("reversal", "--rule", "nesterov", "--steps", 400)[0]["turn"] == 6


def test_rates_of_convergence(measure):
    def slope(points):
        points = [(math.log(step), math.log(m["gap"])) for step, m in points if step >= 30]
        return np.polyfit(*np.transpose(points), 1)[0]
    found, points = measure("smooth", "--rule", "sgd", "--steps", 1000)
    assert all(m["gap"] <= found["distance2"] / (2 * step) for step, m in points) and abs(slope(points) + 1) < 0.1
    found, points = measure("smooth", "--rule", "nesterov", "--steps", 1000)
    assert all(m["gap"] <= 2 * found["distance2"] / (step + 1) ** 2 for step, m in points) and slope(points) < -1.7
    gaps = [measure("stochastic", "--function", "absolute", "--steps", steps)[0]["gap"] for steps in (100, 6400)]
    assert 6 < gaps[0] / gaps[1] < 10  # the root of 64 is 8


def test_adaptive_rules_fail_on_wilsons_examples(measure):
    words = "--steps", 500, "--train", 40, "--test", 50, "--positive", 0.6
    for rule, lr in ("sgd", 0.3), ("momentum", 0.05):
        found, _ = measure("constructed", "--rule", rule, "--lr", lr, *words)
        assert (found["train_error"], found["test_error"]) == (0, 0)
    for rule, lr in ("adagrad", 0.02), ("rmsprop", 0.001), ("adam", 0.003):
        found, _ = measure("constructed", "--rule", rule, "--lr", lr, *words)
        assert (found["train_error"], found["test_error"]) == (0, pytest.approx(0.4))  # lemma 3.1: all called positive


def test_digits_are_learnt():
    pytest.importorskip("sklearn")
    task = functions.digits(0)
    *_, (_, w) = functions.descent(RULES["adam"](), Constant(0.01), task.function, 300)
    assert task.accuracy(task.function.start) < 0.3 and task.accuracy(w) > 0.9 and task.batches == 79  # of 1,258 images


def test_gradients_are_derivatives():
    rng = np.random.default_rng(0)
    train, _ = functions.constructed(0, 10, 5, 0.6)
    for each in (functions.quadratic(np.array([1.0, 5]), np.ones(2)), functions.separable_logistic(0), functions.absolute(4),
                 functions.saturating(4), functions.squared_loss(train)):
        w = rng.standard_normal(len(each.start))
        numeric = [(each.value(w + h) - each.value(w - h)) / 2e-6 for h in 1e-6 * np.eye(len(w))]
        np.testing.assert_allclose(each.gradient(w), numeric, atol=1e-6)


def test_schedules_are_drawn(measure):
    found, points = measure("schedule", "--schedule", "plateau:patience=1,factor=0.5", "--steps", 50)
    assert [m["rate"] for _, m in points][::5] == [1] * 7 + [0.5] * 2 + [0.25] and found["mean"] == 0.825
    _, points = measure("schedule", "--schedule", "onecycle", "--warmup", "10steps", "--steps", 50)
    assert points[0][1]["rate"] == 0 and all("momentum" in m for _, m in points)
    _, points = measure("schedule", "--schedule", "multistep:gamma=0.1,milestones=5epochs", "--steps", 50)  # a list of one
    assert [m["rate"] for _, m in points] == 25 * [1] + 25 * [0.1]
    for kind, second in ("triangular", 1.0), ("triangular2", 0.55):  # from 0.1 up to 1, the second time to all or half of it
        _, points = measure("schedule", "--schedule", f"{kind}:up=10,down=10", "--steps", 50)
        assert [points[k][1]["rate"] for k in (0, 10, 20, 30)] == pytest.approx([0.1, 1, 0.1, second])


@pytest.mark.parametrize("words, message", [
    ([], "name a measurement: quadratic"), (["quadratic", "--rule", "adam"], "--rule must be one of sgd, momentum"),
    (["quadratic", "--condition", "1"], "--condition in"), (["smooth", "--function", "cubic"], "one of quadratic, logistic"),
    (["stochastic", "--steps", "1"], "--steps must be at least 2"), (["constructed", "--positive", "0.5"], "--positive in")])
def test_mistakes_are_one_line(words, message, capsys):
    assert optimizers.main(words) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
