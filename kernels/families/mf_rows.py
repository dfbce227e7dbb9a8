"""The rows of matrix factorization: scores of a user and an item, and a step on their rows.

A row is the R factors, then the rule's slots of these, R of each, for vectors; then the bias and its slots.
With `RowAdaGrad` the bias is followed by two sums of squares: of the factors, and of the bias.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from hogwild.kernels.compiler.jit import INLINE, LOOP, prefetch
from hogwild.kernels.optim import protocol
from hogwild.kernels.optim.steps import cast, decay_terms, decay_weight_at, decayed_gradient, most_decay_weight, move
from hogwild.kernels.sharing.modes import Atomic, Counted, RoundRobin, add, enter, leave
from hogwild.kernels.sharing.rows import waits

inlined = register_jitable(**INLINE["jit_options"])  # as calls, which copy what they get, they take longer than what they do
LANE = 8  # factors are padded to multiples of this


class RowSizes(NamedTuple):
    """How a row is laid out. Tuples of None, whose lengths are known when a kernel is compiled: loops over R have no rest."""

    lanes: tuple  # R / LANE
    slots: tuple  # of the rule, for a coordinate
    width: int  # float32 of a row
    bias: int  # the bias's place in it
    rank: int  # factors that are no padding


class RowAdaGrad(NamedTuple):
    """AdaGrad with one sum of squares for the factors of a row, the mean over them: G += |g|² / R; w -= lr g / sqrt(G).

    The bias has a sum of its own. Chin et al. 2015, "A learning-rate schedule for stochastic gradient methods to matrix
    factorization", who have two of them for a row's factors.
    """

    G0: float = 1.0
    ranges = {"G0": "(0, inf)"}
    default_lr = 0.1
    summed = True

    def start(hp):
        return ()

    def prepare(hp, lr, t):
        return (lr,)

    @staticmethod
    def update(c, g, slots):
        return c[0] * g, slots


@inlined
def factors(sizes):
    """R."""
    return np.uint64(LANE * len(sizes.lanes))


@inlined
def dot(sizes, flat, u, v):
    """b_u + b_v + p_u·q_v of rows u and v."""
    a, b, z = u * np.uint64(sizes.width), v * np.uint64(sizes.width), flat.dtype.type(0)
    for j in range(factors(sizes)):
        z += flat[a + j] * flat[b + j]
    return z + flat[a + np.uint64(sizes.bias)] + flat[b + np.uint64(sizes.bias)]


@inlined
def fetch(sizes, flat, row):
    """Ask for a row."""
    for k in range(0, sizes.width, 16):
        prefetch(flat, np.intp(row) * sizes.width + k)


# Modes of sharing.


@inlined
def enter_rows(space, u, v, w, t):
    """Before a step on rows u < v, w, of which the last two may be one."""
    if waits(space.params.mode):
        rows = space.buffers.rows
        rows[0], rows[1], rows[2] = u, min(v, w), max(v, w)
        enter(space.params.mode, rows, 0, 2 + (v != w), t)


@inlined
def leave_rows(space, u, v, w, t):
    """And after it."""
    if waits(space.params.mode):
        leave(space.params.mode, space.buffers.rows, 0, 2 + (v != w), t)


def await_turn(mode, rows, t):
    """Wait for the turn of step t, in the mode that has turns: what the step looks at is then as the step before left it."""


@overload(await_turn, **LOOP)
def _await_turn(mode, rows, t):
    if mode.instance_class is RoundRobin:
        return lambda mode, rows, t: enter(mode, rows, 0, 0, t)
    return lambda mode, rows, t: None


def place(mode, flat, at, new, old):
    """Bring a value, `old` when it was read, to flat[at]."""


@overload(place, **LOOP)
def _place(mode, flat, at, new, old):
    if mode.instance_class in (Atomic, Counted):
        return lambda mode, flat, at, new, old: add(mode, flat, at, new - old)

    def store(mode, flat, at, new, old):
        flat[at] = new
    return store


# A step.


@inlined
def _load(slots, flat, at, stride):
    """The slots of a coordinate, of which the first is at flat[at]."""
    if len(slots) == 0:
        return ()
    return (flat[at],) + _load(slots[1:], flat, at + stride, stride)


@inlined
def _store(mode, flat, at, stride, new, old):
    if len(new) > 0:
        place(mode, flat, at, new[0], old[0])
        _store(mode, flat, at + stride, stride, new[1:], old[1:])


class _Shared(NamedTuple):
    """What all coordinates of a step share, in their dtype."""

    decay: tuple
    bound: tuple


@inlined
def _coordinate(step, c, space, slots, at, stride, w, g, shared, s):
    """Step the coordinate w = flat[at], whose slots are `stride` apart, with gradient g; s multiplies the decay. The gradient
    with the decay."""
    flat, mode = space.params.flat, space.params.mode
    old = _load(slots, flat, at + stride, stride)
    g = decayed_gradient(g, w, shared.decay, shared.bound, s)
    new, state = move(step.rule, c, g, w, old, shared.decay, s)
    place(mode, flat, at, new, w)
    _store(mode, flat, at + stride, stride, state, old)
    return g


def _bound_of(clip):
    """(±value,) of a Clip, or ()."""


@overload(_bound_of, **LOOP)
def _bound_of_impl(clip):
    if isinstance(clip, types.NoneType):
        return lambda clip: ()
    return lambda clip: (clip.value,)


def _row_terms(rule, c, flat, at):
    """The rule's coefficients for coordinates whose sum of squares is at flat[at], where the rule has one for several."""


@overload(_row_terms, **LOOP)
def _row_terms_impl(rule, c, flat, at):
    if rule.instance_class is RowAdaGrad:
        return lambda rule, c, flat, at: (flat.dtype.type(c[0]) / protocol.root(flat[at]),)
    return lambda rule, c, flat, at: cast(c, flat.dtype.type)


def _add_square(rule, mode, flat, at, square):
    """Add to that sum."""


@overload(_add_square, **LOOP)
def _add_square_impl(rule, mode, flat, at, square):
    if rule.instance_class is RowAdaGrad:
        return lambda rule, mode, flat, at, square: place(mode, flat, at, flat[at] + square, flat[at])
    return lambda rule, mode, flat, at, square: None


@inlined
def learn(step, c, model, space, rows, dz):
    """Step the rows (u, v), or (u, v, w) of a score that is v's less w's, with gradient dz by the score.

    step: a Step; c: what the rule's `prepare` gives; model.decay_weight: float32[rows] that multiplies the decay, or None.
    """
    flat, sizes, rule = space.params.flat, model.sizes, step.rule
    like, n, width = flat.dtype.type, factors(sizes), np.uint64(sizes.width)
    shared = _Shared(cast(decay_terms(step.decay, step.lr), like), cast(_bound_of(step.clip), like))
    most, slots, sums = like(most_decay_weight(step.decay, step.lr)), sizes.slots, np.uint64(sizes.bias + 1)
    u, v = rows[0] * width, rows[1] * width
    s, r = decay_weight_at(model.decay_weight, rows[0], most), decay_weight_at(model.decay_weight, rows[1], most)
    cu, cv = _row_terms(rule, c, flat, u + sums), _row_terms(rule, c, flat, v + sums)
    total_u, total_v, total_w = like(0), like(0), like(0)
    if len(rows) == 2:
        for j in range(n):
            p, q = flat[u + j], flat[v + j]
            g = _coordinate(step, cu, space, slots, u + j, n, p, dz * q, shared, s)
            h = _coordinate(step, cv, space, slots, v + j, n, q, dz * p, shared, r)
            total_u, total_v = total_u + g * g, total_v + h * h
        _bias(step, c, model, space, u, dz, shared, s)
    else:
        w = rows[2] * width
        o, cw = decay_weight_at(model.decay_weight, rows[2], most), _row_terms(rule, c, flat, w + sums)
        for j in range(n):
            p, q, x = flat[u + j], flat[v + j], flat[w + j]
            g = _coordinate(step, cu, space, slots, u + j, n, p, dz * (q - x), shared, s)
            h = _coordinate(step, cv, space, slots, v + j, n, q, dz * p, shared, r)
            k = _coordinate(step, cw, space, slots, w + j, n, x, -dz * p, shared, o)
            total_u, total_v, total_w = total_u + g * g, total_v + h * h, total_w + k * k
        _bias(step, c, model, space, w, -dz, shared, o)
        _add_square(rule, space.params.mode, flat, w + sums, total_w / like(sizes.rank))
    _bias(step, c, model, space, v, dz, shared, r)
    _add_square(rule, space.params.mode, flat, u + sums, total_u / like(sizes.rank))
    _add_square(rule, space.params.mode, flat, v + sums, total_v / like(sizes.rank))


@inlined
def _bias(step, c, model, space, row, dz, shared, s):
    """Step the bias of the row that begins at flat[row]."""
    flat, at = space.params.flat, row + np.uint64(model.sizes.bias)
    one = np.uint64(1)
    own = at + one + one
    g = _coordinate(step, _row_terms(step.rule, c, flat, own), space, model.sizes.slots, at, one, flat[at],
                    dz * flat.dtype.type(model.biased), shared, s)
    _add_square(step.rule, space.params.mode, flat, own, g * g)


def shortened(clip, sizes, flat, rows, dz):
    """Factor that brings the gradient dz by the score, as the rows' coordinates have it, to the norm that clip allows."""


@overload(shortened, **INLINE)
def _shortened(clip, sizes, flat, rows, dz):
    if isinstance(clip, types.NoneType):
        return lambda clip, sizes, flat, rows, dz: 1.0

    def factor(clip, sizes, flat, rows, dz):
        if clip.norm == math.inf:
            return 1.0
        total, width = 2.0, np.uint64(sizes.width)
        u, v = rows[0] * width, rows[1] * width
        if len(rows) == 2:
            for j in range(factors(sizes)):
                total += flat[u + j]**2 + flat[v + j]**2
        else:
            w = rows[2] * width
            for j in range(factors(sizes)):
                total += 2.0 * flat[u + j]**2 + (flat[v + j] - flat[w + j])**2
        return min(1.0, clip.norm / (abs(dz) * total**0.5 + 1e-6))
    return factor
