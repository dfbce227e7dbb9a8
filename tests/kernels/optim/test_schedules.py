"""Schedules step by step against torch.optim.lr_scheduler, else a closed form; kernels against Python."""

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as T

from hogwild.kernels.compiler.jit import kernel
from hogwild.kernels.optim.hyperparameters import HyperParameterError, checked
from hogwild.kernels.optim.rules import SGD, AdaGrad, Adam, Apollo, Momentum
from hogwild.kernels.optim.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    InverseSqrt,
    InverseTime,
    MultiStep,
    Noam,
    OneCycle,
    Plateau,
    Polynomial,
    Step,
    Warmup,
    cycled,
    momentum,
    observed,
    rate,
)

ROOT = Path(__file__).parents[3]


@kernel
def trace(schedule, steps, out):
    for i in range(len(steps)):
        out[i, 0] = rate(schedule, steps[i])
        out[i, 1] = momentum(schedule, steps[i])


@kernel
def cycle(rule, schedule, t):
    return cycled(rule, schedule, t)


def traced(schedule, steps):
    """rate and momentum at each step, by the kernel; Python must agree."""
    schedule, steps = checked(schedule), np.asarray(steps)
    out = np.empty((len(steps), 2))
    trace(schedule, steps, out)
    mine = [(rate(schedule, t), momentum(schedule, t)) for t in steps.tolist()]
    np.testing.assert_allclose(out, mine, rtol=1e-12, atol=1e-15)
    assert all(isinstance(item, float) for pair in mine for item in pair)
    return out


def rates(schedule, n):
    return traced(schedule, np.arange(n))[:, 0]


def in_torch(lr, build, n):
    """lr and momentum in each of n steps of torch's scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler, seen = build(optimizer), []
        for _ in range(n):
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            scheduler.step()
    return np.array(seen)


AGAINST_TORCH = [
    (Constant(0.3), lambda o: T.ConstantLR(o, 1.0), 9),
    (Exponential(0.5, 0.9), lambda o: T.ExponentialLR(o, 0.9), 60),
    (Exponential(1e-5, 1.2), lambda o: T.ExponentialLR(o, 1.2), 60),
    (Step(0.1, 0.5, 7), lambda o: T.StepLR(o, 7, 0.5), 40),
    (Step(0.1, 0.95, 49), lambda o: T.StepLR(o, 49, 0.95), 500),  # 49 · (1/49) < 1
    (Step(2, 0.1, 1), lambda o: T.StepLR(o, 1, 0.1), 9),
    (MultiStep(0.1, 0.1, (3, 10, 11)), lambda o: T.MultiStepLR(o, [3, 10, 11], 0.1), 20),
    (MultiStep(1.0, 0.5, (8, 2, 8, 0)), lambda o: T.MultiStepLR(o, [8, 2, 8, 0], 0.5), 20),
    (Polynomial(0.1, 20), lambda o: T.PolynomialLR(o, 20), 30),
    (Polynomial(0.1, 13, power=2.5), lambda o: T.PolynomialLR(o, 13, 2.5), 30),
    (Polynomial(0.1, 1, power=0.5), lambda o: T.PolynomialLR(o, 1, 0.5), 5),
    (Cosine(0.1, 30), lambda o: T.CosineAnnealingLR(o, 30), 31),
    (Cosine(0.1, 7, end=0.02), lambda o: T.CosineAnnealingLR(o, 7, 0.02), 8),
    (CosineRestarts(0.1, 10), lambda o: T.CosineAnnealingWarmRestarts(o, 10), 55),
    (CosineRestarts(0.1, 1), lambda o: T.CosineAnnealingWarmRestarts(o, 1), 5),
    (CosineRestarts(0.1, 5, mult=2, end=0.01), lambda o: T.CosineAnnealingWarmRestarts(o, 5, 2, 0.01), 200),
    (CosineRestarts(1, 3, mult=3), lambda o: T.CosineAnnealingWarmRestarts(o, 3, 3), 130),
    (Cyclic(0.01, 0.1, 4, 4), lambda o: T.CyclicLR(o, 0.01, 0.1, 4, 4), 40),
    (Cyclic(0.01, 0.1, 3, 8), lambda o: T.CyclicLR(o, 0.01, 0.1, 3, 8), 60),
    (SCHEDULES["triangular2"](0.01, 0.1, 5, 2), lambda o: T.CyclicLR(o, 0.01, 0.1, 5, 2, "triangular2"), 60),
    (SCHEDULES["exp-range"](0.01, 0.1, 5, 6, gamma=0.97),
     lambda o: T.CyclicLR(o, 0.01, 0.1, 5, 6, "exp_range", 0.97), 60),
    (SCHEDULES["exp-range"](0, 1, 1, 1), lambda o: T.CyclicLR(o, 0, 1, 1, 1, "exp_range", 0.99994), 30),
]


@pytest.mark.parametrize("schedule, build, n", AGAINST_TORCH, ids=lambda item: getattr(type(item), "__name__", ""))
def test_rates_are_torchs(schedule, build, n):
    np.testing.assert_allclose(rates(schedule, n), in_torch(schedule.lr, build, n)[:, 0], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("lr, steps, options", [
    (0.1, 50, {}), (0.1, 10, {"pct_start": 0.25}), (1.0, 7, {"div": 4.0, "final_div": 10.0}), (0.1, 1, {}),
    (0.2, 33, {"pct_start": 0.9, "low_momentum": 0.5, "high_momentum": 0.99}), (0.2, 20, {"pct_start": 0.0}),
    (0.1, 2, {})])
def test_one_cycle_is_torchs(lr, steps, options):
    names = {"div": "div_factor", "final_div": "final_div_factor", "low_momentum": "base_momentum",
             "high_momentum": "max_momentum"}
    theirs = {names.get(name, name): x for name, x in options.items()}
    want = in_torch(lr, lambda o: T.OneCycleLR(o, lr, total_steps=steps, **theirs), steps)
    got = traced(OneCycle(lr, steps, **options), np.arange(steps + 5))
    np.testing.assert_allclose(got[:steps], want, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(got[steps:], np.tile(want[-1], (5, 1)), rtol=1e-9)  # torch raises here


def test_one_cycle_whose_rise_is_a_single_point():
    """pct_start·steps = 1: torch divides by zero. The peak comes first, and half-way down it is the mean."""
    got = rates(OneCycle(1.0, 5, pct_start=0.2, div=2.0, final_div=5.0), 5)
    np.testing.assert_allclose(got[[0, 2, 4]], [1.0, 0.55, 0.1])


CLOSED = [
    (InverseTime(0.5, 0.1), lambda t: 0.5 / (1 + 0.1 * t)),
    (InverseSqrt(0.5, 0.1), lambda t: 0.5 / math.sqrt(1 + 0.1 * t)),
    (Polynomial(0.4, 10, power=2, end=0.1), lambda t: 0.1 + 0.3 * (1 - t / 10) ** 2 if t < 10 else 0.1),
    (Cosine(0.4, 10, end=0.1), lambda t: 0.25 + 0.15 * math.cos(math.pi * t / 10) if t < 10 else 0.1),
    (Noam((512 * 40) ** -0.5, 40), lambda t: 512**-0.5 * min((t + 1) ** -0.5, (t + 1) * 40**-1.5)),
    (Step(0.3, 0.8, 25), lambda t: 0.3 * 0.8 ** (t // 25)),
]


@pytest.mark.parametrize("schedule, formula", CLOSED, ids=lambda item: getattr(type(item), "__name__", ""))
def test_closed_forms(schedule, formula):
    np.testing.assert_allclose(rates(schedule, 120), [formula(t) for t in range(120)], rtol=1e-12)


def test_noam_peaks_at_lr():
    got = rates(Noam(0.7, 40), 100)
    assert got.argmax() == 39
    assert got.max() == pytest.approx(0.7, rel=1e-15)


def test_late_steps_keep_their_precision():
    t = 10**9 + 1
    got = [traced(schedule, [t])[0, 0] for schedule in (
        Exponential(1, 0.999999999), CosineRestarts(1, 10), Step(1, 0.5, 10**8), CosineRestarts(1, 10**9),
        CosineRestarts(1, 1, mult=2))]
    start = 2**29 - 1  # the 30th period of 1, 2, 4 … begins here
    want = [math.exp(t * math.log1p(-1e-9)), (1 + math.cos(math.pi / 10)) / 2, 2.0**-10,
            (1 + math.cos(math.pi * 1e-9)) / 2, (1 + math.cos(math.pi * (t - start) / 2**29)) / 2]
    np.testing.assert_allclose(got, want, rtol=1e-7)
    restart = traced(CosineRestarts(1, 7, mult=3), [7 * (3**k - 1) // 2 for k in range(16)])[:, 0]
    np.testing.assert_array_equal(restart, 1.0)


EVERY = [*(case[0] for case in AGAINST_TORCH[::2]), *(case[0] for case in CLOSED), OneCycle(0.1, 20), Plateau(0.2)]


@pytest.mark.parametrize("schedule", EVERY, ids=lambda item: type(item).__name__)
@pytest.mark.parametrize("steps, start", [(10, 0.0), (7, 0.25), (0, 0.5)])
def test_warmup_in_front_of(schedule, steps, start):
    alone = traced(schedule, np.arange(40))
    ramp = np.linspace(start, 1.0, steps + 1)[:steps] * alone[0, 0]
    got = traced(Warmup(schedule, steps, start), np.arange(steps + 40))
    np.testing.assert_allclose(got[:, 0], [*ramp, *alone[:, 0]], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(got[:, 1], [*[alone[0, 1]] * steps, *alone[:, 1]], rtol=1e-12)


@pytest.mark.parametrize("schedule, build", [AGAINST_TORCH[i][:2] for i in (0, 1, 3, 6, 9, 11, 13, 15)],
                         ids=lambda item: getattr(type(item), "__name__", ""))
def test_warmup_is_torchs(schedule, build):
    def sequence(optimizer):
        return T.SequentialLR(optimizer, [T.LinearLR(optimizer, 0.1, total_iters=6), build(optimizer)], [6])
    want = in_torch(schedule.lr, sequence, 30)[:, 0]
    np.testing.assert_allclose(rates(Warmup(schedule, 6, 0.1), 30), want, rtol=1e-9, atol=1e-14)


def test_warmups_nest():
    got = rates(Warmup(Warmup(Exponential(1.0, 0.5), 4, 0.5), 2, 0.5), 9)
    np.testing.assert_allclose(got, [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 0.5, 0.25])


metrics = st.lists(st.one_of(st.floats(-3, 3), st.sampled_from([1.0, 0.9999, 0.99989, 1.0001, math.nan])), max_size=40)
flags = st.tuples(st.booleans(), st.booleans())


@settings(max_examples=150, deadline=None)
@given(metrics, flags, st.integers(0, 4), st.sampled_from([0.0, 1e-4, 0.3]), st.sampled_from([0.0, 0.02, 0.5]))
def test_plateau_is_torchs(values, flags, patience, threshold, floor):
    absolute, maximise = flags
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = T.ReduceLROnPlateau(optimizer, "max" if maximise else "min", 0.5, patience, threshold,
                                 "abs" if absolute else "rel", min_lr=floor, eps=0.0)
    mine = checked(Plateau(0.1, 0.5, patience, threshold, absolute, False, maximise, floor))
    for metric in values:
        theirs.step(metric)
        mine = mine.observe(metric)
        assert rate(mine, 5) == optimizer.param_groups[0]["lr"]
        assert mine.bad == theirs.num_bad_epochs
        assert mine.best == (math.inf if math.isinf(theirs.best) else theirs.best)


class Keras:
    """keras.callbacks.ReduceLROnPlateau without cooldown, transcribed (its lr is float32 there)."""

    def __init__(self, lr, factor, patience, mode, min_delta, min_lr):
        self.lr, self.factor, self.patience, self.min_lr, self.wait = lr, factor, patience, min_lr, 0
        self.best = -math.inf if mode == "max" else math.inf
        self.monitor_op = (lambda a, b: a > b + min_delta) if mode == "max" else (lambda a, b: a < b - min_delta)

    def on_epoch_end(self, current):
        if self.monitor_op(current, self.best):
            self.best = current
            self.wait = 0
        else:
            self.wait += 1
            if self.wait >= self.patience:
                old_lr = self.lr
                if old_lr > self.min_lr:
                    self.lr = max(old_lr * self.factor, self.min_lr)
                    self.wait = 0


@settings(max_examples=150, deadline=None)
@given(metrics, st.booleans(), st.integers(0, 4), st.sampled_from([0.0, 1e-4, 0.3]), st.sampled_from([0.0, 0.02, 0.5]))
def test_plateau_is_keras(values, maximise, patience, threshold, floor):
    theirs = Keras(0.1, 0.1, patience, "max" if maximise else "min", threshold, floor)
    mine = checked(Plateau(0.1, 0.1, patience, threshold, absolute=True, keras=True, maximise=maximise, floor=floor))
    for metric in values:
        theirs.on_epoch_end(metric)
        mine = mine.observe(metric)
        assert mine.lr == theirs.lr


@pytest.mark.parametrize("maximise", [False, True])
def test_plateau_takes_infinity_for_no_improvement(maximise):
    schedule = checked(Plateau(1.0, patience=2, maximise=maximise)).observe(0.5)
    for metric in (math.inf, -math.inf, math.nan):
        schedule = schedule.observe(metric)
    assert schedule == (0.1, 0.1, 2.0, 1e-4, 0.0, 0.0, maximise, 0.0, 0.5, 0.0)


def test_observed_is_pure_and_reaches_through_warmup():
    plateau = checked(Plateau(1.0, factor=0.5, patience=0))
    warm = Warmup(Warmup(plateau, 2.0), 3.0)
    after = observed(observed(warm, 1.0), np.float32(1.0))
    assert after == Warmup(Warmup(plateau._replace(lr=0.5, best=1.0), 2.0), 3.0)
    assert rate(after, 9) == 0.5
    assert warm.after.after is plateau
    assert rate(warm, 9) == 1.0
    constant = Constant(0.1)
    assert observed(constant, 1.0) is constant
    assert checked(after) == after


ONE = OneCycle(0.1, 20, low_momentum=0.6, high_momentum=0.8)


@pytest.mark.parametrize("rule, field", [(Momentum(0.9, 0.1), "mu"), (Adam(amsgrad=True), "b1"), (Apollo(), "b")],
                         ids=["mu", "b1", "b"])
@pytest.mark.parametrize("schedule", [ONE, Warmup(ONE, 0), Warmup(Warmup(ONE, 0), 0)], ids=["bare", "warm", "twice"])
def test_cycled_replaces_the_momentum_only(rule, field, schedule):
    rule, schedule = checked(rule), checked(schedule)
    for t, want in ((0, 0.8), (5, 0.6), (19, 0.8), (99, 0.8)):
        for got in (cycled(rule, schedule, t), cycle(rule, schedule, t)):
            assert type(got) is type(rule)
            assert got == rule._replace(**{field: pytest.approx(want)})


@pytest.mark.parametrize("rule, schedule", [
    (Momentum(), Constant(0.1)), (Momentum(), Warmup(Cosine(0.1, 5), 3)), (AdaGrad(), ONE), (SGD(), ONE)],
    ids=lambda item: type(item).__name__)
def test_cycled_leaves_the_rest(rule, schedule):
    rule, schedule = checked(rule), checked(schedule)
    assert cycled(rule, schedule, 3) is rule
    assert cycle(rule, schedule, 3) == rule


def test_cycled_keeps_the_numba_type():
    """Else every step that takes the rule compiles twice."""
    rule, schedule = checked(Adam()), checked(ONE)
    cycle(cycle(rule, schedule, 3), schedule, 3)
    before = len(cycle.signatures)
    cycle(cycled(rule, schedule, 3), schedule, 3)
    assert len(cycle.signatures) == before


@pytest.mark.parametrize("first, second", [
    (Cyclic(0, 1, 2, 3), Cyclic(0.1, 0.5, 4, 5.5, 0.5, 0.9)),
    (MultiStep(1, 0.5, (3, 4)), MultiStep(2.0, 0.1, (7, 1.0))),
    (Plateau(1), Plateau(0.5, keras=True).observe(3)), (Warmup(Noam(1, 2), 3), Warmup(Noam(0.5, 9), 4, 0.5))],
    ids=lambda item: type(item).__name__)
def test_other_hyper_parameters_compile_nothing(first, second):
    a = rates(first, 5)
    before = len(trace.signatures)
    assert not np.array_equal(rates(second, 5), a)
    assert len(trace.signatures) == before


def test_a_second_process_compiles_nothing():
    code = ("import numpy as np; from test_schedules import *; traced(Warmup(ONE, 3), np.arange(3));"
            "cycle(checked(Adam()), checked(Warmup(ONE, 3)), 3);"
            "print(sum(sum(k.stats.cache_misses.values()) for k in (trace, cycle)))")
    for _ in range(2):
        ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                               cwd=Path(__file__).parent)
    assert ended.stdout.split() == ["0"]


OPTIONS = {
    "constant": {}, "inverse-time": {"decay": 0.1}, "inverse-sqrt": {"decay": 0.1}, "exponential": {"gamma": 0.9},
    "step": {"gamma": 0.9, "every": 2}, "multistep": {"gamma": 0.9, "milestones": (1,)}, "polynomial": {"steps": 9},
    "noam": {"warmup": 1}, "cosine": {"steps": 9}, "cosine-restarts": {"steps": 9}, "onecycle": {"steps": 9},
    "plateau": {}, **dict.fromkeys(("triangular", "triangular2", "exp-range"), {"low": 0.1, "up": 1, "down": 2})}


@pytest.mark.parametrize("name", SCHEDULES)
def test_registry_makes_each_by_keyword_with_lr_as_its_peak(name):
    schedule = checked(SCHEDULES[name](lr=0.5, **OPTIONS[name]))
    assert max(rate(schedule, t) for t in range(9)) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("schedule, field", [
    (Step(0.1, 0.5, 0), "every"), (Constant(-1.0), "lr"), (Cosine(0.1, 0), "steps"), (Exponential(0.1, 0), "gamma"),
    (CosineRestarts(0.1, 5, 0.5), "mult"), (OneCycle(0.1, 5, pct_start=1), "pct_start"), (Plateau(0.1, 1.0), "factor"),
    (Plateau(0.1, best=math.nan), "best"), (Warmup(Noam(0.1, 0), 5), "warmup"),
    (MultiStep(1, 1, (3, -1)), "milestones")],
    ids=lambda item: item if isinstance(item, str) else "")
def test_impossible_hyper_parameters_are_refused(schedule, field):
    owner = type(getattr(schedule, "after", schedule)).__name__
    with pytest.raises(HyperParameterError, match=f"{owner}: {field} must"):
        checked(schedule)
