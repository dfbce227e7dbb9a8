"""Sparse linear models: one pass of a Hogwild worker over its examples, and scores. Niu et al. 2011, section 2.

Parameters as in kernels/sharing/parameters.py: a row for each of the d features, row d the intercept's.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.atomics import atomic_store, barrier
from hogwild.kernels.compiler.jit import LOOP, kernel, prefetch
from hogwild.kernels.families.scores import gathered_score, judged, score, slope_of, square, weight_of
from hogwild.kernels.optim.lazy_l1 import due_of, flush, kept, pooled, shrink, tau_at
from hogwild.kernels.optim.schedules import cycled, rate
from hogwild.kernels.optim.steps import by_value, shorten
from hogwild.kernels.sharing.modes import again, enter, gather, leave, row_step
from hogwild.kernels.sharing.parameters import count, fetch, locate, part
from hogwild.kernels.sharing.replicas import again_at, awaited, come, copied, go, layout_of, look, merge_due, owe, pause
from hogwild.kernels.sharing.work_queue import STOP, take

AHEAD = 4  # rows whose entries are fetched into the cache early; 2 to 16 measure alike
class Model(NamedTuple):
    """What is trained on: all workers share it."""

    loss: tuple
    decay: tuple  # Decay or None
    clip: tuple  # Clip or None
    average: tuple  # Average or None
    csr: tuple
    labels: np.ndarray  # float32[n]: ±1, a target, or a class number
    weights: np.ndarray  # float32[n] of the examples, or None
    decay_weight: np.ndarray  # float32[d] that multiplies the decay, or None
    intercept: float  # what its gradient is multiplied by; 0: there is none


class Worker(NamedTuple):
    """What one worker owns."""

    place: tuple
    scratch: tuple  # Scratch, or None
    outputs: tuple  # Outputs, or None
    lasso: tuple  # Lasso or None; the others' too where they share parameters
    private: tuple  # Private; or None: it works on the shared parameters alone
    clock: np.ndarray  # float64[8], [0]: the sum of learning rates
    workers: int


@kernel(once=True)
def train(rule, schedule, model, worker, order, t, stride, tally):
    """Lock-free steps on the rows `order` [m] of the model's data.

    t: steps done before, raised by `stride` per example; tally [8] float64: adds loss, examples, non-zeros. It stops at
    the first example whose loss is not finite, without a step: tally[3] is then its row + 1.
    """
    loss, decay, clip, average, csr, labels, weights, decay_weight, intercept = model
    place, scratch, outputs, lasso, private, clock, workers = worker
    indptr, indices, values = csr
    mode, like = place.mode, place.flat.dtype.type
    last, total, nonzeros, done = order.shape[0] - 1, 0.0, 0, 0
    base, own = pooled(lasso, mode, 0.0, 0.0, 0)
    first = 0
    while first < order.shape[0] and not tally[3] > 0:
        until = min(first + pause(private), order.shape[0])
        for n in range(first, until):
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
            fetch(place, scratch, outputs, tau, csr, order[min(n + 1, last)])
            locate(place, indices, start, stop)
            if given(lasso):
                enter(mode, indices, start, stop, t)
                base, own = pooled(lasso, mode, base, own, done)
            shrink(lasso, now, place, scratch, outputs, tau, indices, start, stop, base + own, t)
            gather(place, scratch, outputs, indices, start, stop, intercept, tau)
            z = gathered_score(place, scratch, outputs, tau, csr, start, stop, intercept)
            value, slope = judged(loss, outputs, z, labels[i], weight_of(weights, i))
            if not abs(value) < math.inf:  # math.isfinite subtracts x from x, which the reassociation of FASTMATH makes 0
                tally[3] = i + 1
                if given(lasso):
                    leave(mode, indices, start, stop, t)
                _drain(mode, indices, order.shape[0] - n - given(lasso), t + stride * given(lasso), stride)
                break
            if not given(lasso):
                enter(mode, indices, start, stop, t)
            again(mode, place, scratch, outputs, indices, start, stop, intercept, tau)
            row_step(now, place, scratch, outputs, indices, values, start, stop, intercept, slope, lr, t, decay, clip,
                     decay_weight, tau)
            own += lr
            base, own = pooled(lasso, mode, base, own, done)
            leave(mode, indices, start, stop, t)
            total += value
            nonzeros += stop - start
            done += 1
            t += stride
        look(private, place, scratch, outputs, tau, csr, start, stop, intercept, z, slope, until - first)
        merge_due(private, place.flat, layout_of(private, scratch, outputs, tau))
        first = until
    pooled(lasso, mode, base, own, 0)
    tally[0] += total
    tally[1] += done
    tally[2] += nonzeros


@kernel
def work(rule, schedule, model, worker, order, t, stride, queue, most, first, tally):
    """`train` on chunk after chunk of the order, of which `most` examples; whether none is left.

    t: steps done before the order, which each example raises by `stride`. first: the worker is new to it. What it has for
    itself begins as the shared parameters and is brought together with the others' at the end
    (kernels/sharing/replicas.py), or early, while the others go on: where most is 0. One that has come from its door goes
    back there (kernels/sharing/parking.py): it needs Python, where one at a time may pass, only for another order, or
    after `most` examples.
    """
    while True:
        t, done, over, new = awaited(worker.private, queue, t), 0, most == 0, first
        if t < 0:
            return True
        while done < most:
            start, stop = take(queue, order.shape[0], most - done)
            if start == stop:
                t, over = t + start * stride, True
                break
            if new:
                come(worker.private, worker.place.flat)
                new = False
            train(rule, schedule, model, worker, order[start:stop], t + start * stride, stride, tally)
            if tally[3] > 0:
                atomic_store(queue, STOP, 1)
            done += stop - start
        if over:
            leave_round(rule, model, worker, t, most == 0)
        if not over or not again_at(worker.private):
            return over


@kernel(once=True)
def leave_round(rule, model, worker, t, early):
    """Bring together what the worker has for itself; early: the others go on."""
    if copied(worker.private):
        settle(rule, model, worker, t)
        owe(worker.private, worker.lasso)
    tau = tau_at(model.average, worker.place.flat.dtype.type, t)
    go(worker.private, worker.place.flat, layout_of(worker.private, worker.scratch, worker.outputs, tau),
       due_of(worker.lasso, rule, worker.scratch, t), early)


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


@kernel
def train_blocks(rule, schedule, model, worker, me, cuts, gate, slopes, lost, order, t, block, tally):
    """Steps whose result is the same to the bit for any number of workers, all of which call this with one `order`.

    A block of examples is judged with the weights before it, each example by one worker; then its updates are made in
    their order, each coordinate by the worker that owns it: `me` the features from cuts[me] up to cuts[me + 1] - 1
    (cuts [workers + 1]). gate: a Gate; slopes float64[block K], lost float64[block]: shared. A block
    rule's updates are all made by worker 0. t, tally: as in `train`, with stride 1; worker 0 alone adds to the tally.
    """
    loss, decay, clip, average, csr, labels, weights, decay_weight, intercept = model
    place, scratch, outputs, lasso, private, clock, workers = worker
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
            lost[n - first], slope = judged(loss, outputs, z, labels[i], weight_of(weights, i))
            shorter = shorten(clip, values, start, stop, square(outputs, slope), intercept)
            for o in range(outs):
                slopes[(n - first) * outs + o] = part(slope, o) * shorter
        barrier(gate, workers)
        for n in range(first, end):
            if not abs(lost[n - first]) < math.inf:
                tally[3] = order[n] + 1
        if tally[3] > 0:
            break
        for n in range(first, end):
            start, stop = _owned(csr, order[n], low, high)
            lr = rate(schedule, t + n)
            gather(place, scratch, outputs, indices, start, stop, intercept * owner, tau_at(average, like, t + n))
            row_step(cycled(rule, schedule, t + n), place, scratch, outputs, indices, values, start, stop,
                     intercept * owner, slope_of(outputs, slopes, n - first), lr, t + n, decay, by_value(clip),
                     decay_weight, tau_at(average, like, t + n))
            clock[0] += lr
            if me == 0:
                tally[0] += lost[n - first]
                tally[1] += 1
                tally[2] += indptr[order[n] + 1] - indptr[order[n]]
        barrier(gate, workers)
    if me == 0 and order.shape[0]:
        kept(lasso, clock[0])


@kernel(once=True)
def settle(rule, model, worker, t):
    """Apply the L1 penalty that features still owe after step t to parameters at which no other worker is."""
    place, scratch, outputs, lasso, _, _, _ = worker
    flush(lasso, rule, place, scratch, outputs, tau_at(model.average, place.flat.dtype.type, t), t)


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
