"""The step of a coordinate that has waited: under gradient dropping it gets, after n steps, the sum of n gradients at once.

Dense training would have given it n gradients, one a step. A step of zeros in the n - 1 steps between, and of the sum in
the last, is the same for SGD alone; Adam and its relatives, which divide by the root of the mean square, would move it by
one step's length. Here it takes n steps with the mean gradient a = sum / n, in closed form (`repeat` of its rule):

    running means   m <- b^n m + (1 - b^n) a       v <- b2^n v + (1 - b2^n) a²       exactly what n updates with a leave
    sums            G <- G + n a²                                                    (AdaGrad), as exactly
    deviations      s <- b2^n s + (1 - b2^n) (b1 (a - m))²   (AdaBelief): as if each update's a - m were the first one's
    weights         w <- (1 - lr wd)^n w - delta

    delta           SGD: lr times the sum. Momentum, Nesterov: exactly that of the n updates. The adaptive rules: min(n, 30)
                    times that of the last update, whose slots and whose bias corrections (of the run's step t) all n get

AdaBelief's mean square is of g - m, which n equal gradients bring to 0: all n updates get that of the first. Centred RMSProp,
whose variance they bring to 0 too, and block rules do not catch up.

A coordinate that was sent in the step before has n = 1 and steps as in dense training, to the bit. One that is never sent
does not decay. What is new against SparseAdam and other lazy steps is n: they take one step, whatever has been waiting.
"""

import functools
import math

import numpy as np
from numba.extending import overload

from hogwild.kernels.compiler.jit import INLINE, elementwise, kernel
from hogwild.kernels.optim import protocol
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.steps import bounded, cast, clip_terms, decay_terms, decayed_gradient, load, move, store

TABLE = 512  # waits up to this one have their coefficients computed once a step
LONGEST = 1 << 15  # waits of more steps count as so many: the step that a coordinate had last is kept modulo 2^16


def unfit(rule) -> str:
    """Why the rule cannot catch up; empty where it can, or has no slots and need not."""
    if hasattr(rule, "terms"):
        return "whose step depends on the whole tensor"
    return "whose estimate of the variance n equal gradients bring to 0" if getattr(rule, "centred", False) else ""


def catches_up(rule) -> bool:
    """Whether the step differs from one with zeros between, and is defined."""
    return bool(rule.start()) and not unfit(rule)


def low16(t) -> int:
    """t modulo 2^16, as the int16 of these bits: torch pickles and indexes no uint16."""
    return (t + 2**15) % 2**16 - 2**15


def shorten_waits(last, t):
    """Let those that wait for LONGEST steps or more wait for one less, in place; due every LONGEST steps. Array or tensor."""
    last[low16(t) - last < 0] = low16(t - LONGEST + 1)  # a difference of 2^15 or more is negative in 16 bits


@functools.lru_cache(8, typed=True)  # NamedTuples of two classes are equal where their numbers are
def table_of(rule, lr, t, dtype=np.float32) -> np.ndarray:
    """[TABLE, C]: the coefficients of `repeat` for n = 1 … TABLE. A power takes longer than all else of a coordinate."""
    n = np.arange(1.0, TABLE + 1)
    return np.stack(np.broadcast_arrays(*protocol.times(rule, rule.prepare(lr, t), n)), 1).astype(dtype)


def catch_up(rule, state, indices, g, now, decay=None, clip=None):
    """`catch_up_step` with its table, for one that is called at every step; checks only the hyper-parameters."""
    rule, (scale, lr, t) = checked(rule), now
    if t % LONGEST == 0:
        shorten_waits(state[2], t)
    now = float(scale), float(lr), int(t)
    catch_up_step(rule, table_of(rule, *now[1:], state[0].dtype), state, indices, g, now, checked(decay), checked(clip))


@kernel
def catch_up_step(rule, table, state, indices, g, now, decay, clip):
    """Step the coordinates `indices` (uint32[m], unique) with gradient scale * g[d]. Nothing is checked here.

    state: w [d], slots (S arrays [d]), last int16[d]: each coordinate's last step modulo 2^16. now: scale, lr, t (from 0).
    table: as `table_of`, of w's dtype. clip bounds what has arrived, before it is divided by n; its norm is that of all g.
    """
    w, slots, last = state
    scale, lr, t = now
    like = w.dtype.type
    bound64, factor = clip_terms(clip, g, 0, g.size, scale)
    bound, k, factor = cast(bound64, like), cast(decay_terms(decay, lr), like), like(factor)
    c64, one, today = protocol.prepare(rule, lr, t), like(1), np.int16(t)
    c, again = cast(c64, like), cast(protocol.times(rule, c64, 1), like)
    for i in range(np.uint64(indices.size)):
        j = indices[i]
        n = max((t - last[j]) & 0xFFFF, 1)
        last[j] = today
        if n == 1:
            x = decayed_gradient(factor * g[j], w[j], k, bound, one)
            new, slot = move(rule, c, x, w[j], load(slots, j), k, one)
            store(slots, j, slot)
            w[j] = new
        else:
            a = decayed_gradient(decayed_gradient(factor * g[j], w[j], (), bound, one) / like(n), w[j], k, (), one)
            cn = _row(table, n - 1, again) if n <= len(table) else cast(protocol.times(rule, c64, n), like)
            delta, slot = protocol.repeat(rule, cn, a, load(slots, j))
            store(slots, j, slot)
            w[j] = _decayed(w[j], decay, lr, n) - delta


def _row(table, i, like):
    """The last entries of a row, as many as `like` has, as a tuple."""


@overload(_row, **INLINE)
def _row_impl(table, i, like):
    if len(like) == 0:
        return lambda table, i, like: ()
    return lambda table, i, like: (table[i, table.shape[1] - len(like)],) + _row(table, i, like[1:])


@elementwise
def _decayed(w, decay, lr, n):
    """w after n decoupled decays."""
    if decay is None:
        return w
    return (1.0 - lr * decay.wd) ** n * w


def array_catch_up(rule, w, g, slots, n, now, decay=None, clip=None):
    """`catch_up_step` without Numba, on all elements of NumPy arrays or torch tensors, in place: its slow oracle.

    n: waits as whole numbers in float64, shaped as w. now: scale, lr, t.
    """
    rule, decay, clip = checked(rule), checked(decay), checked(clip)
    scale, lr, t = now
    g = g * scale
    if clip is not None and clip.norm < math.inf:
        g = g * min(1.0, clip.norm / (float((g * g).sum()) ** 0.5 + 1e-6))
    if clip is not None and clip.value < math.inf:
        g = bounded(g, clip.value)
    a, stays = g / n, 1.0
    if decay is not None:
        a, stays = a + decay.l2 * w, (1.0 - lr * decay.wd) ** n
    delta, state = _repeated(rule, rule.prepare(float(lr), int(t)), n, a, tuple(slots))
    w[...] = stays * w - delta
    for slot, value in zip(slots, state):
        slot[...] = value


def _repeated(rule, c, n, g, slots):
    """(delta, slots) of n updates, where each element has an n of its own."""
    if hasattr(rule, "times"):
        return rule.repeat(rule.times(c, n), g, slots)
    total = 0.0 * g
    for i in range(int(n.max())):
        delta, new = rule.update(c, g, slots)
        total, slots = total + delta * (n > i), tuple(_chosen(n > i, x, old) for x, old in zip(new, slots))
    return total, slots


def _chosen(where, x, old):
    return x.where(where, old) if hasattr(x, "where") else np.where(where, x, old)
