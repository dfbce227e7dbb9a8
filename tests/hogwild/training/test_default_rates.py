"""Default learning rates: for rows of any length as for unit length; and hints about sizes."""

import re

import numpy as np
import pytest
from command import own_cache, run  # noqa: F401

from hogwild.data.dataset import from_arrays
from hogwild.families import linear as family
from hogwild.kernels.losses import Hinge, Logistic, Squared
from hogwild.kernels.optim.rules import RULES, SGD, AdaGrad, Adam, Momentum, Nesterov
from hogwild.kernels.optim.schedules import Constant
from hogwild.training import default_rates
from hogwild.training.loop import train


def reals(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((500, 5))
    return x * scale, x @ rng.standard_normal(5) + 1 + 0.1 * rng.standard_normal(500)


def trained(x, y, loss, rule, seed=0, intercept=True):
    data = from_arrays(x, y)
    problem = family.Linear(data, None, loss, rule, intercept=intercept)
    lr = default_rates.default_lr(rule, loss, default_rates.sizes_of(data))
    return problem, train(problem, rule, Constant(lr), epochs=5, seed=seed)


@pytest.mark.parametrize("rule", [SGD(), Momentum()])
def test_least_squares_converges_at_the_default_rate(rule):
    """On rows of length 2.2, whose noise alone is 0.005; before, momentum diverged for every seed."""
    for seed in range(8):
        history = trained(*reals(seed), Squared(), rule, seed=seed)[1]
        assert len({epoch.lr for epoch in history}) == 1 and history[-1].loss < 0.01


@pytest.mark.parametrize("rule, scales", [(SGD(), (1e-6, 1e-3, 255.0, 1e6)), (AdaGrad(), (255.0, 1e6))])
def test_scores_do_not_depend_on_the_scale_of_the_rows(rule, scales):
    x, y = reals()
    y = np.where(y > 1, 1, -1)
    x *= 2  # longer than LONG
    problems = [trained(x * scale, y, Logistic(), rule, intercept=type(rule) is SGD)[0] for scale in (1, *scales)]
    scores = [x * scale @ p.w[:-1] + p.w[-1] for scale, p in zip((1, *scales), problems)]
    for other in scores[1:]:
        assert np.allclose(scores[0], other, rtol=1e-3, atol=1e-3 * np.abs(scores[0]).max())


@pytest.mark.parametrize("name", RULES)
def test_rows_of_unit_length_have_the_rates_that_were_chosen_on_them(name):
    data = from_arrays(np.eye(200), np.arange(200) % 2)
    sizes = default_rates.sizes_of(data)
    assert default_rates.default_lr(RULES[name](), Logistic(), sizes) == default_rates.UNIT[RULES[name]]
    assert sizes[1:5] == pytest.approx((1, 1, 1, 1 / 200)) and sizes.rows == 200


def test_weights_of_rows_count_as_their_length_does():
    x, y = reals()
    data, weights = from_arrays(x, y), np.full(500, 9, np.float32)
    plain, weighted = default_rates.sizes_of(data), default_rates.sizes_of(data, None, weights)
    whole = default_rates.default_lr(SGD(), Squared(), plain)
    assert default_rates.default_lr(SGD(), Squared(), weighted) == pytest.approx(whole / 9)
    assert default_rates.default_lr(Adam(), Squared(), weighted) == default_rates.default_lr(Adam(), Squared(), plain)
    weights[250:] = 0
    half = default_rates.sizes_of(data, np.arange(250), weights)
    assert default_rates.sizes_of(data, None, weights)[1:4] == pytest.approx(half[1:4])
    assert default_rates.sizes_of(from_arrays(np.zeros((3, 2)), np.arange(3))).rows == 0
    a, b = (default_rates.sizes_of(data, np.arange(*part)) for part in ((0, 100), (100, 500)))
    assert a.joined(b)[:4] == pytest.approx(plain[:4], rel=0.05) and a.joined(b).steep == pytest.approx(plain.steep)


@pytest.mark.parametrize("scales, rule, lr, said", [
    ((1, 1), SGD(), None, None), ((1, 500), SGD(), None, "differ [45].. times, and rule sgd"),
    ((1, 500), AdaGrad(), None, None),
    ((30, 30), SGD(), 0.5, "learning rate 0.5 may be too large .*about 0.00"), ((30, 30), SGD(), None, None),
    ((1e-3, 1e-3), AdaGrad(), None, "the rows are short")])
def test_hints(scales, rule, lr, said):
    x = np.random.default_rng(0).uniform(0.5, 1, (300, 2)) * scales
    sizes = default_rates.sizes_of(from_arrays(x, np.arange(300)))
    hint = default_rates.hint(rule, Squared(), sizes, lr or default_rates.default_lr(rule, Squared(), sizes))
    assert hint is None if said is None else re.search(said, hint)


def test_a_few_long_rows():
    x = np.random.default_rng(0).uniform(0.5, 1, (1000, 2))
    x[0] *= 1e4
    sizes = default_rates.sizes_of(from_arrays(x, np.arange(1000)))
    lr = default_rates.default_lr(Nesterov(), Hinge(), sizes)
    assert "a few rows are up to " in default_rates.hint(SGD(), Hinge(), sizes, lr)


def test_the_command_line_hints(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 2)) * (1, 1e4)
    (tmp_path / "a.svm").write_text("".join(f"{int(a > 0)} 1:{a:.4f} 2:{b:.4f}\n" for a, b in x))
    assert run("train", "linear", tmp_path / "a.svm", "--rule", "sgd") == 0
    assert re.search(r"hint: the columns' scales differ (9|10),... times", capsys.readouterr().out)
    assert run("train", "linear", tmp_path / "a.svm", "--rule", "sgd", "--transform", "scale") == 0
    out = capsys.readouterr().out
    assert "hint:" not in out and float(out.split("accuracy ")[-1].split()[0]) > 0.9
