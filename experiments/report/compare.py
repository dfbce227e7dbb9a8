"""Runs of your own side by side: differences of their configurations, and their results.

Records are those of `hogwild train … --record` and `sparsecomm train … --record`, or cells of an experiment; a file to
which several runs were appended counts as several.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hogwild.cli.arguments import parsed
from hogwild.errors import UserError
from hogwild.experiments.plan.grid import Reach
from hogwild.experiments.run import results
from hogwild.training.metrics import MAXIMISED
from hogwild.training.record_files import runs

RESULT = {"train_seconds": "s of training", "examples_per_s": "examples a second", "steps": "steps", "step_ms": "ms a step",
          "bytes_per_step": "bytes a step and rank"}
IGNORED = ("event", "time", "options.record", "options.running.", "preflight.")  # no configuration: how these begin
WIDEST = 28  # characters of a column


@dataclass
class Compare:
    """Compare the records of runs: differences of configuration, final metrics, time, bytes a step.

    Examples:
      mpiexec -n 2 sparsecomm train mlp --exchange dense --record dense.jsonl
      mpiexec -n 2 sparsecomm train mlp --keep 0.01 --record dropped.jsonl
      python -m hogwild.experiments compare dense.jsonl dropped.jsonl
    """

    records: Annotated[Positional[list[Path]], arg(metavar="RECORD")]
    """Files of JSON lines, written with --record."""


def main(arguments):
    """`experiments compare`."""
    options = parsed("python -m hogwild.experiments compare", Compare, arguments)
    twins = len({path.stem for path in options.records}) < len(options.records)
    named = [run for path in options.records for run in runs(path, str(path) if twins else path.stem)]
    if len(named) < 2:
        raise UserError(f"compare needs the records of two runs at least, got {len(named)}: "
                        f"{', '.join(map(str, options.records)) or 'name their files'}")
    print(compared(named))


def compared(named) -> str:
    """The tables as text, a column for each (name, events)."""
    names, every = [name for name, _ in named], [events for _, events in named]
    flat = [_flat(events[0]) for events in every]
    keys = dict.fromkeys(key for each in flat for key in each if not key.startswith(IGNORED))
    differing = [(key, [_said(each.get(key)) for each in flat]) for key in keys
                 if len({_said(each.get(key)) for each in flat}) > 1]
    outcome = [row for row in _outcome(every) if any(value is not None for value in row[1])]
    differing = differing or [("no difference", [""] * len(names))]
    return _table([("configuration", names), *differing, ("result", names),
                   *((key, [_said(value) for value in each]) for key, each in outcome)])


def _outcome(every):
    """(name, a value for each run): final metrics, times, bytes, seconds to the best value that all of them reach."""
    found = [results.extracted({}, events) for events in every]
    last = [results.final(events) for events in every]
    metrics = list(dict.fromkeys(name for each in last for name in each))
    yield from ((name, [each.get(name) for each in last]) for name in metrics)
    yield from ((label, [each.get(key) for each in found]) for key, label in RESULT.items())
    for name in metrics:
        better = "higher" if name in MAXIMISED else "lower"
        values = [[results.at(event, f"metrics.{name}") for _, event in results.measured(events)] for events in every]
        values = [[value for value in each if value is not None] for each in values]
        if all(values):
            common = min(map(max, values)) if better == "higher" else max(map(min, values))
            reach = Reach(f"metrics.{name}", common, better)
            yield f"s to {name} {_said(common)}", [results.reached(events, reach) for events in every]


def _flat(event, prefix=""):
    """Nested tables as one, with dotted keys."""
    flat = {}
    for key, value in event.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _said(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _table(rows):
    """Rows of (name, values) in columns; a blank line before `result`."""
    short = [(key, [text if len(text) <= WIDEST else "…" + text[1 - WIDEST:] for text in values]) for key, values in rows]
    first = max(len(key) for key, _ in short)
    widths = [max(len(values[k]) for _, values in short) for k in range(len(short[0][1]))]
    lines = []
    for key, values in short:
        blank = [""] if key == "result" else []
        lines += [*blank, "  ".join([key.ljust(first), *(text.rjust(width) for text, width in zip(values, widths))]).rstrip()]
    return "\n".join(lines)
