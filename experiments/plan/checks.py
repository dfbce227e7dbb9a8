"""Checks of the names in a declared experiment: needs, axes, values and metrics. An unknown one is a UserError."""

import re

from hogwild.errors import UserError
from hogwild.experiments.report.stats import variables

NEEDS = ("root-network", "mpi", "torch", "openmpi")  # and data:FOLDER, module:NAME, cores:N
PHASE = re.compile(r"phase_\w+_ms")


def check_needs(at, needs):
    for need in needs:
        if need not in NEEDS and not re.fullmatch(r"data:[\w./-]+|module:[^\W\d]\w*(\.\w+)*|cores:\d{1,6}", need):
            raise UserError(f"{at}: unknown need '{need}'; known: {', '.join(NEEDS)}, data:FOLDER, module:NAME, cores:N")


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
            demand_known(f"{inner}: y", variables(inner, formula.y), numbers)
            check_where(f"{inner}: where", formula.where, axes)
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


def demand_known(at, given, among):
    for name in [given] if isinstance(given, str) else given:
        if name not in among and not PHASE.fullmatch(name):
            raise UserError(f"{at}: unknown '{name}'; there are {', '.join(among)}")


def check_where(at, where, axes):
    demand_known(at, list(where), axes)
    for axis, values in where.items():
        for value in values if isinstance(values, list) else [values]:
            if value not in axes[axis]:
                raise UserError(f"{at}: {value!r} is no value of {axis}; those are {', '.join(map(str, axes[axis]))}")
