"""Sparse linear models: one pass of a Hogwild worker over its examples, and scores. Niu et al. 2011, section 2.

Parameters as in kernels/sharing.py: a row for each of the d features, row d the intercept's.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from kernels.atomics import atomic_load, atomic_store, barrier
from kernels.jit import LOOP, kernel, prefetch
from kernels.lazy import shrink, tau_at
from kernels.losses import evaluate
from kernels.schedules import cycled, rate
from kernels.sharing import count, enter, flush, leave, part, row_of, row_step, width
from kernels.steps import by_value, shorten

AHEAD = 4  # rows whose entries are fetched into the cache early; 2 to 16 measure alike
EVERY, WINDOW = 4096, 64  # of so many examples so many are sampled for lost updates
FLUSH = 256  # most examples between two flushes of a worker's private rows


class Model(NamedTuple):
    """What is trained on: all workers share it."""

    loss: tuple
    decay: tuple  # Decay or None
    clip: tuple  # Clip or None
    lasso: tuple  # Lasso or None
    average: tuple  # Average or None
    csr: tuple
    labels: np.ndarray  # float32[n]: ±1, a target, or a class number
    weights: np.ndarray  # float32[n] of the examples, or None
    decay_weight: np.ndarray  # float32[d] that multiplies the decay, or None
    intercept: bool


class Shadow(NamedTuple):
    """Counters beside the parameters, raised as they are, but only now and then: what is missing in them was lost."""

    counts: np.ndarray  # uint32[d]: shared, plain additions
    board: np.ndarray  # int64[8 (workers + 1)]: [0]: whether all sample now; [8 (k + 1)]: examples that worker k sampled
    me: int


class Worker(NamedTuple):
    """What one worker owns."""

    place: tuple
    scratch: tuple  # Scratch, or None
    outputs: tuple  # Outputs, or None
    seen: np.ndarray  # its private rows after the last flush; or None: it has none
    names: np.ndarray  # int64[private rows]: the shared row of each
    shadow: tuple  # Shadow, or None
    clock: np.ndarray  # float64[8]: the sum of learning rates, then examples, change and push since the last flush
    workers: int


def score(place, scratch, outputs, tau, csr, start, stop, intercept):
    """w·x + b of a row: a number, or the array outputs.z."""


@overload(score, **LOOP)
def _score(place, scratch, outputs, tau, csr, start, stop, intercept):
    if isinstance(outputs, types.NoneType):
        def one(place, scratch, outputs, tau, csr, start, stop, intercept):
            flat, indices, values = place.flat, csr.indices, csr.values
            columns = np.uint64(width(scratch, tau))
            z = flat.dtype.type(0)
            for i in range(np.uint64(start), np.uint64(stop)):
                z += flat[row_of(place, indices[i]) * columns] * values[i]
            return float(z + flat[np.uint64(place.first) * columns] if intercept else z)
        return one

    def many(place, scratch, outputs, tau, csr, start, stop, intercept):
        flat, z, outs, columns = place.flat, outputs.z, np.uint64(count(outputs)), np.uint64(width(scratch, tau))
        for o in range(outs):
            z[o] = flat[(np.uint64(place.first) * outs + o) * columns] if intercept else 0.0
        for i in range(np.uint64(start), np.uint64(stop)):
            at, x = row_of(place, csr.indices[i]) * outs, csr.values[i]
            for o in range(outs):
                z[o] += flat[(at + o) * columns] * x
        return z
    return many


def judged(loss, outputs, z, y, weight):
    """(loss, its gradient by the scores), both times weight. A binary loss judges K outputs one against the rest."""


@overload(judged, **LOOP)
def _judged(loss, outputs, z, y, weight):
    if isinstance(outputs, types.NoneType):
        def one(loss, outputs, z, y, weight):
            value, slope = evaluate(loss, z, float(y))
            return value * weight, slope * weight
        return one
    if loss.instance_class.__name__ == "SoftmaxCrossEntropy":
        def softmax(loss, outputs, z, y, weight):
            value = evaluate(loss, z, int(y), outputs.gradient)
            for o in range(count(outputs)):
                outputs.gradient[o] *= weight
            return value * weight, outputs.gradient
        return softmax

    def one_against_the_rest(loss, outputs, z, y, weight):
        total = 0.0
        for o in range(count(outputs)):
            value, slope = evaluate(loss, z[o], 1.0 if o == int(y) else -1.0)
            total += value
            outputs.gradient[o] = slope * weight
        return total * weight, outputs.gradient
    return one_against_the_rest


def _weight_of(weights, i):
    """Weight of example i."""


@overload(_weight_of, **LOOP)
def _weight_of_impl(weights, i):
    if isinstance(weights, types.NoneType):
        return lambda weights, i: 1.0
    return lambda weights, i: float(weights[i])




@kernel
def train(rule, schedule, model, worker, order, t, stride, tally):
    """Lock-free steps on the rows `order` [m] of the model's data.

    t: steps done before, raised by `stride` per example; tally [8] float64: adds loss, examples, non-zeros. It stops at
    the first example whose loss is not finite, without a step: tally[3] is then its row + 1.
    """
    loss, decay, clip, lasso, average, csr, labels, weights, decay_weight, intercept = model
    place, scratch, outputs, seen, names, shadow, clock, workers = worker
    indptr, indices, values = csr
    mode, flat, like = place.mode, place.flat, place.flat.dtype.type
    last, total, nonzeros, done = order.shape[0] - 1, 0.0, 0, 0
    for n in range(order.shape[0]):
        # The pointers of a row come from far away too: first they, then what they point to.
        prefetch(indptr, order[min(n + 2 * AHEAD, last)])
        ahead = order[min(n + AHEAD, last)]
        prefetch(labels, ahead)
        for k in range(indptr[ahead], indptr[ahead + 1], 16):
            prefetch(indices, k)
            prefetch(values, k)
        i = order[n]
        start, stop = indptr[i], indptr[i + 1]
        lr, now, tau = rate(schedule, t), cycled(rule, schedule, t), tau_at(average, like, t)
        if given(lasso):
            enter(mode, indices, start, stop, t)
        shrink(lasso, now, place, scratch, outputs, tau, indices, start, stop, clock[0], t)
        z = score(place, scratch, outputs, tau, csr, start, stop, intercept)
        value, slope = judged(loss, outputs, z, labels[i], _weight_of(weights, i))
        if not math.isfinite(value):
            tally[3] = i + 1
            if given(lasso):
                leave(mode, indices, start, stop, t)
            _drain(mode, indices, order.shape[0] - n - given(lasso), t + stride * given(lasso), stride)
            break
        if not given(lasso):
            enter(mode, indices, start, stop, t)
        others = _sampled(shadow, n, workers)
        before = _private(seen, flat, place, scratch, tau)
        row_step(now, place, scratch, outputs, indices, values, start, stop, intercept, slope, lr, t, decay, clip,
                 decay_weight, tau)
        _observe(seen, flat, place, scratch, tau, clock, before, part(slope, 0))
        leave(mode, indices, start, stop, t)
        _sample(shadow, place, indices, start, stop, others, workers, tally)
        _flush(seen, place, scratch, outputs, tau, names, clock, workers)
        clock[0] += lr * stride
        total += value
        nonzeros += stop - start
        done += 1
        t += stride
    _sampled(shadow, 0, workers)  # the others need not go on while this one is away
    _flush(seen, place, scratch, outputs, tau_at(average, like, t), names, clock, 0)
    tally[0] += total
    tally[1] += done
    tally[2] += nonzeros


def given(x):
    """Whether x is not None, known when the kernel is compiled."""


@overload(given, **LOOP)
def _given(x):
    answer = not isinstance(x, types.NoneType)
    return lambda x: answer


@kernel
def _drain(mode, indices, turns, t, stride):
    """Let the steps that will not be made pass, so that no worker waits for them."""
    for _ in range(turns):
        enter(mode, indices, 0, -1, t)
        leave(mode, indices, 0, -1, t)
        t += stride


def _sampled(shadow, n, workers):
    """Before example n: the others' examples sampled so far; -1 where this one is not to be sampled."""


@overload(_sampled, **LOOP)
def _sampled_impl(shadow, n, workers):
    if isinstance(shadow, types.NoneType):
        return lambda shadow, n, workers: -1

    def others(shadow, n, workers):
        if shadow.me == 0 and n % (EVERY // 2) == 0:
            atomic_store(shadow.board, 0, 0)
        if shadow.me == 0 and n % EVERY == EVERY - WINDOW:
            atomic_store(shadow.board, 0, 1)
        return _others(shadow, workers) if atomic_load(shadow.board, 0) else -1
    return others


@kernel
def _others(shadow, workers):
    total = 0
    for k in range(workers):
        if k != shadow.me:
            total += atomic_load(shadow.board, 8 * (k + 1))
    return total


def _sample(shadow, place, indices, start, stop, others, workers, tally):
    """After an example: raise the counters of its shared features; tally[4:7]: raised, others' steps meanwhile, samples."""


@overload(_sample, **LOOP)
def _sample_impl(shadow, place, indices, start, stop, others, workers, tally):
    if isinstance(shadow, types.NoneType):
        return lambda shadow, place, indices, start, stop, others, workers, tally: None

    def sample(shadow, place, indices, start, stop, others, workers, tally):
        if others >= 0:
            for i in range(np.uint64(start), np.uint64(stop)):
                j = indices[i]
                if row_of(place, j) == j:
                    shadow.counts[j] += np.uint32(1)
                    tally[4] += 1
            at = 8 * (shadow.me + 1)
            atomic_store(shadow.board, at, atomic_load(shadow.board, at) + 1)
            tally[5] += _others(shadow, workers) - others
            tally[6] += 1
    return sample


def _private(seen, flat, place, scratch, tau):
    """The private intercept (of the first output)."""


@overload(_private, **LOOP)
def _private_impl(seen, flat, place, scratch, tau):
    if isinstance(seen, types.NoneType):
        return lambda seen, flat, place, scratch, tau: flat.dtype.type(0)
    return lambda seen, flat, place, scratch, tau: flat[place.first * width(scratch, tau)]


def _observe(seen, flat, place, scratch, tau, clock, before, push):
    """Count an example, how far it moved the private intercept, and how hard it pushed."""


@overload(_observe, **LOOP)
def _observe_impl(seen, flat, place, scratch, tau, clock, before, push):
    if isinstance(seen, types.NoneType):
        return lambda seen, flat, place, scratch, tau, clock, before, push: None

    def observe(seen, flat, place, scratch, tau, clock, before, push):
        clock[1] += 1
        clock[2] += abs(flat[place.first * width(scratch, tau)] - before)
        clock[3] += abs(push)
    return observe


def _flush(seen, place, scratch, outputs, tau, names, clock, workers):
    """`flush` the private rows when they are due; at once for workers = 0.

    Each worker moves its private rows alone and the moves are summed. They may therefore not go far between two flushes:
    `workers` of them would go that many times too far, and soon swing. So the period is what the steps' size allows.
    """


@overload(_flush, **LOOP)
def _flush_impl(seen, place, scratch, outputs, tau, names, clock, workers):
    if isinstance(seen, types.NoneType):
        return lambda seen, place, scratch, outputs, tau, names, clock, workers: None

    def due(seen, place, scratch, outputs, tau, names, clock, workers):
        if workers == 0 or clock[1] >= FLUSH or 2.0 * workers * clock[1] * clock[2] >= clock[3]:
            flush(place, seen, names, count(outputs) * width(scratch, tau))
            clock[1] = clock[2] = clock[3] = 0.0
    return due


@kernel
def train_blocks(rule, schedule, model, worker, me, cuts, gate, slopes, lost, order, t, block, tally):
    """Steps whose result is the same to the bit for any number of workers, all of which call this with one `order`.

    A block of examples is judged with the weights before it, each example by one worker; then its updates are made in
    their order, each coordinate by the worker that owns it: `me` the features from cuts[me] up to cuts[me + 1] - 1
    (cuts [workers + 1]). gate: as `barrier` wants it; slopes float64[block K], lost float64[block]: shared. A block
    rule's updates are all made by worker 0. t, tally: as in `train`, with stride 1; worker 0 alone adds to the tally.
    """
    loss, decay, clip, lasso, average, csr, labels, weights, decay_weight, intercept = model
    place, scratch, outputs, seen, names, shadow, clock, workers = worker
    indptr, indices, values = csr
    like, outs = place.flat.dtype.type, count(outputs)
    low, high, owner = cuts[me], cuts[me + 1], me == workers - 1
    if _is_block_rule(rule):
        low, high, owner = (0, cuts[workers], True) if me == 0 else (0, 0, False)
    for first in range(0, order.shape[0], block):
        end = min(first + block, order.shape[0])
        shift = clock[0]
        for n in range(first, end):
            lr, tau = rate(schedule, t + n), tau_at(average, like, t + n)
            start, stop = _owned(csr, order[n], low, high)
            shrink(lasso, cycled(rule, schedule, t + n), place, scratch, outputs, tau, indices, start, stop, shift, t + n)
        _meet(lasso, gate, workers)
        for n in range(first + me, end, workers):
            i = order[n]
            start, stop = indptr[i], indptr[i + 1]
            z = score(place, scratch, outputs, tau_at(average, like, t + n), csr, start, stop, intercept)
            lost[n - first], slope = judged(loss, outputs, z, labels[i], _weight_of(weights, i))
            shorter = shorten(clip, values, start, stop, _square(outputs, slope), intercept)
            for o in range(outs):
                slopes[(n - first) * outs + o] = part(slope, o) * shorter
        barrier(gate, workers)
        for n in range(first, end):
            if not math.isfinite(lost[n - first]):
                tally[3] = order[n] + 1
        if tally[3] > 0:
            break
        for n in range(first, end):
            start, stop = _owned(csr, order[n], low, high)
            lr = rate(schedule, t + n)
            row_step(cycled(rule, schedule, t + n), place, scratch, outputs, indices, values, start, stop,
                     intercept and owner, _slope(outputs, slopes, n - first), lr, t + n, decay, by_value(clip),
                     decay_weight, tau_at(average, like, t + n))
            clock[0] += lr
            if me == 0:
                tally[0] += lost[n - first]
                tally[1] += 1
                tally[2] += indptr[order[n] + 1] - indptr[order[n]]
        barrier(gate, workers)


@kernel
def settle(rule, model, worker, features, t):
    """Apply the L1 penalty that the features (uint32[m]) still owe after step t; `worker` is alone."""
    place, scratch, outputs, seen, names, shadow, clock, workers = worker
    shrink(model.lasso, rule, place, scratch, outputs, tau_at(model.average, place.flat.dtype.type, t), features, 0,
           features.shape[0], clock[0], t)


@kernel
def _owned(csr, i, low, high):
    """Bounds of row i's entries with low <= feature < high."""
    start, stop = csr.indptr[i], csr.indptr[i + 1]
    return _first(csr.indices, start, stop, low), _first(csr.indices, start, stop, high)


@kernel
def _first(indices, start, stop, j):
    """First entry of the row whose feature is at least j."""
    while start < stop:
        middle = (start + stop) // 2
        if indices[middle] < j:
            start = middle + 1
        else:
            stop = middle
    return start


def _is_block_rule(rule):
    """Whether the rule looks at all coordinates of a row together."""


@overload(_is_block_rule, **LOOP)
def _is_block_rule_impl(rule):
    blocks = hasattr(rule.instance_class, "terms")
    return lambda rule: blocks


def _meet(lasso, gate, workers):
    """Wait for the others, where there is an L1 penalty."""


@overload(_meet, **LOOP)
def _meet_impl(lasso, gate, workers):
    if isinstance(lasso, types.NoneType):
        return lambda lasso, gate, workers: None
    return lambda lasso, gate, workers: barrier(gate, workers)


def _square(outputs, slope):
    """Squared norm of the gradient by the scores."""


@overload(_square, **LOOP)
def _square_impl(outputs, slope):
    if isinstance(outputs, types.NoneType):
        return lambda outputs, slope: slope * slope
    return lambda outputs, slope: (slope * slope).sum()


def _slope(outputs, slopes, n):
    """Example n's gradient by its scores, from the block's."""


@overload(_slope, **LOOP)
def _slope_impl(outputs, slopes, n):
    if isinstance(outputs, types.NoneType):
        return lambda outputs, slopes, n: slopes[n]

    def copied(outputs, slopes, n):
        outs = count(outputs)
        for o in range(outs):
            outputs.gradient[o] = slopes[n * outs + o]
        return outputs.gradient
    return copied


@kernel
def scores(w, csr, start, stop, out):
    """out[i, k] = score k of row i for start <= i < stop; w [d + 1, K] with the intercept last, out [n, K] float32."""
    d, outs = w.shape[0] - 1, w.shape[1]
    for i in range(start, stop):
        for o in range(outs):
            out[i, o] = w[d, o]
        for k in range(np.uint64(csr.indptr[i]), np.uint64(csr.indptr[i + 1])):
            j, x = csr.indices[k], csr.values[k]
            for o in range(outs):
                out[i, o] += w[j, o] * x
