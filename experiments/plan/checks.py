"""Checks of a declared experiment: what its grid, values and metrics say, and the names in it. A mistake is a UserError."""

import math
import re

from hogwild.errors import UserError
from hogwild.experiments.plan import commands
from hogwild.experiments.plan.schema import unknown
from hogwild.experiments.report.stats import variables
from hogwild.training import units

NEEDS = ("root-network", "mpi", "torch", "openmpi")  # and data:FOLDER, module:NAME, cores:N
PHASE = re.compile(r"phase_\w+_ms")
LINK = ("rate", "delay", "per_host")  # keys that a value of the axis `link` alone has


def check_values(at, block, keys):
    """Raise UserError unless each axis of a block has a list of different texts and numbers. keys: those of a file."""
    for axis, values in block.items():
        if axis in keys and not isinstance(values, list):
            raise UserError(f"{at}: {axis} is a key of the file: put it above the first [[grid]]")
        if axis in commands.BUILT_IN:
            raise UserError(f"{at}: {axis} cannot be an axis: its name is taken")
        if not re.fullmatch(r"[A-Za-z_]\w*", axis):
            raise UserError(f"{at}: an axis is named by letters, digits and _, got '{axis}'")
        if not isinstance(values, list) or not values:
            raise UserError(f"{at}: {axis} needs a list of at least one value, got {values!r}")
        for value in values:
            if type(value) not in (str, int, float) or (type(value) is float and not math.isfinite(value)):
                raise UserError(f"{at}: {axis} needs a list of texts and numbers, got {value!r} in it")
        twins = [value for k, value in enumerate(values) if value in values[:k] or str(value) in map(str, values[:k])]
        if twins:
            raise UserError(f"{at}: {axis} has the value {twins[0]!r} twice")
        if axis == "ranks" and not all(type(value) is int and value > 0 for value in values):
            raise UserError(f"{at}: ranks must be whole numbers from 1 on, got {values!r}")


def check(path, experiment, axes, automatic):
    """What holds between the parts of a file, whose axes and values are `axes`. automatic: metrics that need no path."""
    for k, block in enumerate(experiment.grid, 1):
        commands.check(path, f"{path}: grid[{k}]", experiment, block)
    for axis, values in experiment.values.items():
        demand_known(f"{path}: values", axis, axes, phases=False)
        for value, one in values.items():
            demand_known(f"{path}: values.{axis}", value, [str(each) for each in axes[axis]])
            check_needs(f"{path}: values.{axis}.{value}: needs", one.needs)
            if one.link and axis != "link":
                raise UserError(f"{path}: values.{axis}.{value}: {', '.join(LINK)} are keys of the values of the axis link")
            if one.rate:
                units.rate(f"{path}: values.{axis}.{value}: rate", one.rate)
            if one.per_host < 1:
                raise UserError(f"{path}: values.{axis}.{value}: per_host must be from 1 on, got {one.per_host}")
    for link in axes.get("link", []):
        if str(link) not in experiment.values.get("link", {}):
            raise UserError(f"{path}: grid: link '{link}' needs [values.link.{link}] with its rate, such as \"100mbit\"")
    check_needs(f"{path}: needs", experiment.needs)
    if not 0 < experiment.timeout < 1e8:
        raise UserError(f"{path}: timeout must be a number of seconds above 0, got {experiment.timeout:g}")
    if experiment.model and not re.fullmatch(r"hogwild\.experiments\.[\w.]+", experiment.model):  # others would run at import
        raise UserError(f"{path}: model must be a module of experiments, such as "
                        f"hogwild.experiments.cost.prediction, got {experiment.model!r}")
    for name, metric in experiment.metrics.items():
        if name in axes:
            raise UserError(f"{path}: metrics.{name}: an axis has the same name")
        if name not in automatic and bool(metric.path) == bool(metric.reach):
            raise UserError(f"{path}: metrics.{name}: needs either path or reach")
    check_shown(path, experiment, axes)


def check_needs(at, needs):
    for need in needs:
        if need not in NEEDS and not re.fullmatch(r"data:[\w./-]+|module:[^\W\d]\w*(\.\w+)*|cores:\d{1,6}", need):
            raise unknown(at, "need ", need, [*NEEDS, "data:FOLDER", "module:NAME", "cores:N"])


def check_shown(path, experiment, axes):
    """Raise UserError for an unknown axis, value or metric in a figure, table or reference."""
    numbers = {**axes, **experiment.metrics}
    for k, figure in enumerate(experiment.figure, 1):
        at, curve = f"{path}: figure[{k}]", figure.kind == "curve"
        if curve and not (figure.x_label and figure.y_label):
            raise UserError(f"{at}: a curve needs x_label and y_label")
        places = {} if curve else {"x": numbers, "y": numbers}
        for key, among in {**places, "series": axes, "facet": axes, "log": ("x", "y")}.items():
            demand_known(f"{at}: {key}", getattr(figure, key), among)
        check_where(f"{at}: where", figure.where, axes)
        for formula in figure.formula:
            inner = f"{at}: formula '{formula.label}'"
            known = [*numbers, figure.x.rpartition(".")[2]] if curve else numbers
            demand_known(f"{inner}: y", variables(inner, formula.y), known)
            check_where(f"{inner}: where", formula.where, axes)
            if formula.series:
                first = figure.series if isinstance(figure.series, str) else (figure.series or [""])[0]
                demand_known(f"{inner}: series", formula.series, [str(value) for value in axes.get(first, [])])
        demand_known(f"{at}: contour", variables(f"{at}: contour", figure.contour or "x"), ("x", "y"))
    for part, named in ("figure", experiment.figure), ("table", experiment.table):
        names = [one.name for one in named if one.name]
        if twins := [name for k, name in enumerate(names) if name in names[:k]]:
            raise UserError(f"{path}: {part}: two have the name '{twins[0]}'")
    for k, shown in enumerate(experiment.table, 1):
        at = f"{path}: table[{k}]"
        demand_known(f"{at}: rows", shown.rows, axes)
        demand_known(f"{at}: columns", shown.columns, experiment.metrics)
        check_where(f"{at}: where", shown.where, axes)
        check_where(f"{at}: baseline", shown.baseline, axes)
    for k, reference in enumerate(experiment.reference, 1):
        at = f"{path}: reference[{k}]"
        demand_known(f"{at}: metric", reference.metric or [], experiment.metrics)
        demand_known(f"{at}: figure", reference.figure or [], [figure.name for figure in experiment.figure])
        check_where(f"{at}: where", reference.where, axes)
        check_where(f"{at}: baseline", reference.baseline, axes)


    for k, claim in enumerate(experiment.claim, 1):
        at = f"{path}: claim[{k}]"
        if not (claim.over and "." in claim.metric):
            demand_known(f"{at}: metric", claim.metric, experiment.metrics)
            demand_known(f"{at}: over", claim.over or [], numbers)
        if not claim.at_least <= claim.at_most or (claim.at_least, claim.at_most) == (-math.inf, math.inf):
            raise UserError(f"{at}: needs at_least, at_most, or both in this order")
        if claim.over and claim.baseline:
            raise UserError(f"{at}: has over and baseline: an exponent has no ratio; leave one out")
        demand_known(f"{at}: figure", claim.figure or [], [figure.name for figure in experiment.figure])
        check_where(f"{at}: where", claim.where, axes)
        check_where(f"{at}: baseline", claim.baseline, axes)


def demand_known(at, given, among, phases=True):
    for name in [given] if isinstance(given, str) else given:
        if name not in among and not (phases and PHASE.fullmatch(name)):
            raise unknown(at, "", name, list(among))


def check_where(at, where, axes):
    demand_known(at, list(where), axes, phases=False)
    for axis, values in where.items():
        for value in values if isinstance(values, list) else [values]:
            if value not in axes[axis]:
                raise UserError(f"{at}: {value!r} is no value of {axis}; those are {', '.join(map(str, axes[axis]))}")
