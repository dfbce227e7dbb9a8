"""Hyper-parameters: NamedTuples of plain numbers, checked and made float64 once, before they reach a kernel."""

import itertools
import math
import sys
from numbers import Real

_named = {}  # classes of a user's own that have been checked, by name


class HyperParameterError(ValueError):
    """A hyper-parameter outside its interval, or of the wrong kind."""


def checked(hp):
    """`hp` with every number as float, so that one class is one Numba type, and each inside its interval.

    A class states intervals as `ranges = {"field": "[0, 1)"}`; other fields must be finite numbers or tuples of them.
    None (no decay, no clipping) passes. Raises HyperParameterError.
    """
    if hp is None:
        return None
    _tell_apart(type(hp))
    ranges = getattr(hp, "ranges", {})
    return type(hp)(*(_value(type(hp).__name__, field, x, ranges.get(field, "(-inf, inf)"))
                      for field, x in zip(hp._fields, hp)))


def _tell_apart(cls):
    """Rename a class of which there is another of the same name, as after an edit in a notebook.

    Numba tells NamedTuples apart by name and types alone when it looks for machine code, and would run the other's.
    """
    if cls.__module__.startswith("hogwild.kernels.") or _named.get(cls.__name__) is cls:
        return
    ours = [sys.modules.get(f"hogwild.kernels.{module}")
            for module in ("optim.rules", "losses", "optim.schedules", "optim.steps")]
    names = (cls.__name__ + (f"_{k}" if k > 1 else "") for k in itertools.count(1))
    cls.__name__ = next(name for name in names
                        if not any(hasattr(module, name) for module in ours) and _named.setdefault(name, cls) is cls)


def _value(owner, field, x, interval):
    if hasattr(x, "_fields"):
        return checked(x)
    if isinstance(x, tuple):
        return tuple(_value(owner, field, item, interval) for item in x)
    if not isinstance(x, Real) or not inside(float(x), interval):
        raise HyperParameterError(f"{owner}: {field} must be a number in {interval}, got {x!r}")
    return float(x)


def inside(x: float, interval: str) -> bool:
    """Whether x lies in an interval written as in mathematics, "(0, 1]"; never so for NaN."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = x >= low if interval[0] == "[" else x > low
    below = x <= high if interval[-1] == "]" else x < high
    return not math.isnan(x) and above and below
