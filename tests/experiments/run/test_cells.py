"""Running a grid: every cell a process of its own, what it leaves, going on after failures, interruption and kill -9."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hogwild.errors import UserError
from hogwild.experiments.__main__ import main
from hogwild.experiments.lab import network
from hogwild.experiments.plan import grid
from hogwild.experiments.report import build
from hogwild.experiments.run import cells as runner
from hogwild.experiments.run import process, progress, results

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import json, os, subprocess, sys, time
what, seed, record = sys.argv[1:]
here = os.path.dirname(os.path.abspath(__file__))
open(os.path.join(here, "calls"), "a").write(f"{what} {seed}\\n")
if what == "bad" and not os.path.exists(os.path.join(here, "mended")):
    print("first line", file=sys.stderr)
    sys.exit("sparsecomm: it is bad")
if what == "silent":
    sys.exit()
def say(**event):
    open(record, "a").write(json.dumps(event) + "\\n")
say(event="start", what=what)
if what in ("slow", "stubborn"):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", code if what == "stubborn" else "import time; time.sleep(600)"],
                             start_new_session=True)  # as the ranks of mpiexec do
    open(os.path.join(here, "pids"), "a").write(f"{os.getpid()} {other.pid} ")
    if not os.path.exists(os.path.join(here, "mended")):
        time.sleep(600)
    other.kill()
say(event="epoch", seconds=0.5, examples=10, metrics={"accuracy": 0.25})
say(event="end", steps=5, metrics={"accuracy": 0.25})
"""
FILE = """
title = "a trial"
command = "python {program} {{what}} {{seed}} {{record}}"
seeds = {seeds}
timeout = {timeout}
[[grid]]
what = {what}
[values.what.lacking]
needs = ["module:nothing_of_this_name", "data:mnist"]
[values.what.unwanted]
[metrics.accuracy]
path = "metrics.accuracy"
"""


@pytest.fixture
def trial(tmp_path):
    """A function (what, seeds, timeout) -> path of an experiment whose cells do what their names say."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def make(what, seeds=1, timeout=60):
        path = tmp_path / "trial.toml"
        text = FILE.format(program=tmp_path / "program.py", what=json.dumps(what), seeds=seeds, timeout=timeout)
        text = "\n".join(part for part in re.split(r"\n(?=\[)", text)
                         if not part.startswith("[values") or any(f"what.{each}]" in part for each in what))
        path.write_text(text)
        return path
    return make


def ran(path, tmp_path, **options):
    """(failed, what was shown, cells by what they do and seed) of a run in this process."""
    shown, experiment = io.StringIO(), grid.read(path)
    failed = runner.run(experiment, tmp_path / "results", file=shown, **options).failed
    cells = {(cell.axes["what"], cell.seed): cell for cell in results.load(tmp_path / "results", experiment)}
    return failed, shown.getvalue(), cells


def calls(tmp_path):
    return (tmp_path / "calls").read_text().splitlines()


def gone(tmp_path):
    """Wait until none of the processes that the program wrote down lives."""
    pids, until = [int(pid) for pid in (tmp_path / "pids").read_text().split()], time.monotonic() + 10
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < until, left
        time.sleep(0.02)
    return len(pids)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# Python installs no handler where SIGINT is ignored, as in the background jobs of a shell.
COMMAND = "-c", ("import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
                 "runpy.run_module('experiments', run_name='__main__')")


def started(path, tmp_path, *options):
    """The command, as a process of its own, once the slow cell is at work."""
    child = subprocess.Popen([sys.executable, *COMMAND, "run", path, "--results", tmp_path / "results", *options],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    until = time.monotonic() + 60
    while not (tmp_path / "pids").exists() or (tmp_path / "pids").read_text().count(" ") < 2:
        assert time.monotonic() < until and child.poll() is None, child.communicate()
        time.sleep(0.02)
    return child


def test_a_cell_leaves_its_record_with_what_was_run_and_how_it_ended(trial, tmp_path):
    failed, _, cells = ran(trial(["good"]), tmp_path)
    cell = cells["good", 0]
    lines = [json.loads(line) for line in cell.path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["cell", "start", "epoch", "end", "cell_end"] and not failed
    assert cell.finished and cell.metrics == {"accuracy": 0.25, "steps": 5, "train_seconds": 0.5, "examples_per_s": 20.0,
                                              "step_ms": 100.0}
    assert cell.command == f"python {tmp_path}/program.py good 0 run.jsonl" and cell.experiment == "trial"
    assert cell.versions["python"].startswith("3.") and "cores" in cell.machine and re.match(r"\d{4}-\d\d-\d\dT", cell.date)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert cell.commit == "unknown" or head.startswith(cell.commit.removesuffix("+dirty"))
    assert sorted(path.name for path in cell.path.parent.iterdir()) == [".from", ".lock", cell.path.name]


def test_a_finished_cell_is_not_run_again_unless_forced_and_new_seeds_are(trial, tmp_path):
    path = trial(["good", "fine"])
    ran(path, tmp_path)
    assert calls(tmp_path) == ["good 0", "fine 0"]
    ran(path, tmp_path, seeds=2)
    assert calls(tmp_path)[2:] == ["good 1", "fine 1"]
    ran(path, tmp_path, seeds=2)
    assert len(calls(tmp_path)) == 4
    ran(path, tmp_path, force=True)
    assert calls(tmp_path)[4:] == ["good 0", "fine 0"]
    damaged = ran(path, tmp_path)[2]["fine", 0].path
    damaged.write_text(damaged.read_text()[:100])
    ran(path, tmp_path)
    assert calls(tmp_path)[6:] == ["fine 0"]


def test_a_failed_cell_is_reported_and_the_rest_goes_on(trial, tmp_path, capsys):
    path = trial(["bad", "silent", "good"])
    assert main(["run", str(path), "--results", str(tmp_path / "results")]) == 1
    out, err = capsys.readouterr()
    told = err.strip().splitlines()
    assert [re.sub(r"_[0-9a-f]{8}", "", line) for line in told] == [
        "experiments: trial/bad_s0 failed: sparsecomm: it is bad",
        "experiments: trial/silent_s0 failed: it ended well, but left no record"]
    assert "3/3 cells, 2 failed" in out and "good, seed 0: done" in out
    _, _, cells = ran(path, tmp_path)  # the failed ones again, the finished one not
    assert calls(tmp_path) == ["bad 0", "silent 0", "good 0", "bad 0", "silent 0"]
    assert cells["bad", 0].exit == 1 and "first line\nsparsecomm: it is bad" == cells["bad", 0].error
    (tmp_path / "mended").touch()
    assert "bad" not in "".join(ran(path, tmp_path)[0]) and results.load(tmp_path / "results", "trial")[0].finished


def test_quiet_says_what_failed_alone(trial, tmp_path, capsys):
    assert main(["run", str(trial(["bad", "good"])), "--quiet", "--results", str(tmp_path / "results")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and re.sub(r"_[0-9a-f]{8}", "", err) == "experiments: trial/bad_s0 failed: sparsecomm: it is bad\n"


def test_a_timeout_ends_every_process_of_the_cell(trial, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.3)
    failed, _, cells = ran(trial(["slow", "stubborn", "good"], timeout=2), tmp_path)
    assert gone(tmp_path) == 4 and len(failed) == 2
    assert cells["slow", 0].exit == 124 and "stopped at its timeout of 2 s" in cells["slow", 0].error
    assert [event["event"] for event in cells["slow", 0].events] == ["start"] and cells["good", 0].finished


def test_what_is_missing_is_the_reason_to_skip(trial, tmp_path, capsys):
    path = trial(["lacking", "good"])
    failed, shown, cells = ran(path, tmp_path)
    assert calls(tmp_path) == ["good 0"] and not failed and cells["lacking", 0].exit is None
    assert cells["lacking", 0].skipped == ("nothing_of_this_name is not installed: "
                                           "pip install '.[experiments]'")
    assert "1 skipped" in shown and "nothing_of_this_name" in shown
    assert runner._lacks("module:json") is runner._lacks("cores:1") is None and "4096 cores" in runner._lacks("cores:4096")


def test_a_missing_data_set_is_named_with_what_gets_it_and_a_run_of_nothing_fails(trial, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOGWILD_DATA", str(tmp_path / "sets"))
    path, needed = trial(["good"]), ["data:mnist", "data:mine/a.txt"]
    runner._lacks.cache_clear()
    for k, need in enumerate(needed):
        whole = path.read_text()
        path.write_text(whole.replace("seeds = 1", f"seeds = 1\nneeds = ['{need}']"))
        assert main(["run", str(path), "--results", str(tmp_path / f"results{k}")]) == 1
        path.write_text(whole)
    first, second = capsys.readouterr().err.splitlines()
    assert first == ("experiments: trial: all 1 cells were skipped: no data set mnist: "
                     "python -m hogwild.experiments fetch mnist")
    assert f"no data set mine/a.txt: put it into {tmp_path / 'sets'}, or set HOGWILD_DATA" in second
    (tmp_path / "sets" / "mine").mkdir(parents=True)
    (tmp_path / "sets" / "mine" / "a.txt").touch()
    runner._lacks.cache_clear()
    assert runner._lacks(needed[1]) is None and runner._lacks(needed[0]) is not None
    runner._lacks.cache_clear()


def test_a_program_that_is_not_there_is_named_with_the_file_before_anything_runs(trial, tmp_path):
    path = trial(["good", "fine"])
    path.write_text(path.read_text().replace('command = "python', 'command = "no-such-program'))
    with pytest.raises(UserError, match=f"{path}: command: no command 'no-such-program'"):
        ran(path, tmp_path)
    assert not list((tmp_path / "results").rglob("*.jsonl"))


def test_a_cell_reads_the_folder_of_data_sets_and_shows_its_variable(trial, tmp_path, monkeypatch):
    monkeypatch.setenv("HOGWILD_DATA", str(tmp_path / "a b"))
    path = trial(["good"])
    path.write_text(path.read_text().replace("{{seed}}", "{seed}").replace("{seed} {record}", "{data}/x {record}"))
    _, _, cells = ran(path, tmp_path)
    assert calls(tmp_path) == [f"good {tmp_path}/a b/x"]
    assert cells["good", 0].command.endswith("good $HOGWILD_DATA/x run.jsonl")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_grid_goes_on_where_it_stopped(trial, tmp_path, number, code):
    path = trial(["good", "slow"])
    child = started(path, tmp_path)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == code and gone(tmp_path) == 2
    assert err.count("\n") == 1 and "run goes on where it stopped" in err
    assert [cell.axes["what"] for cell in results.load(tmp_path / "results", "trial")] == ["good"]
    assert not [path for path in (tmp_path / "results" / "trial").iterdir() if path.suffix in (".part", ".record")]
    (tmp_path / "mended").touch()
    assert not ran(path, tmp_path)[0] and calls(tmp_path) == ["good 0", "slow 0", "slow 0"]


def test_a_grid_whose_runner_was_killed_goes_on(trial, tmp_path):
    path = trial(["good", "slow"])
    child = started(path, tmp_path)
    with pytest.raises(UserError, match="another run of this experiment is at work"):
        ran(path, tmp_path)
    child.kill()
    child.communicate(timeout=30)
    first, second = (int(pid) for pid in (tmp_path / "pids").read_text().split()[:2])
    until = time.monotonic() + 10
    while alive(first):  # the cell's process does not outlive the runner
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(second, signal.SIGKILL)
    (tmp_path / "mended").touch()
    failed, _, cells = ran(path, tmp_path)
    assert not failed and calls(tmp_path) == ["good 0", "slow 0", "slow 0"]
    assert [event["event"] for event in cells["slow", 0].events] == ["start", "epoch", "end"]


def test_a_changed_command_makes_other_cells(trial, tmp_path):
    path = trial(["good"])
    ran(path, tmp_path)
    path.write_text(path.read_text().replace("{seed}", "1{seed}"))
    _, _, cells = ran(path, tmp_path)
    assert calls(tmp_path) == ["good 0", "good 10"] and cells["good", 0].command.endswith("good 10 run.jsonl")
    assert len(results.load(tmp_path / "results", "trial")) == 2  # both files are there, one is of this grid


def test_under_mpiexec(trial, tmp_path):
    if runner._lacks("mpi"):
        pytest.skip(runner._lacks("mpi"))
    path = trial(["good"])
    path.write_text(path.read_text().replace('what = ["good"]', 'what = ["good"]\nranks = [2]'))
    _, shown, cells = ran(path, tmp_path)
    assert "1/1 cells, ETA 0.0 s  trial, seed 0: done" in shown  # no axis has several values
    assert calls(tmp_path) == ["good 0", "good 0"] and cells["good", 0].command.startswith("mpiexec -n 2 python ")
    assert cells["good", 0].finished


@pytest.mark.parametrize("code, exit", [(0, 0), (network.TIMED_OUT, 124), (None, 1)])
def test_in_the_network_lab(trial, tmp_path, monkeypatch, code, exit):
    asked, traffic = [], [{"name": "host0", "sent_bytes": 500}, {"name": "host1", "sent_bytes": 700}]

    class Lab:  # what experiments/lab/network.py promises
        def __init__(self, hosts, rate="", delay=None):
            asked.append((hosts, rate, delay))

        def __enter__(self):
            return self

        def __exit__(self, *failure):
            asked.append("taken down")

        def mpiexec(self, ranks, argv, per_host=None, env=None, timeout=None):
            asked.append((ranks, per_host, timeout))
            if code is None:
                raise UserError("the interfaces did not see the traffic")
            subprocess.run(argv, check=True)
            return network.Result(code, "", "said", 1.5, traffic)

    monkeypatch.setattr(network, "Network", Lab)
    monkeypatch.setattr(network, "available", lambda: None)
    runner._lacks.cache_clear()
    path = trial(["good"])
    path.write_text(path.read_text().replace('what = ["good"]', 'what = ["good"]\nranks = [4]\nlink = ["slow"]')
                    + '[values.link.slow]\nrate = "1mbit"\nper_host = 2\n')
    failed, _, cells = ran(path, tmp_path)
    runner._lacks.cache_clear()
    cell = cells["good", 0]
    assert asked == [(2, "1mbit", None), (4, 2, 60.0), "taken down"] and cell.exit == exit
    assert cell.command.startswith("python -m hogwild.experiments network --hosts 2 --rate 1mbit --per-host 2 -- python ")
    if code is None:
        assert list(failed.values()) == ["network: the interfaces did not see the traffic"] and cell.network is None
    else:
        assert cell.network == {"traffic": traffic} and cell.metrics["wire_bytes_per_step"] == 600 / 5


def test_eta_is_of_cells_alike(trial):
    experiment = grid.read(trial(["good", "fine"], seeds=3))
    points = grid.cells(experiment)
    shown = progress.Board(experiment, points, io.StringIO())
    assert shown.left() is None
    shown.set(points[0], progress.KEPT, 10.0)
    assert shown.left() == 50.0
    shown.set(points[1], progress.DONE, 2.0)
    assert shown.left() == 2 * 10.0 + 2 * 2.0 and "ETA 24 s" in shown.summary()
    shown.set(points[2], progress.FAILED, 1.0, "why")
    assert shown.left() == 10.0 + 2 * 2.0
    assert "3/6 cells, 1 failed, ETA 14 s  good, seed 1: failed 1.0 s: why" in shown.file.getvalue()


def test_the_table_on_a_terminal(trial):
    rich = pytest.importorskip("rich.console")
    experiment = grid.read(trial(["good", "bad"], seeds=2))
    points = grid.cells(experiment)
    shown = progress.Board(experiment, points, io.StringIO())
    shown.set(points[0], progress.DONE, 3.0)
    shown.set(points[1], progress.FAILED, 1.0)
    console = rich.Console(file=io.StringIO(), width=80)
    console.print(shown.table())
    text = console.file.getvalue()
    assert re.search(r"good +3\.0 s +\.", text) and re.search(r"bad +failed +\.", text)
    assert "a trial" in text and "2/4 cells, 1 failed, ETA 6.0 s" in text


def test_one_damaged_file_does_not_hide_the_others(trial, tmp_path, capsys):
    path = trial(["good"])
    ran(path, tmp_path)
    home, experiment = tmp_path / "results" / "trial", grid.read(path)
    whole = next(home.glob("*.jsonl"))
    first, rest = whole.read_text().split("\n", 1)
    for name, text in {"a": "no JSON", "b": "", "c": json.dumps({**json.loads(first), "axes": 3}) + "\n" + rest}.items():
        (home / f"{name}.jsonl").write_text(text)
    assert [cell.path for cell in results.load(tmp_path / "results", experiment)] == [whole]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and all(f"{name}.jsonl" in line and "left out" in line for name, line in zip("abc", said))
    results.folder(tmp_path / "results", grid.names()[0]).mkdir()
    (tmp_path / "results" / grid.names()[0] / "a.jsonl").write_text("no JSON")
    assert main(["list", "--results", str(tmp_path / "results")]) == 0
    out, err = capsys.readouterr()
    assert all(f"{name}: " in out for name in grid.names()) and err.count("\n") == 1


def test_two_files_of_one_name_do_not_share_a_folder(trial, tmp_path):
    path, other = trial(["good"]), tmp_path / "elsewhere" / "trial.toml"
    ran(path, tmp_path)
    other.parent.mkdir()
    other.write_text(path.read_text())
    with pytest.raises(UserError, match=f"holds the results of another experiment of this name .{path}.; rename"):
        ran(other, tmp_path)
    path.unlink()  # it was moved
    assert ran(other, tmp_path)[0] == {}
    with pytest.raises(UserError, match="two experiments are called trial"):
        build.main([str(other), str(other), "--results", str(tmp_path / "results")])


def test_a_process_that_cannot_be_killed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(process, "DYING", 0.05)
    with subprocess.Popen(["sleep", "60"]) as child:
        monkeypatch.setattr(process.os, "kill", lambda pid, number: None)
        process.kill(lambda: [child.pid], "what was started")
        monkeypatch.undo()
        child.kill()
    assert capsys.readouterr().err == f"experiments: what was started cannot be ended, and is left: process {child.pid}\n"


@pytest.mark.parametrize("arguments, words", [
    (["run"], "run needs the name of an experiment"), (["run", "nothing"], "no experiment 'nothing'"),
    (["run", "rank-scaling", "--seeds", "0"], "--seeds must be at least 1, got 0"),
    (["run", "--sedes", "2"], "--sedes"), (["dance"], "unknown command 'dance'")])
def test_mistakes_are_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out


def test_list_tells_cells_and_reasons(tmp_path, capsys):
    assert main(["list", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for name in grid.names():
        count = len(grid.cells(grid.read(name)))
        assert f"{name}: {count} cells, 0 finished." in out
