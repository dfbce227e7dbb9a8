"""What `hogwild predict` prints and where: every digit, whose probability it is, and no device or pipe replaced."""

import io
import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
from command import ROOT, fails, run

from hogwild.data.dataset import from_arrays
from hogwild.errors import UserError
from hogwild.families import linear_model, prediction_lines
from hogwild.training import checkpoint, model_files

X = np.array([[1.0, 0], [0, 2], [3, 0.1]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def saved(weights, loss="logistic", classes=None, dtype=np.float32):
    """Path of a model file of two features, and that of X as svmlight text."""
    d = from_arrays(X, np.zeros(3))
    model_files.save("m", *linear_model.contents(np.array(weights, dtype), d, loss, (), {}, classes))
    with open("x.svm", "w") as file:
        file.writelines("0 " + " ".join(f"{j + 1}:{v!r}" for j, v in enumerate(row)) + "\n" for row in X.tolist())
    return "m", "x.svm"


def printed(capsys, *arguments):
    assert run("predict", *arguments) == 0
    return capsys.readouterr().out.splitlines()


def test_regression_prints_all_digits(capsys):
    """Six digits made an error of 50 of targets near 10^7."""
    w = np.array([0.123456789, 1 / 3, 1e7 + 0.4])
    lines = printed(capsys, *saved(w, "squared", dtype=np.float64))
    assert [float(line) for line in lines] == pytest.approx(X @ w[:2] + w[2], rel=1e-13)
    assert lines == [repr(float(line)) for line in lines]


def test_the_probability_is_that_of_the_class_of_its_line(capsys):
    paths = saved([1, -1, 0.5], classes=np.array(["ham", "not ham"]))
    z = X @ [1, -1] + 0.5
    p = 1 / (1 + np.exp(-z))
    rows = [line.rpartition(" ") for line in printed(capsys, *paths)]
    assert [name for name, _, _ in rows] == ['"not ham"', "ham", '"not ham"']
    assert [float(x) for _, _, x in rows] == pytest.approx(np.where(z > 0, p, 1 - p), rel=1e-6)
    header, *table = printed(capsys, *paths, "--probabilities")
    assert header == 'ham "not ham"'
    assert np.array([line.split() for line in table], float) == pytest.approx(np.stack([1 - p, p], 1), rel=1e-6)


def test_several_classes(capsys):
    w = np.array([[1.0, 0, -1], [0, 1, 0], [0, 0, 1]])
    z = X @ w[:2] + w[2]
    paths = saved(w, "softmax", np.array([0.5, 3.0, 20000001.0]))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    names = np.array(["0.5", "3", "20000001"])
    rows = [line.split() for line in printed(capsys, *paths)]
    assert [name for name, _ in rows] == names[p.argmax(1)].tolist()
    assert [float(x) for _, x in rows] == pytest.approx(p.max(1), rel=1e-6)
    header, *table = printed(capsys, *paths, "--probabilities")
    assert header.split() == names.tolist() and np.array([r.split() for r in table], float) == pytest.approx(p, rel=1e-6)


def test_losses_without_probabilities(capsys):
    paths = saved([1, -1, 0.5], "hinge", np.array([-1.0, 1.0]))
    rows = [line.split() for line in printed(capsys, *paths)]
    assert [name for name, _ in rows] == ["1", "-1", "1"] and [float(z) for _, z in rows] == pytest.approx([1.5, -1.5, 3.4])
    assert "--probabilities: m has none, its loss is Hinge" in fails(capsys, "predict", *paths, "--probabilities")
    assert "m has none, its loss is Squared" in fails(capsys, "predict", *saved([1, 2, 3], "squared"), "--probabilities")


def test_many_rows_are_printed_in_parts(monkeypatch, capsys):
    paths = saved([1, -1, 0.5], classes=np.array([-1.0, 1.0]))
    whole = printed(capsys, *paths)
    monkeypatch.setattr(prediction_lines, "ROWS", 1)
    assert printed(capsys, *paths) == whole and len(whole) == 3


def through_a_pipe(path):
    """What somebody reads at a pipe."""
    content = []
    thread = threading.Thread(target=lambda: content.append(open(path).read()), daemon=True)
    thread.start()
    return thread, content


def test_out_into_a_pipe_is_written_to_and_not_replaced(capsys):
    paths = saved([1, -1, 0.5], classes=np.array([-1.0, 1.0]))
    want = "\n".join(printed(capsys, *paths)) + "\n"
    os.mkfifo("pipe")
    os.symlink("pipe", "link")
    for name in ("pipe", "link"):
        thread, content = through_a_pipe(name)
        assert run("predict", *paths, "--out", name) == 0
        thread.join(10)
        assert content == [want] and stat.S_ISFIFO(os.stat(name).st_mode) and os.path.islink("link")
    assert run("predict", *paths, "--out", "file") == 0 and open("file").read() == want
    assert sorted(os.listdir()) == ["cache", "file", "link", "m", "pipe", "x.svm"]
    assert "Is a directory" in fails(capsys, "predict", *paths, "--out", "cache")


def test_out_into_standard_output(capsys):
    paths = saved([1, -1, 0.5], classes=np.array([-1.0, 1.0]))
    want = "\n".join(printed(capsys, *paths)) + "\n"
    code = f"from hogwild.cli import main; main.main(['predict', *{paths!r}, '--out', '/dev/stdout'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and done.stdout == want, done.stderr


def test_a_name_that_standard_output_cannot_hold_is_not_replaced(monkeypatch, capsys):
    paths = saved([1, -1, 0.5], classes=np.array(["2", "10\u03a9"]))  # in the order of numbers, then of letters
    assert printed(capsys, *paths)[1].split()[0] == "2"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    message = fails(capsys, "predict", *paths)
    assert "whose encoding is ascii, has no '\u03a9', which a class's name holds; pass --out FILE" in message
    assert sys.stdout.buffer.getvalue() == b""


@pytest.mark.parametrize("write", [lambda path: model_files.save(path, {"w": np.zeros(3)}, {}),
                                   lambda path: checkpoint.save(path, {"w": np.zeros(3)}, {}), model_files.check_writable])
def test_models_and_checkpoints_do_not_replace_a_pipe(write):
    os.mkfifo("pipe")
    with pytest.raises(UserError, match="pipe: cannot be written: a folder, pipe or device is there"):
        write("pipe")
    assert stat.S_ISFIFO(os.stat("pipe").st_mode) and os.listdir() == ["pipe"]


def test_the_previous_checkpoint_is_no_pipe():
    checkpoint.save("c", {"w": np.zeros(3)}, {})
    os.mkfifo("c.previous")
    with pytest.raises(UserError, match="a folder, pipe or device is there"):
        checkpoint.save("c", {"w": np.ones(3)}, {})
    assert stat.S_ISFIFO(os.stat("c.previous").st_mode) and sorted(os.listdir()) == ["c", "c.previous"]


def test_small_metrics_have_digits(capsys):
    model, path = saved([0, 0, 3e-7], "squared")
    assert run("evaluate", model, path) == 0
    assert "rmse       3e-07\n" in capsys.readouterr().out
