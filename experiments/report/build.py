"""`python -m hogwild.experiments report`: one page that holds every figure and table, with the commands that made them.

The page needs no network: its figures are SVGs in it. Beside it lie each figure as SVG, PDF and CSV and each table as CSV.
"""

import csv
import datetime
import importlib.util
import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hogwild.cli.arguments import parsed
from hogwild.errors import UserError, reason
from hogwild.experiments.plan import grid
from hogwild.experiments.report import aggregate, claims, drawing, figures
from hogwild.experiments.report.figures import Stat, Table, number
from hogwild.experiments.run import results

PREDICTED = "predicted, not measured."
SINGLE = "a single run, an indication and no fact."
NUMERIC = re.compile(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?%?")
NONE = "", "–", "failed", "skipped"  # what stands among numbers where there is none


@dataclass
class ReportOptions:
    """Write the results of experiments as one HTML page, with figures as SVG and PDF and tables as CSV beside it."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = ()
    """Experiments, by name or as a .toml file; default: all. With --svg: NAME:FIGURE."""
    quick: bool = False
    """The results of `run --quick`. Without it those of the full form, and the quick ones only where there are no others."""
    results: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = results.RESULTS
    """Folder that `run` wrote into."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder of the page, index.html; default: report, in the folder of the results."""
    svg: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Write no page, but the figures NAME:FIGURE as FOLDER/NAME-FIGURE.svg."""


def main(arguments):
    """`experiments report`. Raises UserError."""
    options = parsed("python -m hogwild.experiments report", ReportOptions, arguments)
    demand("matplotlib", "jinja2")
    if options.svg:
        try:
            for path in write_svg(options):
                print(path)
        except OSError as error:
            raise UserError(f"{options.svg}: figures cannot be written: {reason(error, options.svg)}") from None
        return
    out = options.out or options.results / "report"
    folders = [grid.read(name).name for name in options.names]
    if twins := [name for name in folders if folders.count(name) > 1]:
        raise UserError(f"two experiments are called {twins[0]}, whose figures would lie in one folder; rename a file")
    sections = [section(name, options.results, options.quick, out) for name in options.names or _in_order()]
    for each in sections:
        print(each["name"] + ": " + each["counts"])
    if not any(each["cells"] for each in sections):
        raise UserError(f"no results in {options.results}, so no page was written; this makes some: {sections[0]['command']}")
    try:
        print(write_page(sections, out))
    except OSError as error:
        raise UserError(f"{out}: the report cannot be written: {reason(error, out)}; choose another --out") from None


def _in_order() -> list[str]:
    """All experiments: the chapters, then the others by name."""
    return sorted(grid.names(), key=lambda name: (grid.read(name).chapter or math.inf, name))


def page_of(name, folder, quick) -> Path | None:
    """The page of one experiment's results, written beside them; None where matplotlib or jinja2 is not installed."""
    if _absent("matplotlib", "jinja2"):
        return None
    out = results.folder(folder, grid.read(name).name, quick) / "page"
    try:
        return write_page([section(name, folder, quick, out)], out)
    except OSError as error:
        raise UserError(f"{out}: the page cannot be written: {reason(error, out)}; choose another --results") from None


def demand(*modules):
    """Raises UserError where one of the modules that draw is not installed."""
    if absent := _absent(*modules):
        raise UserError(f"report needs {', '.join(absent)}: pip install '.[experiments]'")


def _absent(*modules) -> list[str]:
    return [module for module in modules if importlib.util.find_spec(module) is None]


def gathered(name, folder, quick):
    """(the experiment, its cells in the order of the grid): quick ones too where there are no others."""
    experiment = grid.read(name, quick)
    cells = results.load(folder, experiment)
    if not cells and not quick:
        other = grid.read(name, quick=True)
        if found := results.load(folder, other):
            experiment, cells = other, found
    order = [point.axes for point in grid.cells(experiment, 1)]
    return experiment, sorted(cells, key=lambda cell: (order.index(cell.axes), cell.seed))


def drawn(experiment, cells):
    """(figures with the cells behind them, tables, lines on what failed): those of the file, then those of its model.

    The quick form is too short to predict from, and a model predicts nothing without results.
    """
    names = _unique(experiment.figure, experiment.table)
    shown = [(aggregate.figure(experiment, spec, cells, name), aggregate.chosen(cells, spec.where))
             for spec, name in zip(experiment.figure, names)]
    tables = [aggregate.table(experiment, spec, cells, name)
              for spec, name in zip(experiment.table, names[len(shown):])]
    faults = []
    try:
        model = importlib.import_module(experiment.model) if experiment.model and cells and not experiment.quick else None
        shown += [(one, []) for one in (model.figures(cells) if hasattr(model, "figures") else [])]
        tables += model.tables(cells) if hasattr(model, "tables") else []
    except (UserError, ImportError) as error:
        faults.append(f"{experiment.model}: {error}")
    return shown, tables, faults


def _unique(figures, tables):
    """Names of figures, then of tables, that can be those of files: as declared, else numbered."""
    names = []
    for kind, specs in (("figure", figures), ("table", tables)):
        for k, spec in enumerate(specs, 1):
            name = re.sub(r"[^a-z0-9-]+", "-", spec.name.lower()).strip("-") or f"{kind}-{k}"
            names.append(f"{name}-{kind}-{k}" if name in names else name)
    return names


def section(name, folder, quick, out) -> dict:
    """What the page shows of an experiment; its figures and tables are written into out/NAME."""
    experiment, cells = gathered(name, folder, quick)
    shown, tables, faults = drawn(experiment, cells)
    place, command = Path(out) / experiment.name, run_command(name, experiment, cells)
    ended = Counter("finished" if cell.finished else "skipped" if cell.skipped else "failed" for cell in cells)
    expected = len(grid.cells(experiment, _seeds(experiment, cells)))
    counts = f"{ended['finished']} of {expected} cells finished, {ended['failed']} failed, {ended['skipped']} skipped"
    title = f"{experiment.chapter}. {experiment.title}" if experiment.chapter else experiment.title
    return {"name": experiment.name, "title": title, "question": experiment.question.strip(),
            "quick": experiment.quick, "model": experiment.model, "command": command,
            "counts": counts if cells else "no results yet", "cells": bool(cells), "faults": faults,
            "outdated": _outdated(folder, experiment, cells),
            "figures": [_figure(one, own, place) for one, own in shown if one.panels],
            "tables": [_table(one, place) for one in tables if one.rows],
            "undrawn": [one.title for one, _ in shown if not one.panels] + [one.title for one in tables if not one.rows],
            "failed": grouped(experiment, cells, lambda cell: not cell.finished and not cell.skipped, _fault),
            "skipped": grouped(experiment, cells, lambda cell: cell.skipped, lambda cell: cell.skipped),
            "claims": [claims.verdict(experiment, claim, cells) for claim in experiment.claim],
            "runs": _table(_runs(experiment, cells), place) if cells else None, "provenance": _provenance(cells),
            "references": [{"text": one.text, "url": one.url, "claim": one.claim, "figure": one.figure if cells else "",
                            "measured": aggregate.measured(experiment, one, cells)} for one in experiment.reference]}


def _outdated(folder, experiment, cells) -> int:
    """Number of stored cells that the experiment no longer has."""
    return len(list(results.folder(folder, experiment.name, experiment.quick).glob("*.jsonl"))) - len(cells)


def run_command(name, experiment, cells) -> str:
    """The commands that make these results and this page."""
    seeds = _seeds(experiment, cells)
    options = " --quick" * experiment.quick + (f" --seeds {seeds}" if seeds else "")
    return (f"python -m hogwild.experiments run {name}{options}; "
            f"python -m hogwild.experiments report {name}{' --quick' * experiment.quick}")


def _seeds(experiment, cells) -> int | None:
    """--seeds, where it was more than the file says."""
    most = max((cell.seed + 1 for cell in cells), default=0)
    return most if most > max(point.seed + 1 for point in grid.cells(experiment)) else None


def _fault(cell):
    """Why a cell failed: its exit code and the last line of its output, in most cases the exception."""
    last = cell.error.strip().splitlines()[-1:]
    return f"exit {cell.exit}: {last[0]}" if last else f"exit {cell.exit}" if cell.exit is not None else "was interrupted"


def grouped(experiment, cells, which, reason) -> list[dict]:
    """Cells with the same reason together: how many, which with what seeds, and the first one's command and error."""
    found = {}
    for cell in filter(which, cells):
        alike = found.setdefault(reason(cell), {})
        alike.setdefault(aggregate.described(experiment, cell.axes), []).append(cell)
    firsts = [next(iter(alike.values()))[0] for alike in found.values()]
    return [{"reason": why, "count": sum(map(len, alike.values())), "error": first.error.strip(), "command": first.command,
             "cells": [f"{axes}; seed {', '.join(str(cell.seed) for cell in own)}" for axes, own in alike.items()]}
            for first, (why, alike) in zip(firsts, found.items())]


def _runs(experiment, cells) -> Table:
    """Every cell with its command."""
    axes = list(experiment.axes)
    rows = [[*(experiment.value(axis, cell.axes[axis]).label if axis in cell.axes else "" for axis in axes), cell.seed,
             "finished" if cell.finished else "skipped" if cell.skipped else "failed", cell.seconds, cell.date, cell.command]
            for cell in cells]
    return Table("runs", "All runs", [*map(experiment.label, axes), "seed", "state", "took (s)", "date", "command"], rows)


def _provenance(cells) -> list[tuple[str, str]]:
    """Machine, versions, commit and dates of the finished cells."""
    done = [cell for cell in cells if cell.finished]
    def each(texts):
        counted = Counter(texts)
        return "; ".join(f"{text} ({n} cells)" if len(counted) > 1 else text for text, n in counted.items())
    if not done:
        return []
    dates = sorted(cell.date for cell in done)
    versions = [", ".join(f"{name} {version}" for name, version in cell.versions.items()) for cell in done]
    # the machine's text ends with the day, which has its own line
    return [("machine", each(re.sub(r"; \d{4}-\d\d-\d\d$", "", cell.machine) for cell in done)), ("versions", each(versions)),
            ("commit", each(cell.commit for cell in done)), ("dates", " to ".join(dict.fromkeys((dates[0], dates[-1]))))]


def _figure(figure, cells, place) -> dict:
    drawing.save(figure, place)
    write_csv(figures.points_table(figure), place)
    panels, legend = drawing.inline(figure, f"{place.name}/{figure.name}")
    points = [p for panel in figure.panels for series in panel.series for p in series.points]
    runs = {p.runs for p in points}
    several = ", ".join(map(str, sorted(runs - {0, 1})))
    many = any(figures.crowded(figure, series) for panel in figure.panels for series in panel.series)
    whiskers = "" if figure.stacked else f"; {'bands' if many else 'whiskers'}: first to third quartile"
    notes = [f"Medians of {several} runs (seeds){whiskers}." if several else "",
             f"Hollow: {SINGLE}" if 1 in runs else "",
             f"{'Dashed' if figure.kind == 'line' else 'So named'}: {PREDICTED}" if 0 in runs else "",
             "Zeros, which a logarithmic axis does not have, are left out." if "y" in figure.log and any(
                 p.y <= 0 for p in points) else ""]
    first = {tuple(cell.axes.items()): cell.command for cell in sorted(cells, key=lambda cell: -cell.seed)}
    return {"name": figure.name, "title": figure.title, "text": figure.text.strip(), "notes": list(filter(None, notes)),
            "legend": legend, "panels": list(zip([panel.title for panel in figure.panels], panels)),
            "commands": list(dict.fromkeys(first.values())),
            "files": [(form, f"{place.name}/{figure.name}.{form}") for form in ("svg", "pdf", "csv")]}


def _table(table, place) -> dict:
    """A table for the page: of each field its text, its sort key and its note; columns without a value are left out."""
    write_csv(table, place)
    stats = [value for row in table.rows for value in row if isinstance(value, Stat)]
    single = bool(stats) and {value.runs for value in stats} == {1}  # then a line below says so for all
    rows = [[_field(value, single) for value in row] for row in table.rows]
    columns = [(k, name) for k, name in enumerate(table.columns) if any(row[k]["text"] not in ("", "–") for row in rows)]
    texts = {k: [row[k]["text"] for row in rows if row[k]["text"] not in NONE] for k, _ in columns}
    return {"name": table.name, "title": table.title, "text": table.text.strip(), "single": single,
            "columns": [{"text": name, "numeric": bool(texts[k]) and all(map(NUMERIC.fullmatch, texts[k]))}
                        for k, name in columns],
            "rows": [[row[k] for k, _ in columns] for row in rows], "file": f"{place.name}/{table.name}.csv"}


def _field(value, single) -> dict:
    if not isinstance(value, Stat):
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        text = "–" if value is None else number(value) if numeric else str(value)
        key = "" if value is None else value if numeric else re.sub("[%,]", "", text) if NUMERIC.fullmatch(text) else text
        return {"text": text, "sort": key, "beside": "", "single": False,
                "kind": "short" if len(text) < 30 else "long" if len(text) > 60 else ""}
    runs = f"{value.runs} of {value.of}" if value.of > value.runs else str(value.runs)
    quartiles = "in all" if value.low == value.high else f"[{number(value.low)}, {number(value.high)}]"
    one = "" if single and value.of <= 1 else f"{runs} run"
    beside = {0: "predicted", 1: one}.get(value.runs, f"{quartiles} {runs} runs")
    return {"text": number(value.median), "sort": value.median, "beside": beside, "kind": "short", "single": value.runs == 1}


def write_csv(table, place):
    """Write place/NAME.csv; a statistic has four columns."""
    wide = [any(isinstance(row[k], Stat) for row in table.rows) for k in range(len(table.columns))]
    heads = [[f"{head}: median", f"{head}: first quartile", f"{head}: third quartile", f"{head}: runs"] if wide[k] else [head]
             for k, head in enumerate(table.columns)]
    place.mkdir(parents=True, exist_ok=True)
    with open(place / f"{table.name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(sum(heads, []))
        for row in table.rows:
            writer.writerow(sum((list(value[:4]) if isinstance(value, Stat) else [value] + [None] * 3 * wide[k]
                                 for k, value in enumerate(row)), []))


def write_page(sections, out) -> Path:
    """Write out/index.html, whole or not at all."""
    import jinja2
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template("page.html.j2").render(
        sections=sections, made=datetime.date.today().isoformat())
    path = Path(out) / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return path


def write_svg(options) -> list[Path]:
    """The figures NAME:FIGURE as small SVGs for a README."""
    if not options.names:
        raise UserError("--svg needs figures, such as rank-scaling:bytes")
    paths = []
    for wanted in options.names:
        name, _, figure = wanted.partition(":")
        experiment, cells = gathered(name, options.results, options.quick)
        known = {one.name: one for one, _ in drawn(experiment, cells)[0]}
        if figure not in known:
            raise UserError(f"--svg: no figure '{figure}' in {name}: name one as {name}:FIGURE, of {', '.join(known)}")
        if not known[figure].panels:
            raise UserError(f"--svg: {wanted} has no results in {options.results}: {run_command(name, experiment, [])}")
        paths += drawing.save(known[figure]._replace(name=f"{experiment.name}-{figure}"), options.svg, ["svg"])
    return paths
