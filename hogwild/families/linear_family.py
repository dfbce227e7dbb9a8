"""Family "linear" as the commands find it: sparse linear models trained, loaded and described."""

from dataclasses import asdict
from functools import partial
from typing import NamedTuple

from hogwild.families import constant, linear, linear_examples, linear_inspect, linear_model
from hogwild.families.family import Job
from hogwild.families.linear_examples import Examples
from hogwild.families.linear_options import TrainLinear
from hogwild.families.targets import AS_GIVEN
from hogwild.kernels.losses import LOSSES
from hogwild.kernels.optim.rules import RULES
from hogwild.training import default_rates, lr_search, preflight
from hogwild.training.options import Span, check_schedule, learning_rate, penalties, schedule_of
from hogwild.training.registry import build


class Model(NamedTuple):
    """What is fitted and by what steps, parsed."""

    loss: tuple
    intercept: bool
    rule: tuple
    decay: tuple | None
    clip: tuple | None
    l1: float


class LinearFamily:
    """See hogwild.families.family.Family."""

    options = TrainLinear

    def prepare(self, options) -> Job:
        data, training = options.data, options.training
        data.check()
        model = _model(options)
        lr = learning_rate(training)
        check_schedule(training, model.rule, training.epochs)
        examples = linear_examples.read(data, (model.loss, model.intercept), training.seed)
        return _prepared(options, model, examples, lr)

    def load(self, path, tensors, header):
        return linear_model.load(path, tensors, header)

    def describe(self, options):
        return linear_inspect.describe(options, TrainLinear())


def _model(options) -> Model:
    training = options.training
    return Model(build(options.model.loss, LOSSES, "loss"), options.model.intercept, build(training.rule, RULES, "rule"),
                 *penalties(training), training.l1)


def _prepared(options, model, examples, lr):
    training, count = options.training, examples.count
    workers = min(training.workers or preflight.usable_cores()[0], max(count, 1))
    epochs = training.epochs or default_rates.default_epochs(count)
    make = partial(_problem, model, examples, training.average)
    lines = [examples.units.said()] if examples.units != AS_GIVEN else []
    sizes = default_rates.sizes_of(examples.train, examples.rows, examples.weights)
    default = default_rates.default_lr(model.rule, model.loss, sizes)
    if lr == "auto":
        lr, losses = lr_search.best_rate(make, model.rule, default, examples.row_numbers, workers, training.seed)
        lines += [f"learning rate {lr:g}, the best of {len(losses)} tried on a sample"]
    lr = default if lr is None else lr
    watched = "loss" if examples.test is None else training.early_stopping or (
        "rmse" if examples.classes is None else "accuracy")
    schedule = schedule_of(training, model.rule, Span(epochs, count), lr, watched)
    problem, flight = _examined(training, make, examples, workers)
    hint = default_rates.hint(model.rule, model.loss, sizes, lr)
    held = f"; held out: {examples.test.rows:,} rows" if examples.test else ""
    loses = training.mode == "wild" and problem.replicas != "all"
    lines = [*examples.notes, f"{examples.train.source}: {flight.line(loses)}{held}",
             *(f"warning: {warning}" for warning in flight.warnings), *([f"hint: {hint}"] if hint else []), *lines]
    content = examples.content() | ({"weights": examples.weights} if options.data.sample_weight else {})
    return Job(problem, f"{type(model.loss).__name__} loss", model.rule, schedule, epochs, flight.workers, lr, lines,
               _facts(examples, problem, flight), content, partial(_export, options, examples, problem),
               partial(_remark, examples))


def _problem(model, examples, average, rows, workers=1, mode="wild", replicas="auto"):
    """A new problem of these rows, int64[n] or None for all. average: epoch from which weights are averaged, or None."""
    average = None if average is None else average * examples.count
    return constant.start(linear.Linear(
        examples.train, examples.test, model.loss, model.rule, model.decay, model.clip, model.intercept, workers, rows, mode,
        model.l1, average, examples.weights, examples.classes, replicas, units=examples.units))


def _examined(training, make, examples, workers):
    """(problem, Preflight) for the number of workers that the user asked for or, without one, that is advised."""
    problem = make(examples.rows, workers, training.mode, training.replicas)
    loses = training.mode == "wild" and problem.replicas != "all"
    flight = preflight.examine(examples.train, training.workers and workers, training.seed, examples.rows, loses,
                               loses or training.mode in ("atomic", "locked"),
                               problem.size if loses and training.replicas != "none" else None)
    if workers != flight.workers:
        problem = make(examples.rows, flight.workers, training.mode, training.replicas)
    return problem, flight


def _facts(examples, problem, flight):
    test = examples.test
    return {"preflight": asdict(flight), "replicas": problem.replicas,
            "data": {"source": examples.train.source, "rows": examples.count, "features": examples.train.n_features,
                     "nonzeros": flight.nonzeros, "held_out": test.rows if test else 0}}


def _export(options, examples: Examples, problem):
    return linear_model.contents(problem.w, examples.train, options.model.loss, examples.transform, examples.state,
                                 problem.classes)


def _remark(examples: Examples, metrics):
    best = examples.best_accuracy() if "accuracy" in metrics else None
    return None if best is None else (f"held-out accuracy {metrics['accuracy']:.4f}; best achievable on these synthetic data "
                                      f"(the planted weights): {best:.4f}")


FAMILY = LinearFamily()
