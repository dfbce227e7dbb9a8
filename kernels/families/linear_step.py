"""A step of a linear model on one sparse row: the gradient of coordinate (feature j, output k) is dz[k] x[j]."""

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.jit import INLINE
from hogwild.kernels.families.scores import part
from hogwild.kernels.optim import protocol
from hogwild.kernels.optim.steps import cast, decay_terms, decay_weight_at, decayed_gradient, most_decay_weight, move
from hogwild.kernels.sharing.modes import add
from hogwild.kernels.sharing.parameters import field_type, located, row_width
from hogwild.kernels.sharing.rows import load_row, step_scratch, store_row, waits


def gather(space, indices, start, stop, intercept, tau):
    """Copy the coordinates of a row's features, and the intercepts' behind them, into the scratch; nothing without one."""


@overload(gather, **INLINE)
def _gather(space, indices, start, stop, intercept, tau):
    if isinstance(field_type(space, "scratch"), types.NoneType):
        return lambda space, indices, start, stop, intercept, tau: None

    def copy(space, indices, start, stop, intercept, tau):
        n = np.uint64(stop - start)
        for q in range(n):
            load_row(space, located(space.params, indices, np.uint64(start) + q, start), q, tau)
        if intercept:
            load_row(space, space.buffers.intercept_row, n, tau)
    return copy


def gather_again(space, indices, start, stop, intercept, tau):
    """`gather` once more where the mode has waited since."""


@overload(gather_again, **INLINE)
def _gather_again(space, indices, start, stop, intercept, tau):
    def again(space, indices, start, stop, intercept, tau):
        if waits(space.params.mode):
            gather(space, indices, start, stop, intercept, tau)
    return again


def row_step(step, space, model, start, stop, intercept, dz):
    """Step the features of one sparse row, and the intercepts, with gradient dz[k] x[j], after `locate` and `gather`.

    step: a Step. intercept: what the intercepts' gradient is multiplied by; 0: there are none. dz: a number, or K of them.
    model.decay_weight: float[features] that multiplies the decay, None only without decay; intercepts never decay. Without a
    scratch the rule has no slots, and nothing is clipped nor averaged. Nothing is checked.
    """


@overload(row_step, **INLINE)
def _row_step(step, space, model, start, stop, intercept, dz):
    if isinstance(field_type(space, "scratch"), types.NoneType):
        def direct(step, space, model, start, stop, intercept, dz):
            view, rule, indices, x = space.params, step.rule, model.csr.indices, model.csr.values
            flat, mode, outs = view.flat, view.mode, np.uint64(row_width(view))
            like = flat.dtype.type
            c, k = cast(protocol.prepare(rule, step.lr, step.t), like), cast(decay_terms(step.decay, step.lr), like)
            most = like(most_decay_weight(step.decay, step.lr))
            for i in range(np.uint64(start), np.uint64(stop)):
                at, s = located(view, indices, i, start) * outs, decay_weight_at(model.decay_weight, indices[i], most)
                for o in range(outs):
                    w = flat[at + o]
                    g = decayed_gradient(like(part(dz, o)) * x[i], w, k, (), s)
                    add(mode, flat, at + o, move(rule, c, g, w, (), k, s)[0] - w)
            if intercept:
                at = np.uint64(space.buffers.intercept_row) * outs
                for o in range(outs):
                    w = flat[at + o]
                    g = like(part(dz, o) * intercept)
                    add(mode, flat, at + o, move(rule, c, g, w, (), (), like(1))[0] - w)
        return direct

    weighted = not isinstance(field_type(model, "decay_weight"), types.NoneType)

    def gathered(step, space, model, start, stop, intercept, dz):
        view, scratch, indices, x = space.params, space.scratch, model.csr.indices, model.csr.values
        outs, n, like = np.uint64(row_width(view)), np.uint64(stop - start), view.flat.dtype.type
        for o in range(outs):
            f = like(part(dz, o))
            for q in range(n):
                scratch.gradient[q * outs + o] = f * x[np.uint64(start) + q]
            if intercept:
                scratch.gradient[n * outs + o] = f * like(intercept)
        if weighted:
            for q in range(n):
                for o in range(outs):
                    scratch.weight[q * outs + o] = model.decay_weight[indices[np.uint64(start) + q]]
            if intercept:
                for o in range(outs):
                    scratch.weight[n * outs + o] = 0
        step_scratch(step, space, n + np.uint64(intercept != 0), model.decay_weight)
        for q in range(n):
            store_row(space, located(view, indices, np.uint64(start) + q, start), q, step.tau)
        if intercept:
            store_row(space, space.buffers.intercept_row, n, step.tau)
    return gathered
