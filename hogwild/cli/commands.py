"""evaluate, predict, recommend and inspect: what a family does with a model and a data file, printed."""

import sys

from hogwild.cli import print_predictions
from hogwild.data import files
from hogwild.errors import UserError, demand_folder
from hogwild.families import registry
from hogwild.training import console


def _say(lines):
    """On stderr: standard output is for results."""
    for line in lines:
        print(console.fitted(f"hogwild: {line}", sys.stderr), file=sys.stderr, flush=True)


def evaluate(options):
    """hogwild evaluate."""
    fitted = registry.load(options.model)
    data, lines = fitted.read(options.data, **options.reading.reading())
    metrics, more = fitted.measure(data)
    _say([*lines, *more])
    print(f"{data.source}: {data.rows:,} rows")
    for name, value in metrics.items():
        print(f"{name:<10} {value:.6g}" if 0 < abs(value) < 1e-3 else f"{name:<10} {value:.6f}")


def predict(options):
    """hogwild predict."""
    if options.out:
        demand_folder(options.out, "predictions", "--out")
    fitted = registry.load(options.model)
    if options.probabilities:
        fitted.check_probabilities()
    data, lines = fitted.read(options.data, **options.reading.reading())
    _say(lines)
    print_predictions.write(options.out, fitted.predict(data, options.probabilities))


def recommend(options):
    """hogwild recommend."""
    if options.out:
        demand_folder(options.out, "recommendations", "--out")
    fitted = registry.load(options.model)
    if not hasattr(fitted, "recommendations"):
        raise UserError(f"{options.model}: recommends nothing, needed a model of hogwild train mf")
    users = options.users
    if users is not None:
        users = files.listed(users[1:]) if users.startswith("@") else [user.strip() for user in users.split(",")]
    items = None if options.items is None else files.listed(options.items)
    text, lines = fitted.recommendations(users, options.k, items, not options.include_seen)
    _say(lines)
    print_predictions.write(options.out, text)


def inspect(options):
    """hogwild inspect."""
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers must be at least 1, got {options.workers}")
    notes, lines = registry.family(options.family).describe(options)
    _say(notes)
    console.out(*lines)
