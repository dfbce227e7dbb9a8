"""How a run ends whose penalty leaves parameters at 0."""

from hogwild.training.metrics import MAXIMISED
from hogwild.training.record import listed


def close(problem, metric, report) -> dict[str, float]:
    """Metrics of a Problem, closed as its L1 penalty asks: after early stopping by `metric` only where that gets no worse.

    report: says how many parameters are not 0; None: nobody does.
    """
    before, counts = problem.evaluate(), problem.close()
    if counts is None:
        return before
    metrics, line = problem.evaluate(), f"l1: of {counts[0]:,} weights that were not 0, {counts[1]:,} help"
    sign = 1 if metric in MAXIMISED else -1
    if metric and metric in metrics and sign * metrics[metric] < sign * before[metric]:
        problem.closed, line = None, f"{line}; all are kept, for without them {metric} gets worse"
    if report:
        report.say(line + listed(metrics))
    return before if problem.closed is None else metrics
