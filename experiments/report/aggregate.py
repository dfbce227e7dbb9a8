"""From an experiment's cells to the figures and tables that its file declares.

Only cells that finished count. Cells that differ in anything but the seed are never pooled: an axis that varies and is not
named by a figure becomes part of its series, in a table part of its rows.
"""

import numpy as np

from hogwild.errors import UserError
from hogwild.experiments.report import stats
from hogwild.experiments.report.figures import Figure, Panel, Point, Series, Stat, Table, number
from hogwild.experiments.run import results


def listed(names) -> list:
    """The list of names in a key of the file that may be one name or several."""
    return [] if names is None else [names] if isinstance(names, str) else list(names)


def chosen(cells, where) -> list:
    """The finished cells whose axes are as `where` says."""
    return [cell for cell in cells if cell.finished and stats.matches(cell, where)]


def groups(cells, axes) -> dict:
    """Cells by their values of `axes`, in the order of the cells."""
    found = {}
    for cell in cells:
        found.setdefault(tuple(cell.axes.get(axis) for axis in axes), []).append(cell)
    return found


def missing(cells, axes) -> list:
    """Further axes in which cells that agree in `axes` differ, in the order of appearance."""
    known = list(axes)
    for axis in dict.fromkeys(axis for cell in cells for axis in cell.axes):
        if any(len({cell.axes.get(axis) for cell in same}) > 1 for same in groups(cells, known).values()):
            known.append(axis)
    return known[len(axes):]


def stat(cells, metric) -> Stat | None:
    """Over the seeds that have a value (a target may not be reached); None where none has."""
    return _stat([cell.metrics.get(metric) for cell in cells])


def ratio(own, cells, metric, baseline) -> Stat | None:
    """Of `metric` in the cells `own` to their partners among `cells`, paired by seed."""
    values = [pair.value for pair in stats.paired(cells, metric, baseline, own)]
    return _stat(values + [None] * (len(own) - len(values)))


def _stat(values):
    summary = stats.summary(values)
    return summary and Stat(*summary, len(values))


def words(experiment, axes, values) -> str:
    """The values of axes, for people; a number without a label has the name of its axis."""
    said = [(experiment.label(axis), value, experiment.value(axis, value).label) for axis, value in zip(axes, values)]
    return ", ".join(f"{axis} {text}" if text == str(value) and not isinstance(value, str) else text
                     for axis, value, text in said if value is not None)


def described(experiment, axes) -> str:
    """A cell's axes, for people."""
    return words(experiment, axes, axes.values())


def figure(experiment, spec, cells, name) -> Figure:
    """The figure that `spec`, an entry of [[figure]], declares; it has no panels where no cell finished."""
    cells, facets = chosen(cells, spec.where), listed(spec.facet)
    panels = [_panel(experiment, spec, words(experiment, facets, values), part)
              for values, part in groups(cells, facets).items()]
    kind = "line" if spec.kind == "curve" else "dot" if spec.kind == "bar" and "y" in spec.log else spec.kind
    ys = listed(spec.y)
    y_label = experiment.label(ys[0]) if len(ys) == 1 else experiment.metric(ys[0]).unit
    labels = spec.x_label or experiment.label(spec.x), spec.y_label or y_label
    return Figure(name, spec.title or name, kind, [panel for panel in panels if panel.series], *labels, tuple(spec.log),
                  spec.text, kind == "bar" and len(ys) > 1, _order(experiment, spec, cells), contour=spec.contour)


def _order(experiment, spec, cells):
    """The values of x that are words, in the order of the file."""
    values = [value for value in experiment.axes.get(spec.x, ()) if any(cell.axes.get(spec.x) == value for cell in cells)]
    return tuple(experiment.value(spec.x, value).label for value in values if spec.kind == "bar" or isinstance(value, str))


def _panel(experiment, spec, title, cells):
    series, ys = listed(spec.series), listed(spec.y)
    if spec.kind != "scatter":  # there each kind of cell is a point of its own
        series = series + missing(cells, series + ([spec.x] if spec.x in experiment.axes else []))
    drawn = [(values, Series(_named(experiment, series, values, ys, y), points))
             for values, own in groups(cells, series).items() for y in ys if (points := _points(experiment, spec, own, y))]
    lines = [_formula(spec, formula, cells, drawn) for formula in spec.formula]
    return Panel(title, [line for _, line in drawn] + [line for line in lines if line])


def _named(experiment, series, values, ys, y):
    """The label of a series: the values of its axes, and its metric where there are several."""
    metric = experiment.metric(y).label or y if len(ys) > 1 else ""
    return ", ".join(filter(None, [words(experiment, series, values), metric]))


def _points(experiment, spec, cells, y):
    if spec.kind == "curve":
        return _curve(cells, spec.x, y)
    x, points = spec.x, []
    by = list(dict.fromkeys(axis for cell in cells for axis in cell.axes))
    if x in experiment.axes and spec.kind != "scatter":
        by = [x]
    for values, own in groups(cells, by).items():
        middle, across = stat(own, y), None if x in experiment.axes else stat(own, x)
        place = across.median if across else own[0].axes.get(x)
        if middle is None or place is None:
            continue
        if spec.kind == "bar" or isinstance(place, str):
            place = experiment.value(x, place).label
        note = words(experiment, by, values) if across else ""
        points.append(Point(place, *middle[:4], _partly(note, middle), *(across[1:3] if across else ())))
    numeric = all(not isinstance(p.x, str) for p in points)
    return sorted(points, key=lambda p: p.x) if numeric and spec.kind == "line" else points


def _formula(spec, formula, cells, drawn) -> Series | None:
    """A formula over the range of x that was measured; None where no cell gives it its numbers."""
    xs = [p.x for _, line in drawn for p in line.points if not isinstance(p.x, str)]
    if not xs:
        return None
    xs = (np.geomspace if "x" in spec.log else np.linspace)(min(xs), max(xs), 40).tolist()
    try:
        ys = stats.curve(formula, cells, spec.x.rpartition(".")[2], xs)
    except (UserError, ArithmeticError):
        return None
    like = next((line.label for values, line in drawn if values and str(values[0]) == formula.series), "")
    return Series(formula.label, [Point(x, y) for x, y in zip(xs, ys)], True, like, True)


def _partly(note, s):
    return ", ".join(filter(None, [note, f"{s.of - s.runs} of {s.of} runs without a value" if s.runs < s.of else ""]))


def _curve(cells, x, y):
    """Medians over the seeds at the same evaluation: the first of each run, the second, …"""
    points = []
    runs = [list(zip(_path(cell, x), _path(cell, y))) for cell in cells]
    for k in range(max(map(len, runs), default=0)):
        at = [run[k] for run in runs if k < len(run) and None not in run[k]]
        if at:
            place, middle = stats.summary([a for a, _ in at]), stats.summary([b for _, b in at])
            points.append(Point(place.median, *middle, left=place.q1, right=place.q3))
    return points


def _path(cell, path):
    """What lies at the dotted path of each epoch and evaluation; seconds are those of training so far."""
    values, before = [], 0.0
    for event in cell.events:
        if event["event"] in ("epoch", "evaluation"):
            value = results.at(event, path)
            if path == "seconds" and event["event"] == "epoch" and value is not None:  # that of the epoch alone
                value = before = before + value
            values.append(value)
    return values


def table(experiment, spec, cells, name) -> Table:
    """The table that `spec`, an entry of [[table]], declares; what was skipped or failed has its row, too.

    With a baseline, a metric of which more or less is better is followed by its ratio to that.
    """
    part, columns, lines = [cell for cell in cells if stats.matches(cell, spec.where)], [], []
    rows = spec.rows + missing(part, spec.rows)
    compared = [metric for metric in spec.columns if spec.baseline and experiment.metric(metric).better]
    for metric in spec.columns:
        against = f"{experiment.metric(metric).label or metric}: ratio to {described(experiment, spec.baseline)}"
        columns += [experiment.label(metric), against] if metric in compared else [experiment.label(metric)]
    place = {axis: values.index for axis, values in experiment.axes.items()}
    part.sort(key=lambda cell: [place[axis](cell.axes[axis]) if axis in cell.axes else -1 for axis in rows])
    for values, own in groups(part, rows).items():
        line = [experiment.value(axis, value).label if value is not None else "" for axis, value in zip(rows, values)]
        lines.append(line + _numbers(spec, own, cells, compared))
    return Table(name, spec.title or name, [experiment.label(axis) for axis in rows] + columns, lines, spec.text)


def _numbers(spec, own, cells, compared):
    """A row's statistics, with the ratios to the baseline where there is one; or why there are none."""
    done, line = chosen(own, {}), []
    if not done:
        return ["skipped" if own[0].skipped else "failed"] + [None] * (len(spec.columns) + len(compared) - 1)
    for metric in spec.columns:
        line += [stat(done, metric)]
        if metric in compared:
            line += [1 if stats.matches(own[0], spec.baseline) else ratio(done, chosen(cells, {}), metric, spec.baseline)]
    return line


def measured(experiment, reference, cells) -> list[str]:
    """What was measured beside a reference's claim, a line for each kind of cell that fits; [] where it names no metric."""
    metric, baseline, lines = reference.metric, reference.baseline, []
    own = chosen(cells, reference.where) if metric else []
    against = f", ratio to {described(experiment, baseline)}" if baseline else ""
    axes = missing(own, [])
    told = [axis for axis in experiment.axes if axis in axes or axis in reference.where]
    for same in groups(own, axes).values():
        got = ratio(same, chosen(cells, {}), metric, baseline) if baseline else stat(same, metric)
        which = described(experiment, {axis: same[0].axes.get(axis) for axis in told})
        lines += [f"{which}: {experiment.label(metric)}{against}: {spread(got)}"] if got else []
    return lines


def spread(s) -> str:
    """A statistic for people: one run is marked as such."""
    if s.runs == 0:
        return f"{number(s.median)} (predicted)"
    runs = f"{s.runs} of {s.of}" if s.of > s.runs else f"{s.runs}"
    if s.runs == 1:
        return f"{number(s.median)} ({runs} run)"
    return f"{number(s.median)} [{number(s.low)}, {number(s.high)}] ({runs} runs)"
