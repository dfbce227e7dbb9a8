"""Labels end to end: what stands in the file is what a person reads again, and a label that training had not is wrong."""

import numpy as np
import pytest
from command import fails, run
from sklearn import metrics as theirs

from hogwild.data import cache, dataset, formats
from hogwild.data.class_names import number_text
from hogwild.data.dataset import from_arrays
from hogwild.data.labels import Coder, canonical
from hogwild.data.sample_weights import example_weights
from hogwild.data.schema import Chunk, Schema, Source
from hogwild.errors import UserError
from hogwild.families import predictions
from hogwild.kernels.losses import Hinge, Logistic, SoftmaxCrossEntropy, Squared


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text,name", [
    ("1", "1"), ("+1", "1"), ("1.0", "1"), ("01", "1"), ("-2.50", "-2.5"), ("1e3", "1000"), ("9007199254740993",) * 2,
    ("-9007199254740993",) * 2, ("18446744073709551615",) * 2, (" spam ", "spam"), ("1_000",) * 2, ("nan",) * 2,
    ("0x1f",) * 2, ("", "")])
def test_one_spelling_for_a_label(text, name):
    assert canonical(text) == name == canonical(name)


@pytest.mark.parametrize("number", [0.0, -0.0, 1.0, -3.0, 0.1, 1e-9, 2.0**53, 1e300, 10100001.0, 1 / 3])
def test_a_number_reads_back_from_its_text(number):
    assert float(number_text(number)) == number and canonical(number_text(number)) == number_text(number)


def coded(*parts):
    coder = Coder()
    labels = np.concatenate([coder(np.array(part, object if isinstance(part[0], str) else None)) for part in parts])
    return coder.finished(labels), labels


@pytest.mark.parametrize("parts,names", [
    ([[2.0, 1.0], [3.0]], None), ([["b", "a"], ["c", "a"]], ("a", "b", "c")),
    ([[2.0, 10.5], ["spam", "2"], [3.0]], ("2", "3", "10.5", "spam")), ([["x", "1"], [1, 5]], ("1", "5", "x")),
    ([[9007199254740993, 9007199254740992]], ("9007199254740992", "9007199254740993")),
    ([["9007199254740993"], [9007199254740992.0]], ("9007199254740992", "9007199254740993"))])
def test_labels_of_parts_that_switch_to_text(parts, names):
    found, labels = coded(*parts)
    assert found == names
    if names:
        spelled = [canonical(x) if isinstance(x, str) else number_text(x) if isinstance(x, float) else str(x)
                   for part in parts for x in part]
        assert [names[int(code)] for code in labels] == spelled


def reader(*labels):
    """A stand-in for formats.source: chunks with these labels, of two features."""
    def chunks(_):
        for part in labels:
            n = len(part)
            yield Chunk(np.array(part, object if isinstance(part[0], str) else np.float64), np.ones(n, np.int64),
                        (np.arange(n) % 2).astype(np.uint32), np.ones(n, np.float32))
    return lambda path, **_: Source(path, Schema("svmlight"), chunks)


def test_a_dataset_of_text_labels(tmp_path, monkeypatch):
    """Cached and not; rows taken from it; classes; weights of classes; targets."""
    (tmp_path / "x").write_bytes(b"x")
    monkeypatch.setattr(formats, "source", reader([2.0, 1.0, 2.0], ["spam", "9007199254740993", "spam"]))
    for use in (True, True, False):
        found = dataset.read("x", cache=use)
        assert found.names == ("1", "2", "9007199254740993", "spam") and found.labels.tolist() == [1, 0, 1, 3, 2, 3]
    part = dataset.select(found.subset(2, 6), np.array([1, 0]))
    assert [part.names[int(code)] for code in part.labels] == ["spam", "2"]
    classes = predictions.classes_of(found)
    assert classes.tolist() == list(found.names) and predictions.classes_of(found, np.array([0, 3])).tolist() == ["2", "spam"]
    assert predictions.numbers(found, classes).tolist() == [1, 0, 1, 3, 2, 3]
    with pytest.raises(UserError, match="has the label 'spam', which is text, and this loss needs numbers"):
        predictions.targets(found, None, 1)
    weights = example_weights("spam=2,+1=0.5", None, found, None)
    assert weights.tolist() == [1, 0.5, 1, 2, 1, 2]
    with pytest.raises(UserError, match="has label ham, which no row of x has; its labels are 1, 2, 9007199254740993, spam"):
        example_weights("ham=2", None, found, None)
    monkeypatch.setattr(formats, "source", reader(["9007199254740993", "3"]))
    assert predictions.targets(dataset.read("x", cache=False), None, 1).tolist() == [9007199254740992, 3]


@pytest.mark.parametrize("text", ["spam", "spam=", "=2", "spam=x", "spam=-1", "spam=inf", "spam=nan", ""])
def test_mistakes_in_class_weights(text):
    with pytest.raises(UserError, match="must be balanced or LABEL=WEIGHT"):
        example_weights(text, None, from_arrays(np.eye(2), [0, 1]), None)


def test_large_codes_of_classes_and_targets_stay_apart():
    """float32 merges both."""
    d = from_arrays(np.eye(3), np.array([20000001, 20000002, 10100001]))
    assert predictions.classes_of(d).tolist() == [10100001, 20000001, 20000002]
    assert predictions.targets(d, None, 1).tolist() == [20000001, 20000002, 10100001]
    big = from_arrays(np.eye(3), np.array([2**60 + 1, 2**60, 2**60 + 1]))
    assert big.names == (str(2**60), str(2**60 + 1)) and big.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("labels, refused", [(np.arange(30) / 4, True), (np.arange(30), False),
                                             (np.arange(30) % 10 / 2, False)])
def test_real_targets_are_no_classes(labels, refused):
    dataset = from_arrays(np.eye(30), labels)
    if refused:
        with pytest.raises(UserError, match="30 different labels with fractions .*--loss squared"):
            predictions.classes_of(dataset)
    else:
        assert predictions.classes_of(dataset).tolist() == sorted(set(labels))


def test_classes_of_numbers_meet_labels_of_text():
    text = dataset.replace(from_arrays(np.eye(3), [0, 1, 2]), names=("1", "2", "x"))
    assert predictions.numbers(text, np.array([1.0, 2.0])).tolist() == [0, 1, 2]
    assert predictions.numbers(from_arrays(np.eye(3), [1, 7, 2]), np.array(["1", "2", "x"])).tolist() == [0, 3, 1]


@pytest.mark.parametrize("loss", [Logistic(), Hinge()])
def test_two_classes_and_a_third(loss):
    """Against scikit-learn: the third is never right; log-loss and AUC are of the others."""
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal(50), rng.choice([3, 5, 9], 50)
    d = from_arrays(np.ones((50, 1)), y)
    found = predictions.measure(z, predictions.targets(d, np.array([3.0, 5.0]), 1), loss)
    guess = np.where(z > 0, 5, 3)
    assert found["accuracy"] == np.mean(guess == y)
    assert found["f1"] == pytest.approx(theirs.f1_score(y == 5, guess == 5))
    assert found["auc"] == pytest.approx(theirs.roc_auc_score(y[y < 9] == 5, z[y < 9]))
    assert predictions.unknown_line(d, np.array([3.0, 5.0])).startswith(
        f"array: {sum(y == 9)} of 50 rows have a label that training had not (9); they count as wrong")
    only = predictions.measure(z[:2], np.array([3.0, 3.0]), loss)
    assert only["accuracy"] == 0 and np.isnan(only["auc"])


@pytest.mark.parametrize("loss", [Logistic(), SoftmaxCrossEntropy()])
def test_several_classes_and_others(loss):
    rng = np.random.default_rng(1)
    z, y = rng.standard_normal((60, 3)), rng.choice([1, 2, 3, 7, 8], 60)
    d = from_arrays(np.ones((60, 1)), y)
    found, guess = predictions.measure(z, predictions.targets(d, np.array([1.0, 2.0, 3.0]), 2), loss), z.argmax(1) + 1
    assert found["accuracy"] == np.mean(guess == y)
    assert found["f1"] == pytest.approx(theirs.f1_score(y, guess, average="macro", zero_division=0))
    assert found["log_loss"] == pytest.approx(theirs.log_loss(y[y < 4], predictions.probabilities(z[y < 4], loss)))


def test_targets_beyond_float32(tmp_path, capsys):
    from hogwild.families.linear import Linear
    from hogwild.kernels.optim.rules import SGD
    with pytest.raises(UserError, match="row 2: got target 1e[+]39, needed one within float32's range"):
        Linear(from_arrays(np.eye(2), [1.0, 1e39]), None, Squared(), SGD())


def test_large_codes_from_the_file_to_the_prediction(tmp_path, capsys):
    """svmlight and npz: trained, evaluated, predicted, inspected; --class-weight finds them."""
    codes, rng = np.array([10100001, 20000001, 20000002]), np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    x = np.eye(3)[y] + 0.1 * rng.standard_normal((120, 3))
    (tmp_path / "a.svm").write_text("".join(f"{codes[k]} " + " ".join(f"{j + 1}:{v:.4f}" for j, v in enumerate(row)) + "\n"
                                            for k, row in zip(y, x)))
    formats.save_npz("a.npz", x, codes[y])
    for name in ("a.svm", "a.npz"):
        assert run("train", "linear", name, "--model", "m", "--epochs", 20, "--workers", 1, "--class-weight",
                   "20000002=2") == 0
        assert run("evaluate", "m", name) == 0 and "accuracy   1.000000" in capsys.readouterr().out
        assert run("predict", "m", name) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [str(code) for code in codes[y]]
        assert run("inspect", name) == 0
        assert f"labels      10100001: {sum(y == 0)}, 20000001: {sum(y == 1)}" in capsys.readouterr().out
    assert "has label 20000003, which no row" in fails(capsys, "train", "linear", "a.npz", "--class-weight", "20000003=2")


def test_numbers_and_text_from_the_file_to_the_prediction(tmp_path, capsys):
    names = np.array(["2", "10", "spam"])
    y = np.arange(60) % 3
    (tmp_path / "a.csv").write_text("a,b,c,y\n" + "".join(f"{k == 0:d},{k == 1:d},{k == 2:d},{names[k]}\n" for k in y))
    assert run("train", "linear", "a.csv", "--model", "m", "--epochs", 20, "--workers", 1, "--class-weight",
               "spam=2,10=1") == 0
    assert run("evaluate", "m", "a.csv") == 0 and "accuracy   1.000000" in capsys.readouterr().out
    assert run("predict", "m", "a.csv", "--probabilities") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "2 10 spam" and np.array_equal(np.argmax([np.array(row.split(), float) for row in rows], 1), y)


def test_the_caches_format_has_risen():
    assert cache.FORMAT_VERSION > 1 and cache.ARRAYS["labels"] == np.float64
