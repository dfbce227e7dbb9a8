"""What a rule or a schedule does where the answer is known: one measurement a process, with a record like a run's.

python -m hogwild.experiments.programs.optimizers quadratic|smooth|stochastic|direction|impulse|constant|reversal|
constructed|digits|schedule … --record FILE
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hogwild.cli.arguments import parsed
from hogwild.errors import UserError
from hogwild.experiments.programs import functions
from hogwild.experiments.programs.functions import Function, descent
from hogwild.kernels.optim.rules import RULES
from hogwild.kernels.optim.schedules import Constant, momentum, observed, rate
from hogwild.training.options import Optimization, Span, penalties, schedule_of
from hogwild.training.record import Report
from hogwild.training.registry import build

POINTS = 60  # of a curve whose steps are recorded at equal ratios
UNBIASED = 10**9  # steps after which Adam's bias corrections are 1


@dataclass
class MeasurementOptions:
    """Options of all measurements."""

    record: Path | None = None
    """File to which the JSON lines are appended."""
    seed: int = 0
    """Seed of what is random."""
    steps: int = 100
    """Steps, or the most of them."""


@dataclass
class Quadratic(MeasurementOptions):
    """Steps until the distance to a quadratic's minimum has fallen, with the constants that theory calls best."""

    rule: str = "sgd"
    """sgd, momentum, nesterov; slow-momentum: momentum at the learning rate of gradient descent."""
    condition: float = 10.0
    """The largest curvature over the smallest, 1; the others lie between at equal ratios."""
    dimensions: int = 2
    """Coordinates; of two, the start is fixed, else random."""
    tolerance: float = 1e-6
    """The distance to reach, as a share of that at the start."""


@dataclass
class Smooth(MeasurementOptions):
    """The gap f - min f of gradient descent, or Nesterov's method, at a learning rate of 1/L."""

    rule: str = "sgd"
    """sgd, nesterov (whose mu is t/(t + 3) at step t)."""
    function: str = "quadratic"
    """quadratic (curvatures from 1e-8 to 1), logistic (separable classes)."""


@dataclass
class Stochastic(MeasurementOptions):
    """SGD with a standard normal number added to each derivative, at a learning rate of lr / sqrt(steps)."""

    function: str = "quadratic"
    """quadratic, absolute (both convex: the gap of the mean iterate), saturating (not: the mean squared gradient)."""
    lr: float = 0.3
    """Learning rate times sqrt(steps)."""


@dataclass
class Direction(MeasurementOptions):
    """Cosine between a rule's first step and the direction to the minimum, on a quadratic of two coordinates."""

    rule: str = "sgd"
    """Rule, with hyper-parameters as of `hogwild train`."""
    lr: float = 0.01
    """Learning rate."""
    condition: float = 20.0
    """The larger curvature; the other is 1."""
    angle: float | None = None
    """Degrees of the start from the flat axis; default: random, below 90."""
    starts: int = 1
    """Random starts, whose mean is the result."""


@dataclass
class Impulse(MeasurementOptions):
    """What a squared gradient weighs k steps later, in a rule's last slot: a gradient of 1 is followed by zeros."""

    rule: str = "rmsprop"
    """adagrad, rmsprop or adam, with hyper-parameters."""


@dataclass
class Constantly(MeasurementOptions):
    """The steps of a rule in units of the learning rate, under a gradient that is always 1."""

    rule: str = "adam"
    """Rule, with hyper-parameters."""
    uncorrected: bool = False
    """Without bias correction: the rule takes itself to be long past it."""


@dataclass
class Reversal(MeasurementOptions):
    """Steps after which a rule moves back, when the gradient turns from 1 to -1 half-way."""

    rule: str = "adam"
    """Rule, with hyper-parameters."""


@dataclass
class ConstructedData(MeasurementOptions):
    """Wilson et al. 2017: least squares on examples that a separator of least norm generalizes from, others do not."""

    rule: str = "sgd"
    """Rule, with hyper-parameters."""
    lr: float = 0.01
    """Learning rate."""
    train: int = 100
    """Training examples."""
    test: int = 400
    """Test examples."""
    positive: float = 0.6
    """Share of the positive examples."""


@dataclass
class DigitsOptions(MeasurementOptions):
    """Train a small network on scikit-learn's digits; a schedule's plateau is one of the held-out loss."""

    rule: str = "sgd"
    """Rule, with hyper-parameters."""
    lr: float = 0.1
    """Learning rate."""
    schedule: str = "constant"
    """As of `hogwild train`."""
    warmup: str | None = None
    """As of `hogwild train`."""
    epochs: int = 10
    """Passes over the images, in place of --steps."""
    batch: int = 16
    """Images of a step."""


@dataclass
class Schedule(MeasurementOptions):
    """A schedule's learning rate, of a peak of 1, over 10 epochs; a plateau's metric stops improving half-way."""

    schedule: str = "constant"
    """As of `hogwild train`."""
    warmup: str | None = None
    """As of `hogwild train`."""


def quadratic(options, report):
    """Steps needed, measured and in theory, contraction, and how often the steepest coordinate's path is its distance."""
    names = "sgd", "momentum", "nesterov", "slow-momentum"
    cls = RULES[_one_of("rule", options.rule, {name: name.removeprefix("slow-") for name in names})]
    if not 1 < options.condition < 1e12 or options.dimensions < 2 or not 0 < options.tolerance < 1:
        raise UserError(f"needs --condition in (1, 1e12), --dimensions from 2 on and --tolerance in (0, 1), got "
                        f"{options.condition:g}, {options.dimensions} and {options.tolerance:g}")
    best = functions.best_setting(options.rule, options.condition)
    rule = cls(mu=best.mu) if "mu" in cls._fields else cls()
    random = np.random.default_rng(options.seed).standard_normal(options.dimensions)
    start = np.array([-1.0, 0.4]) if options.dimensions == 2 else random
    function = functions.quadratic(np.geomspace(1, options.condition, options.dimensions), start)
    report.start(rule=repr(rule), lr=best.lr, condition=options.condition)
    distances, steep, needed = [float(np.linalg.norm(start))], [start[-1]], None
    drawn = _drawn(options.steps) | set(range(60))
    _point(report, 0, w1=start[0], w2=start[-1], distance=1.0)
    for step, w in descent(rule, Constant(best.lr), function, options.steps):
        distances.append(float(np.linalg.norm(w)))
        steep.append(float(w[-1]))
        needed = step if distances[-1] <= options.tolerance * distances[0] else None
        if step in drawn or needed:
            _point(report, step, w1=w[0], w2=w[-1], distance=distances[-1] / distances[0])
        if needed:
            break
    half = len(distances) // 2
    return {"needed": needed, "theory": math.log(options.tolerance) / math.log(best.factor),
            "factor": (distances[-1] / distances[half]) ** (1 / (len(distances) - 1 - half)), "best_factor": best.factor,
            "swing": float(abs(np.diff(steep)).sum()) / abs(steep[0])}


def smooth(options, report):
    """The last gap, and the squared distance from start to minimum, which the theory's bounds hold."""
    makers = {"quadratic": lambda: functions.quadratic(np.geomspace(1e-8, 1, 200), np.ones(200)),
              "logistic": lambda: functions.separable_logistic(options.seed)}
    function = _one_of("function", options.function, makers)()
    rules = {"sgd": RULES["sgd"](), "nesterov": lambda t: RULES["nesterov"](mu=t / (t + 3.0))}  # Nesterov 1983
    rule = _one_of("rule", options.rule, rules)
    report.start(rule=options.rule, function=options.function)
    drawn, gap = _drawn(options.steps), math.nan
    for step, w in descent(rule, Constant(1.0), function, options.steps):
        if step in drawn:
            gap = function.value(w)
            _point(report, step, gap=gap)
    return {"gap": gap, "distance2": float(function.start @ function.start) if options.function == "quadratic" else None}


def stochastic(options, report):
    """What the theory bounds by a constant over sqrt(steps)."""
    makers = {"quadratic": lambda: functions.quadratic(np.geomspace(1e-3, 1, 20), np.ones(20)),
              "absolute": functions.absolute, "saturating": functions.saturating}
    function = _one_of("function", options.function, makers)()
    rng, lr, d = np.random.default_rng(options.seed), options.lr / options.steps**0.5, len(function.start)
    report.start(rule="sgd", function=options.function, lr=lr)
    total, squares = np.zeros_like(function.start), 0.0
    for _, w in descent(RULES["sgd"](), Constant(lr), function, options.steps, lambda t: rng.standard_normal(d)):
        total += w
        squares += float((function.gradient(w) ** 2).sum())
    convex = options.function != "saturating"
    return {"gap": function.value(total / options.steps) if convex else None, "squared_gradient": squares / options.steps}


def direction(options, report):
    """The mean cosine of the first step over the starts, and the path from the first start."""
    rng, rule = np.random.default_rng(options.seed), build(options.rule, RULES, "rule")
    angles = np.radians(rng.uniform(0, 90, options.starts) if options.angle is None else [options.angle])
    report.start(rule=repr(rule), lr=options.lr)
    firsts = []
    for k, start in enumerate(np.stack([-np.cos(angles), np.sin(angles)], 1)):
        function = functions.quadratic(np.array([1.0, options.condition]), start)
        path = [start, *(w.copy() for _, w in descent(rule, Constant(options.lr), function, 1 if k else options.steps))]
        move = path[1] - start
        firsts.append(-float(move @ start) / float(np.linalg.norm(move) * np.linalg.norm(start)))
        for step, w in enumerate(path if k == 0 else ()):
            _point(report, step, w1=w[0], w2=w[1])
    return {"cosine": float(np.mean(firsts))}


def impulse(options, report):
    """The weight after all steps, the largest difference from beta^k, and k of half the weight."""
    rule = build(options.rule, RULES, "rule")
    betas = {"adagrad": lambda: 1.0, "rmsprop": lambda: rule.alpha, "adam": lambda: rule.b2}
    beta = _one_of("rule", options.rule.partition(":")[0], betas)()
    report.start(rule=repr(rule))
    slots, weights = rule.start(), []
    for t in range(options.steps + 1):
        _, slots = rule.update(rule.prepare(0.1, t), float(t == 0), slots)
        weights.append(slots[-1])
        _point(report, t, weight=weights[-1] / weights[0])
    weights = np.array(weights) / weights[0]
    half = np.flatnonzero(weights <= 0.5)
    return {"weight": weights[-1], "error": float(abs(weights - beta ** np.arange(len(weights))).max()),
            "half": int(half[0]) if len(half) else None}


def constant(options, report):
    """The first step, the largest and the last."""
    rule = build(options.rule, RULES, "rule")
    report.start(rule=repr(rule), uncorrected=options.uncorrected)
    moves = _moves(rule, lambda t: 1.0, options.steps, UNBIASED * options.uncorrected)
    for step, move in enumerate(moves, 1):
        _point(report, step, move=move)
    return {"first": moves[0], "largest": max(moves), "last": moves[-1]}


def reversal(options, report):
    """Steps from the gradient's reversal to the first one in its direction."""
    rule, half = build(options.rule, RULES, "rule"), options.steps // 2
    report.start(rule=repr(rule))
    moves = _moves(rule, lambda t: 1.0 if t < half else -1.0, options.steps)
    for step, move in enumerate(moves, 1):
        _point(report, step, after=step - half, move=move / moves[half - 1])
    back = [k for k, move in enumerate(moves[half:], 1) if move < 0]
    return {"turn": back[0] if back else None}


def _moves(rule, gradient, steps, offset=0):
    """How far `rule` moves a weight down at each step, at a learning rate of 1."""
    places = [0.0]
    line = Function(np.zeros(1), lambda w: 0.0, np.zeros_like)
    for _, w in descent(rule, Constant(1.0), line, steps, gradient, offset):
        places.append(float(w[0]))
    return [before - after for before, after in zip(places, places[1:])]


def constructed(options, report):
    """Errors of training and test data, as shares, at the end."""
    if not 0.5 < options.positive < 1 or options.train < 2 or options.test < 1:
        raise UserError(f"needs --positive in (0.5, 1), --train from 2 on and --test from 1 on, got {options.positive:g}, "
                        f"{options.train} and {options.test}")
    rule, optimization = build(options.rule, RULES, "rule"), Optimization(rule=options.rule)
    data, test = functions.constructed(options.seed, options.train, options.test, options.positive)
    function, drawn, found = functions.squared_loss(data), _drawn(options.steps), {}
    schedule = schedule_of(optimization, rule, Span(1, options.steps), options.lr, "loss")
    report.start(rule=repr(rule), lr=options.lr, examples=options.train)
    for step, w in descent(rule, schedule, function, options.steps, decay=penalties(optimization)[0]):
        if step in drawn:
            found = {"loss": function.value(w), "train_error": _error(data, w), "test_error": _error(test, w)}
            _point(report, step, **found)
    return found


def _error(data, w):
    return float((np.sign(data.x @ w) != data.y).mean())


def digits(options, report):
    """Held-out loss and accuracy at the end; least_lr: the learning rate at which the loss was least."""
    task = functions.digits(options.seed, batch=options.batch)
    rule, total = build(options.rule, RULES, "rule"), options.epochs * task.batches
    optimization = Optimization(rule=options.rule, schedule=options.schedule, warmup=options.warmup)
    now = [schedule_of(optimization, rule, Span(options.epochs, task.batches), options.lr, "loss")]
    report.start(rule=repr(rule), schedule=repr(now[0]), steps=total)
    every, found = max(task.batches // 4, 1), []
    for step, w in descent(rule, lambda t: now[0], task.function, total, decay=penalties(optimization)[0]):
        lr = float(rate(now[0], step - 1))
        if step % task.batches == 0:
            now[0] = observed(now[0], task.function.value(w))
        if step % every == 0 or step == total:
            found.append({"loss": task.function.value(w), "accuracy": task.accuracy(w), "lr": lr})
            _point(report, step, **found[-1], epochs=step / task.batches)
    least = min(found, key=lambda each: each["loss"] if math.isfinite(each["loss"]) else math.inf)
    return {"loss": found[-1]["loss"], "accuracy": found[-1]["accuracy"], "least_lr": least["lr"],
            "least": least["loss"], "worsened": found[-1]["loss"] / least["loss"]}


def schedule(options, report):
    """The mean rate, that of the first and of the last step."""
    epochs = 10
    every = max(options.steps // epochs, 1)
    optimization = Optimization(schedule=options.schedule, warmup=options.warmup)
    now = schedule_of(optimization, RULES["sgd"](), Span(epochs, every), 1.0, "loss")
    report.start(schedule=repr(now))
    rates = []
    for t in range(epochs * every):
        if t and t % every == 0:
            now = observed(now, max(1 - t / every / epochs, 0.5))
        rates.append(float(rate(now, t)))
        cycled = float(momentum(now, t))
        _point(report, t, rate=rates[-1], **({"momentum": cycled} if math.isfinite(cycled) else {}))
    return {"mean": float(np.mean(rates)), "first": rates[0], "largest": max(rates), "last": rates[-1]}


def _one_of(name, value, among):
    if value not in among:
        raise UserError(f"--{name} must be one of {', '.join(among)}, got '{value}'")
    return among[value]


def _drawn(steps) -> set[int]:
    """Steps that are recorded: at nearly equal ratios, the last one included."""
    return {round(step) for step in np.geomspace(1, steps, POINTS)}


def _point(report, step, **metrics):
    report.event("evaluation", step=step, metrics=metrics)


COMMANDS = {"quadratic": (quadratic, Quadratic), "smooth": (smooth, Smooth), "stochastic": (stochastic, Stochastic),
            "direction": (direction, Direction), "impulse": (impulse, Impulse), "constant": (constant, Constantly),
            "reversal": (reversal, Reversal), "constructed": (constructed, ConstructedData),
            "digits": (digits, DigitsOptions), "schedule": (schedule, Schedule)}


def main(arguments=None) -> int:
    """Measure, record, and print the numbers; the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not arguments or arguments[0] not in COMMANDS:
            raise UserError(f"name a measurement: {', '.join(COMMANDS)}")
        measure, cls = COMMANDS[arguments[0]]
        options = parsed(f"hogwild.experiments.programs.optimizers {arguments[0]}", cls, arguments[1:])
        for name, least in ("steps", 2), ("starts", 1), ("epochs", 1), ("batch", 1):
            if getattr(options, name, least) < least:
                raise UserError(f"--{name} must be at least {least}, got {getattr(options, name)}")
        report = Report(options.record)
        with np.errstate(over="ignore", invalid="ignore"):
            found = measure(options, report)
        report.close(metrics=found)
    except UserError as error:
        print(f"hogwild: {error}", file=sys.stderr)
        return 2
    print("  ".join(f"{name} {value:.6g}" for name, value in found.items() if value is not None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
