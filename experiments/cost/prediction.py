"""Figures and tables of the cost model: predictions for larger clusters, and their errors on links that were measured."""

from statistics import median

from hogwild.experiments.cost.cost_model import PRESETS, Way, model_of, step_seconds
from hogwild.experiments.report.figures import Figure, Panel, Point, Series, Table
from sparsecomm.exchange.alpha_beta import Link

RANKS = [2**i for i in range(1, 11)]
RATES = [0.1, 0.3, 1, 3, 10, 25, 50, 100]  # Gbit/s
WAYS = [Way("dense"), Way("dense", code="float16"), Way("allgather", 0.01, "float16"), Way("balanced", 0.01, "float16"),
        Way("balanced", 0.001, "float16")]
CLUSTER = "a step without overlap, each rank with as much of a machine as one of two ranks had here"


def link_at(rate) -> Link:
    """A link of so many Gbit/s, with the latency of the preset below it."""
    below = [link for link in PRESETS.values() if 8e-9 / link.beta <= rate * 1.001]
    return Link((below or list(PRESETS.values()))[-1 if below else 0].alpha, 8e-9 / rate)


def figures(cells) -> list[Figure]:
    """What experiments/report/build.py draws: hook of communication-cost.toml."""
    model = model_of(cells)
    found = [figure for task in _tasks(model) for figure in (_ranks(model, task), _winners(model, task))]
    checked = model.check()
    return found + ([_check(checked)] if checked else [])


def tables(cells) -> list[Table]:
    """What experiments/report/build.py lists: hook of communication-cost.toml."""
    model = model_of(cells)
    return [table for table in (_links(model), _errors(model), _constants(model)) if table]


def _tasks(model):
    """Tasks that two local ranks have trained."""
    return [task for task, ranks in model.machine.compute if ranks == 2] if model.machine else []


def _at(model, task, way, link, ranks) -> float:
    """Predicted milliseconds of a step."""
    machine, run = model.machine, next(run for run in model.runs if run.task == task)
    return 1e3 * step_seconds(way, link, machine.work(way), ranks, run.n, run.buckets, machine.compute[task, 2],
                              machine.other(task, 2))


def _ranks(model, task):
    """Step time against ranks on every preset and every fitted link, with what was measured there."""
    panels = []
    for name, link in {**{name: model.link(name) for name, _ in model.links if name}, **PRESETS}.items():
        series = []
        for way in WAYS:
            points = [Point(ranks, _at(model, task, way, link, ranks)) for ranks in RANKS]
            here = [run for run in model.runs if (run.task, run.link, run.way) == (task, name, way)]
            measured = [Point(ranks, 1e3 * median(run.seconds for run in here if run.ranks == ranks), runs=1)
                        for ranks in sorted({run.ranks for run in here})]
            series += [Series(str(way), measured)] if measured else []
            series.append(Series(str(way), points, predicted=True, like=str(way) if measured else ""))
        panels.append(Panel(name if name not in PRESETS else f"{name}, α {1e6 * link.alpha:g} µs (extrapolated)", series))
    return Figure(f"predicted-{task}", f"Predicted step time, {task}", "line", panels, "ranks", "step time, ms", ("x", "y"),
                  f"Extrapolation by the α-β model, dashed; solid: measured. It is {CLUSTER}. Latencies of the presets are "
                  "assumed.")


def _winners(model, task):
    """Which way is fastest, over ranks and bandwidth."""
    won = {way: [] for way in WAYS}
    for rate in RATES:
        for ranks in RANKS:
            times = {way: _at(model, task, way, link_at(rate), ranks) for way in WAYS}
            best = min(times, key=times.get)
            won[best].append(Point(ranks, rate, note=f"{times[best]:.3g} ms; dense float16 {times[WAYS[1]]:.3g} ms"))
    series = [Series(str(way), points, predicted=True) for way, points in won.items() if points]
    return Figure(f"where-wins-{task}", f"Predicted fastest exchange, {task}", "scatter", [Panel("", series)], "ranks",
                  "bandwidth, Gbit/s", ("x", "y"), f"All of it extrapolated by the α-β model: the time of {CLUSTER}. "
                  "That more steps are needed where more is dropped is not counted.")


def _check(checked):
    """Predicted against measured."""
    names = sorted({run.link for run, _ in checked})
    series = [Series(name, [Point(1e3 * run.seconds, 1e3 * seconds, runs=1, note=f"{run.task}, {run.way}, {run.ranks} ranks")
                            for run, seconds in checked if run.link == name]) for name in names]
    return Figure("prediction-check", "Predicted and measured step time", "scatter", [Panel("", series)],
                  "measured step time, ms", "predicted step time, ms", ("x", "y"),
                  "Fitted to ping-pongs and to runs without a network; each point is a cell that the fit has not seen. Both "
                  "are the same on the dashed diagonal.", equal=True)


def _links(model):
    rows = [[name or "one machine", ranks, 1e6 * link.alpha, 8e-6 / link.beta, f"{error:.0%}"]
            for (name, ranks), (link, error) in model.links.items()]
    return Table("links", "Links, fitted to messages that both of a pair send at once, all pairs at a time",
                 ["link", "ranks", "α, µs", "1/β, Mbit/s", "median error of the fit"], rows) if rows else None


def _errors(model):
    checked = model.check()
    rows = [[run.task, run.link, run.ranks, str(run.way), "yes" if run.overlap else "no", 1e3 * run.seconds, 1e3 * seconds,
             f"{seconds / run.seconds - 1:+.0%}"] for run, seconds in checked]
    if not rows:
        return None
    within = sum(abs(seconds / run.seconds - 1) <= 0.2 for run, seconds in checked)
    return Table("prediction-error", "Predicted and measured step time", [
        "task", "link", "ranks", "method", "overlap", "measured, ms", "predicted, ms", "error"], rows,
        f"{within} of {len(rows)} cells within 20%.")


def _constants(model):
    machine = model.machine
    if not machine:
        return None
    rows = [["select, ns an element", 1e9 * machine.select], ["copy and add, ns an element", 1e9 * machine.add],
            ["a message, µs", 1e6 * machine.message]]
    for label, values in ("encode {}, ns an entry", machine.encode), ("decode {}, ns an entry", machine.decode), (
            "dense {}, ns an element", machine.code):
        rows += [[label.format(code), 1e9 * seconds] for code, seconds in values.items()]
    for name in "compute", "wait", "apply", "rest":
        table = getattr(machine, name)
        rows += [[f"{name}, {task}, {ranks} ranks, ms", 1e3 * seconds] for (task, ranks), seconds in table.items()]
    return Table("constants", "What ranks compute, measured without a network", ["constant", "value"], rows)
