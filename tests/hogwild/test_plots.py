"""hogwild.plot draws what the records hold."""

import json
import sys

import numpy as np
import pytest

import hogwild
from hogwild.errors import UserError

pyplot = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed: pip install '.[plot]'")


@pytest.fixture(autouse=True)
def no_window(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


def write(path, *runs, before=()):
    """A record of runs, each a list of (loss, lr, metrics) an epoch."""
    with open(path, "a") as file:
        for event in before:
            file.write(json.dumps(event) + "\n")
        for run in runs:
            events = [{"event": "epoch", "epoch": k, "loss": loss, "lr": lr, "metrics": metrics, "exchange": {"age": 1}}
                      for k, (loss, lr, metrics) in enumerate(run, 1)]
            file.writelines(json.dumps(event) + "\n" for event in (
                {"event": "start", "rule": "x"}, {"event": "evaluation", "step": 5, "metrics": {"auc": 0}}, *events,
                {"event": "end", "metrics": {}}))
    return path


def drawn(figure):
    """{title: {label: [(x, y), …]}} of the panels that are shown."""
    return {axis.get_title(): {line.get_label(): [(x, y) for x, y in line.get_xydata().tolist()] for line in axis.lines}
            for axis in figure.axes if axis.axison}


ONE = [(0.5, 0.1, {"auc": 0.75, "log_loss": 0.6}), (0.25, 0.05, {"auc": 0.875, "log_loss": 0.5})]


def test_one_run():
    figure = hogwild.plot(write("a.jsonl", ONE))
    assert drawn(figure) == {
        "training loss": {"a.jsonl": [(1, 0.5), (2, 0.25)]}, "held-out auc": {"a.jsonl": [(1, 0.75), (2, 0.875)]},
        "held-out log_loss": {"a.jsonl": [(1, 0.6), (2, 0.5)]}, "learning rate": {"a.jsonl": [(1, 0.1), (2, 0.05)]}}
    assert not figure.legends and {axis.get_xlabel() for axis in figure.axes if axis.axison} == {"epoch"}
    figure.savefig("a.png")
    assert pyplot.imread("a.png").std() > 0


def test_several_runs_of_several_files(tmp_path):
    write("a.jsonl", ONE, [(None, 0.1, {})], before=[{"event": "cell"}])
    figure = hogwild.plot(["a.jsonl", write(tmp_path / "b.jsonl", [(0.125, 1, {"rmse": 3})] * 40)])
    found = drawn(figure)
    assert list(found) == ["training loss", "held-out auc", "held-out log_loss", "held-out rmse", "learning rate"]
    loss = found["training loss"]
    assert list(loss) == ["a.jsonl#1", "a.jsonl#2", "b.jsonl"] and np.isnan(loss["a.jsonl#2"][0][1])
    assert len(loss["b.jsonl"]) == 40 and found["held-out rmse"]["a.jsonl#1"] == []
    legend, = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(loss)
    (tmp_path / "deep").mkdir()
    twin = write(tmp_path / "deep" / "b.jsonl", ONE)
    assert [str(twin), "b.jsonl"] == list(drawn(hogwild.plot([twin, "b.jsonl"]))["training loss"])


@pytest.mark.parametrize("content, says", [
    (None, "r: cannot read the record: No such file"), ("", "r: the record is empty"),
    ("loss 3\n", "r:1: not a line of JSON"),
    ('{"event": "epoch"}\n', "before any 'start'"), ('{"event": "start"}\n{"event": "end"}\n', "r: no run with an epoch"),
    ('{"event": "start"}\n{"event": "epoch", "loss": 1}\n', "r: is no record of a run that can be used"),
    ('{"event": "start"}\n{"event": "epoch", "epoch": 1, "loss": "x", "lr": 1, "metrics": {}}\n', "r: is no record of")])
def test_what_is_no_record(tmp_path, content, says):
    if content is not None:
        (tmp_path / "r").write_text(content)
    with pytest.raises(UserError, match=says) as error:
        hogwild.plot("r")
    assert "\n" not in str(error.value)
    assert not pyplot.get_fignums()


def test_without_records_or_matplotlib(monkeypatch):
    with pytest.raises(UserError, match="hogwild.plot: no run with an epoch to draw"):
        hogwild.plot([])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="hogwild.plot needs matplotlib: pip install matplotlib"):
        hogwild.plot("r")
