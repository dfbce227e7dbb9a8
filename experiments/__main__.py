"""`python -m hogwild.experiments`: declared experiments, network lab, report. Mistakes give one line and exit code 2."""

import importlib
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hogwild.cli import pages
from hogwild.cli.arguments import meant, parsed
from hogwild.errors import Terminated, UserError
from hogwild.training import console

COMMANDS = {
    "fetch NAME …": "download the data sets of experiments and benchmarks; without a name: list them",
    "list": "the experiments, their cells, what is finished, what would be skipped and why",
    "run NAME … [--quick]": "run what is not finished, and keep it under results/",
    "report [NAME …]": "one HTML page of figures and tables from what is there",
    "compare A.jsonl B.jsonl …": "records of your own runs, side by side",
    "network --hosts N … -- COMMAND": "run a command on emulated links, and count the bytes of each host",
    "advise --model-size N …": "which exchange, drop rate and code to use, as predicted",
}
FOLDER = arg(metavar="FOLDER")
PROGRAM = "python -m hogwild.experiments"
MODULES = {"fetch": "plan.fetch", "report": "report.build", "compare": "report.compare", "network": "lab.network",
           "advise": "cost.advise"}  # with main(arguments)


def overview() -> str:
    """What --help prints."""
    return pages.overview(f"{PROGRAM} COMMAND …", "What a way to communicate costs and saves, measured and predicted.",
                          COMMANDS, f"{PROGRAM} COMMAND --help lists the options.")


def help_pages(columns=80) -> dict[str, str]:
    """The whole --help of the command and of each sub-command, by how it is called."""
    commands = [[], *([call.split()[0]] for call in COMMANDS)]
    return {" ".join([PROGRAM, *words]): pages.printed(main, words, columns) for words in commands}


@dataclass
class List:
    """The experiments: their cells, how many are finished, and what would be skipped here and why."""

    quick: bool = False
    """The short forms."""
    results: Annotated[Path, FOLDER] = Path("results")
    """Folder of the results."""


@dataclass
class RunOptions:
    """Run experiments. Finished cells are kept; what failed, or was cut short, is run again.

    Examples:
      python -m hogwild.experiments run gradient-dropping --quick
      python -m hogwild.experiments run communication-cost rank-scaling --seeds 5
    """

    names: Annotated[Positional[list[str]], arg(metavar="NAME")] = field(default_factory=list)
    """Names as `list` shows them, or .toml files of your own."""
    quick: bool = False
    """The short form, in under two minutes."""
    seeds: int | None = None
    """Run with so many seeds, instead of as many as the file says."""
    force: bool = False
    """Run finished cells again too."""
    quiet: bool = False
    """Print nothing but what failed or was skipped altogether, on standard error."""
    results: Annotated[Path, FOLDER] = Path("results")
    """Folder of the results."""


def run(arguments) -> int:
    """`experiments run`; the exit code."""
    from hogwild.experiments.plan import grid
    from hogwild.experiments.run.cells import run
    options = parsed(f"{PROGRAM} run", RunOptions, arguments)
    if not options.names:
        raise UserError(f"run needs the name of an experiment: {', '.join(grid.names())}")
    if options.seeds is not None and options.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {options.seeds}")
    failed, shown = 0, open(os.devnull, "w") if options.quiet else None
    for experiment in [grid.read(name, options.quick) for name in options.names]:
        ended = run(experiment, options.results, options.seeds, options.force, shown)
        for slug, why in ended.failed.items():
            console.note(f"experiments: {experiment.name}/{slug} failed: {why}")
        if ended.nothing:
            console.note(f"experiments: {experiment.name}: {ended.nothing}")
        failed += len(ended.failed) + bool(ended.nothing)
        if not (ended.failed or ended.nothing or options.quiet):
            present(experiment, options)
    return 1 if failed else 0


def present(experiment, options):
    """Print what the results say of the experiment's claims; write its page and print where that is."""
    from hogwild.experiments.plan import grid
    from hogwild.experiments.report import build, claims
    name = experiment.name if experiment.source == grid.OURS else experiment.source
    cells = build.gathered(name, options.results, options.quick)[1]
    for claim in experiment.claim:
        judged = claims.verdict(experiment, claim, cells)
        console.out(f"claim: {judged.text}\n    {judged.sentence}")
    page = build.page_of(name, options.results, options.quick)
    console.out(f"page: {page}" if page else "page: none, as it needs matplotlib and jinja2: pip install '.[experiments]'")


def show(arguments) -> int:
    """`experiments list`."""
    from collections import Counter

    from hogwild.experiments.plan import grid
    from hogwild.experiments.run import results
    from hogwild.experiments.run.cells import missing
    options = parsed(f"{PROGRAM} list", List, arguments)
    for name in grid.names():
        experiment = grid.read(name, options.quick)
        finished = [cell for cell in results.load(options.results, experiment) if cell.finished]
        points = grid.cells(experiment)
        done = {cell.path.stem for cell in finished} & {point.slug for point in points}
        console.out(f"{name}: {len(points)} cells, {len(done)} finished. {experiment.title}")
        for reason, count in Counter(filter(None, map(missing, points))).items():
            console.out(f"    {count} skipped: {reason}")
    return 0


def main(arguments=None) -> int:
    """What the command does; its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments[0] if arguments else ""
    try:
        with console.output():
            if command in ("", "-h", "--help"):
                print(overview())
                return 0 if command else 2
            if command == "--version":
                print(pages.versions())
                return 0
            if command in ("run", "list"):
                return {"run": run, "list": show}[command](arguments[1:])
            if command in MODULES:
                return importlib.import_module(f"hogwild.experiments.{MODULES[command]}").main(arguments[1:]) or 0
        known = [call.split()[0] for call in COMMANDS]
        raise UserError(f"unknown command '{command}': use {', '.join(known)}{meant(command, known)} ({PROGRAM} --help)")
    except UserError as error:
        console.note("experiments: " + " ".join(str(error).split("\n")))
        return 2
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        return 1
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, Terminated)
        more = "; run goes on where it stopped" if command == "run" else ""
        console.note(f"experiments: {'terminated' if terminated else 'interrupted'}{more}")
        return 143 if terminated else 130


def _terminate(number, frame):
    raise Terminated


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(main())
