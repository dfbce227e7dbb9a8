"""Whether the claims of an experiment hold in its results: computed from the cells, with 95% intervals over the seeds."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats as distributions

from hogwild.experiments.report import aggregate, stats
from hogwild.experiments.report.figures import number
from hogwild.experiments.run import results

HELD, FAILED, OPEN, NONE = "held", "did not hold", "undecided", "no result"


class Estimate(NamedTuple):
    """A number with its 95% interval (Student's t); NaN ends where one value gives none."""

    value: float
    low: float
    high: float
    n: int  # values behind it

    @property
    def text(self) -> str:
        if self.n == 1:
            return f"{number(self.value)} (1 run)"
        ends = dict.fromkeys((number(self.low), number(self.high)))
        return f"{number(self.value)} [{', '.join(ends)}]" if len(ends) > 1 else number(self.value)


class Verdict(NamedTuple):
    """One claim and the results."""

    text: str
    verdict: str  # HELD, FAILED, OPEN or NONE
    sentence: str  # verdict, what was asked and what was found, for people
    figure: str


def mean(values) -> Estimate | None:
    """The mean of the finite numbers among `values`; None where there is none."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    if not found:
        return None
    n, middle = len(found), float(np.mean(found))
    if n == 1:
        return Estimate(middle, math.nan, math.nan, 1)
    half = float(distributions.t.ppf(0.975, n - 1) * np.std(found, ddof=1) / n**0.5)
    return Estimate(middle, middle - half, middle + half, n)


def exponent(runs) -> Estimate | None:
    """p of y ~ x^p, with a factor for each of `runs`, lists of (x, y), by least squares of the logarithms.

    None with fewer than three points more than runs.
    """
    logs = [np.log([(x, y) for x, y in run if x > 0 and y > 0]) for run in runs]
    logs = [run - run.mean(0) for run in logs if len(run)]
    x, y = np.concatenate(logs).T if logs else np.zeros((2, 0))
    free, spread = len(x) - len(logs) - 1, float(x @ x)
    if free < 1 or not spread:
        return None
    slope = float(x @ y) / spread
    error = (float(((y - slope * x) ** 2).sum()) / free / spread) ** 0.5
    half = float(distributions.t.ppf(0.975, free)) * error
    return Estimate(slope, slope - half, slope + half, len(x))


def verdict(experiment, claim, cells) -> Verdict:
    """Whether `claim` holds: it does where the interval lies within its bounds, in every kind of cell that fits."""
    own, found = aggregate.chosen(cells, claim.where), {}
    axes = aggregate.missing(own, [claim.over] if claim.over in experiment.axes else [])
    for values, same in aggregate.groups(own, axes).items():
        if estimate := _estimate(claim, same, aggregate.chosen(cells, {})):
            found[aggregate.words(experiment, axes, values)] = estimate
    judged = [_judged(estimate, claim.at_least, claim.at_most) for estimate in found.values()]
    said = next((each for each in (FAILED, OPEN) if each in judged), HELD if judged else NONE)
    return Verdict(claim.text, said, _sentence(experiment, claim, said, judged, found), claim.figure)


def _estimate(claim, own, cells):
    if claim.over:
        runs = [[point for point in _points(claim, cell) if point[0] >= claim.since] for cell in own]
        return exponent(runs if "." in claim.metric else [sum(runs, [])])
    if not claim.baseline:
        return mean([cell.metrics.get(claim.metric) for cell in own])
    ratios = [pair.value for pair in stats.paired(cells, claim.metric, claim.baseline, own)]
    logs = mean([math.log(ratio) for ratio in ratios if ratio > 0])
    return logs and Estimate(*(math.exp(x) for x in logs[:3]), logs.n)


def _points(claim, cell):
    """(over, metric) of a cell: of its evaluations, or one."""
    if "." in claim.metric:
        found = [(results.at(event, claim.over), results.at(event, claim.metric)) for event in cell.events
                 if event["event"] == "evaluation"]
    else:
        found = [(cell.axes.get(claim.over, cell.metrics.get(claim.over)), cell.metrics.get(claim.metric))]
    return [point for point in found if None not in point]


def _judged(estimate, least, most):
    low, high = (estimate.value,) * 2 if math.isnan(estimate.low) else (estimate.low, estimate.high)
    if least <= low and high <= most:
        return HELD
    return FAILED if high < least or low > most else OPEN


def _sentence(experiment, claim, said, judged, found):
    what = claim.metric.rpartition(".")[2]
    what = experiment.label(claim.metric) if claim.metric in experiment.metrics else what
    if claim.over:
        over = experiment.label(claim.over) if "." not in claim.over and "." not in claim.metric else claim.over
        what = f"the exponent of {what} over {over.rpartition('.')[2]}"
    if claim.baseline:
        what = f"{what}, ratio to {aggregate.described(experiment, claim.baseline)},"
    bounds = [f"{word} {bound:.7g}" for word, bound in (("at least", claim.at_least), ("at most", claim.at_most))
              if math.isfinite(bound)]
    asked = f"{what} should be {' and '.join(bounds)}"
    if not found:
        return f"No result yet: {asked}."
    head = {HELD: "Held here", FAILED: "Did not hold here", OPEN: "Undecided here, as an interval holds a bound"}[said]
    share = f" (in {judged.count(HELD)} of {len(judged)})" if len(judged) > 1 and said != HELD else ""
    values = "; ".join(f"{name}: {estimate.text}" if name else estimate.text for name, estimate in found.items())
    return f"{head}{share}: {asked}; it was {values}."
