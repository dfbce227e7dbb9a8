"""What cells leave behind: one file of JSON lines each, results/NAME[/quick]/SLUG.jsonl, and the metrics in them.

The first line says what was run, where and with what; then the run's own record; the last line how it ended.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

from hogwild.errors import UserError
from hogwild.experiments.plan import grid
from hogwild.training import console
from hogwild.training.record_files import AROUND, events_of

RESULTS = Path("results")
CELL, END = AROUND
FIRST = {"experiment": str, "axes": dict, "seed": int, "command": str, "machine": str, "versions": dict, "commit": str,
         "date": str, "skipped": str}
LAST = {"metrics": dict, "exit": (int, type(None)), "error": str, "network": (dict, type(None)),
        "seconds": (int, float, type(None))}


class Cell(NamedTuple):
    """A cell as its file tells. metrics: by name, None where the record has no number for it."""

    experiment: str
    axes: dict[str, Any]
    seed: int
    command: str
    metrics: dict[str, float | None]
    exit: int | None  # None: it has not run
    error: str  # last lines of what it said, where it failed
    skipped: str  # why it was not run, or ""
    network: dict | None  # what the interfaces counted, where the network lab ran it
    events: list[dict]  # of the run's own record
    machine: str
    versions: dict[str, str]
    commit: str
    date: str
    seconds: float | None = None  # from start to end of the process
    path: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether it has a result."""
        return self.exit == 0


def folder(results, name, quick=False) -> Path:
    """Where the cells of an experiment lie."""
    return Path(results) / name / "quick" if quick else Path(results) / name


def load(results, experiment, quick=False) -> list[Cell]:
    """All cells that lie in the folder `results`, by seed and file name; those that are finished, failed, and skipped.

    experiment: its name; or a grid.Experiment, and then only the cells of its grid as it is now, whose commands have not
    been changed since. A file that cannot be read is named in a line on stderr, and left out.
    """
    plain = isinstance(experiment, str)
    name, quick = (experiment, quick) if plain else (experiment.name, experiment.quick)
    found = []
    for path in sorted(folder(results, name, quick).glob("*.jsonl")):
        try:
            found.append(read(path))
        except UserError as error:
            console.note(f"experiments: {error}; it is left out")
    if not plain:
        now = {point.slug for seed in {cell.seed for cell in found} for point in _of(experiment, seed)}
        found = [cell for cell in found if cell.path.stem in now]
    return sorted(found, key=lambda cell: cell.seed)


def _of(experiment, seed):
    return [grid.point(experiment, each.axes, seed) for each in grid.cells(experiment, 1)]


def read(path) -> Cell:
    """One cell's file. Raises UserError where it is none."""
    events = events_of(path)
    first, last = events[0], events[-1] if events[-1].get("event") == END else {}
    if first.get("event") != CELL:
        raise UserError(f"{path}:1: not a cell of an experiment: its first event must be '{CELL}'")
    own = [event for event in events if event.get("event") not in (CELL, END)]
    for event, keys in ((first, FIRST), (last, LAST)):
        for key, kind in keys.items():
            if key in event and not isinstance(event[key], kind):
                raise UserError(f"{path}: not a cell of an experiment: {key} is {str(event[key])[:40]!r}; remove the file, "
                                "run it again")
    try:
        return Cell(first["experiment"], first["axes"], first["seed"], first["command"], last.get("metrics", {}),
                    last.get("exit"), last.get("error", ""), first.get("skipped", ""), last.get("network"), own,
                    first["machine"], first["versions"], first["commit"], first["date"], last.get("seconds"), Path(path))
    except KeyError as error:
        raise UserError(f"{path}:1: not a cell of an experiment: {error} is missing; remove the file, run it again") from None


def extracted(metrics, events, network=None) -> dict[str, float | None]:
    """The numbers of a run: those of `metrics` (name: grid.Metric), the automatic ones and the phases of a step.

    A declared metric that the record lacks is None; an automatic one is left out.
    """
    found = {name: value for name, value in _automatic(events, network).items() if value is not None}
    for name, metric in metrics.items():
        if metric.reach:
            found[name] = _scaled(reached(events, metric.reach), metric.scale)
        elif metric.path:
            found[name] = _scaled(at(_last(events, metric.event), metric.path), metric.scale)
    return found


def reached(events, reach) -> float | None:
    """Seconds or steps of training until the first evaluation whose metric is as good as `reach` says; None: never."""
    for seconds, event in measured(events):
        value = at(event, reach.path)
        taken = seconds if reach.count == "seconds" else at(event, "step")
        if None not in (value, taken) and (value >= reach.at if reach.better == "higher" else value <= reach.at):
            return taken
    return None


def measured(events):
    """Yield (seconds of training until then, event) of each epoch, and of each evaluation within one."""
    before = 0.0
    for event in events:
        seconds = at(event, "seconds")
        if event["event"] == "epoch" and seconds is not None:
            before += seconds
            yield before, event
        elif event["event"] == "evaluation" and seconds is not None:
            yield seconds, event


def final(events) -> dict[str, float]:
    """The metrics at the end of a run, or of its last epoch where it was cut short."""
    return _last(events, "end").get("metrics") or _last(events, "epoch").get("metrics") or {}


def at(event, path) -> float | None:
    """The number at a dotted path of an event; None where there is none."""
    for key in path.split("."):
        event = event.get(key) if isinstance(event, dict) else None
    number = isinstance(event, (int, float)) and not isinstance(event, bool) and math.isfinite(event)
    return event if number else None


def _automatic(events, network):
    end = _last(events, "end")
    total, steps = max((seconds for seconds, _ in measured(events)), default=None), at(end, "steps")
    examples = sum(at(event, "examples") or 0 for event in events if event["event"] == "epoch")
    yours = {"train_seconds": total, "steps": steps, "bytes_per_step": at(end, "bytes_per_step"),
             "examples_per_s": examples / total if examples and total else None}
    if steps:
        yours["step_ms"] = total / steps * 1e3 if total else None
        phases = end.get("phases")
        for name, ranks in phases.items() if isinstance(phases, dict) else ():
            if numbers := _numbers(ranks):
                yours[f"phase_{name}_ms"] = sum(numbers) / len(numbers) / steps * 1e3
        # The lab counts from the first weights on, which in a short run are most of it; a run's own counts are of its steps.
        sent = _numbers(end.get("wire")) or [host["sent_bytes"] for host in (network or {}).get("traffic") or []]
        if sent:
            yours["wire_bytes_per_step"] = sum(sent) / len(sent) / steps
    return yours


def _numbers(given) -> list:
    """The numbers of a list; none where it is another thing."""
    return [x for x in given if at({"x": x}, "x") is not None] if isinstance(given, list) else []


def _last(events, name):
    return next((event for event in reversed(events) if event["event"] == name), {})


def _scaled(value, factor):
    return None if value is None else value * factor
