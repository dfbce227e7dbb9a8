"""Learning-rate schedules: each a NamedTuple of numbers whose methods are pure functions of the step t, from 0.

    rate(schedule, t)            -> learning rate
    momentum(schedule, t)        -> momentum, where the schedule cycles it
    cycled(rule, schedule, t)    -> the rule at that momentum; the rule itself where the schedule cycles none
    observed(schedule, metric)   -> the schedule after an evaluation (Python only); only Plateau changes

The first three work in Python and inside kernels. Let `hogwild.kernels.optim.hyperparameters.checked` make every number
float64 first.
"""

import functools
import math
from typing import NamedTuple

from numba.extending import overload, register_jitable

from hogwild.kernels.compiler.jit import SUM, by_type


@by_type
def rate(schedule, t):
    """Learning rate of `schedule` at step t."""


@by_type
def momentum(schedule, t):
    """Momentum of `schedule` at step t; NaN where it does not cycle the momentum."""
    return math.nan


@register_jitable
def _cosine(start, end, share):
    return end + (start - end) * (1.0 + math.cos(math.pi * share)) * 0.5


@register_jitable
def _two_cosines(steps, pct_start, t, start, peak, end):
    top, last = pct_start * steps - 1.0, steps - 1.0
    t = min(float(t), last)
    if t < top:
        return _cosine(start, peak, t / top)
    return _cosine(peak, end, (t - top) / (last - top))


class Constant(NamedTuple):
    """lr."""

    lr: float

    ranges = {"lr": "[0, inf)"}

    def rate(self, t):
        return self.lr


class InverseTime(NamedTuple):
    """lr / (1 + decay t). Robbins & Monro 1951; Bottou 2012."""

    lr: float
    decay: float

    ranges = {"lr": "[0, inf)", "decay": "[0, inf)"}

    def rate(self, t):
        return self.lr / (1.0 + self.decay * t)


class InverseSqrt(NamedTuple):
    """lr / sqrt(1 + decay t): the rate of online convex optimization. Zinkevich 2003."""

    lr: float
    decay: float

    ranges = {"lr": "[0, inf)", "decay": "[0, inf)"}

    def rate(self, t):
        return self.lr / (1.0 + self.decay * t) ** 0.5


class Exponential(NamedTuple):
    """lr gamma^t. torch's ExponentialLR."""

    lr: float
    gamma: float

    ranges = {"lr": "[0, inf)", "gamma": "(0, inf)"}

    def rate(self, t):
        return self.lr * self.gamma ** float(t)


class Step(NamedTuple):
    """lr gamma^floor(t / every). torch's StepLR.

    With every = steps per epoch it is the per-epoch geometric decay gamma beta^epoch of Hogwild (Niu et al. 2011),
    whose gamma is our lr and whose beta is our gamma.
    """

    lr: float
    gamma: float
    every: float

    ranges = {"lr": "[0, inf)", "gamma": "(0, inf)", "every": "[1, inf)"}

    def rate(self, t):
        return self.lr * self.gamma ** float(t // self.every)  # not floor(t / every): a kernel may multiply by 1/every


class MultiStep(NamedTuple):
    """lr gamma^(number of milestones <= t). torch's MultiStepLR.

    One milestone or more, in any order; a repeated one counts again.
    """

    lr: float
    gamma: float
    milestones: tuple

    ranges = {"lr": "[0, inf)", "gamma": "(0, inf)", "milestones": "[0, inf)"}

    def rate(self, t):
        value = self.lr * 1.0
        for milestone in self.milestones:
            if t >= milestone:
                value *= self.gamma
        return value


class Polynomial(NamedTuple):
    """end + (lr - end)(1 - t/steps)^power, then end. torch's PolynomialLR; linear by default."""

    lr: float
    steps: float
    power: float = 1.0
    end: float = 0.0

    ranges = {"lr": "[0, inf)", "steps": "[1, inf)", "power": "(0, inf)", "end": "[0, inf)"}

    def rate(self, t):
        left = self.steps - min(float(t), self.steps)  # 1 - t/steps may round below 0 in a kernel, whose power is NaN
        return self.end + (self.lr - self.end) * (left / self.steps) ** self.power


class Noam(NamedTuple):
    """lr min(sqrt(warmup / (t+1)), (t+1) / warmup): inverse square root after a linear warm-up; lr is the peak.

    Vaswani et al. 2017 with lr = (d_model warmup)^-0.5.
    """

    lr: float
    warmup: float

    ranges = {"lr": "[0, inf)", "warmup": "[1, inf)"}

    def rate(self, t):
        return self.lr * min((self.warmup / (t + 1.0)) ** 0.5, (t + 1.0) / self.warmup)


class Cosine(NamedTuple):
    """end + (lr - end)(1 + cos(pi t/steps))/2, then end; torch's CosineAnnealingLR rises again after `steps`."""

    lr: float
    steps: float
    end: float = 0.0

    ranges = {"lr": "[0, inf)", "steps": "[1, inf)", "end": "[0, inf)"}

    def rate(self, t):
        return _cosine(self.lr, self.end, min(float(t), self.steps) / self.steps)


class CosineRestarts(NamedTuple):
    """Cosine from lr towards end over `steps` steps, again and again, each time `mult` times as long.

    SGDR, Loshchilov & Hutter 2017; torch's CosineAnnealingWarmRestarts.
    """

    lr: float
    steps: float
    mult: float = 1.0
    end: float = 0.0

    ranges = {"lr": "[0, inf)", "steps": "[1, inf)", "mult": "[1, inf)", "end": "[0, inf)"}

    def rate(self, t):
        left, length = float(t), float(self.steps)
        if self.mult == 1.0:  # the loop would take t / steps turns
            left = left % length
        while left >= length:  # a logarithm in place of the loop rounds, and misses restarts
            left -= length
            length *= self.mult
        return _cosine(self.lr, self.end, left / length)


class Cyclic(NamedTuple):
    """Linear from low to lr over `up` steps, back over `down` steps; in cycle c the height is shrink^c gamma^t.

    Smith 2017, torch's CyclicLR: triangular; triangular2 with shrink=0.5; exp_range with gamma < 1.
    """

    low: float
    lr: float
    up: float
    down: float
    shrink: float = 1.0
    gamma: float = 1.0

    ranges = {"low": "[0, inf)", "lr": "[0, inf)", "up": "[1, inf)", "down": "[1, inf)", "shrink": "(0, 1]",
              "gamma": "(0, 1]"}

    def rate(self, t):
        length = self.up + self.down
        place = float(t) % length
        height = place / self.up if place <= self.up else (length - place) / self.down
        shrunk = self.shrink ** float(t // length) * self.gamma ** float(t)
        return self.low + (self.lr - self.low) * height * shrunk


class OneCycle(NamedTuple):
    """Cosine from lr/div up to lr over pct_start of the steps, then down to lr/(div final_div), and there it stays.

    The momentum goes the opposite way. Smith & Topin 2018; defaults, both phases and their ends (at steps
    pct_start·steps - 1 and steps - 1) are those of torch's OneCycleLR.
    """

    lr: float
    steps: float
    pct_start: float = 0.3
    div: float = 25.0
    final_div: float = 1e4
    low_momentum: float = 0.85
    high_momentum: float = 0.95

    ranges = {"lr": "[0, inf)", "steps": "[1, inf)", "pct_start": "[0, 1)", "div": "[1, inf)", "final_div": "[1, inf)",
              "low_momentum": "[0, 1)", "high_momentum": "[0, 1)"}

    def rate(self, t):
        first = self.lr / self.div
        return _two_cosines(self.steps, self.pct_start, t, first, self.lr, first / self.final_div)

    def momentum(self, t):
        return _two_cosines(self.steps, self.pct_start, t, self.high_momentum, self.low_momentum, self.high_momentum)


class Warmup(NamedTuple):
    """Linear from start·r to r over `steps` steps, where r = rate(after, 0); then `after`, whose own t starts at 0.

    `after` is any schedule. Goyal et al. 2017; torch's SequentialLR of LinearLR and another.
    """

    after: tuple
    steps: float
    start: float = 0.0

    ranges = {"steps": "[0, inf)", "start": "[0, 1]"}

    def rate(self, t):
        if t >= self.steps:
            return rate(self.after, t - self.steps)
        return rate(self.after, 0.0) * (self.start + (1.0 - self.start) * t / self.steps)

    def momentum(self, t):
        return momentum(self.after, max(t - self.steps, 0.0))

    def observe(self, metric):
        return self._replace(after=observed(self.after, metric))


class Plateau(NamedTuple):
    """lr, times `factor` after evaluations without improvement, but not below `floor`. `observe` counts them.

    torch's ReduceLROnPlateau: it fires when bad > patience, and an improvement is a metric below best·(1 - threshold)
    (maximise: above best·(1 + threshold)). absolute: best ∓ threshold. keras: fires when bad >= patience; Keras' own
    rule is keras=True, absolute=True. `best` (infinite: none yet) and `bad` (evaluations since then) are its state.
    """

    lr: float
    factor: float = 0.1
    patience: float = 10.0
    threshold: float = 1e-4
    absolute: bool = False
    keras: bool = False
    maximise: bool = False
    floor: float = 0.0
    best: float = math.inf
    bad: float = 0.0

    ranges = {"lr": "[0, inf)", "factor": "(0, 1)", "patience": "[0, inf)", "threshold": "[0, inf)",
              "absolute": "[0, 1]", "keras": "[0, 1]", "maximise": "[0, 1]", "floor": "[0, inf)",
              "best": "[-inf, inf]", "bad": "[0, inf)"}

    def rate(self, t):
        return self.lr

    def observe(self, metric):
        """The schedule after an evaluation; a non-finite metric counts as no improvement."""
        metric, sign = float(metric), 1.0 if self.maximise else -1.0
        bar = self.best + sign * self.threshold if self.absolute else self.best * (1.0 + sign * self.threshold)
        if math.isfinite(metric) and (math.isinf(self.best) or sign * metric > sign * bar):
            return self._replace(best=metric, bad=0.0)
        bad = self.bad + 1.0
        if bad >= self.patience if self.keras else bad > self.patience:
            return self._replace(lr=max(self.lr * self.factor, min(self.lr, self.floor)), bad=0.0)
        return self._replace(bad=bad)


def observed(schedule, metric):
    """`schedule` after an evaluation gave `metric`: a Plateau (behind a Warmup too) counts it, others stay the same."""
    return schedule.observe(metric) if hasattr(schedule, "observe") else schedule


def scaled(schedule, factor):
    """`schedule` with every learning rate in it times `factor`."""
    if isinstance(schedule, Warmup):
        return schedule._replace(after=scaled(schedule.after, factor))
    names = [name for name in ("lr", "low", "end", "floor") if name in schedule._fields]
    return schedule._replace(**{name: getattr(schedule, name) * factor for name in names})


def momentum_field(fields):
    """Name of the field that holds a rule's momentum, of all of its names; None: it has none."""
    return next((name for name in ("mu", "b1", "b") if name in fields), None)


def _cycles(schedule):
    return _cycles(schedule.after) if isinstance(schedule, Warmup) else hasattr(schedule, "momentum")


def _type_cycles(schedule):
    if schedule.instance_class is Warmup:
        return _type_cycles(schedule.types[schedule.fields.index("after")])
    return hasattr(schedule.instance_class, "momentum")


def cycled(rule, schedule, t):
    """`rule` with its momentum (mu, else b1, else b) as `schedule` has it at step t; itself where either has none."""
    field = momentum_field(rule._fields)
    if field is None or not _cycles(schedule):
        return rule
    return rule._replace(**{field: momentum(schedule, t)})


@overload(cycled, strict=False, **SUM)
def _cycled(rule, schedule, t):
    field = momentum_field(rule.fields)
    if field is None or not _type_cycles(schedule):
        return lambda rule, schedule, t: rule
    # Numba has no _replace: write the constructor call out.
    values = ", ".join("momentum(schedule, t)" if name == field else f"rule.{name}" for name in rule.fields)
    scope = {"momentum": momentum, "Rule": rule.instance_class}
    exec(f"def cycled(rule, schedule, t): return Rule({values})", scope)
    return scope["cycled"]


SCHEDULES = {
    "constant": Constant, "inverse-time": InverseTime, "inverse-sqrt": InverseSqrt, "exponential": Exponential,
    "step": Step, "multistep": MultiStep, "polynomial": Polynomial, "noam": Noam, "cosine": Cosine,
    "cosine-restarts": CosineRestarts, "triangular": Cyclic, "triangular2": functools.partial(Cyclic, shrink=0.5),
    "exp-range": functools.partial(Cyclic, gamma=0.99994),  # Smith's own gamma
    "onecycle": OneCycle, "plateau": Plateau,
}
