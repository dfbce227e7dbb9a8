"""A model knows how its training file was read: every command that reads data with it reads them alike."""

import json

import numpy as np
import pytest
from command import fails, run

from hogwild.data.dataset import from_arrays
from hogwild.families import linear_model
from hogwild.training import model_files

NAMES = ["a", "b", "c", "d"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def columns(seed=0, rows=120):
    rng = np.random.default_rng(seed)
    found = {name: np.round(rng.standard_normal(rows), 3) for name in NAMES}
    found["y"] = np.where(2 * found["a"] - 3 * found["b"] + found["c"] > 0, "spam", "ham")
    return found


def csv(name, table, order, header=True):
    with open(name, "w") as file:
        file.writelines([",".join(order) + "\n"] * header)
        file.writelines(",".join(str(table[key][i]) for key in order) + "\n" for i in range(len(table["a"])))
    return name


def trained(name, *options):
    assert run("train", "linear", name, "--model", "m", "--workers", 1, "--epochs", 5, *options) == 0


def out(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == 0
    return capsys.readouterr()


def test_columns_are_found_by_name(capsys):
    """In any order, with others among them, without the label's; a missing one is refused."""
    table = columns()
    csv("train.csv", table, [*NAMES, "y"])
    trained("train.csv")
    want = out(capsys, "predict", "m", "train.csv").out
    right = out(capsys, "evaluate", "m", "train.csv").out.splitlines()[1:]
    assert float(right[0].split()[1]) > 0.9
    for order in (["y", *NAMES], ["d", "b", "y", "c", "a"], NAMES, ["c", "a", "b", "d"], ["x", *NAMES, "z", "y"]):
        csv("new.csv", {**table, "x": table["d"], "z": table["a"]}, order)
        found = out(capsys, "predict", "m", "new.csv")
        assert found.out == want and ("x, z" in found.err) == ("x" in order)
        if "y" in order:
            assert out(capsys, "evaluate", "m", "new.csv").out.splitlines()[1:] == right
        else:
            assert "has no label column 'y'" in fails(capsys, "evaluate", "m", "new.csv", "--no-cache").splitlines()[-1]
    csv("new.csv", table, ["a", "b", "d", "y"])
    assert "has no column 'c'" in fails(capsys, "predict", "m", "new.csv")
    trained("train.csv", "--test", csv("new.csv", table, ["d", "b", "y", "c", "a"]))
    assert f"accuracy {float(right[0].split()[1]):.4f}" in capsys.readouterr().out


def test_parquet_and_csv_are_read_alike(capsys):
    import pyarrow as pa
    import pyarrow.parquet
    table = columns()
    csv("train.csv", table, ["y", *NAMES])
    trained("train.csv", "--label", "y")
    pyarrow.parquet.write_table(pa.table({key: table[key] for key in ("d", "y", "c", "b", "a")}), "new.parquet")
    assert out(capsys, "predict", "m", "new.parquet").out == out(capsys, "predict", "m", "train.csv").out


@pytest.mark.parametrize("label", [None, "0"])
def test_a_table_without_names(capsys, label):
    table = columns()
    order = [*NAMES, "y"] if label is None else ["y", *NAMES]
    csv("train.csv", table, order, header=False)
    trained("train.csv", *(["--label", label] if label else []))
    want = out(capsys, "predict", "m", "train.csv").out
    csv("new.csv", table, NAMES, header=False)
    assert out(capsys, "predict", "m", "new.csv").out == want
    assert "has no label column" in fails(capsys, "evaluate", "m", "new.csv").splitlines()[-1]
    csv("new.csv", table, NAMES[:3], header=False)
    assert "has 3 columns, needed 5" in fails(capsys, "predict", "m", "new.csv")


def test_an_option_that_contradicts_the_model_is_said(capsys):
    table = columns()
    csv("train.csv", table, [*NAMES, "y"])
    trained("train.csv")
    csv("new.csv", {**table, "truth": table["y"]}, ["truth", *NAMES])
    found = out(capsys, "evaluate", "m", "new.csv", "--label", "truth")
    assert "--label: the label is column 'truth' as given, in the training file it was 'y'" in found.err
    assert found.out.splitlines()[1:] == out(capsys, "evaluate", "m", "train.csv").out.splitlines()[1:]
    for same in ("y", "4", "-1"):
        assert "--label" not in out(capsys, "evaluate", "m", "train.csv", "--label", same).err
    with open("a.svm", "w") as one, open("zero.svm", "w") as zero:
        for i, y in enumerate(table["y"]):
            for file, base in ((one, 1), (zero, 0)):
                file.write(f"{int(y == 'spam')} " + " ".join(f"{j + base}:{table[c][i]}" for j, c in enumerate(NAMES)) + "\n")
    trained("a.svm")
    want = out(capsys, "evaluate", "m", "a.svm").out.splitlines()[1:]
    found = out(capsys, "evaluate", "m", "zero.svm", "--zero-based")
    assert found.out.splitlines()[1:] == want and "--zero-based: indices count from 0 as given" in found.err
    trained("zero.svm", "--zero-based")
    for more in ([], ["--zero-based"]):
        found = out(capsys, "evaluate", "m", "zero.svm", *more)
        assert found.out.splitlines()[1:] == want and not found.err
    found = out(capsys, "predict", "m", csv("new.csv", {**table, "y": np.ones(120)}, [*NAMES, "y"]))
    assert "the training data were no table: its columns are taken by their places" in found.err


def test_a_model_of_an_older_version_still_loads(capsys):
    """Its labels were float32, and nothing is known of its file."""
    with open("a.svm", "w") as file:
        file.write("0.1 1:1\n0.1 2:-1\n-0.3 1:-2\n")
    trained("a.svm", "--holdout", 0)
    tensors, header = model_files.load("m")
    for name in ("schema", "width"):
        header.pop(name)
    header["classes"] = np.float32(header["classes"]).tolist()
    model_files.save("m", tensors, header)
    found = out(capsys, "evaluate", "m", "a.svm")
    assert "m: does not say how its training file was read, as models of older versions" in found.err
    assert "count as wrong" not in found.err and len(found.err.splitlines()) == 1


def test_the_header_is_plain_json():
    d = from_arrays(np.eye(3), [0, 1, 2])
    _, header = linear_model.contents(np.zeros((4, 3)), d, "logistic", ("l2",), {}, np.array(["1", "x", "y"]), more=1)
    assert json.loads(json.dumps(header))["classes"] == ["1", "x", "y"] and header["width"] == 3
    _, header = linear_model.contents(np.zeros(4), d, "logistic", (), {}, np.array([1.0, 20000001.0]))
    assert header["classes"] == [1.0, 20000001.0]
    assert linear_model.contents(np.zeros(4), d, "squared", (), {}, None)[1]["classes"] is None


def test_scikit_learn_refuses_reordered_columns():
    import pyarrow as pa

    from hogwild.estimators import HogwildClassifier
    table = columns()

    def frame(*names):
        return pa.table({name: table[name] for name in names})
    ours = HogwildClassifier(epochs=2, workers=1).fit(frame(*NAMES), table["y"])
    assert set(ours.predict(frame(*NAMES))) == {"ham", "spam"} and list(ours.feature_names_in_) == NAMES
    for wrong in (["b", "a", "c", "d"], NAMES[:3], ["a", "b", "c", "x"]):
        with pytest.raises(ValueError, match="feature names should match|features"):
            ours.predict(pa.table({name: table[key] for name, key in zip(wrong, NAMES)}))
