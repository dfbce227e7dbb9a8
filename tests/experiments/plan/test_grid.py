"""Experiments as data: what the files may say, the cells that follow, the numbers in records, statistics over seeds."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
from documents import ROOT, blocks

from hogwild.errors import UserError
from hogwild.experiments.plan import commands, grid
from hogwild.experiments.report import stats
from hogwild.experiments.run import results

PLAIN = """
title = "t"
command = "prog {method} --at {place} --seed {seed} --record {record}"
seeds = 2
[[grid]]
place = [1, 2.5]
method = ["a", "b"]
[metrics.accuracy]
path = "metrics.accuracy"
[[figure]]
x = "place"
y = "accuracy"
series = "method"
"""


def written(tmp_path, text=PLAIN, **changed):
    """A file of that text, with `old` replaced by `new`."""
    path = tmp_path / "mine.toml"
    for old, new in changed.get("replace", {}).items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text + changed.get("more", ""))
    return path


def cell(axes, seed=0, **metrics):
    return results.Cell("e", axes, seed, "", metrics, 0, "", "", None, [], "", {}, "", "")


def test_the_grid_is_the_product_and_seeds_are_outermost(tmp_path):
    points = grid.cells(grid.read(written(tmp_path)))
    expected = [(seed, place, method) for seed in range(2) for place, method in itertools.product([1, 2.5], "ab")]
    assert [(p.seed, p.axes["place"], p.axes["method"]) for p in points] == expected
    assert points[1].shown == "prog b --at 1 --seed 0 --record run.jsonl"
    assert len({p.slug for p in points}) == len(points)
    assert len(grid.cells(grid.read(written(tmp_path)), seeds=5)) == 20


def test_blocks_are_a_union_without_doubles_and_may_have_seeds_of_their_own(tmp_path):
    path = written(tmp_path, more='[[grid]]\nseeds = 1\nplace = [1, 3]\nmethod = ["a"]\n')
    points = grid.cells(grid.read(path))
    assert [(p.axes["place"], p.axes["method"]) for p in points if p.seed == 0] == [
        (1, "a"), (1, "b"), (2.5, "a"), (2.5, "b"), (3, "a")]
    assert 3 not in [p.axes["place"] for p in points if p.seed == 1]
    assert grid.read(path).axes == {"place": [1, 2.5, 3], "method": ["a", "b"]}


def test_values_have_text_label_needs_and_free_keys(tmp_path):
    more = """
[values.method.b]
text = "--twice '{place} {place}' {data}/x"
label = "B"
needs = ["module:json"]
"""
    experiment = grid.read(written(tmp_path, more=more))
    point = next(p for p in grid.cells(experiment) if p.axes == {"place": 2.5, "method": "b"})
    assert point.words[:4] == ("prog", "--twice", "2.5 2.5", "{data}/x") and point.needs == ("module:json",)
    assert commands.filled(point.words, "R", "D")[3:] == ["D/x", "--at", "2.5", "--seed", "0", "--record", "R"]
    assert experiment.value("method", "b") == grid.Value("--twice '{place} {place}' {data}/x", "B", ["module:json"])
    assert experiment.value("place", 2.5).label == "2.5"


def test_ranks_and_links(tmp_path):
    text = """
title = "t"
command = "prog --record {record}"
[[grid]]
ranks = [2]
[[grid]]
ranks = [4]
link = ["slow"]
[values.link.slow]
rate = "100mbit"
per_host = 2
"""
    mpi, lab = grid.cells(grid.read(written(tmp_path, text)), 1)
    assert mpi.shown == "mpiexec -n 2 prog --record run.jsonl" and mpi.needs == ("mpi",) and mpi.link is None
    assert lab.shown == ("python -m hogwild.experiments network --hosts 2 --rate 100mbit --per-host 2 -- "
                         "prog --record run.jsonl")
    assert lab.link == {"rate": "100mbit", "per_host": 2} and "root-network" in lab.needs


def test_a_command_that_changes_is_another_cell(tmp_path):
    before = {p.slug for p in grid.cells(grid.read(written(tmp_path)))}
    after = {p.slug for p in grid.cells(grid.read(written(tmp_path, replace={"--at": "--to"})))}
    assert not before & after


def test_quick_is_merged_over_the_file(tmp_path):
    more = '[quick]\nseeds = 1\ngrid = [{place = [7], method = ["a"]}]\n[quick.metrics.accuracy]\nscale = 100\n'
    path = written(tmp_path, more=more)
    quick, full = grid.read(path, quick=True), grid.read(path)
    assert (quick.seeds, full.seeds, quick.quick, full.quick) == (1, 2, True, False)
    assert [p.axes for p in grid.cells(quick)] == [{"place": 7, "method": "a"}] and len(grid.cells(full)) == 8
    assert quick.metrics["accuracy"].path == "metrics.accuracy" and quick.metrics["accuracy"].scale == 100


@pytest.mark.parametrize("change, words", [
    ({"replace": {'title = "t"': 'titel = "t"'}}, ["mine.toml: unknown key 'titel'", "title"]),
    ({"replace": {'title = "t"': ""}}, ["mine.toml: title is missing"]),
    ({"replace": {"seeds = 2": 'seeds = "2"'}}, ["mine.toml: seeds must be a whole number, got '2'"]),
    ({"replace": {"seeds = 2": "seeds = 0"}}, ["mine.toml: grid[1]: seeds must be", "got 0"]),
    ({"replace": {"seeds = 2": "timeout = -1"}}, ["mine.toml: timeout must be", "got -1"]),
    ({"replace": {"place = [1, 2.5]": "place = []"}}, ["mine.toml: grid[1]: place needs a list"]),
    ({"replace": {"place = [1, 2.5]": "place = 1"}}, ["mine.toml: grid[1]: place needs a list", "got 1"]),
    ({"replace": {"place = [1, 2.5]": "seed = [1]"}}, ["mine.toml: grid[1]: seed cannot be an axis"]),
    ({"replace": {"{place}": "{plaice}"}}, ["mine.toml: grid[1]: the command needs {plaice}"]),
    ({"replace": {" --record {record}": ""}}, ["mine.toml: command must hold {record}"]),
    ({"replace": {'y = "accuracy"': 'y = "acuracy"'}}, ["mine.toml: figure[1]: y: unknown 'acuracy'", "accuracy"]),
    ({"replace": {'series = "method"': 'series = "accuracy"'}}, ["mine.toml: figure[1]: series: unknown 'accuracy'"]),
    ({"replace": {'series = "method"': 'kind = "pie"'}}, ["mine.toml: figure[1]: kind must be one of 'line'", "'pie'"]),
    ({"replace": {'series = "method"': 'where = {method = "c"}'}}, ["figure[1]: where: 'c' is no value of method", "a, b"]),
    ({"replace": {'path = "metrics.accuracy"': 'unit = "s"'}}, ["mine.toml: metrics.accuracy: needs either path or reach"]),
    ({"replace": {'path = "metrics.accuracy"': 'reach = {path = "a"}'}}, ["metrics.accuracy: reach: at is missing"]),
    ({"more": '[[table]]\nrows = ["metod"]\ncolumns = []\n'}, ["mine.toml: table[1]: rows: unknown 'metod'"]),
    ({"more": "[values.method.c]\n"}, ["mine.toml: values.method: unknown 'c'; there are a, b"]),
    ({"more": "[values.metod.a]\n"}, ["mine.toml: values: unknown 'metod'"]),
    ({"more": '[values.method.a]\nneeds = ["rot"]\n'}, ["mine.toml: values.method.a: needs: unknown need 'rot'"]),
    ({"more": '[quick]\ngrid = [{place = [], method = ["a"]}]\n'}, ["grid[1]: place needs a list"]),
    ({"more": '[[figure]]\nx = "place"\ny = "place"\n[[figure.formula]]\nlabel = "f"\ny = "__import__(place)"\n'},
     ["mine.toml: figure[2]: formula 'f'", "only numbers, names"]),
    ({"more": '[[figure]]\nx = "place"\ny = "place"\n[[figure.formula]]\nlabel = "f"\ny = "2 * plaice"\n'},
     ["mine.toml: figure[2]: formula 'f': y: unknown 'plaice'"]),
    ({"more": "[["}, ["mine.toml: not valid TOML"]),
    ({"more": "[quick]\nsedes = 1\n"}, ["mine.toml, quick: unknown key 'sedes', meant is perhaps 'seeds'"]),
    ({"more": "[quick.quick]\n"}, ["mine.toml, quick: has a table quick"]),
    ({"replace": {'title = "t"': 'quick = "t"'}}, ["mine.toml: quick must be a table, got 't'"]),
    ({"replace": {"seeds = 2": "source = 2"}}, ["mine.toml: unknown key 'source'", "there are quick, title, command, grid"]),
    ({"replace": {"seeds = 2": "seeds = []"}}, ["mine.toml: seeds must be a whole number, got []"]),
    ({"replace": {"[[grid]]": "[grid]"}}, ["mine.toml: grid must be a list of tables (in TOML [[…]]"]),
    ({"replace": {"[[grid]]": "[[grid]]\ntimeout = 5"}}, ["grid[1]: timeout is a key of the file: put it above"]),
    ({"replace": {"place = [1, 2.5]": "place = [1, [2]]"}}, ["grid[1]: place needs a list of texts and numbers, got [2]"]),
    ({"replace": {"place = [1, 2.5]": "place = [1, true]"}}, ["grid[1]: place needs a list of texts and numbers, got True"]),
    ({"replace": {"place = [1, 2.5]": "place = [inf]"}}, ["grid[1]: place needs a list of texts and numbers, got inf"]),
    ({"replace": {"place = [1, 2.5]": 'place = [1, "1"]'}}, ["grid[1]: place has the value '1' twice"]),
    ({"replace": {"place = [1, 2.5]": 'place = [1]\n"a b" = [1]'}}, ["grid[1]: an axis is named by letters", "'a b'"]),
    ({"replace": {"place = [1, 2.5]": "place = [1]\nranks = [true]"}}, ["grid[1]: ranks"]),
    ({"replace": {"place = [1, 2.5]": "place = [1]\nrank = [2]"}}, ["grid[1]: rank changes nothing", "perhaps 'ranks'"]),
    ({"replace": {"place = [1, 2.5]": "place = [1]\nextra = [1, 2]"}}, ["grid[1]: extra changes nothing", "no {extra}"]),
    ({"replace": {"{method}": "'{method}"}}, ["mine.toml: command: No closing quotation"]),
    ({"replace": {"{method}": "{Method}"}}, ["mine.toml: grid[1]: the command needs {Method}"]),
    ({"replace": {"{method}": "{method} | tee x"}}, ["mine.toml: command: holds '|', but no shell runs it"]),
    ({"replace": {"prog": "mpiexec prog", "place = [1, 2.5]": "place = [1]\nranks = [2]"}}, ["begins with mpiexec"]),
    ({"more": '[values.method.a]\nlable = "A"\n'}, ["values.method.a: unknown key 'lable', meant is perhaps 'label'"]),
    ({"more": "[values.place.2.5]\n"}, ["values.place.2: has a table '5' in it", '"2.5"']),
    ({"more": '[values.method.a]\nrate = "1gbit"\n'}, ["values.method.a: rate, delay, per_host are keys of", "axis link"]),
    ({"replace": {"place = [1, 2.5]": 'place = [1]\nlink = ["slow"]'}}, ["link 'slow' needs [values.link.slow]"]),
    ({"replace": {"place = [1, 2.5]": 'place = [1]\nlink = ["slow"]'}, "more": "[values.link.slow]\nper_host = 0\n"},
     ["values.link.slow: per_host must be from 1 on, got 0"]),
    ({"more": '[[figure.formula]]\nlabel = "f"\ny = "2"\nseries = "c"\n'}, ["formula 'f': series: unknown 'c'", "are a, b"]),
    ({"more": 2 * '[[table]]\nname = "n"\nrows = ["place"]\ncolumns = []\n'}, ["mine.toml: table: two have the name 'n'"]),
    ({"replace": {"seeds = 2": 'model = "os"'}}, ["mine.toml: model must be a module of experiments", "'os'"]),
    ({"replace": {"seeds = 2": "timeout = inf"}}, ["mine.toml: timeout must be", "got inf"]),
    ({"replace": {"seeds = 2": 'needs = ["module:..x"]'}}, ["mine.toml: needs: unknown need 'module:..x'"]),
    ({"replace": {"seeds = 2": 'needs = ["cores:many"]'}}, ["mine.toml: needs: unknown need 'cores:many'"]),
    ({"replace": {"place = [1, 2.5]": f"a={[*range(200)]}\nb={[*range(200)]}\nplace=[1]"}}, ["grid[1]: 80,000 cells"]),
    ({"more": '[values.method.a]\ntext = "' + 99 * "{method}" + '"\n'}, ["the command has more than"]),
])
def test_mistakes_name_the_file_and_the_key(tmp_path, change, words):
    path = written(tmp_path, **change)
    with pytest.raises(UserError) as caught:
        grid.read(path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_unknown_experiments_are_told_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="no experiment 'nothing': choose from .*gradient-dropping"):
        grid.read("nothing")
    with pytest.raises(UserError, match="none.toml: cannot read"):
        grid.read(tmp_path / "none.toml")


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", grid.names())
def test_the_experiments_of_the_package_can_be_read(name, quick):
    experiment = grid.read(name, quick)
    points = grid.cells(experiment)
    assert points and len({p.slug for p in points}) == len(points)
    assert experiment.question and (experiment.figure or experiment.model)
    assert experiment.reference or name == "dense-rates"  # which only prepares another
    assert all("{" not in p.shown for p in points)


PAGE = ROOT / "docs" / "experiments.md"


def test_the_documented_experiment_is_read_and_its_mistakes_are_told_as_documented(tmp_path):
    block, = (block for block in blocks(PAGE) if block.title == "keep.toml")
    path = tmp_path / "keep.toml"
    path.write_text(block.text)
    assert [point.axes["method"] for point in grid.cells(grid.read(path))] == 2 * ["dense", "1%"]
    documented, = (block.text.splitlines() for block in blocks(PAGE) if "experiments: keep.toml: " in block.text)
    changes = {'["accuracy", ': '["acuracy", ', "seeds = 2": "seeds = []", 'method = ["dense", "1%"]': 'method = "dense"',
               "ranks = [2]": "rank = [2]", "= 2": "="}
    for (old, new), line in zip(changes.items(), documented, strict=True):
        path.write_text(block.text.replace(old, new, 1))
        with pytest.raises(UserError) as caught:
            grid.read(path)
        assert f"experiments: {caught.value}".replace(str(path), "keep.toml").startswith(line.rstrip("…"))


def test_every_key_is_documented():
    text, internal = PAGE.read_text(), {"name", "source", "block_seeds"}
    for kind in (grid.Experiment, grid.Value, grid.Metric, grid.Reach, grid.Figure, grid.Formula, grid.Table, grid.Reference,
                 grid.Claim):
        for key in {each.name for each in dataclasses.fields(kind)} - (internal if kind is grid.Experiment else set()):
            assert any(form in text for form in (f"`{key}`", f"[{key}.", f"[[{key}]]")), f"{kind.__name__}: {key}"
    assert not [name for name in grid.AUTOMATIC if f"`{name}`" not in text]


EVENTS = [
    {"event": "start", "preflight": {"omega": 7}},
    {"event": "evaluation", "step": 5, "seconds": 1.5, "metrics": {"accuracy": 0.5, "loss": 2.0}},
    {"event": "epoch", "seconds": 3.0, "examples": 100, "metrics": {"accuracy": 0.7, "loss": 1.0}},
    {"event": "evaluation", "step": 15, "seconds": 4.0, "metrics": {"accuracy": 0.8, "loss": 0.9}},
    {"event": "epoch", "seconds": 2.0, "examples": 100, "metrics": {"accuracy": 0.9, "loss": 0.5}},
    {"event": "end", "steps": 20, "bytes_per_step": 64.0, "metrics": {"accuracy": 0.9, "nan": None},
     "phases": {"compute": [2.0, 4.0], "exchange": [0.0, 1.0]}},
]


def test_numbers_out_of_a_record():
    reach = lambda at, path="metrics.accuracy", better="higher": grid.Metric(reach=grid.Reach(path, at, better))  # noqa: E731
    metrics = {"omega": grid.Metric(event="start", path="preflight.omega"),
               "accuracy": grid.Metric(path="metrics.accuracy", scale=100),
               "epoch": grid.Metric(event="epoch", path="metrics.loss"),
               "never": reach(0.95), "within": reach(0.75), "epochs": reach(0.6), "down": reach(0.6, "metrics.loss", "lower"),
               "missing": grid.Metric(path="metrics.f1"), "null": grid.Metric(path="metrics.nan")}
    traffic = {"traffic": [{"sent_bytes": 1000}, {"sent_bytes": 3000}]}
    assert results.extracted(metrics, EVENTS, traffic) == {
        "omega": 7, "accuracy": 90, "epoch": 0.5, "never": None, "within": 4.0, "epochs": 3.0, "down": 5.0, "missing": None,
        "null": None, "train_seconds": 5.0, "steps": 20, "bytes_per_step": 64.0, "examples_per_s": 40.0, "step_ms": 250.0,
        "phase_compute_ms": 150.0, "phase_exchange_ms": 25.0, "wire_bytes_per_step": 100.0}
    assert results.extracted({}, EVENTS[:1]) == {}


def test_a_record_of_another_kind_has_no_numbers():
    """Any program may write them; one that is odd must not end the run of the other cells."""
    events = [{"event": "epoch", "seconds": "1", "examples": [1]},
              {"event": "end", "steps": 2, "phases": {"a": [], "b": 3, "c": ["x", 4]}, "wire": {"a": 1}}]
    assert results.extracted({}, events) == {"steps": 2, "phase_c_ms": 2000.0}
    assert results.extracted({}, [{"event": "end", "steps": 1, "phases": [1]}]) == {"steps": 1}


def test_summary_is_numpys():
    values = np.random.default_rng(0).lognormal(size=11).tolist()
    found = stats.summary([*values, None, math.nan])
    assert found[:3] == pytest.approx((np.median(values), *np.percentile(values, [25, 75])))
    assert found.q3 - found.q1 == pytest.approx(scipy.stats.iqr(values)) and found.n == 11
    assert stats.summary([None]) is None and stats.summary([2.0]) == (2.0, 2.0, 2.0, 1)


def test_ratios_are_paired_by_seed_and_axes():
    numbers = {("dense", 2, 0): 10.0, ("dense", 2, 1): 20.0, ("drop", 2, 0): 1.0, ("drop", 2, 1): 4.0, ("drop", 2, 2): 9.0,
               ("dense", 4, 0): 8.0, ("drop", 4, 0): None}
    cells = [cell({"method": method, "ranks": ranks}, seed, bytes=value) for (method, ranks, seed), value in numbers.items()]
    found = stats.paired(cells, "bytes", {"method": "dense"}, [c for c in cells if c.axes["method"] == "drop"])
    assert [(ratio.cell.seed, ratio.value) for ratio in found] == [(0, 0.1), (1, 0.2)]
    assert [ratio.value for ratio in stats.paired(cells, "bytes", {"method": "dense"}, cells[:1])] == [1.0]


def test_a_formula_is_arithmetic_of_axes_and_metrics():
    cells = [cell({"ranks": ranks, "method": "dense"}, seed, n=100 + seed) for ranks in (2, 4) for seed in range(3)]
    cells.append(cell({"ranks": 2, "method": "drop"}, 0, n=1e9))
    formula = grid.Formula("2n(P-1)/P", "2 * n * (ranks - 1) / ranks + -n**0", {"method": "dense"})
    assert stats.curve(formula, cells, "ranks", [2, 4]) == [2 * 101 / 2 - 1, 2 * 101 * 3 / 4 - 1]
    with pytest.raises(UserError, match="no cell has a number for 'k'"):
        stats.curve(grid.Formula("f", "k"), cells, "ranks", [1])
    for endless in ("9**9**9**9", "1 / (ranks - ranks)", "(-8)**0.5"):
        with pytest.raises(ArithmeticError):
            stats.curve(grid.Formula("f", endless), cells, "ranks", [1])
    for bad in ("f(n)", "n.real", "n[0]", "'n'", "n if n else 1", "lambda: n", "True", "n <", "[n]", "n @ n",
                "-" * 100_000 + "1", "(" * 300 + "1" + ")" * 300, "\0"):
        with pytest.raises(UserError, match="f: "):
            stats.variables("f", bad)


def test_damaged_records_name_the_file_and_the_line(tmp_path):
    path = tmp_path / "r.jsonl"
    for text, words in {'{"event": "start"}\nnonsense\n': "r.jsonl:2: not a line of JSON", "[1]\n": "r.jsonl:1: not an event",
                        "": "r.jsonl: the record is empty", json.dumps(EVENTS[1]): "r.jsonl:1: not a cell",
                        '{"event": "cell"}': "r.jsonl:1: not a cell of an experiment: 'experiment' is missing"}.items():
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            results.read(path)
    for text in ("[" * 100_000, "9" * 5000):
        path.write_text(text)
        with pytest.raises(UserError, match="r.jsonl:1: not a line of JSON"):
            results.read(path)
    with pytest.raises(UserError, match="cannot read"):
        results.read(tmp_path / "none.jsonl")
