"""What the commands do, from their options to their output; training has its own file."""

import sys

import numpy as np

from hogwild.cli import options as kinds
from hogwild.cli import print_predictions, train
from hogwild.data import dataset
from hogwild.data.class_names import number_text
from hogwild.errors import UserError
from hogwild.families import linear_model, predictions
from hogwild.kernels.losses import LOSSES
from hogwild.kernels.optim.rules import RULES
from hogwild.training import preflight
from hogwild.training.registry import build
from hogwild.training.replicated import Sharing
from hogwild.training.replication import choose, columns_of


def run(options):
    """Do what the options, one of the dataclasses of hogwild/cli/options.py, ask for."""
    {kinds.TrainLinear: train.train_linear, kinds.Evaluate: evaluate, kinds.Predict: predict, kinds.Inspect: inspect}[
        type(options)](options)


def _say(lines):
    """On stderr: standard output is for results."""
    for line in lines:
        print(f"hogwild: {line}", file=sys.stderr, flush=True)


def evaluate(options):
    """hogwild evaluate."""
    fitted = linear_model.load(options.model)
    shaped, lines = fitted.read(options.data, **train.reading(options))
    labels = predictions.targets(shaped, fitted.classes, fitted.weights.ndim)
    unknown = predictions.unknown_line(shaped, fitted.classes)
    _say([*lines, *([unknown] if unknown else [])])
    result = predictions.measure(fitted.scores(shaped), labels, fitted.loss)
    print(f"{shaped.source}: {shaped.rows:,} rows")
    for name, value in result.items():
        print(f"{name:<10} {value:.6g}" if 0 < abs(value) < 1e-3 else f"{name:<10} {value:.6f}")


def predict(options):
    """hogwild predict."""
    fitted = linear_model.load(options.model)
    if options.probabilities and predictions.probabilities(np.zeros((1, 2)), fitted.loss) is None:
        raise UserError(f"--probabilities: {options.model} has none, its loss is {type(fitted.loss).__name__}; train with "
                        "--loss logistic or softmax")
    shaped, lines = fitted.read(options.data, **train.reading(options))
    _say(lines)
    print_predictions.write(options.out, print_predictions.lines(fitted, fitted.scores(shaped), options.probabilities))


def inspect(options):
    """hogwild inspect."""
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers must be at least 1, got {options.workers}")
    d = dataset.read(options.data, **train.reading(options))
    _say(d.notes)
    labels, number = np.unique(d.labels, return_counts=True)
    names = [number_text(label) if d.names is None else d.names[int(label)] for label in labels[:6]]
    shown = ", ".join(f"{name}: {k:,}" for name, k in zip(names, number[:6], strict=True))
    more = f", … ({len(labels):,} values)" if len(labels) > 6 else ""
    empty, longest = int((np.diff(d.indptr) == 0).sum()), int(np.diff(d.indptr).max(initial=0))
    size = _size(len(labels))
    sharing = Sharing(options.workers or preflight.usable_cores()[0])
    whole = choose(sharing, size, (d.n_features + 1, d.nnz + d.rows)) == "all"
    flight = preflight.examine(d, options.workers, loses=not whole, size=None if whole else size)
    print(f"{d.source}\n"
          f"rows        {d.rows:,} ({empty:,} without features)\n"
          f"features    {d.width:,} ({flight.occurring:,} occur)\n"
          f"non-zeros   {d.nnz:,} ({d.nnz / max(d.rows, 1):.1f} a row, at most {longest:,})\n"
          f"values      {d.values.min() if d.nnz else 0:g} to {d.values.max() if d.nnz else 0:g}\n"
          f"labels      {shown}{more}")
    print(*flight.lines(whole), sep="\n")


def _size(labels):
    """float32 a feature that `hogwild train linear`, its options at their defaults, trains; labels: how many there are."""
    default = kinds.TrainLinear()
    outputs = predictions.outputs_of(build(default.loss, LOSSES, "loss"), labels if labels <= predictions.MOST_CLASSES else 0)
    return outputs * columns_of(build(default.rule, RULES, "rule"))
