"""An experiment as data: experiments/declared/NAME.toml, read and checked, and the cells of its grid.

A cell is one run: a value for each axis, a seed, and the command that follows from them. Every mistake in a file is a
UserError that names the file and the key.
"""

import hashlib
import itertools
import math
import re
import shlex
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hogwild.errors import UserError, reason
from hogwild.experiments.plan import commands
from hogwild.experiments.plan.checks import PHASE, check, check_values
from hogwild.experiments.plan.schema import build, table

FOLDER = Path(__file__).parents[1] / "declared"
SHOWN_DATA = "$HOGWILD_DATA"  # as a person types it
OURS = "the package"  # source of the experiments that come with it
MOST_CELLS = 20_000
SPACE = re.compile(r"[^\w.+]+")


@dataclass(frozen=True)
class Reach:
    """How long until a metric is good enough."""

    path: str  # of the metric in an event epoch or evaluation
    at: float
    better: Literal["higher", "lower"] = "higher"
    count: Literal["seconds", "steps"] = "seconds"


@dataclass(frozen=True)
class Metric:
    """A number of a cell, read from its record."""

    label: str = ""
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    event: Literal["start", "evaluation", "epoch", "end"] = "end"  # the last one of this name
    path: str = ""  # dotted
    scale: float = 1.0
    reach: Reach | None = None  # in place of path: training until the first evaluation that reaches it


AUTOMATIC = {  # where the record allows; besides these phase_NAME_ms, the mean over the ranks of a step
    "step_ms": Metric("time of a step", "ms", "lower"),
    "steps": Metric("steps"),
    "train_seconds": Metric("training time", "s", "lower"),
    "examples_per_s": Metric("examples a second", "1/s", "higher"),
    "bytes_per_step": Metric("bytes a step and rank", "B", "lower"),
    "wire_bytes_per_step": Metric("bytes a step and host, as the interface counted", "B", "lower"),
}


@dataclass(frozen=True)
class Value:
    """A value of an axis: its text in the command, its label, its needs; of the axis `link`, what the link is like."""

    text: str  # what goes into the command; may hold {AXIS}
    label: str  # for people
    needs: list[str] = field(default_factory=list)
    rate: str = ""  # of each link and direction, such as 100mbit; "": as fast as this machine is
    delay: str = ""  # of each link, such as 10ms
    per_host: int = 1  # ranks on a host

    @property
    def link(self) -> dict:
        """What the network lab is told of a link."""
        told = {"rate": self.rate, "delay": self.delay, "per_host": self.per_host}
        return {key: value for key, value in told.items() if value not in ("", 1)}


@dataclass(frozen=True)
class Formula:
    """A curve over a figure's x axis, drawn beside the measured points: arithmetic of the names of axes and metrics."""

    label: str
    y: str  # such as 8 * parameters * (ranks - 1) / ranks
    where: dict[str, Any] = field(default_factory=dict)  # the cells whose metrics it uses (their medians)
    series: str = ""  # the value of the figure's first series axis whose colour it has


@dataclass(frozen=True)
class Figure:
    """One figure, a panel for each value of `facet`.

    x, y: names of axes or metrics; several y: a stacked bar. Of a curve: dotted paths in the events of epochs.
    """

    x: str
    y: str | list[str]
    kind: Literal["line", "bar", "scatter", "curve"] = "line"
    name: str = ""
    title: str = ""
    text: str = ""  # explanation for the reader
    series: str | list[str] = field(default_factory=list)
    facet: str | list[str] = field(default_factory=list)
    where: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    x_label: str = ""
    y_label: str = ""
    formula: list[Formula] = field(default_factory=list)
    contour: str = ""  # of a curve: arithmetic of x and y, whose level lines are drawn behind the paths


@dataclass(frozen=True)
class Table:
    """One table: a row for each combination of the axes `rows`, with the metrics `columns`."""

    rows: list[str]
    columns: list[str]
    name: str = ""
    title: str = ""
    text: str = ""
    where: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)  # cells that differ in these axes only: ratios are to them


@dataclass(frozen=True)
class Reference:
    """A published result on the question, and the measurement to compare with it."""

    text: str
    url: str = ""
    claim: str = ""
    metric: str = ""  # measured here, on the cells of `where`
    where: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)  # as of a table: the ratio to it
    figure: str = ""  # name of the figure that shows it


@dataclass(frozen=True)
class Claim:
    """A sentence of the literature as a condition on the results; report/claims.py computes whether it holds.

    The number is the metric's mean over the seeds; with a baseline, the ratio to it; with `over`, the exponent p of
    metric ~ over^p. Where further axes vary, each of their values must fulfil it.
    """

    text: str
    metric: str  # with `over`, also a dotted path in the evaluations of a run
    where: dict[str, Any] = field(default_factory=dict)
    baseline: dict[str, Any] = field(default_factory=dict)  # as of a table
    over: str = ""  # axis or metric; where `metric` is a path, another
    since: float = 0.0  # points from here on, of `over`
    at_least: float = -math.inf
    at_most: float = math.inf
    figure: str = ""  # name of the figure that shows it


@dataclass(frozen=True)
class Experiment:
    """A file, checked. metrics: those of the file and AUTOMATIC."""

    name: str
    source: str  # path of the file, or OURS
    quick: bool
    title: str
    command: str
    grid: list[dict]  # axis: its values
    question: str = ""
    chapter: int = 0  # place in the report; those without one come last, by name
    model: str = ""  # a module of experiments/ with figures(cells) and tables(cells) of its own
    seeds: int = 3
    block_seeds: list[int] = field(default_factory=list)  # of each block of the grid, which may have `seeds` of its own
    timeout: float = 600.0
    needs: list[str] = field(default_factory=list)
    values: dict[str, dict[str, Value]] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)
    figure: list[Figure] = field(default_factory=list)
    table: list[Table] = field(default_factory=list)
    reference: list[Reference] = field(default_factory=list)
    claim: list[Claim] = field(default_factory=list)

    @property
    def axes(self) -> dict[str, list]:
        """Every axis with its values, in the order of the file."""
        return _axes(self.grid)

    def value(self, axis, value) -> Value:
        """The Value that declares `value` of `axis`; by default the value itself."""
        return self.values.get(axis, {}).get(str(value)) or Value(str(value), str(value))

    def metric(self, name) -> Metric:
        """The metric `name`, with a label."""
        if PHASE.fullmatch(name):
            return Metric(name.removeprefix("phase_").removesuffix("_ms"), "ms", "lower")
        return self.metrics[name]

    def label(self, name) -> str:
        """The metric or axis `name` for people, with its unit."""
        if name in self.metrics or PHASE.fullmatch(name):
            metric = self.metric(name)
            return f"{metric.label or name} ({metric.unit})" if metric.unit else metric.label or name
        return name.replace("_", " ")


class Point(NamedTuple):
    """A cell that is to be run."""

    axes: dict[str, Any]
    seed: int
    shown: str  # the command as a person types it
    words: tuple[str, ...]  # of the program alone, without mpiexec; {record} and {data} are still to be filled in
    needs: tuple[str, ...]
    link: dict | None  # rate, delay and per_host where they are given, where the network lab runs it
    slug: str  # name of its file


def names() -> list[str]:
    """The experiments that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name_or_path, quick=False) -> Experiment:
    """The experiment of a name, or of a path that ends in .toml. Raises UserError for what cannot be used."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = FOLDER / f"{name_or_path}.toml"
        if str(name_or_path) not in names():
            raise UserError(f"no experiment '{name_or_path}': choose from {', '.join(names())}, or name a .toml file")
    try:
        given = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot read the experiment: {reason(error, path)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    overlay = table(f"{path}: quick", given.pop("quick", {}))
    if "quick" in overlay:
        raise UserError(f"{path}, quick: has a table quick in it")
    full, short = _experiment(path, str(path), given), _experiment(path, f"{path}, quick", _merged(given, overlay), True)
    for at, each in ((str(path), full), (f"{path}, quick", short)):
        check(at, each, _axes(full.grid + short.grid), AUTOMATIC)  # one form may show what is in the other's grid only
    return short if quick else full


def cells(experiment, seeds=None) -> list[Point]:
    """All cells of the grid, without doubles; seeds outermost, so that a grid that was stopped has whole seeds."""
    planned = []  # (axes, number of seeds)
    for block, number in zip(experiment.grid, experiment.block_seeds):
        for values in itertools.product(*block.values()):
            axes = dict(zip(block, values))
            if axes not in (known for known, _ in planned):
                planned.append((axes, seeds or number))
    most = max(number for _, number in planned)
    if most * len(planned) > MOST_CELLS:
        raise UserError(f"{experiment.name}: {len(planned):,} cells with {most:,} seeds are more than {MOST_CELLS:,} runs")
    return [point(experiment, axes, seed) for seed in range(most) for axes, number in planned if seed < number]


def point(experiment, axes, seed) -> Point:
    """The cell of these axes and this seed."""
    words = tuple(shlex.split(commands.text(experiment, axes, seed)))
    values = [experiment.value(axis, value) for axis, value in axes.items()]
    needs = [*experiment.needs, *(need for value in values for need in value.needs)]
    link, ranks = None, axes.get("ranks", 1)
    if "link" in axes:
        link = experiment.value("link", axes["link"]).link
        needs.append("root-network")
    typed = commands.filled(words, "run.jsonl", "@DATA@")
    if link is not None:
        options = [word for key, value in link.items() for word in ("--" + key.replace("_", "-"), str(value))]
        hosts = -(-ranks // link.get("per_host", 1))
        typed = ["python", "-m", "hogwild.experiments", "network", "--hosts", str(hosts), *options, "--", *typed]
    elif "ranks" in axes:
        needs.append("mpi")
        typed = ["mpiexec", "-n", str(ranks), *typed]
    shown = shlex.join(typed).replace("@DATA@", SHOWN_DATA)  # unquoted, so that a shell puts the folder there
    slug = SPACE.sub("-", "_".join(str(value) for value in axes.values()))[:80]
    return Point(axes, seed, shown, words, tuple(dict.fromkeys(needs)), link,
                 f"{slug}_s{seed}_{hashlib.sha256(shown.encode()).hexdigest()[:8]}")


def _axes(blocks):
    found = {}
    for block in blocks:
        for axis, values in block.items():
            known = found.setdefault(axis, [])
            known.extend(value for value in values if value not in known)
    return found


def _merged(below, above):
    """Tables merged deeply; anything else of `above` replaces."""
    both = {key: _merged(below[key], value) if isinstance(below.get(key), dict) and isinstance(value, dict) else value
            for key, value in above.items()}
    return {**below, **both}


def _experiment(path, at, given, quick=False):
    """The Experiment of what the file at `path` says, or of its quick form. at: which one, for messages."""
    metrics = _each(at, given, "metrics", lambda at, one: build(Metric, at, one))
    values = _each(at, given, "values", lambda at, one: {
        value: _value(f"{at}.{value}", value, more) for value, more in table(at, one).items()})
    own = {"name": path.stem, "source": OURS if path.parent == FOLDER else str(path.resolve()), "block_seeds": []}
    experiment = build(Experiment, at, {**given, "quick": quick, "metrics": {**AUTOMATIC, **metrics}, "values": values}, own)
    if not experiment.grid:
        raise UserError(f"{at}: grid: there is none; declare [[grid]] with a list of values for each axis")
    blocks = [{axis: values for axis, values in block.items() if axis != "seeds"} for block in experiment.grid]
    own = [block.get("seeds", experiment.seeds) for block in experiment.grid]
    for k, (block, seeds) in enumerate(zip(blocks, own), 1):
        if type(seeds) is not int or seeds < 1:
            raise UserError(f"{at}: grid[{k}]: seeds must be a whole number from 1 on, got {seeds!r}")
        check_values(f"{at}: grid[{k}]", block, [each.name for each in fields(Experiment)])
        if (number := math.prod(map(len, block.values()))) > MOST_CELLS:
            raise UserError(f"{at}: grid[{k}]: {number:,} cells are more than {MOST_CELLS:,}")
    return replace(experiment, grid=blocks, block_seeds=own)


def _value(at, value, given):
    for key, inner in table(at, given).items():
        if isinstance(inner, dict):  # TOML takes the dot for the start of a table within
            raise UserError(f"{at}: has a table '{key}' in it; a value with a dot is written in quotes: \"{value}.{key}\"")
    return build(Value, at, {"text": value, "label": value, **given})


def _each(at, given, key, build):
    return {name: build(f"{at}: {key}.{name}", one) for name, one in table(f"{at}: {key}", given.get(key, {})).items()}
