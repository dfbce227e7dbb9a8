"""The small files of ../shared/cases/linear, on which training once went wrong without a word: each gives what is right."""

from pathlib import Path

import numpy as np
import pytest
from command import fails, run

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases" / "linear"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="no cases: ../shared/cases does not exist beside the repository")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function of a case's file and options: the path of its model, trained once."""
    made, folder = {}, tmp_path_factory.mktemp("models")

    def train(name, *options):
        key = (name, *options)
        if key not in made:
            made[key] = folder / str(len(made))
            assert run("train", "linear", CASES / name, "--workers", 1, "--epochs", 30, "--model", made[key],
                       *options) == 0
        return made[key]
    return train


def predicted(capsys, model, name, *options):
    """(lines, what was said beside them)."""
    capsys.readouterr()
    assert run("predict", model, CASES / name, *options) == 0
    found = capsys.readouterr()
    return found.out.splitlines(), found.err


def measured(capsys, model, name, *options):
    """(metrics by name, what was said beside them)."""
    capsys.readouterr()
    assert run("evaluate", model, CASES / name, *options) == 0
    found = capsys.readouterr()
    return {name: float(value) for name, value in map(str.split, found.out.splitlines()[1:])}, found.err


def test_a_table_without_its_label_column(trained, capsys):
    """Nor is the last feature taken as the label; further columns are ignored by name; --label is remembered."""
    model = trained("20-train.csv")
    want, _ = predicted(capsys, model, "20-train.csv")
    assert len(want) == 200 and predicted(capsys, model, "20-new-without-label.csv")[0] == want
    lines, said = predicted(capsys, model, "20-new-one-column-more.csv")
    assert lines == want and "'id'" in said and "ignored" in said
    assert "has no label column 'y'" in fails(capsys, "evaluate", model, CASES / "20-new-without-label.csv").splitlines()[-1]
    assert predicted(capsys, trained("21-train-label-first.csv", "--label", "y"), "20-new-without-label.csv")[0] == want
    found, _ = measured(capsys, trained("21-train-label-first.csv", "--label", "y"), "21-train-label-first.csv")
    assert found["accuracy"] > 0.95


def test_zero_based_is_remembered(trained, capsys):
    found, said = measured(capsys, trained("22-train-zero-based.svm", "--zero-based"), "22-new-zero-based.svm")
    assert found["accuracy"] == pytest.approx(0.955, abs=0.006) and not said
    assert measured(capsys, trained("22-train-zero-based.svm", "--zero-based"), "22-new-zero-based.svm", "--zero-based") == (
        found, "")


def test_classes_beyond_float32(trained, capsys):
    lines, _ = predicted(capsys, trained("09b-three-classes.svm"), "09b-three-classes.svm")
    assert {line.split()[0] for line in lines} == {"10100001", "20000001", "20000002"}
    truth = [line.split()[0] for line in (CASES / "09b-three-classes.svm").read_text().splitlines()]
    assert np.mean([line.split()[0] == label for line, label in zip(lines, truth, strict=True)]) > 0.6


def test_prices_at_the_defaults(capsys, tmp_path):
    assert run("train", "linear", CASES / "15-prices.svm", "--loss", "squared", "--model", tmp_path / "m") == 0
    assert measured(capsys, tmp_path / "m", "15-prices.svm")[0]["r2"] > 0.98


def test_a_run_that_diverges_does_not_end_well(capsys, tmp_path):
    code = run("train", "linear", CASES / "15c-unit.svm", "--loss", "squared", "--rule", "sgd", "--workers", 1, "--seed", 4,
               "--holdout", 0, "--model", tmp_path / "m")
    assert "loss 0.0000" not in capsys.readouterr().out
    assert code == 2 or measured(capsys, tmp_path / "m", "15c-unit.svm")[0]["r2"] > 0.9


@pytest.mark.parametrize("name,lines", [
    ("10-numeric-header.csv", ["rows        80", "labels      0: 44, 1: 36"]),
    ("10g-wavelength-header.csv", ["rows        80", "labels      0: 44, 1: 36"]),
    ("10l-text-labels.csv", ["rows        80", "labels      setosa: 44, virginica: 36"]),
    ("10n-semicolon.csv", ["rows        2 ", "features    2 "]), ("10i-sep-line.csv", ["rows        80", "features    4 "]),
    ("01b-min.svm", ["rows        20", "features    63 (3 occur)"]),
    ("18j-zip64-str-format.npz", ["rows        80", "features    4 "]),
])
def test_files_that_are_read(capsys, name, lines):
    assert run("inspect", CASES / name) == 0
    out = capsys.readouterr().out
    assert all(f"\n{line}" in out for line in lines), out


@pytest.mark.parametrize("name,words", [
    ("10j-ints-missing-first.csv", ["line 1, column 2"]), ("10w-utf16.csv", ["UTF-16", "iconv"]),
    ("10y-missing.csv", ["line 2, column 2", "missing"]), ("13b-libffm.txt", ["libffm", "field:index:value"]),
    ("23-flipped-bit.npz", ["npz"]), ("23b-header.npz", ["npz"]),
])
def test_files_whose_trouble_is_named(capsys, name, words):
    message = fails(capsys, "inspect", CASES / name)
    assert all(word in message for word in words), message


def test_features_and_labels_that_training_had_not(trained, capsys):
    model = trained("ok.svm")
    _, said = measured(capsys, model, "11-test-wider.svm")
    assert "4 features (the first is 9) that training had not, in 79 entries, ignored" in said
    lines, _ = predicted(capsys, model, "11b-test-unseen-label.svm")
    truth = [line.split()[0] for line in (CASES / "11b-test-unseen-label.svm").read_text().splitlines()]
    found, said = measured(capsys, model, "11b-test-unseen-label.svm")
    right = [float(line.split()[0]) == float(label) for line, label in zip(lines, truth, strict=True)]
    assert found["accuracy"] == pytest.approx(np.mean(right), abs=1e-6)
    assert "1 of 31 rows have a label that training had not (7)" in said
    assert run("train", "linear", CASES / "ok.svm", "--test", CASES / "11-test-wider.svm", "--workers", 1, "--epochs", 1) == 0
    assert "4 features (the first is 9)" in capsys.readouterr().out


def test_text_labels_are_classes(trained, capsys):
    lines, _ = predicted(capsys, trained("10l-text-labels.csv"), "10l-text-labels.csv")
    truth = [line.rpartition(",")[2] for line in (CASES / "10l-text-labels.csv").read_text().splitlines()[1:]]
    assert np.mean([line.split()[0] == label for line, label in zip(lines, truth, strict=True)]) > 0.9
