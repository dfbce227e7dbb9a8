"""A second family joins by one entry: the commands, model files, records and checkpoints find it there."""

import json
import re

import numpy as np
import pytest
from command import fails, own_cache, run  # noqa: F401

import hogwild
from hogwild.families import registry
from hogwild.training import model_files

LABELS = [1.0, 2.0, 4.0, 5.5]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.FAMILIES, "mean", registry.Entry("mean_family", "fit the mean of the labels", "DATA"))
    path = tmp_path / "a.svm"
    path.write_text("".join(f"{y} 1:1\n" for y in LABELS))
    return path


def printed(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == 0
    return capsys.readouterr()


def test_the_commands_find_a_second_family(data, capsys):
    assert re.search("hogwild train mean DATA +fit the mean of the labels", printed(capsys, "--help").out)
    assert "--epochs" in printed(capsys, "train", "mean", "--help").out
    lines = printed(capsys, "train", "mean", data, "--model", "m", "--record", "r", "--checkpoint", "c").out.splitlines()
    assert lines[:2] == [f"{data}: its mean", "Mean, SGD(), Constant(lr=1), 2 epochs, 1 worker, shared memory"]
    start, *_, end = map(json.loads, open("r"))
    assert start["data"] == {"rows": 4} and start["options"]["epochs"] is None and end["event"] == "end"
    model, std = float(printed(capsys, "predict", "m", data).out.splitlines()[0]), np.std(LABELS)
    assert model == pytest.approx(np.mean(LABELS), rel=1e-12) and hogwild.load("m") == model
    found = printed(capsys, "evaluate", "m", data)
    assert found.err == "hogwild: read for its mean\n" and f"rmse       {std:.6f}" in found.out
    assert printed(capsys, "inspect", data, "--family", "mean").out == f"mean {np.mean(LABELS):.6f}\n"
    out = printed(capsys, "train", "mean", data, "--checkpoint", "c", "--resume", "--epochs", 3, "--model", "n").out
    assert "resumed from c: epoch 3, step 8" in out and "epoch 3/3" in out
    assert model_files.load("n")[0]["w"] == pytest.approx(np.mean(LABELS), rel=1e-12)


def test_an_unknown_family_is_one_line(data, capsys):
    known = ", ".join(registry.FAMILIES)
    assert f"one of {known}, got 'means'" in fails(capsys, "train", "means", data)
    assert f"unknown problem family 'means': choose from {known}" in fails(capsys, "inspect", data, "--family", "means")
    model_files.save("m", {"w": np.zeros(1)}, {"family": "forest"})
    for command in "evaluate", "predict":
        assert f"m: is a model of family 'forest', hogwild knows {known}" in fails(capsys, command, "m", data)
