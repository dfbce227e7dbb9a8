"""What a rule is: a NamedTuple of hyper-parameters (the papers' symbols) and a few pure functions.

    start(hp)            -> initial value of each slot; its length is the number of slots S
    prepare(hp, lr, t)   -> coefficients: scalars, once per step, in float64; t counts steps from 0
    update(c, g, slots)  -> (delta, slots): elementwise; the step then does w -= delta
    pace(c, slots)       -> learning rate of a coordinate, for the L1 penalty; may be left out where it is lr itself

The same source runs on scalars inside Numba, on NumPy arrays and on torch tensors, so it keeps to arithmetic, `abs`,
`root` and `maximum`. Conventions are torch's where torch has the rule; a variant is a named hyper-parameter.

Two more say what n updates with one gradient come to, see catch_up.py; without them they are made one by one:

    times(hp, c, n, moves) -> coefficients for n updates, of which a rule whose sum is not exact moves by `moves` <= n
    repeat(c, g, slots)    -> (delta, slots) with these; `repeat = update` where the formulas are the same

A block rule (Apollo) has three functions more, and its `update` takes the decoupled decay term as a fourth argument:

    stages(hp)                   -> how many reductions over the block come before `update`
    terms(c, stage, g, slots)    -> elementwise; the last one is reduced by max, the others by sum
    close(c, stage, totals, n)   -> coefficients with what the n elements' totals tell
"""

import math

import numpy as np
from numba.extending import overload

from hogwild.kernels.compiler.jit import LOOP, by_type


@by_type
def prepare(rule, lr, t):
    """Coefficients of `rule` for step t (from 0) at learning rate lr, as a tuple of float64."""


@by_type
def update(rule, c, g, slots):
    """Step `(delta, new slots)` for gradient g; elementwise, shapes and dtypes as g."""


@by_type
def pace(rule, c, slots):
    """Learning rate of a coordinate, as c and its slots tell it: what a lasting gradient of 1 would move it by."""
    return 1.0


@by_type
def stages(rule):
    """Number of reductions over the block that `update` needs; 0 for a coordinate-wise rule."""
    return 0


@by_type
def terms(rule, c, stage, g, slots):
    """Elementwise terms of reduction `stage`."""


@by_type
def close(rule, c, stage, totals, n):
    """Coefficients after reduction `stage` over n elements."""


@by_type
def times(rule, c, n, moves):
    """The coefficients of `repeat` for n >= 1 updates with one gradient, from those of one; scalars or arrays, float64."""
    return c + (1.0 * n,)


@by_type
def repeat(rule, c, g, slots):
    """`(delta, slots)` of the updates with gradient g that `times` made c for; delta is their sum, or close to it."""
    delta, slots = update(rule, c[:-1], g, slots)
    for _ in range(1, int(c[-1])):
        more, slots = update(rule, c[:-1], g, slots)
        delta = delta + more
    return delta, slots


def maximum(a, b):
    """Elementwise maximum on scalars, NumPy arrays and torch tensors; NaN wins."""
    return a.clamp(min=b) if hasattr(a, "clamp") else np.maximum(a, b)


@overload(maximum, **LOOP)
def _maximum(a, b):
    return lambda a, b: a if not a <= b else b


def root(x):
    """Elementwise square root on scalars, NumPy arrays and torch tensors, in x's own dtype inside kernels."""
    return x**0.5


@overload(root, **LOOP)
def _root(x):
    return lambda x: math.sqrt(x)
