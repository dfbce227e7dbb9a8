"""Rules, losses and schedules of a user's own: imported, and tried on a few numbers before anything long begins."""

import importlib
import inspect
import math
import os
import re
import sys
import traceback
from numbers import Real

import numpy as np
from numba.core.errors import NumbaError

import hogwild
from hogwild import kernels
from hogwild.errors import UserError
from hogwild.kernels.compiler.jit import kernel
from hogwild.kernels.losses import evaluate
from hogwild.kernels.optim.schedules import rate
from hogwild.kernels.optim.steps import dense_step, new_slots

NEEDS = {
    "rule": "start(hp) -> initial value of each slot, prepare(hp, lr, t) -> numbers, and, as a static method, "
            "update(c, g, slots) -> (delta, slots)",
    "loss": "task = 'classification' or 'regression', and evaluate(self, z, y) -> (value, derivative by z)",
    "schedule": "rate(self, t) -> learning rate",
}


class _Wrong(Exception):
    """A broken rule of the interface, by a function of the user's."""


def imported(name, what):
    """The class that `module.Class` names. Raises UserError, in one line, for whatever goes wrong as it is imported."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{what} '{name}': needs MODULE.NAME, such as my_{what}s.{what.capitalize()}")
    module, _, attribute = name.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what} {name}: cannot import it from here: {_line(error)}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} {name}: {module} cannot be imported: {_line(error)}{_place(error)}") from None
    cls = getattr(found, "func", found)  # a functools.partial of one, too
    if not (isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields")):
        raise UserError(f"{what} {name}: is no NamedTuple; needed is one of numbers, with {NEEDS.get(what, what)}")
    return found


def tried(value, name, what):
    """Call the functions of the rule, loss or schedule `value`, in Python and compiled. Raises UserError for a mistake."""
    needed = f"needed: a NamedTuple of numbers with {NEEDS[what]}"
    try:
        for method in re.findall(r"(\w+)\(", NEEDS[what]):
            _demand(callable(getattr(value, method, None)), f"has no {method}()")
        with np.errstate(all="ignore"):
            {"rule": _rule, "loss": _loss, "schedule": _schedule}[what](value)
    except _Wrong as error:
        raise UserError(f"{what} {name}: {error}; {needed}") from None
    except NumbaError as error:
        raise UserError(f"{what} {name}: {said(error)}") from None
    except Exception as error:
        raise UserError(f"{what} {name}: {_line(error)}{_place(error)}; {needed}") from None
    return value


def said(error) -> str:
    """Numba's message in one line: what it cannot compile, and the file and line of the user's."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    reason, where = (lines or [type(error).__name__])[-1], ""
    for before, line in zip(lines, lines[1:]):
        place = re.fullmatch(r'File "([^"<]+)", line (\d+):', line)
        if place and os.path.dirname(os.path.abspath(place[1])) not in _LIBRARY:
            reason, where = before, f" ({place[1]}, line {place[2]})"
            break
    return f"Numba cannot compile it: {reason}{where}"


def _rule(rule):
    slots = rule.start()
    _demand(_numbers(slots), f"start() gives {slots!r}, not a tuple of numbers")
    for name in ("default_lr", "default_wd"):
        usual = getattr(rule, name, 0.0)
        _demand(_numbers((usual,)) and 0 <= usual < math.inf, f"{name} is {usual!r}, not a number from 0 on")
    lengths = set()
    for t in range(2):
        c = rule.prepare(0.1, t)
        _demand(_numbers(c), f"prepare() gives {c!r}, not a tuple of numbers")
        lengths.add(len(c))
    _demand(len(lengths) == 1, f"prepare() gives {' and '.join(map(str, lengths))} numbers")
    g = np.array([0.5, -0.25, 0.0], np.float32)
    if not hasattr(rule, "terms"):  # of a block rule, the numbers that `update` takes come from those
        moved = rule.update(c, g, tuple(np.full_like(g, slot) for slot in slots))
        _demand(isinstance(moved, tuple) and len(moved) == 2 and isinstance(moved[1], tuple),
                f"update() gives {type(moved).__name__}, not (delta, slots)")
        delta, new = moved
        _demand(len(new) == len(slots), f"update() gives {len(new)} slots, start() has {len(slots)}")
        _demand(all(np.shape(x) in ((), g.shape) for x in (delta, *new)), "update() does not work element by element")
    dense_step(rule, np.zeros_like(g), g, new_slots(rule, len(g)), 0.1, 0)


@kernel
def _evaluated(loss, z, y):
    return evaluate(loss, z, y)


def _loss(loss):
    task = getattr(loss, "task", None)
    _demand(task in ("classification", "regression"), f"task is {task!r}")
    if len(inspect.signature(loss.evaluate).parameters) == 2:  # one of several outputs has more
        both = loss.evaluate(0.5, 1.0)
        _demand(_numbers(both) and len(both) == 2, f"evaluate() gives {both!r}, not two numbers")
        _evaluated(loss, 0.5, 1.0)


@kernel
def _rated(schedule, t):
    return rate(schedule, t)


def _schedule(schedule):
    for t in range(2):
        lr = schedule.rate(t)
        _demand(_numbers((lr,)) and 0 <= lr < math.inf, f"rate({t}) gives {lr!r}, not a number from 0 on")
    _rated(schedule, 0)


def _demand(good, message):
    if not good:
        raise _Wrong(message)


def _numbers(values) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, Real) for value in values)


def _line(error) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _place(error) -> str:
    """Where in the user's file it was raised."""
    if isinstance(error, SyntaxError):
        return ""  # its own line says so
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if not frame.filename.startswith(_LIBRARY) and "importlib" not in frame.filename]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


_LIBRARY = tuple(os.path.dirname(os.path.abspath(package.__file__)) + os.sep for package in (hogwild, kernels))
