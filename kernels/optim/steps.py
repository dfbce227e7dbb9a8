"""Drive any rule over arrays: the dense step, the sparse step, and the same on NumPy arrays or torch tensors.

A step takes the gradient, clips it, adds the coupled decay, and lets the rule move the weights; the decoupled decay
shrinks them. Parameters w and the S slots are 1-D arrays of one dtype: contiguous for dense use, columns of
`theta[d, 1 + S]` for sparse use, so that a coordinate's weight and slots share a cache line.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload
from numba.np.numpy_support import as_dtype

from hogwild.kernels.compiler.jit import LOOP, SUM, elementwise, inlined, kernel, reduction
from hogwild.kernels.optim import protocol
from hogwild.kernels.optim.hyperparameters import checked


class Decay(NamedTuple):
    """Weight decay: `l2` is coupled (adds l2 w to the gradient), `wd` decoupled (w *= 1 - lr wd)."""

    l2: float = 0.0
    wd: float = 0.0

    ranges = {"l2": "[0, inf)", "wd": "[0, inf)"}


class Clip(NamedTuple):
    """Gradient clipping: first to L2 norm `norm` over the step's gradient (as torch does), then to ±`value`."""

    value: float = math.inf
    norm: float = math.inf

    ranges = {"value": "(0, inf]", "norm": "(0, inf]"}


def aligned(shape, dtype=np.float32) -> np.ndarray:
    """Zeros that start on a cache line, so that no aligned value ever crosses one."""
    count = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start:start + count].view(dtype).reshape(shape)


def new_slots(rule, d, dtype=np.float32) -> np.ndarray:
    """State of `rule` for d parameters in dense use: `slots[S, d]`, each slot at its initial value."""
    slots = aligned((len(rule.start()), d), dtype)
    for slot, value in zip(slots, rule.start()):
        slot.fill(value) if value else None
    return slots


def new_theta(rule, d, dtype=np.float32) -> np.ndarray:
    """Weights and state of `rule` for d coordinates in sparse use: `theta[d, 1 + S]`, weights 0 in column 0."""
    theta = aligned((d, 1 + len(rule.start())), dtype)
    for column, value in enumerate(rule.start(), 1):
        if value:
            theta[:, column] = value
    return theta


def columns(theta):
    """`theta[d, 1 + S]` as (w, slots): its columns."""
    return theta[:, 0], tuple(theta[:, k] for k in range(1, theta.shape[1]))


# Small functions of which each kernel compiles what its types ask for. Tuples are taken apart by recursion: their length is
# a type.


@inlined
def load(arrays, j):
    """The tuple of `array[j]`."""
    if len(arrays) == 0:
        return ()
    return (arrays[0][j],) + load(arrays[1:], j)


@inlined
def store(arrays, j, values):
    """`array[j] = value` for each array."""
    if len(arrays) > 0:
        arrays[0][j] = values[0]
        store(arrays[1:], j, values[1:])


@elementwise
def cast(numbers, dtype):
    """The tuple of numbers in `dtype`: a float64 left in a loop would turn float32 arithmetic into float64."""
    if len(numbers) == 0:
        return ()
    return (dtype(numbers[0]),) + cast(numbers[1:], dtype)


def _at(array, i, default):
    """`array[i]`; `default` where the array is None."""


@overload(_at, **LOOP)
def _at_impl(array, i, default):
    if isinstance(array, types.NoneType):
        return lambda array, i, default: default
    return lambda array, i, default: array[i]


def decay_weight_at(weight, j, most):
    """`weight[j]`, up to `most`; 1 where there is none."""


@overload(decay_weight_at, **LOOP)
def _decay_weight_at(weight, j, most):
    if isinstance(weight, types.NoneType):
        one = as_dtype(most).type(1)
        return lambda weight, j, most: one
    return lambda weight, j, most: min(weight[j], most)


@elementwise
def most_decay_weight(decay, lr):
    """The weight at which the decay of one step takes all of a parameter; infinite without decay."""
    return math.inf if decay is None else 1.0 / max(lr * (decay.l2 + decay.wd), 1e-30)


def decay_terms(decay, lr):
    """What `decayed_gradient` and `move` get as k: (l2, wd, lr wd); empty without decay."""
    return () if decay is None else (decay.l2, decay.wd, decay.wd * lr)


@overload(decay_terms, **LOOP)
def _decay_terms(decay, lr):
    if isinstance(decay, types.NoneType):
        return lambda decay, lr: ()
    return lambda decay, lr: (decay.l2, decay.wd, decay.wd * lr)


def clip_terms(clip, x, start, stop, factor):
    """((±value,) or (), factor after clipping by norm)."""


@overload(clip_terms, **SUM)
def _clip_terms(clip, x, start, stop, factor):
    if isinstance(clip, types.NoneType):
        return lambda clip, x, start, stop, factor: ((), factor)

    def terms(clip, x, start, stop, factor):
        if clip.norm < math.inf:
            total = 0.0
            for i in range(np.uint64(start), np.uint64(stop)):  # unsigned: no wrap-around code, so it vectorizes
                total += float(x[i]) * float(x[i])
            factor *= min(1.0, clip.norm / (abs(factor) * total**0.5 + 1e-6))
        return (clip.value,), factor
    return terms


@reduction
def shorten(clip, x, start, stop, square, intercept):
    """Factor that brings a gradient of squared norm square (|x|² + intercept²) to the norm that clip allows."""
    if clip is None:
        return 1.0
    if clip.norm == math.inf:
        return 1.0
    total = 1.0 * intercept * intercept
    for i in range(np.uint64(start), np.uint64(stop)):
        total += float(x[i]) * float(x[i])
    return min(1.0, clip.norm / ((square * total) ** 0.5 + 1e-6))


def by_value(clip):
    """`clip` without its bound on the norm."""


@overload(by_value, **LOOP)
def _by_value(clip):
    if isinstance(clip, types.NoneType):
        return lambda clip: None
    return lambda clip: Clip(clip.value, math.inf)


@elementwise
def bounded(g, most):
    """g between -most and most."""
    return -protocol.maximum(-protocol.maximum(g, -most), -most)


@elementwise
def decayed_gradient(g, w, k, bound, s):
    """Gradient g clipped to ±bound, plus the coupled decay of w weighted by s."""
    if len(bound) == 1:
        g = bounded(g, bound[0])
    if len(k) == 3:
        g = g + k[0] * s * w
    return g


def move(rule, c, g, w, slots, k, s):
    """(w, slots) after the step with gradient g."""
    decay = k[1] * s * w if k else 0.0 * w
    if hasattr(rule, "terms"):
        delta, slots = rule.update(c, g, slots, decay)
        return w - delta, slots
    delta, slots = rule.update(c, g, slots)
    return (w - k[2] * s * w if k else w) - delta, slots


@overload(move, **LOOP)
def _move(rule, c, g, w, slots, k, s):
    has_decay = len(k) == 3
    if hasattr(rule.instance_class, "terms"):
        def moved(rule, c, g, w, slots, k, s):
            delta, slots = protocol.update(rule, c, g, slots, _decay_of(w, k, s, 1))
            return w - delta, slots
    elif has_decay:
        def moved(rule, c, g, w, slots, k, s):
            delta, slots = protocol.update(rule, c, g, slots)
            return w - _decay_of(w, k, s, 2) - delta, slots
    else:
        def moved(rule, c, g, w, slots, k, s):
            delta, slots = protocol.update(rule, c, g, slots)
            return w - delta, slots
    return moved


@elementwise
def _decay_of(w, k, s, which):
    """k[which] s w; 0 where there is no decay."""
    return w - w if len(k) == 0 else k[which] * s * w


def _block(rule, c, w, slots, indices, x, start, stop, factor, k, bound, weight, most):
    """Coefficients after a block rule's reductions over the touched coordinates; c itself for the other rules."""


@overload(_block, **SUM)
def _block_impl(rule, c, w, slots, indices, x, start, stop, factor, k, bound, weight, most):
    if not hasattr(rule.instance_class, "terms"):
        return lambda rule, c, w, slots, indices, x, start, stop, factor, k, bound, weight, most: c

    def block(rule, c, w, slots, indices, x, start, stop, factor, k, bound, weight, most):
        like = w.dtype.type
        for stage in range(protocol.stages(rule)):
            small = cast(c, like)
            a, b, e, top = 0.0, 0.0, 0.0, 0.0
            for i in range(np.uint64(start), np.uint64(stop)):
                j = _at(indices, i, i)
                g = decayed_gradient(factor * x[i], w[j], k, bound, decay_weight_at(weight, j, most))
                ta, tb, te, tt = protocol.terms(rule, small, stage, g, load(slots, j))
                a, b, e, top = a + ta, b + tb, e + te, max(top, tt)
            c = protocol.close(rule, c, stage, (a, b, e, top), stop - start)
        return c
    return block


@kernel
def step(rule, w, slots, indices, x, start, stop, factor, lr, t, decay, clip, weight):
    """One step with gradient `factor * x[start:stop]`, on the coordinates `indices[start:stop]` (None: start … stop).

    For use inside kernels: bounds in place of slices, since a slice counts references, atomically, at each example.
    w [d] and slots (S arrays [d]); x [m]; indices [m], unique between the bounds, below d; weight [d] or None:
    multiplies the decay, up to where it takes all of w: the Hogwild paper's correction for features that are rarely
    touched. Nothing is checked here.
    """
    like = w.dtype.type
    bound64, factor = clip_terms(clip, x, start, stop, factor)
    bound, k, factor = cast(bound64, like), cast(decay_terms(decay, lr), like), like(factor)
    most = like(most_decay_weight(decay, lr))
    c64 = _block(rule, protocol.prepare(rule, lr, t), w, slots, indices, x, start, stop, factor, k, bound, weight, most)
    c = cast(c64, like)
    for i in range(np.uint64(start), np.uint64(stop)):
        j = _at(indices, i, i)
        s = decay_weight_at(weight, j, most)
        g = decayed_gradient(factor * x[i], w[j], k, bound, s)
        new, state = move(rule, c, g, w[j], load(slots, j), k, s)
        store(slots, j, state)
        w[j] = new


def _valid(name, array, dtype, shape):
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        got = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be a contiguous {np.dtype(dtype)} array of shape {list(shape)}, got {got}")


def _float(dtype):
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"parameters must be float32 or float64, got {dtype}")
    return dtype


def dense_step(rule, w, g, slots, lr, t, decay=None, clip=None, scale=1.0):
    """Step every coordinate of w [d] in place with gradient scale * g [d]; slots as `new_slots` makes them [S, d].

    lr: learning rate; t: steps done so far; decay, clip: `Decay`, `Clip` or None. Raises ValueError on a wrong shape or
    dtype, HyperParameterError on a number out of range.
    """
    _float(w.dtype)
    _valid("w", w, w.dtype, (w.size,))
    _valid("g", g, w.dtype, w.shape)
    _valid("slots", slots, w.dtype, (len(rule.start()), w.size))
    step(checked(rule), w, tuple(slots), None, g, 0, w.size, float(scale), float(lr), int(t), checked(decay),
         checked(clip), None)


def sparse_step(rule, theta, indices, values, lr, t, decay=None, clip=None, weight=None):
    """Step the coordinates `indices` of theta [d, 1 + S] in place with gradient `values`; both 1-D, equally long.

    Lazy, as torch's SparseAdam: the other coordinates do not move and their slots do not decay. Duplicate indices are
    summed first. weight [d] or None multiplies the decay, up to where it takes all of a weight. Raises as `dense_step`
    does, IndexError on an index >= d.
    """
    _float(theta.dtype)
    _valid("theta", theta, theta.dtype, (len(theta), 1 + len(rule.start())))
    indices, values = np.asarray(indices), np.ascontiguousarray(values, theta.dtype)
    if indices.shape != values.shape or indices.ndim != 1:
        raise ValueError(f"indices and values must be 1-D and equally long, got {indices.shape} and {values.shape}")
    if indices.size and indices.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers, got {indices.dtype}")
    if indices.size and (indices.min() < 0 or indices.max() >= len(theta)):
        raise IndexError(f"indices must be in [0, {len(theta)}), got {indices.min()} to {indices.max()}")
    if weight is not None:
        _valid("weight", weight, theta.dtype, (len(theta),))
    if np.any(indices[1:] <= indices[:-1]):
        indices, inverse = np.unique(indices, return_inverse=True)
        values = np.bincount(inverse, values, len(indices)).astype(theta.dtype)
    step(checked(rule), *columns(theta), indices.astype(np.uint32), values, 0, len(values), 1.0, float(lr), int(t),
         checked(decay), checked(clip), weight)


def array_step(rule, w, g, slots, lr, t, decay=None, clip=None, scale=1.0):
    """`dense_step` without Numba, on NumPy arrays or torch tensors (CUDA too) of any shape; slots: sequence of S.

    It runs the same rule source, so it is each rule's slow oracle.
    """
    rule, decay, clip = checked(rule), checked(decay), checked(clip)
    if not math.prod(w.shape):
        return
    k, bound, g = decay_terms(decay, lr), (), g * scale
    if clip is not None:
        bound = (clip.value,) if clip.value < math.inf else ()
        g = g * min(1.0, clip.norm / (float((g * g).sum()) ** 0.5 + 1e-6)) if clip.norm < math.inf else g
    g = _clamped(g, bound)
    g = decayed_gradient(g, w, k, (), 1.0)
    c, n = rule.prepare(float(lr), int(t)), math.prod(w.shape)
    for stage in range(int(protocol.stages(rule))):
        *sums, top = rule.terms(c, stage, g, tuple(slots))
        c = rule.close(c, stage, (*(float(x.sum()) for x in sums), float(top.max())), n)
    new, state = move(rule, c, g, w, tuple(slots), k, 1.0)
    w[...] = new
    for slot, value in zip(slots, state):
        slot[...] = value


def _clamped(g, bound):
    return g.clip(-bound[0], bound[0]) if bound else g
