"""The step of a coordinate that has waited, against as many literal updates of its rule with the mean gradient."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hogwild.kernels.optim.catch_up import (
    CAP,
    LONGEST,
    TABLE,
    array_catch_up,
    cap_of,
    catch_up,
    catch_up_step,
    catches_up,
    low16,
    shorten_waits,
    table_of,
)
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import (
    RULES,
    SGD,
    AdaBelief,
    AdaGrad,
    Adam,
    AdamW,
    Momentum,
    Nadam,
    Nesterov,
    RAdam,
    RMSProp,
    maximum,
)
from hogwild.kernels.optim.steps import Clip, Decay, dense_step, new_slots


class Signs(NamedTuple):
    """A rule of a user's own, without `times`: m = b m + (1 - b) g; w -= lr sign(m + g)."""

    b: float = 0.8

    def start(hp):
        return (0.0,)

    def prepare(hp, lr, t):
        return (hp.b, 1.0 - hp.b, lr, 1e-30)

    @staticmethod
    def update(c, g, slots):
        m = c[0] * slots[0] + c[1] * g
        return c[2] * (m + g) / maximum(abs(m + g), c[3]), (m,)


EXACT = [Momentum(), Momentum(0.0), Momentum(0.99, 0.3), Momentum(0.5, lr_inside=True), Nesterov(), Nesterov(0.0),
         Nesterov(0.6, lr_inside=True), Signs()]
CAPPED = [AdaGrad(), AdaGrad(0.0, 1e-7, 0.1), RMSProp(), RMSProp(0.9, 0.0, 1e-7), RMSProp(0.95, centred=True), Adam(),
          Adam(0.0, 0.9), Adam(amsgrad=True), Adam(0.8, 0.99, 1e-2, eps_hat=True), Adam(eps=0.0, eps_in=1e-8), AdamW(),
          AdamW(amsgrad=True), Nadam(), Nadam(psi=1.0), RAdam(), RAdam(threshold=4.0), AdaBelief(), AdaBelief(eps=1e-3),
          AdaBelief(rectify=True), AdaBelief(0.9, 0.81), AdaBelief(0.0)]
COASTING = [RMSProp(0.9, mu=0.9), RMSProp(0.99, mu=0.5, centred=True)]  # momentum on what a running mean has scaled
OPTIONS = [(None, None), (Decay(l2=0.1, wd=0.2), Clip(value=0.8, norm=4.0))]
D = 12


def state(rule, rng, d=D, dtype=np.float64):
    """(w, slots) as a few dense steps leave them: what AdaBelief or amsgrad hold of each other is true of them."""
    w, slots = rng.standard_normal(d), new_slots(rule, d, np.float64)
    for t in range(3):
        c = checked(rule).prepare(0.1, t)
        slots = checked(rule).update(c, np.exp(rng.standard_normal(d)) * rng.choice([-1, 1], d), tuple(slots))[1]
    return w.astype(dtype), np.array(slots, dtype).reshape(len(rule.start()), d)


def literally(rule, a, slots, n, lr, t):
    """(float64[N, d]: the updates of each coordinate, 0 after its n-th, and the N slots after each)."""
    c, deltas, every, slots = rule.prepare(lr, t), [], [], np.array(slots)
    off = a - c[0] * slots[0] - c[1] * a if isinstance(rule, AdaBelief) else None  # stays that of the first update
    for i in range(n.max()):
        delta, new = rule.update(c, a, tuple(slots))
        if off is not None:
            new = new[0], c[2] * slots[1] + c[3] * off**2 + c[7]
            delta = c[4] * new[0] / (c[5] * np.sqrt(new[1]) + c[6])
        slots = np.where(n > i, np.array(new), slots)
        deltas.append(np.where(n > i, delta, 0.0))
        every.append(slots)
    return np.array(deltas), every


def waits(rng, longest, d=D):
    return np.minimum(np.round(np.exp(rng.uniform(0, math.log(longest), d))), longest).astype(int)


many = given(seed=st.integers(0, 999), longest=st.sampled_from([1, 5, 40, 700]), late=st.sampled_from([0, 3, 40_000]))


def caught_up(rule, seed, longest, late):
    """(before, after, a, n, deltas, slots of the literal updates, the slots before) at the rate 0.1."""
    rng = np.random.default_rng(seed)
    rule, n = checked(rule), waits(rng, longest)
    w, slots = state(rule, rng)
    before, held, t = w.copy(), slots.copy(), late + n.max() - 1
    s = np.exp(rng.standard_normal(D)) * rng.standard_normal(D) * n
    array_catch_up(rule, w, 2 * s, slots, n.astype(float), (0.5, 0.1, t, CAP))
    deltas, every = literally(rule, s / n, held, n, 0.1, t)
    return before - w, slots, n, deltas, every, held


def assert_near(got, want, before):
    """A running mean may come near 0: errors count against what it was, too."""
    assert (np.abs(got - want) <= 1e-9 * (np.abs(want) + np.abs(before))).all()


@pytest.mark.parametrize("rule", EXACT, ids=str)
@many
def test_linear_rules_and_ones_of_a_users_own_are_exact(rule, seed, longest, late):
    moved, slots, n, deltas, every, held = caught_up(rule, seed, longest, late)
    assert_near(slots, every[-1], held)
    assert_near(moved, deltas.sum(0), np.abs(deltas).sum(0) + 1e-6)


@pytest.mark.parametrize("rule", CAPPED, ids=str)
@many
def test_adaptive_rules_have_exact_slots_and_move_as_the_last_update(rule, seed, longest, late):
    centred = getattr(rule, "centred", False)  # a root of a difference of squares, which nearly equal gradients bring near 0
    moved, slots, n, deltas, every, held = caught_up(rule, seed, min(longest, 40) if centred else longest, late)
    means, last = slice(2 if centred else None), deltas[n - 1, np.arange(D)]
    assert_near(slots[means], every[-1][means], held[means])
    room = 1e-6 if centred else 1e-9
    assert (np.abs(moved - np.minimum(n, CAP) * last) <= room * np.abs(moved) + 1e-14).all() and np.abs(moved).min() > 0


@pytest.mark.parametrize("rule", COASTING, ids=str)
@many
def test_momentum_on_scaled_gradients_is_that_of_the_last_scale(rule, seed, longest, late):
    """Not exact: the n velocities get the gradient over the last root, not over each one's own. What that is at most."""
    moved, slots, n, deltas, every, held = caught_up(rule, seed, longest, late)
    assert_near(slots[:2], every[-1][:2], held[:2])
    velocities = np.array([held, *every])[:, 2]
    scaled = velocities[1:] - rule.mu * velocities[:-1]
    off = np.abs(np.where(np.arange(n.max())[:, None] < n, scaled - scaled[n - 1, np.arange(D)], 0)).max(0)
    weight = (1 - rule.mu**n) / (1 - rule.mu)
    assert (np.abs(slots[2] - every[-1][2]) <= weight * off * (1 + 1e-6) + 1e-6).all()
    few = n <= CAP
    assert (np.abs(moved - deltas.sum(0)) <= 0.1 * n * off / (1 - rule.mu) * (1 + 1e-6) + 1e-6)[few].all()


def test_momentum_on_a_scale_that_stays_is_exact_up_to_the_cap():
    rule = COASTING[0]
    n, a, v = np.array([1, 2, 7, 29, 30, 31, 600]), np.linspace(0.3, 2, 7), np.linspace(-1, 1, 7)
    slots, w = np.array([a * a, a, v]), np.zeros(7)  # the mean square is where the gradient a keeps it
    array_catch_up(rule, w, a * n, slots, n.astype(float), (1.0, 0.1, 1000, CAP))
    scaled = a / (a + rule.eps)
    total, velocities = np.zeros(7), v.copy()
    for i in range(600):
        velocities = np.where(n > i, rule.mu * velocities + scaled, velocities)
        total += np.where(np.minimum(n, CAP) > i, 0.1 * velocities, 0)
    np.testing.assert_allclose(slots[2], velocities, rtol=1e-6)
    np.testing.assert_allclose(-w, total, rtol=1e-6)


KERNELS = [rule() for rule in RULES.values() if catches_up(rule())] + [
    RMSProp(mu=0.9), Adam(amsgrad=True), Signs()]
SOME = [Momentum(), Adam(), Signs()]  # elsewhere only what the rule computes differs
KINDS = [(rule, np.float32, *OPTIONS[0]) for rule in KERNELS]
KINDS += [(rule, dtype, *OPTIONS[1]) for rule in SOME for dtype in (np.float32, np.float64)]


@pytest.mark.parametrize("rule, dtype, decay, clip", KINDS, ids=lambda x: getattr(x, "__name__", None))
def test_kernel_and_twins(rule, dtype, decay, clip):
    """The kernel's steps are those of the array twin in float64, on NumPy and torch; what is not named keeps every bit."""
    rng, t = np.random.default_rng(1), 5000
    n = np.concatenate([[1, 1, 2, 3, CAP, CAP + 1, TABLE, TABLE + 1, 4000, 5001], waits(rng, 5001, 14)])
    d = n.size
    w, slots = state(rule, rng, d, dtype)
    last = np.array([low16(t - k) for k in n], np.int16)
    at = np.flatnonzero(np.arange(d) % 4 != 3)
    g = np.where(np.arange(d) % 4 != 3, rng.standard_normal(d) * n, 0).astype(dtype)
    before = w.copy(), slots.copy(), last.copy()
    twins = [(w.astype(float)[at], slots.astype(float)[:, at]), (torch.tensor(w.astype(float))[at],
                                                              torch.tensor(slots.astype(float))[:, at])]
    now = 0.5, 0.01, t, 7
    args = checked(rule), table_of(checked(rule), *now[1:], dtype), (w, tuple(slots), last), at.astype(np.uint32), g, now
    catch_up_step(*args, checked(decay), checked(clip))
    for x, of in zip(twins, (np.asarray, torch.tensor)):
        array_catch_up(rule, x[0], of(g.astype(float)[at]), x[1], of(n.astype(float)[at]), now, decay, clip)
    room = 1e-10 if dtype is np.float64 else 2e-4 if isinstance(rule, Signs) else 3e-5  # Signs adds up to 5001 updates
    for x in twins:
        np.testing.assert_allclose(w[at], x[0], rtol=room, atol=room)
        np.testing.assert_allclose(slots[:, at], x[1], rtol=room, atol=room * np.abs(slots).max())
    rest = np.setdiff1d(np.arange(d), at)
    for new, old in zip((w, slots, last), before):
        assert new[..., rest].tobytes() == old[..., rest].tobytes()
    assert (last[at] == low16(t)).all() and (w[at] != before[0][at]).all()


@pytest.mark.parametrize("rule", KERNELS, ids=str)
def test_a_coordinate_of_the_step_before_steps_as_in_dense_training_to_the_bit(rule):
    rng, d = np.random.default_rng(2), 50
    w, slots = state(rule, rng, d, np.float32)
    dense, dense_slots, last = w.copy(), slots.copy(), np.full(d, 6, np.int16)
    for t in range(7, 12):
        g = rng.standard_normal(d).astype(np.float32)
        catch_up(rule, (w, tuple(slots), last), np.arange(d, dtype=np.uint32), g, (0.25, 0.1, t))
        dense_step(rule, dense, g, dense_slots, 0.1, t, scale=0.25)
    assert w.tobytes() == dense.tobytes() and slots.tobytes() == dense_slots.tobytes()


def test_decays_and_clip():
    """Decoupled decay n times; the coupled one with the weight as it is; the clip bounds what arrived, not its nth part."""
    n, w0 = np.array([1, 2, 10, 600]), np.array([2.0, -1.0, 0.5, 3.0])
    s = np.array([0.5, 8.0, -5.0, 100.0])
    for decay, clip in (Decay(wd=0.3), None), (Decay(l2=0.3), None), (Decay(0.2, 0.3), Clip(value=4.0)):
        w, v = w0.copy(), np.zeros((1, 4))
        array_catch_up(Momentum(0.0), w, s, v, n.astype(float), (1.0, 0.01, 700, CAP), decay, clip)
        a = (np.clip(s, -4, 4) if clip else s) / n + decay.l2 * w0
        np.testing.assert_allclose(v[0], a, rtol=1e-12)
        np.testing.assert_allclose(w, (1 - 0.01 * decay.wd) ** n * w0 - 0.01 * n * a, rtol=1e-12)


def waited(last, t, device):
    """Waits as catch_up_step and the Device replica take them, after what is due at step t."""
    if t % LONGEST == 0:
        shorten_waits(last, t)
    wide = last.astype(np.int64) if not device else last.numpy().astype(np.int64)
    return np.maximum((t - wide) & 0xFFFF, 1)


@pytest.mark.parametrize("device", [False, True], ids=["numpy", "torch"])
def test_waits_are_exact_below_32768_steps_and_stay_long_beyond(device):
    """For as long as it goes: no wait of any length is taken for a short one where 16 bits have come round."""
    rng, d, end = np.random.default_rng(3), 400, 5 * LONGEST + 77
    steps = [[] for _ in range(end)]  # which coordinates step when
    for j in range(d):
        t = -1
        while (t := t + int(np.exp(rng.uniform(0, math.log(6 * LONGEST))))) < end:
            steps[t].append(j)
    last, true = np.full(d, -1, np.int16), np.full(d, -1)
    last, longest = (torch.from_numpy(last) if device else last), 0
    for t, chosen in enumerate(steps):
        if not chosen and t % LONGEST:
            continue
        n, real = waited(last, t, device)[chosen], (t - true)[chosen]
        assert (np.where(real < LONGEST, n == real, (n >= LONGEST - 1) & (n <= real))).all()
        longest = max([longest, *real])
        last[chosen], true[chosen] = low16(t), t
    assert longest > 3 * LONGEST


def test_the_kernel_after_long_waits():
    """Steps beyond 2^15 and 2^16 of the run: the waits as they are, up to 2^15 of them."""
    d = 4
    w, slots, last, at = np.zeros(d), np.zeros((1, d)), np.full(d, -1, np.int16), np.arange(d, dtype=np.uint32)
    rule, w = Momentum(0.5), w.astype(np.float32)
    slots = slots.astype(np.float32)
    for t in (LONGEST - 2, LONGEST, 2 * LONGEST - 3, 2 * LONGEST, 2 * LONGEST + 5, 3 * LONGEST):
        k = t // LONGEST
        catch_up(rule, (w, tuple(slots), last), at[:d - k], np.ones(d, np.float32), (1.0, 1.0, t))
    # Of 6 gradients of 1, or of those before the coordinate was left out, each with the velocity's memory of the mean.
    moved = -w.astype(float)
    expected = np.zeros(d)
    for j in range(d):
        v, before = 0.0, -1
        for t in (LONGEST - 2, LONGEST, 2 * LONGEST - 3, 2 * LONGEST, 2 * LONGEST + 5, 3 * LONGEST):
            if j < d - t // LONGEST:
                n, before = t - before, t
                a = 1 / n
                expected[j] += sum(v * 0.5**i for i in range(1, 60)[:n]) + a * (n - (1 - 0.5**n)) / 0.5
                v = v * 0.5**n + a * (1 - 0.5**n) / 0.5
    np.testing.assert_allclose(moved, expected, rtol=1e-4)


def test_rules_of_equal_numbers_have_tables_of_their_own():
    """NamedTuples of two classes are equal where their numbers are: the table's cache must tell them apart."""
    rules = AdaBelief(0.9, 0.99, 1e-8), Nadam(0.9, 0.99, 1e-8, 0.0)
    assert checked(rules[0]) == checked(rules[1])
    for rule in rules:
        w, slots = state(rule, np.random.default_rng(0), D, np.float32)
        other, other_slots = w.astype(float), slots.astype(float)
        g = np.ones(D, np.float32)
        catch_up(rule, (w, tuple(slots), np.full(D, 3, np.int16)), np.arange(D, dtype=np.uint32), g, (1.0, 0.1, 12))
        array_catch_up(rule, other, g.astype(float), other_slots, np.full(D, 9.0), (1.0, 0.1, 12, 3))
        np.testing.assert_allclose(w, other, rtol=1e-3)


@given(waits=st.lists(st.integers(1, 5000), max_size=60), room=st.integers(0, 10_000))
def test_no_step_is_longer_than_a_dense_one(waits, room):
    """The largest cap from 3 to 30 with Σ min(n, cap)² <= size, by trying all."""
    n, size = np.array(waits, int), len(waits) + room
    cap = cap_of(np.bincount(np.minimum(n, CAP), minlength=CAP + 1), size)
    fits = [c for c in range(3, 31) if sum(min(x, c) ** 2 for x in waits) <= size]
    assert cap == max(fits, default=3)


def test_which_rules_catch_up():
    names = {name for name, rule in RULES.items() if catches_up(rule())}
    assert names == RULES.keys() - {"sgd", "apollo"} and not catches_up(SGD()) and catches_up(Signs())
    assert not catches_up(RMSProp(centred=True))
