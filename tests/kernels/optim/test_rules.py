"""Every rule against a foreign optimizer or a transcription, step by step; then the drivers against each other."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import (
    adabelief,
    adam_variant,
    apollo,
    apollo_dqn,
    by_norm,
    by_value,
    clipped,
    keras_adagrad,
    keras_rmsprop,
    keras_sgd,
    numpy_step,
    radam_paper,
    torch_step,
)

from hogwild.kernels.optim.hyperparameters import HyperParameterError
from hogwild.kernels.optim.rules import (
    RULES,
    SGD,
    AdaBelief,
    AdaGrad,
    Adam,
    AdamW,
    Apollo,
    Momentum,
    Nadam,
    Nesterov,
    RAdam,
    RMSProp,
    maximum,
)
from hogwild.kernels.optim.steps import Clip, Decay, array_step, columns, dense_step, new_slots, new_theta, sparse_step

STEPS, D = 300, 23
optim = torch.optim


B1B2 = (0.8, 0.99)
CASES = [  # rule, oracle, then decay and clip where there are any
    (SGD(), torch_step(optim.SGD)),
    (SGD(), torch_step(optim.SGD, weight_decay=0.1), Decay(l2=0.1)),
    (SGD(), torch_step(optim.SGD, by_value), None, Clip(value=0.7)),
    (SGD(), torch_step(optim.SGD, by_norm, weight_decay=0.1), Decay(l2=0.1), Clip(norm=2.0)),
    (Momentum(), torch_step(optim.SGD, momentum=0.9)),
    (Momentum(0.5, 0.3), torch_step(optim.SGD, momentum=0.5, dampening=0.3)),
    (Momentum(0.99), torch_step(optim.SGD, momentum=0.99, weight_decay=0.05), Decay(l2=0.05)),
    (Momentum(), clipped, None, Clip(value=0.5, norm=3.0)),
    (Momentum(0.9, lr_inside=True), keras_sgd(0.9)),
    (Momentum(0.5, lr_inside=True), keras_sgd(0.5)),
    (Momentum(0.0, lr_inside=True), keras_sgd(0.0)),
    (Nesterov(), torch_step(optim.SGD, momentum=0.9, nesterov=True)),
    (Nesterov(0.5), torch_step(optim.SGD, momentum=0.5, nesterov=True)),
    (Nesterov(0.99), torch_step(optim.SGD, momentum=0.99, nesterov=True, weight_decay=0.05), Decay(l2=0.05)),
    (Nesterov(0.9, lr_inside=True), keras_sgd(0.9, True)),
    (Nesterov(0.6, lr_inside=True), keras_sgd(0.6, True)),
    (AdaGrad(), torch_step(optim.Adagrad)),
    (AdaGrad(eps=1e-2, G0=0.1), torch_step(optim.Adagrad, eps=1e-2, initial_accumulator_value=0.1)),
    (AdaGrad(), torch_step(optim.Adagrad, weight_decay=0.1), Decay(l2=0.1)),
    (AdaGrad(0.0, 1e-7, 0.1), keras_adagrad(0.1, 1e-7)),
    (AdaGrad(0.0, 1e-2), keras_adagrad(0.0, 1e-2)),
    (RMSProp(), torch_step(optim.RMSprop)),
    (RMSProp(0.9, 1e-3), torch_step(optim.RMSprop, alpha=0.9, eps=1e-3)),
    (RMSProp(0.9, mu=0.8), torch_step(optim.RMSprop, alpha=0.9, momentum=0.8)),
    (RMSProp(0.95, centred=True), torch_step(optim.RMSprop, alpha=0.95, centered=True)),
    (RMSProp(mu=0.9, centred=True), torch_step(optim.RMSprop, momentum=0.9, centered=True, weight_decay=0.1),
     Decay(l2=0.1)),
    (RMSProp(0.9, 0.0, 1e-7), keras_rmsprop(0.9, 1e-7)),
    (RMSProp(0.9, 0.0, 1e-3, 0.0, True), keras_rmsprop(0.9, 1e-3, 0.0, True)),
    (Adam(), torch_step(optim.Adam)),
    (Adam(*B1B2, 1e-3), torch_step(optim.Adam, betas=B1B2, eps=1e-3)),
    (Adam(amsgrad=True), torch_step(optim.Adam, amsgrad=True)),
    (Adam(*B1B2, amsgrad=True), torch_step(optim.Adam, betas=B1B2, amsgrad=True, weight_decay=0.1), Decay(l2=0.1)),
    (Adam(eps_hat=True), adam_variant(0.9, 0.999, eps_hat=1e-8)),
    (Adam(*B1B2, 1e-2, eps_hat=True), adam_variant(*B1B2, eps_hat=1e-2)),
    (Adam(0.0, 0.9, 1e-3, eps_hat=True), adam_variant(0.0, 0.9, eps_hat=1e-3)),
    (Adam(eps=0.0, eps_in=1e-8), adam_variant(0.9, 0.999, eps_in=1e-8)),
    (Adam(*B1B2, 0.0, 1e-2), adam_variant(*B1B2, eps_in=1e-2)),
    (Adam(0.0, 0.9, 0.0, 1e-3), adam_variant(0.0, 0.9, eps_in=1e-3)),
    (AdamW(), torch_step(optim.AdamW), Decay(wd=1e-2)),
    (AdamW(*B1B2, 1e-4), torch_step(optim.AdamW, betas=B1B2, eps=1e-4, weight_decay=0.5), Decay(wd=0.5)),
    (AdamW(amsgrad=True), torch_step(optim.AdamW, by_norm, amsgrad=True, weight_decay=0.1), Decay(wd=0.1),
     Clip(norm=2.0)),
    (Nadam(), torch_step(optim.NAdam)),
    (Nadam(*B1B2, 1e-4), torch_step(optim.NAdam, betas=B1B2, eps=1e-4, weight_decay=0.1), Decay(l2=0.1)),
    (Nadam(psi=1.0), torch_step(optim.NAdam, momentum_decay=1.0, weight_decay=0.1, decoupled_weight_decay=True),
     Decay(wd=0.1)),
    (RAdam(), torch_step(optim.RAdam)),
    (RAdam(*B1B2, 1e-3), torch_step(optim.RAdam, betas=B1B2, eps=1e-3, weight_decay=0.1), Decay(l2=0.1)),
    (RAdam(0.5), torch_step(optim.RAdam, betas=(0.5, 0.999), weight_decay=0.1, decoupled_weight_decay=True),
     Decay(wd=0.1)),
    (RAdam(threshold=4.0), radam_paper(0.9, 0.999, 1e-8)),
    (AdaBelief(), adabelief(rectify=False)),
    (AdaBelief(*B1B2, 1e-8), adabelief(*B1B2, eps=1e-8, rectify=False, weight_decay=0.1), Decay(wd=0.1)),
    (AdaBelief(eps=1e-3), adabelief(eps=1e-3, rectify=False)),
    (AdaBelief(rectify=True), adabelief()),
    (AdaBelief(*B1B2, 1e-8, True), adabelief(*B1B2, eps=1e-8)),
    (AdaBelief(0.5, eps=1e-3, rectify=True),
     adabelief(0.5, eps=1e-3, weight_decouple=False, weight_decay=0.1), Decay(l2=0.1)),
]
for belief in (False, True):
    for kind in ("none", "l2", "decoupled", "stable"):
        wd = 0.0 if kind == "none" else 0.05
        decay = {"none": None, "l2": Decay(l2=wd)}.get(kind, Decay(wd=wd))
        oracle_kind = "l2" if kind == "none" else kind
        for b, eps in ((0.9, 1e-4), (0.7, 1e-2), (0.99, 1e-3)):
            CASES.append((Apollo(b, eps, belief, kind == "stable"), apollo(b, eps, belief, oracle_kind, wd), decay))
        CASES.append((Apollo(0.9, 1e-4, belief, kind == "stable"), apollo_dqn(
            rebound="belief" if belief else "constant", weight_decay=wd, weight_decay_type=oracle_kind), decay))


def problem(rng, steps=STEPS, d=D):
    """Weights and gradients that drift; exact in float32, so that both precisions see the same numbers."""
    w, drift = rng.standard_normal(d), rng.standard_normal(d)
    g = drift + rng.standard_normal((steps, d)) * np.exp(rng.standard_normal(d))
    return w.astype(np.float32).astype(float), g.astype(np.float32).astype(float)


def lr_at(t):
    return 0.01 * (1 + 0.9 * math.sin(t))


def agree(got, want, tolerance=1e-12, slack=0.0):
    # A weight that happens to cross zero has lost its leading digits, so errors count against the largest as well.
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max(initial=0) + slack)


@pytest.fixture
def double_scalars():
    """torch's NAdam keeps its product of mu in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_scalars")
@pytest.mark.parametrize("dtype, tolerance, case", [
    *((np.float64, 1e-12, case) for case in CASES), *((np.float32, 1e-5, case) for case in CASES if not any(case[2:]))],
    ids=lambda x: "-".join(map(str, (x[0], *x[2:]))) if isinstance(x, tuple) else getattr(x, "__name__", ""))
def test_oracle(dtype, tolerance, case):
    rule, oracle, decay, clip = (*case, None, None)[:4]
    weights, gradients = problem(np.random.default_rng(1))
    w, slots, step = weights.astype(dtype), new_slots(rule, D, dtype), oracle(weights)
    # Apollo amplifies rounding: m / max(|B|, 0.01), B a difference of sums. How much, its oracle tells by itself when
    # the gradients are off by one rounding.
    shaken, slack, rng = oracle(weights) if isinstance(rule, Apollo) else None, 0.0, np.random.default_rng(7)
    for t, g in enumerate(gradients):
        want = step(g, lr_at(t))
        if shaken:
            off = shaken(g * (1 + np.finfo(dtype).eps * rng.uniform(-1, 1, D)), lr_at(t))
            slack = max(slack, 20 * np.abs(off - want).max())
        dense_step(rule, w, g.astype(dtype), slots, lr_at(t), t, decay, clip)
        agree(w, want, tolerance, slack)
    assert np.abs(want - weights).max() > 0.1


class Lion(NamedTuple):
    """A rule of a user's own. Chen et al. 2023: w -= lr sign(b1 m + (1 - b1) g); m = b2 m + (1 - b2) g."""

    b1: float = 0.9
    b2: float = 0.99

    ranges = {"b1": "[0, 1)", "b2": "[0, 1)"}

    def start(hp):
        return (0.0,)

    def prepare(hp, lr, t):
        return (hp.b1, 1.0 - hp.b1, hp.b2, 1.0 - hp.b2, lr, 1e-30)

    @staticmethod
    def update(c, g, slots):
        d = c[0] * slots[0] + c[1] * g
        return c[4] * d / maximum(abs(d), c[5]), (c[2] * slots[0] + c[3] * g,)


def lion(b1, b2):
    def formula(w, g, lr, t, m):
        w -= lr * np.sign(b1 * m + (1 - b1) * g)
        m[:] = b2 * m + (1 - b2) * g
    return numpy_step(formula)


VARIANTS = [rule() for rule in RULES.values()] + [
    RMSProp(mu=0.9, centred=True), Adam(amsgrad=True), AdaBelief(rectify=True), Apollo(belief=True),
    Apollo(stable=True), Lion()]
STEP_OPTIONS = [(None, None), (Decay(l2=0.1, wd=0.2), Clip(value=0.8, norm=4.0))]
every_rule = pytest.mark.parametrize("rule", VARIANTS, ids=str)
every_option = pytest.mark.parametrize("decay, clip", STEP_OPTIONS, ids=["plain", "decay-clip"])


@pytest.mark.parametrize("hp", [Lion(), Lion(0.5, 0.9), Lion(0.0, 0.5)], ids=str)
def test_rule_of_the_users_own(hp):
    weights, gradients = problem(np.random.default_rng(2))
    w, slots, step = weights.copy(), new_slots(hp, D, np.float64), lion(*hp)(weights)
    theta = new_theta(hp, D, np.float64)
    theta[:, 0], w2, slots2 = weights, weights.copy(), new_slots(hp, D, np.float64)
    for t, g in enumerate(gradients):
        want = step(g, lr_at(t))
        dense_step(hp, w, g, slots, lr_at(t), t)
        sparse_step(hp, theta, np.arange(D), g, lr_at(t), t)
        array_step(hp, w2, g, slots2, lr_at(t), t)
    for got in (w, theta[:, 0], w2):
        agree(got, want)


@pytest.mark.unchecked
@every_option
@every_rule
def test_one_source_on_arrays_tensors_and_kernels(rule, decay, clip):
    weights, gradients = problem(np.random.default_rng(3), 60, 24)
    w, slots, theta = weights.copy(), new_slots(rule, 24, np.float64), new_theta(rule, 24, np.float64)
    a, a_slots = weights.reshape(4, 6).copy(), new_slots(rule, 24, np.float64).reshape(-1, 4, 6)
    p, p_slots = torch.tensor(weights), torch.tensor(new_slots(rule, 24, np.float64))
    theta[:, 0] = weights
    for t, g in enumerate(gradients):
        rest = lr_at(t), t, decay, clip
        dense_step(rule, w, 2 * g, slots, *rest, scale=0.5)
        array_step(rule, a, g.reshape(4, 6), a_slots, *rest)
        array_step(rule, p, torch.tensor(2 * g), p_slots, *rest, scale=0.5)
        sparse_step(rule, theta, np.arange(24), g, *rest)
        for got in (a.ravel(), p.numpy(), theta[:, 0]):
            agree(got, w)
    for k, slot in enumerate(slots):
        for got in (a_slots[k].ravel(), p_slots[k].numpy(), theta[:, 1 + k]):
            agree(got, slot)


@pytest.mark.parametrize("rule, cls", [
    (Adam(eps_hat=True), lambda p: optim.SparseAdam([p], lr=1.0)), (AdaGrad(), lambda p: optim.Adagrad([p], lr=1.0))],
    ids=["SparseAdam", "Adagrad"])
def test_lazy_step_and_duplicates_as_torch(rule, cls):
    rng = np.random.default_rng(4)
    theta = new_theta(rule, D, np.float64)
    theta[:, 0] = rng.standard_normal(D)
    p = torch.nn.Parameter(torch.tensor(theta[:, 0].copy()))
    optimizer = cls(p)
    for t in range(100):
        indices, values = rng.integers(0, D, 9), rng.standard_normal(9)
        p.grad = torch.sparse_coo_tensor(indices[None], values, (D,), check_invariants=True)
        optimizer.param_groups[0]["lr"] = lr_at(t)
        optimizer.step()
        sparse_step(rule, theta, indices, values, lr_at(t), t)
        agree(theta[:, 0], p.detach().numpy())


@every_option
@every_rule
def test_untouched_coordinates_keep_every_bit(rule, decay, clip):
    rng = np.random.default_rng(5)
    theta = new_theta(rule, D, np.float32)
    theta[:] = rng.random(theta.shape)
    before, touched = theta.copy(), np.array([7, 2, 2, 19])
    sparse_step(rule, theta, touched, rng.standard_normal(4), 0.1, 3, decay, clip)
    rest = np.setdiff1d(np.arange(D), touched)
    assert theta[rest].tobytes() == before[rest].tobytes()
    assert (theta[np.unique(touched)] != before[np.unique(touched)]).any(axis=1).all()


def test_weight_multiplies_both_decays():
    rng = np.random.default_rng(6)
    theta, weight, g = rng.standard_normal((D, 1)), rng.random(D), rng.standard_normal(D)
    w = theta[:, 0].copy()
    sparse_step(SGD(), theta, np.arange(D), g, 0.1, 0, Decay(l2=0.3, wd=0.2), weight=weight)
    agree(theta[:, 0], w * (1 - 0.1 * 0.2 * weight) - 0.1 * (g + 0.3 * weight * w))


CANARY = 64


def fenced(shape, offset, dtype=np.float32):
    """(array of that shape `offset` bytes off a cache line, check that the bytes around it are intact)."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.full(size + 4 * CANARY, 0xA5, np.uint8)
    start = CANARY - raw.ctypes.data % 64 + 64 + offset
    array = raw[start:start + size].view(dtype).reshape(shape)

    def intact():
        assert (raw[:start] == 0xA5).all() and (raw[start + size:] == 0xA5).all()
    return array, intact


@every_rule
@given(d=st.sampled_from([0, 1, 17]) | st.integers(0, 70), offset=st.sampled_from([0, 1, 4]), seed=st.integers(0, 99))
def test_any_size_and_alignment_stays_within_its_arrays(rule, d, offset, seed):
    rng, S = np.random.default_rng(seed), len(rule.start())
    shapes = (d,), (d,), (S, d), (d, 1 + S)
    (w, w_ok), (g, g_ok), (slots, slots_ok), (theta, theta_ok) = (fenced(shape, offset) for shape in shapes)
    w[:], g[:] = rng.standard_normal((2, d))
    slots[:] = rng.random((S, 1))
    theta[:, 0], theta[:, 1:], sent = w, slots.T, g.copy()
    a, a_slots = w.astype(float), slots.astype(float)
    for t in range(3):
        dense_step(rule, w, g, slots, 0.1, t)
        sparse_step(rule, theta, np.arange(d), g, 0.1, t)
        array_step(rule, a, g.astype(float), a_slots, 0.1, t)
    for ok in (w_ok, g_ok, slots_ok, theta_ok):
        ok()
    assert (g == sent).all()
    tolerance = 0.02 if isinstance(rule, Apollo) else 1e-4  # see test_oracle on what Apollo does to rounding
    agree(w, a, tolerance)
    agree(theta[:, 0], a, tolerance)


def test_new_state():
    for rule in (AdaGrad(G0=0.3), Adam(amsgrad=True), SGD()):
        slots, theta = new_slots(rule, 5), new_theta(rule, 5, np.float64)
        assert slots.dtype == np.float32 and theta.dtype == np.float64
        assert theta.ctypes.data % 64 == 0 and (slots.size == 0 or slots.ctypes.data % 64 == 0)
        w, state = columns(theta)
        assert not w.any() and np.shares_memory(w, theta)
        for slot, column, value in zip(slots, state, rule.start(), strict=True):
            assert (slot == np.float32(value)).all() and (column == value).all()


@pytest.mark.parametrize("rule", [Adam(b1=1.0), Adam(b2=-0.1), Adam(eps=math.nan), Adam(eps=math.inf), Apollo(eps=0.0),
                                  Momentum(mu=1.0), RAdam(threshold=3.0), Lion(b2=1.5)], ids=str)
def test_number_out_of_range(rule):
    name = f"{type(rule).__name__}: (b1|b2|eps|mu|threshold) must be a number in"
    for run in (lambda: dense_step(rule, np.zeros(3), np.zeros(3), new_slots(rule, 3, float), 0.1, 0),
                lambda: sparse_step(rule, new_theta(rule, 3), [1], [1.0], 0.1, 0),
                lambda: array_step(rule, np.zeros(3), np.zeros(3), new_slots(rule, 3, float), 0.1, 0)):
        with pytest.raises(HyperParameterError, match=name):
            run()
    for bad in ({"decay": Decay(l2=-1.0)}, {"clip": Clip(norm=0.0)}, {"clip": Clip(value=math.nan)}):
        with pytest.raises(HyperParameterError):
            dense_step(SGD(), np.zeros(3), np.zeros(3), np.zeros((0, 3)), 0.1, 0, **bad)


@pytest.mark.parametrize("w, g, slots, message", [
    (np.zeros(3, int), np.zeros(3, int), np.zeros((1, 3), int), "float32 or float64"),
    (np.zeros((3, 1)), np.zeros((3, 1)), np.zeros((1, 3)), "w must be"),
    (np.zeros(6)[::2], np.zeros(3), np.zeros((1, 3)), "w must be"),
    (np.zeros(3), np.zeros(3, np.float32), np.zeros((1, 3)), "g must be"),
    (np.zeros(3), np.zeros(4), np.zeros((1, 3)), "g must be"),
    (np.zeros(3), np.zeros(3), np.zeros((2, 3)), "slots must be"),
    (np.zeros(3), np.zeros(3), [np.zeros(3)], "slots must be")])
def test_wrong_arrays_dense(w, g, slots, message):
    with pytest.raises(ValueError, match=message):
        dense_step(Momentum(), w, g, slots, 0.1, 0)


@pytest.mark.parametrize("columns, indices, values, error", [
    (2, [3], [1.0], IndexError), (2, [-1], [1.0], IndexError), (2, [0, 1], [1.0], ValueError),
    (2, [[0]], [[1.0]], ValueError), (2, [0.5], [1.0], ValueError), (3, [0], [1.0], ValueError)])
def test_wrong_arrays_sparse(columns, indices, values, error):
    theta = np.ones((3, columns))
    with pytest.raises(error):
        sparse_step(Momentum(), theta, indices, values, 0.1, 0)
    assert (theta == 1).all()
