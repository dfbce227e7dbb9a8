"""The step of a coordinate that has waited: under gradient dropping it gets, after n steps, the sum of n gradients at once.

Dense training would have given it n gradients, one a step. A step of zeros in the n - 1 steps between, and of the sum in
the last, is the same for SGD alone; Adam and its relatives, which divide by the root of the mean square, would move it by
one step's length. Here it takes n steps with the mean gradient a = sum / n, in closed form (`repeat` of its rule):

    running means   m <- b^n m + (1 - b^n) a       v <- b2^n v + (1 - b2^n) a²       exactly what n updates with a leave
    sums            G <- G + n a²                                                    (AdaGrad), as exactly
    deviations      s <- b2^n s + (1 - b2^n) (b1 (a - m))²   (AdaBelief): as if each update's a - m were the first one's
    weights         w <- (1 - lr wd)^n w - delta

    delta           SGD: lr times the sum. Momentum, Nesterov: exactly that of the n updates. The adaptive rules: min(n, cap)
                    times that of the last update, whose slots and whose bias corrections (of the run's step t) all n get
    cap             3 to 30, and for each tensor and step so low that the sum of the min(n, cap)² is at most its number of
                    elements: an adaptive rule moves a coordinate by about lr, and so no step is longer than a dense one. At
                    rates that are just right for dense steps, longer ones of a few coordinates diverge. Where many elements
                    arrive, waits are short, and 3 steps at once do no harm.

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
LEAST, CAP = 3, 30  # of the updates that an adaptive rule owes a coordinate, it moves by at most so many at once
LONGEST = 1 << 15  # waits of more steps count as so many: the step that a coordinate had last is kept modulo 2^16


def unfit(rule) -> str:
    """Why the rule cannot catch up; empty where it can, or has no slots and need not."""
    if hasattr(rule, "terms"):
        return "whose step depends on the whole tensor"
    if getattr(rule, "centred", False):
        return "whose estimate of the variance n equal gradients bring to 0"
    return getattr(rule, "unfit", "")


def catches_up(rule) -> bool:
    """Whether the step differs from one with zeros between, and is defined."""
    return bool(rule.start()) and not unfit(rule)


def low16(t) -> int:
    """t modulo 2^16, as the int16 of these bits: torch pickles and indexes no uint16."""
    return (t + 2**15) % 2**16 - 2**15


def shorten_waits(last, t):
    """Let those that wait for LONGEST steps or more wait for one less, in place; due every LONGEST steps. Array or tensor."""
    last[low16(t) - last < 0] = low16(t - LONGEST + 1)  # a difference of 2^15 or more is negative in 16 bits


def cap_of(counts, size) -> int:
    """The most updates that a coordinate of a tensor of `size` elements moves by at once: Σ min(n, cap)² <= size or LEAST.

    counts: whole numbers [CAP + 1]: how many coordinates have waited for n steps, the last one for CAP or more.
    """
    few = np.arange(CAP + 1.0)
    return max((cap for cap in range(LEAST, CAP + 1) if (counts * np.minimum(few, cap) ** 2).sum() <= size), default=LEAST)


@kernel
def count_waits(last, indices, t, counts):
    """Add to counts, int64[CAP + 1], the waits of the coordinates `indices`: see `cap_of`."""
    for i in range(np.uint64(indices.size)):
        counts[min(max((t - last[indices[i]]) & 0xFFFF, 1), counts.size - 1)] += 1


@functools.lru_cache(32, typed=True)  # NamedTuples of two classes are equal where their numbers are
def table_of(rule, lr, t, cap=CAP, dtype=np.float32) -> np.ndarray:
    """[TABLE, C]: the coefficients of `repeat` for n = 1 … TABLE. A power takes longer than all else of a coordinate."""
    n = np.arange(1.0, TABLE + 1)
    return np.stack(np.broadcast_arrays(*protocol.times(rule, rule.prepare(lr, t), n, np.minimum(n, cap))), 1).astype(dtype)


def catch_up(rule, state, indices, g, now, decay=None, clip=None):
    """`catch_up_step` with its table, for one that is called at every step; checks only the hyper-parameters."""
    rule, (scale, lr, t) = checked(rule), now
    if t % LONGEST == 0:
        shorten_waits(state[2], t)
    now, counts = (float(scale), float(lr), int(t)), np.zeros(CAP + 1, np.int64)
    count_waits(state[2], indices, now[2], counts)
    cap = cap_of(counts, state[0].size)
    catch_up_step(rule, table_of(rule, *now[1:], cap, state[0].dtype), state, indices, g, (*now, cap), checked(decay),
                  checked(clip))


@kernel
def catch_up_step(rule, table, state, indices, g, now, decay, clip):
    """Step the coordinates `indices` (uint32[m], unique) with gradient scale * g[d]. Nothing is checked here.

    state: w [d], slots (S arrays [d]), last int16[d]: each coordinate's last step modulo 2^16. now: scale, lr, t from 0, cap.
    table: as `table_of`, of w's dtype. clip bounds what has arrived, before it is divided by n; its norm is that of all g.
    """
    w, slots, last = state
    scale, lr, t, cap = now
    like = w.dtype.type
    bound64, factor = clip_terms(clip, g, 0, g.size, scale)
    bound, k, factor = cast(bound64, like), cast(decay_terms(decay, lr), like), like(factor)
    c64, one, today = protocol.prepare(rule, lr, t), like(1), np.int16(t)
    c, again = cast(c64, like), cast(protocol.times(rule, c64, 1, 1), like)
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
            cn = _row(table, n - 1, again) if n <= len(table) else cast(protocol.times(rule, c64, n, cap), like)
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

    n: waits as whole numbers in float64, shaped as w. now: scale, lr, t, cap.
    """
    rule, decay, clip = checked(rule), checked(decay), checked(clip)
    scale, lr, t, cap = now
    g = g * scale
    if clip is not None and clip.norm < math.inf:
        g = g * min(1.0, clip.norm / (float((g * g).sum()) ** 0.5 + 1e-6))
    if clip is not None and clip.value < math.inf:
        g = bounded(g, clip.value)
    a, stays = g / n, 1.0
    if decay is not None:
        a, stays = a + decay.l2 * w, (1.0 - lr * decay.wd) ** n
    moves = n.clip(max=cap) if hasattr(n, "numel") else np.minimum(n, cap)
    delta, state = _repeated(rule, rule.prepare(float(lr), int(t)), (n, moves), a, tuple(slots))
    w[...] = stays * w - delta
    for slot, value in zip(slots, state):
        slot[...] = value


def _repeated(rule, c, waits, g, slots):
    """(delta, slots) of n updates, where each element has an n of its own. waits: n, and how many of these it moves by."""
    n, moves = waits
    if hasattr(rule, "times"):
        return rule.repeat(rule.times(c, n, moves), g, slots)
    total = 0.0 * g
    for i in range(int(n.max())):
        delta, new = rule.update(c, g, slots)
        total, slots = total + delta * (n > i), tuple(_chosen(n > i, x, old) for x, old in zip(new, slots))
    return total, slots


def _chosen(where, x, old):
    return x.where(where, old) if hasattr(x, "where") else np.where(where, x, old)
