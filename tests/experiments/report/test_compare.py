"""Records of a user's own runs side by side."""

import json
import re

import pytest

from hogwild.experiments.__main__ import main
from hogwild.experiments.report import compare


def record(path, lr, accuracies, loss=None, seconds=1.0, **end):
    """A record of one run, an epoch for each accuracy."""
    events = [{"event": "start", "time": 1.0, "options": {"lr": lr, "seed": 0, "record": str(path)}}]
    for k, accuracy in enumerate(accuracies):
        metrics = {"accuracy": accuracy, **({"log_loss": loss[k]} if loss else {})}
        events.append({"event": "epoch", "seconds": seconds, "examples": 50, "metrics": metrics})
    events.append({"event": "end", "metrics": metrics, **end})
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return str(path)


def rows(text):
    """{name of a row: its values}, where values have no blanks."""
    return {row[0]: row[1:] for row in (re.split(r"  +", line) for line in text.splitlines())}


def test_differences_and_results(tmp_path, capsys):
    a = record(tmp_path / "a.jsonl", 0.1, [0.5, 0.7, 0.9], [3.0, 2.0, 1.0], steps=6, bytes_per_step=12345.0)
    b = record(tmp_path / "b.jsonl", 0.2, [0.7, 0.8], [2.5, 1.5], seconds=5.0)
    assert main(["compare", a, b]) == 0
    found = rows(capsys.readouterr().out)
    assert found["configuration"] == ["a", "b"] and found["options.lr"] == ["0.1", "0.2"]
    assert not {"options.seed", "options.record", "time", "event"} & set(found)
    assert found["accuracy"] == ["0.9", "0.8"] and found["log_loss"] == ["1", "1.5"]
    assert found["s of training"] == ["3", "10"] and found["examples a second"] == ["50", "10"]
    assert found["ms a step"] == ["500", "-"] and found["bytes a step and rank"] == ["12,345", "-"]
    assert found["s to accuracy 0.8"] == ["3", "10"] and found["s to log_loss 1.5"] == ["3", "10"]


def test_runs_appended_to_one_file_and_files_of_one_name(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    text = open(record(path, 0.1, [0.5])).read()
    path.write_text(text + text)
    assert main(["compare", str(path)]) == 0
    out = capsys.readouterr().out
    assert rows(out)["configuration"] == ["a#1", "a#2"] and "no difference" in out
    (tmp_path / "d").mkdir()
    path.write_text(text)
    (tmp_path / "d" / "a.jsonl").write_text(text)
    assert [name for name, _ in compare.runs(path, "x")] == ["x"]
    assert main(["compare", str(path), str(tmp_path / "d" / "a.jsonl")]) == 0
    assert "d/a.jsonl" in capsys.readouterr().out


def test_cells_of_experiments_too(tmp_path, capsys):
    a, path = record(tmp_path / "a.jsonl", 0.1, [0.5]), tmp_path / "cell.jsonl"
    path.write_text(json.dumps({"event": "cell", "axes": {}}) + "\n" + open(a).read() + json.dumps({"event": "cell_end"}))
    assert main(["compare", a, str(path)]) == 0
    assert rows(capsys.readouterr().out)["accuracy"] == ["0.5", "0.5"]


@pytest.mark.parametrize("text, words", [
    (None, "bad.jsonl: cannot read the record"), ("", "bad.jsonl: the record is empty"),
    ('{"event": "start"}\n{"event": "ep', "bad.jsonl:2: not a line of JSON"),
    ("3\n", "bad.jsonl:1: not an event of a run"),
    ('{"event": "epoch", "seconds": 1}\n', "bad.jsonl:1: event 'epoch' before any 'start'"),
    ('{"event": "cell"}\n', "bad.jsonl: no run in it"),
    ('{"event": "start"}\n', "bad.jsonl: the run has neither an epoch nor an end"),
    (b"\xff\xfe\x00", "bad.jsonl: not a record of a run: it is no text")])
def test_what_is_no_record_is_named_in_one_line(tmp_path, capsys, text, words):
    good, bad = record(tmp_path / "good.jsonl", 0.1, [0.5]), tmp_path / "bad.jsonl"
    if text is not None:
        bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["compare", good, str(bad)]) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out


def test_one_run_is_not_enough(tmp_path, capsys):
    assert main(["compare", record(tmp_path / "a.jsonl", 0.1, [0.5])]) == 2
    assert "two runs at least, got 1" in capsys.readouterr().err


def test_fewer_than_two_runs(tmp_path, capsys):
    for arguments, words in ([], "name their files"), ([record(tmp_path / "a.jsonl", 0.1, [0.5])], "got 1"):
        assert main(["compare", *arguments]) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
