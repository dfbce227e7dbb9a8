"""What the commands do, from their options to their output; training has its own file."""

import sys
from dataclasses import replace

import numpy as np

from hogwild import cli, judge, model, preflight, training, transforms
from hogwild.copies import columns_of, keeps_copies
from hogwild.errors import UserError
from hogwild.spec import build
from hogwild.workers import cores
from kernels.losses import LOSSES


def run(options):
    """Do what the options, one of cli's dataclasses, ask for."""
    {cli.TrainLinear: training.train_linear, cli.Evaluate: evaluate, cli.Predict: predict, cli.Inspect: inspect}[
        type(options)](options)


def _load(options):
    """(weights, loss, classes, data after the model's transforms) of a saved model and a data file."""
    tensors, header = model.load(options.model)
    if header.get("family") != "linear":
        raise UserError(f"{options.model}: is a model of family {header.get('family')!r}, this command knows linear")
    weights = tensors["weights"]
    raw = training.read(options, options.data, len(weights) - 1)
    shaped = transforms.apply(header["transform"], tensors, replace(raw, n_features=len(weights) - 1))
    classes = None if header["classes"] is None else np.float32(header["classes"])
    return weights, build(header["loss"], LOSSES, "loss"), classes, shaped


def evaluate(options):
    """hogwild evaluate."""
    weights, loss, classes, shaped = _load(options)
    result = judge.measure(judge.scores(weights, shaped, cores()), judge.targets(shaped, classes, weights.ndim), loss)
    print(f"{shaped.source}: {shaped.rows:,} rows")
    for name, value in result.items():
        print(f"{name:<10} {value:.6f}")


def predict(options):
    """hogwild predict."""
    weights, loss, classes, shaped = _load(options)
    z = judge.scores(weights, shaped, cores()).astype(np.float64)
    if classes is None:
        lines = (f"{value:.6g}" for value in z)
    else:
        likely, best = judge.probabilities(z, loss), judge.decide(z)
        shown = z if likely is None else likely[:, 1] if z.ndim == 1 else likely
        names = [np.format_float_positional(label, trim="-") for label in classes]
        lines = (f"{names[k]} " + " ".join(f"{x:.6g}" for x in np.atleast_1d(row)) for k, row in zip(best, shown))
    text = "".join(line + "\n" for line in lines)
    if options.out is None:
        sys.stdout.write(text)
    else:
        model.write_atomically(options.out, text.encode())


def inspect(options):
    """hogwild inspect."""
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers must be at least 1, got {options.workers}")
    d = training.read(options, options.data)
    labels, number = np.unique(d.labels, return_counts=True)
    shown = ", ".join(f"{label:g}: {k:,}" for label, k in zip(labels[:6], number[:6], strict=True))
    more = f", … ({len(labels):,} values)" if len(labels) > 6 else ""
    empty, longest = int((np.diff(d.indptr) == 0).sum()), int(np.diff(d.indptr).max(initial=0))
    size = _size(len(labels))
    copies = keeps_copies(d, options.workers or preflight.usable_cores()[0], size)
    flight = preflight.examine(d, options.workers, loses=not copies, size=None if copies else size)
    print(f"{d.source}\n"
          f"rows        {d.rows:,} ({empty:,} without features)\n"
          f"features    {d.n_features:,} ({flight.occurring:,} occur)\n"
          f"non-zeros   {d.nnz:,} ({d.nnz / max(d.rows, 1):.1f} a row, at most {longest:,})\n"
          f"values      {d.values.min() if d.nnz else 0:g} to {d.values.max() if d.nnz else 0:g}\n"
          f"labels      {shown}{more}")
    print(*flight.lines(copies), sep="\n")


def _size(labels):
    """float32 a feature that `hogwild train linear`, its options at their defaults, trains; labels: how many there are."""
    default = cli.TrainLinear()
    outputs = judge.outputs_of(build(default.loss, LOSSES, "loss"), labels if labels <= judge.MOST_CLASSES else 0)
    return outputs * columns_of(training.rule_of(default)[0])
