"""Verdicts on claims: intervals against SciPy's, and each verdict from results that leave no other."""

import numpy as np
import pytest
from scipy import stats as distributions

from hogwild.errors import UserError
from hogwild.experiments.plan import grid
from hogwild.experiments.report import claims
from hogwild.experiments.run import results

TOML = """
title = "Claims"
command = "python run.py {rule} {size} --seed {seed} --record {record}"
[[grid]]
rule = ["slow", "fast"]
size = [10, 100, 1000]
[metrics.steps]
label = "steps"
[[figure]]
name = "steps"
x = "size"
y = "steps"
"""
CLAIM = """
[[claim]]
text = "It is so"
metric = "{}"
"""


@pytest.fixture
def judged(tmp_path):
    def judge(lines, steps, metric="steps"):
        """The verdict where a cell of `rule`, `size` and `seed` needed so many steps."""
        path = tmp_path / "claims.toml"
        path.write_text(TOML + CLAIM.format(metric) + lines)
        experiment = grid.read(path)
        cells = [results.Cell("claims", point.axes, point.seed, "", {"steps": steps(point.axes, point.seed)}, 0, "", "", None,
                              [{"event": "evaluation", "step": k, "metrics": {"loss": (1 + point.seed) / k}}
                               for k in (1, 2, 4, 8)], "", {}, "", "") for point in grid.cells(experiment)]
        return claims.verdict(experiment, experiment.claim[0], cells)
    return judge


def test_intervals_are_those_of_scipy():
    values = [1.0, 2.0, 4.0, 4.5]
    found = claims.mean([*values, None, float("nan")])
    low, high = distributions.t.interval(0.95, 3, np.mean(values), distributions.sem(values))
    assert found[:3] == pytest.approx((np.mean(values), low, high)) and found.n == 4
    x, y = np.array([1.0, 3, 10, 40]), np.array([2.0, 5, 31, 90])
    fit = distributions.linregress(np.log(x), np.log(y))
    found, half = claims.exponent([list(zip(x, y))]), distributions.t.ppf(0.975, 2) * fit.stderr
    assert found[:3] == pytest.approx((fit.slope, fit.slope - half, fit.slope + half))
    runs = [[(k, factor / k**2) for k in (1, 2, 5)] for factor in (1, 100)]  # a factor for each run
    assert claims.exponent(runs).value == pytest.approx(-2) and claims.exponent([[(1, 2), (2, 3)]]) is None


@pytest.mark.parametrize("lines, verdict, words", [
    ("at_most = 5\nwhere = {rule = 'slow', size = 10}", claims.FAILED, "steps should be at most 5; it was 9 ["),
    ("at_least = 9.5\nwhere = {rule = 'slow', size = 10}", claims.OPEN, "interval holds a bound"),
    ("at_least = 1\nwhere = {rule = 'slow'}", claims.HELD, "size 10: 9 [6.516, 11.48]; size 100: "),
    ("at_least = 20\nwhere = {rule = 'slow'}", claims.FAILED, "(in 2 of 3)"),
    ("at_most = 0.5\nwhere = {rule = 'fast', size = 100}\nbaseline = {rule = 'slow'}", claims.HELD, "ratio to slow"),
    ("at_most = 1.1\nat_least = 0.9\nover = 'size'\nwhere = {rule = 'slow'}", claims.HELD, "exponent of steps over size"),
    ("at_most = 1.1\nat_least = 0.9\nover = 'size'\nwhere = {rule = 'fast'}", claims.FAILED, "it was 0.5"),
])
def test_each_verdict_follows_from_the_results(judged, lines, verdict, words):
    def steps(axes, seed):
        return (8 + seed) * axes["size"] / 10 if axes["rule"] == "slow" else axes["size"] ** 0.5
    found = judged(lines, steps)
    assert found.verdict == verdict and words in found.sentence, found
    assert judged(lines, lambda axes, seed: None).verdict == claims.NONE


def test_an_exponent_over_the_evaluations_of_runs(judged):
    lines = "over = 'step'\nat_least = -1.01\nat_most = -0.99\nsince = 2\nwhere = {rule = 'slow', size = 10}"
    found = judged(lines, lambda *_: 1.0, metric="metrics.loss")
    assert found.verdict == claims.HELD and "exponent of loss over step" in found.sentence


@pytest.mark.parametrize("lines, message", [
    ("", "needs at_least, at_most"), ("at_least = 2\nat_most = 1", "in this order"),
    ("at_most = 1\nwhere = {rule = 'x'}", "no value"), ("at_most = 1\nover = 'length'", "unknown 'length'"),
    ("at_most = 1\nover = 'size'\nbaseline = {rule = 'slow'}", "no ratio"),
    ("at_most = 1\nfigure = 'step'", "unknown 'step', meant is perhaps 'steps'")])
def test_mistakes_are_told(judged, lines, message):
    with pytest.raises(UserError, match=message):
        judged(lines, lambda *_: 1.0)
