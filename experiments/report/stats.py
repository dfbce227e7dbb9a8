"""Statistics over seeds: medians and quartiles, ratios paired by seed, and curves of formulas."""

import ast
import operator
import statistics
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.Pow: operator.pow, ast.USub: operator.neg}
FUNCTIONS = {"exp": np.exp, "log": np.log}
LONGEST = 500  # characters of an expression
ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Name, ast.Constant, ast.Load, ast.Call, *OPERATORS)


class Summary(NamedTuple):
    """Of the values of several seeds."""

    median: float
    q1: float
    q3: float
    n: int  # how many values there were


class Ratio(NamedTuple):
    """A cell's metric over that of the baseline's cell of the same seed."""

    cell: object
    value: float


def summary(values) -> Summary | None:
    """Median and quartiles (linear between values, as NumPy's) of the numbers among `values`; None where there is none."""
    numbers = [value for value in values if value is not None and np.isfinite(value)]
    if not numbers:
        return None
    q1, median, q3 = np.quantile(numbers, (0.25, 0.5, 0.75)).tolist()
    return Summary(median, q1, q3, len(numbers))


def paired(cells, metric, baseline, of=None) -> list[Ratio]:
    """The metric of each cell over that of its partner: the cell of the same seed whose axes differ as `baseline` says only.

    baseline: {axis: value}. of: the cells whose ratios are wanted, by default all of `cells`; the partners are sought
    among `cells`. A cell without a partner, or where a number is missing or the partner's is 0, has no ratio.
    """
    by = {(_key(cell.axes), cell.seed): cell.metrics.get(metric) for cell in cells}
    found = []
    for cell in cells if of is None else of:
        mine, other = cell.metrics.get(metric), by.get((_key({**cell.axes, **baseline}), cell.seed))
        if mine is not None and other:
            found.append(Ratio(cell, mine / other))
    return found


def _key(axes):
    return tuple(sorted((axis, str(value)) for axis, value in axes.items()))


def variables(at, expression) -> list[str]:
    """The names in `expression`. Raises UserError where it is more than arithmetic; at: file and key, for the message."""
    try:
        tree = ast.parse(expression, mode="eval")
        if len(expression) > LONGEST:
            raise ValueError("too long")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"{at}: not an arithmetic expression: {expression}") from None
    for node in ast.walk(tree):
        usable = isinstance(node, ARITHMETIC)
        if isinstance(node, ast.Constant):
            usable = type(node.value) in (int, float)
        if isinstance(node, ast.Call):
            usable = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
            usable = usable and len(node.args) == 1 and not node.keywords
        if not usable:
            raise UserError(f"{at}: only numbers, names, + - * / **, log, exp and parentheses may be used, got {expression}")
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id not in FUNCTIONS]


def curve(formula, cells, x, xs) -> list[float]:
    """A grid.Formula at the values `xs` of the axis `x`.

    The other names in it stand for the medians over those of `cells` that its `where` selects: of a metric, or of an axis
    with numbers. Raises UserError where a name has no number, ArithmeticError where the formula has none.
    """
    chosen = [cell for cell in cells if matches(cell, formula.where)]
    constants = {}
    for name in variables(formula.label, formula.y):
        if name != x:
            numbers = [cell.metrics.get(name, cell.axes.get(name)) for cell in chosen]
            numbers = [float(number) for number in numbers if isinstance(number, (int, float))]
            if not numbers:
                raise UserError(f"formula '{formula.label}': no cell has a number for '{name}'")
            constants[name] = statistics.median(numbers)
    with np.errstate(all="raise"):
        return [float(evaluated(formula.y, {**constants, x: float(value)})) for value in xs]


def evaluated(expression, names):
    """`expression`, checked by `variables`, with the numbers or arrays of `names`. Raises ArithmeticError."""
    return _value(ast.parse(expression, mode="eval").body, names)


def _value(node, names):
    if isinstance(node, ast.Constant):
        return float(node.value)  # 9**9**9**9 of whole numbers would never end
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Call):
        return FUNCTIONS[node.func.id](_value(node.args[0], names))
    apply = OPERATORS[type(node.op)]
    value = apply(_value(node.operand, names)) if isinstance(node, ast.UnaryOp) else \
        apply(_value(node.left, names), _value(node.right, names))
    if isinstance(value, complex):
        raise ArithmeticError("a root of a negative number")
    return value


def matches(cell, where) -> bool:
    """Whether the cell's axes are as {axis: value or list of values} says."""
    return all(cell.axes.get(axis) in (values if isinstance(values, list) else [values]) for axis, values in where.items())
