"""Models and checkpoints with a right checksum and an absurd content: one line and exit code 2, or they do no harm."""

import copy
import json

import numpy as np
import pytest

from hogwild.cli import main
from hogwild.training import model_files

VALUES = None, -1, "x", [], {"x": 1}, 10**30


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A folder with data, a model of them and a checkpoint of the run."""
    room, rng = tmp_path_factory.mktemp("headers"), np.random.default_rng(0)
    (room / "a.svm").write_text("".join(
        f"{rng.choice([-1, 1])} {rng.integers(1, 9)}:{rng.integers(1, 5)}\n" for _ in range(60)))
    code, _ = run(room, *TRAIN, "--model", "m", "--checkpoint", "c")
    assert code == 0
    return room


TRAIN = "train", "linear", "a.svm", "--workers", 1, "--epochs", 2, "--transform", "tfidf", "--holdout", 0.2


def run(room, *arguments):
    """(exit code, the exception) of a command, in that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(room)
        try:
            main.main([str(each) for each in arguments])
        except SystemExit as stop:
            return stop.code, None
    return 0, None


def dented(given):
    """Yield (what was done, a copy of a JSON object in which one key is missing or has another value)."""
    for key in given:
        for value in ("gone", *VALUES):
            other = copy.deepcopy(given)
            if value == "gone":
                del other[key]
            else:
                other[key] = value
            yield f"{key} = {value!r}", other
    for key, value in given.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{what}", {**given, key: other}) for what, other in dented(value))


def bent(tensors):
    """The same of arrays."""
    for name, x in tensors.items():
        forms = {"gone": None, "longer": np.concatenate([x, x]), "empty": x[:0], "flat": x.reshape(-1),
                 "deeper": x.reshape(-1, 1, 1), "integers": x.astype(np.int64), "halves": x.astype(np.float16)}
        for what, other in forms.items():
            yield f"{name} {what}", {key: y for key, y in {**tensors, name: other}.items() if y is not None}


def tried(room, capsys, what, *arguments):
    """Run a command on what was made of a file; whether it was refused, in one line."""
    capsys.readouterr()
    code, _ = run(room, *arguments)
    said = capsys.readouterr().err.splitlines()
    assert code == 0 or code == 2 and len(said) == 1 and said[0].startswith("hogwild: "), (what, code, said)
    return code == 2


def test_models(room, capsys):
    tensors, header = model_files.load(room / "m")
    header, refused = {"format": model_files.FORMAT, **header}, {}
    for what, tensors_now, header_now in [*((what, tensors, other) for what, other in dented(header)),
                                          *((what, other, header) for what, other in bent(tensors))]:
        model_files._replace(room / "dented", lambda new, t=tensors_now, h=header_now: write(new, t, h))
        refused[what] = tried(room, capsys, what, "predict", "dented", "a.svm", "--out", "p")
    for key in ("family", "loss", "classes", "transform", "format"):
        assert all(refused[f"{key} = {value!r}"] for value in ("gone", "x", -1, {"x": 1}))
    assert all(gone for what, gone in refused.items() if what.startswith(("weights", "idf")) and "flat" not in what)


def write(new, tensors, header):
    """As model.save, which puts a format of its own."""
    text = json.dumps(header, sort_keys=True)
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    model_files.save_file(tensors, new, {model_files.KEY: f"{model_files._digest(text, tensors)} {text}"})


@pytest.mark.parametrize("text", ["3", "[]", "{}", '{"format": "1"}', '{"format": true}', "{", "[" * 100_000, ""])
def test_headers_that_are_none(room, capsys, text):
    tensors = {"weights": np.zeros(9, np.float32)}
    model_files.save_file(tensors, room / "none", {model_files.KEY: f"{model_files._digest(text, tensors)} {text}"})
    assert tried(room, capsys, text[:20], "evaluate", "none", "a.svm")


def test_checkpoints(room, capsys):
    tensors, header = model_files.load(room / "c", "checkpoint")
    state, refused = json.loads(header["state"]), {}
    small = {key: value for key, value in state.items() if key != "fingerprint"}
    cases = [*((what, tensors, {**other, "fingerprint": state["fingerprint"]}) for what, other in dented(small)),
             *((what, other, state) for what, other in bent(tensors)),
             *((f"fingerprint {value!r}", tensors, {**state, "fingerprint": value}) for value in VALUES)]
    for what, tensors_now, state_now in cases:
        model_files.save(room / "d", tensors_now, {"kind": "checkpoint", "state": json.dumps(state_now)})
        refused[what] = tried(room, capsys, what, *TRAIN, "--checkpoint", "d", "--resume")
    for key in ("epoch", "t", "at", "done", "failures", "seconds", "schedule", "stopper", "history"):
        assert all(refused[f"{key} = {value!r}"] for value in ("gone", "x", {"x": 1})), key
    assert all(gone for what, gone in refused.items() if what.startswith("theta"))
    for text in ("3", "{", ""):
        model_files.save(room / "d", tensors, {"kind": "checkpoint", "state": text})
        assert tried(room, capsys, text, *TRAIN, "--checkpoint", "d", "--resume")
