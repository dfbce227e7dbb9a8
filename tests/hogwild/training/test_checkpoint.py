"""Checkpoints: killed, damaged, cut, full disks; what a run is resumed from is always whole and in step with itself."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hogwild.data import dataset
from hogwild.errors import UserError
from hogwild.training import checkpoint, model_files
from hogwild.training.checkpoint import Every, demand_same, fingerprint

ROOT = Path(__file__).resolve().parents[3]
KILLS = 100 if os.environ.get("HOGWILD_LONG_TESTS") else 5


def write(path, step, size=4):
    checkpoint.save(path, {"theta": np.full(size, step, np.float32), "hot": np.full(3, step, np.int64)}, {"step": step})


def step_of(path, *expected_lines):
    """The step of the checkpoint at `path`, whose parts must agree; every line said must have its expected parts."""
    said = []
    tensors, state = checkpoint.load(path, said.append)
    assert set(tensors) == {"theta", "hot"} and all((x == state["step"]).all() for x in tensors.values())
    assert len(said) == len(expected_lines)
    for line, parts in zip(said, expected_lines):
        assert "\n" not in line and all(str(part) in line for part in parts), line
    return state["step"]


def refused(path, *parts):
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, pytest.fail)
    assert "\n" not in str(caught.value) and all(str(part) in str(caught.value) for part in parts), str(caught.value)


@pytest.fixture
def path(tmp_path):
    """Step 2 is the newest, step 1 the previous one."""
    path = tmp_path / "run.ckpt"
    write(path, 1)
    write(path, 2)
    return path


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The same for hypothesis, with the newest one's bytes."""
    path = tmp_path_factory.mktemp("shared") / "run.ckpt"
    write(path, 1)
    write(path, 2)
    return path, path.read_bytes()


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                           lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


@settings(max_examples=40)
@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_state_comes_back_exactly(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "exact"
    checkpoint.save(path, {}, state)
    tensors, found = checkpoint.load(path, pytest.fail)
    assert repr(found) == repr(json.loads(json.dumps(state))) and found == state and tensors == {}


def test_numbers_that_json_is_said_to_lose(tmp_path):
    generator = np.random.default_rng(7)
    generator.random(3)
    state = {"steps": 2**53 + 1, "big": 2**127 + 1, "x": 0.1 + 0.2, "tiny": 5e-324, "zero": -0.0, "nan": math.nan,
             "bounds": [math.inf, -math.inf], "rng": generator.bit_generator.state}
    checkpoint.save(tmp_path / "c", {"w": np.float32([math.nan, -0.0])}, state)
    tensors, found = checkpoint.load(tmp_path / "c")
    assert repr(found) == repr(state) and tensors["w"].tobytes() == np.float32([math.nan, -0.0]).tobytes()
    again = np.random.default_rng()
    again.bit_generator.state = found["rng"]
    assert again.random() == generator.random()


def test_the_one_before_is_kept_and_nothing_else(path):
    assert step_of(path) == 2 and step_of(f"{path}.previous") == 1
    write(path, 3)
    assert step_of(path) == 3 and step_of(f"{path}.previous") == 2
    assert sorted(os.listdir(path.parent)) == ["run.ckpt", "run.ckpt.previous"]


def test_symbolic_link_is_kept(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/run")
    write(tmp_path / "link", 1)
    write(tmp_path / "link", 2)
    assert (tmp_path / "link").is_symlink() and sorted(os.listdir(tmp_path / "disk")) == ["run", "run.previous"]
    (tmp_path / "disk" / "run").unlink()
    assert checkpoint.exists(tmp_path / "link") and step_of(tmp_path / "link", ["link", "run.previous"]) == 1


@given(st.data())
def test_damaged_is_named_and_skipped(shared, draw):
    path, whole = shared
    spot, bit = draw.draw(st.integers(0, len(whole) - 1)), draw.draw(st.integers(0, 7))
    flipped = whole[:spot] + bytes([whole[spot] ^ 1 << bit]) + whole[spot + 1:]
    for damaged in (flipped, whole[:spot]):
        path.write_bytes(damaged)
        assert step_of(path, [f"{path}: ", f"going on from {path}.previous"]) == 1


def test_a_damaged_one_never_costs_the_previous_one(path):
    path.write_bytes(b"damaged")
    write(path, 3)
    assert step_of(path) == 3
    refused(f"{path}.previous", "damaged")


def test_missing_newest_and_none_valid(path):
    path.unlink()
    assert checkpoint.exists(path)
    assert step_of(path, [f"{path}: no such file", f"{path}.previous"]) == 1
    os.rename(f"{path}.previous", path)
    assert step_of(path) == 1
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, f"{path}: ", "damaged")
    (path.parent / "run.ckpt.previous").write_bytes(b"")
    refused(path, f"{path}: ", f"{path}.previous: ")
    refused(path.parent / "none", "no such file", "--checkpoint")
    refused(path.parent, "not a file")
    assert not checkpoint.exists(path.parent / "none")


def test_models_and_checkpoints_are_told_apart(path, tmp_path):
    model_files.save(tmp_path / "m", {"w": np.ones(2)}, {"family": "linear"})
    refused(tmp_path / "m", "is a model, not a checkpoint", "--checkpoint")
    with pytest.raises(UserError, match="is a checkpoint, not a model.*--model"):
        model_files.load(path)


KILLED = """
import sys
import numpy as np
from hogwild.training import checkpoint
path, step = sys.argv[1], int(sys.argv[2])
while True:
    step += 1
    checkpoint.save(path, {"theta": np.full(100_000, step, np.float32), "hot": np.full(3, step)}, {"step": step})
    print(step, flush=True)
"""


def test_killed_at_any_moment(tmp_path):
    path, last = tmp_path / "run.ckpt", 0
    for _ in range(KILLS):
        run = subprocess.Popen([sys.executable, "-c", KILLED, path, str(last)], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
        said = run.stdout.readline()
        time.sleep(random.random() * 0.1)
        run.kill()
        said += run.stdout.read()
        assert run.wait() == -signal.SIGKILL
        done = int(said.split()[-1])
        found = step_of(path)
        assert found in (done, done + 1) and last < found
        if found > 2:  # killed just before it became the previous one, the last may be lost, not the one before
            assert step_of(f"{path}.previous") in (found - 1, found - 2)
        last = found
    write(path, last + 1)
    assert sorted(os.listdir(tmp_path)) == ["run.ckpt", "run.ckpt.previous"]


CALLS = ("mkdir", "fsync", "chmod", "link", "replace", "rmdir", "unlink")


def killed_at_call(number, path, step, links=True):
    """Save in a forked process that dies before its `number`-th call of those in CALLS; whether it died."""
    child = os.fork()
    if child == 0:
        left = [number]

        def dying(call):
            def wrapped(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                if call is real_link and not links:
                    raise PermissionError(1, "no hard links here")
                return call(*args, **kwargs)
            return wrapped
        real_link = os.link
        for name in CALLS:
            setattr(os, name, dying(getattr(os, name)))
        code = 1
        try:
            write(path, step)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("before, links", [(0, True), (1, True), (2, True), ("damaged", True), (1, False), (2, False)])
def test_killed_before_every_system_call(tmp_path, before, links):
    outcomes, number = set(), 0
    while True:
        path = tmp_path / str(number) / "run"
        path.parent.mkdir()
        for step in range(1, 1 + (2 if before == "damaged" else before)):
            write(path, step)
        if before == "damaged":
            path.write_bytes(path.read_bytes()[:-1])
        died = killed_at_call(number, path, 3, links)
        if before == "damaged":
            assert checkpoint.load(path, lambda line: None)[1]["step"] in (1, 3)
        elif before or checkpoint.exists(path):
            found = checkpoint.load(path, lambda line: None)[1]["step"]
            assert found in (before, 3)
            outcomes.add(found)
        if not died:
            break
        number += 1
        write(path, 4)
        assert step_of(path) == 4 and set(os.listdir(path.parent)) <= {"run", "run.previous"}
    assert number >= 7 and (before == "damaged" or outcomes == {before, 3} - {0})


FULL_DISK = OSError(28, "No space left on device")


@pytest.mark.parametrize("name, error", [(name, error) for name in ("mkdir", "fsync", "chmod", "link", "replace")
                                         for error in (KeyboardInterrupt, FULL_DISK) if (name, error) != ("link", FULL_DISK)])
def test_interrupted_or_failed(path, monkeypatch, name, error):
    def fail(*_, **__):
        raise error
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(UserError if isinstance(error, OSError) else error) as caught:
            write(path, 3)
    if isinstance(error, OSError):
        assert str(caught.value).startswith(f"{path}: cannot be written: No space left")
    assert step_of(path) == 2 and step_of(f"{path}.previous") == 1 and len(os.listdir(path.parent)) == 2


LIMITED = """
import resource, sys
import numpy as np
from hogwild.training import checkpoint
from hogwild.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(sys.argv[1], {"w": np.zeros(100_000)}, {})
except UserError as error:
    print(error)
"""


def test_full_disk(path):
    result = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.stdout.startswith(f"{path}: cannot be written") and result.stdout.count("\n") == 1
    assert step_of(path) == 2 and step_of(f"{path}.previous") == 1 and len(os.listdir(path.parent)) == 2


def test_unwritable_paths(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "c", tmp_path / "file" / "c", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(UserError) as caught:
            write(path, 1)
        assert str(caught.value).startswith(str(path))
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "c", {}, {"rule": object()})
    assert os.listdir(tmp_path) == ["file"]


def test_every_by_seconds_and_by_epochs():
    now = [100.0]
    every = Every(30, clock=lambda: now[0])
    due = []
    for now[0] in (100.0, 129.9, 130.0, 131.0):
        due.append(every.due())
    assert due == [False, False, True, True] and every.due(epoch_end=True)
    now[0] = 145.0  # writing took until here
    every.done()
    now[0] = 174.9
    assert not every.due() and not every.due(epoch_end=True)
    ends = Every(None, clock=lambda: now[0])
    now[0] = 1e9
    assert not ends.due() and ends.due(epoch_end=True) and every.due()
    assert Every(0).due()
    for bad in (-1, math.nan, math.inf, "30", True):
        with pytest.raises(UserError, match="seconds"):
            Every(bad)


def test_writer_saves_and_waits_again(tmp_path):
    now, saved = [0.0], {"data": "abc", "configuration": {"seed": 1}}
    writer = checkpoint.Writer(tmp_path / "c", 30, {"fingerprint": saved}, clock=lambda: now[0])
    now[0] = 30.0
    assert writer.due()
    writer.save({"w": np.ones(2)}, {"t": 5})
    assert not writer.due() and checkpoint.load(tmp_path / "c")[1] == {"fingerprint": saved, "t": 5}
    now[0] = 60.0
    assert writer.due()


def arrays(rows=2000, features=50, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.random((rows, features)) * (rng.random((rows, features)) < 0.1)
    data_set = dataset.from_arrays(X, rng.integers(0, 2, rows))
    return {name: getattr(data_set, name).copy() for name in dataset.ARRAYS} | {"n_features": data_set.n_features}


@pytest.mark.parametrize("name", ["indptr", "indices", "values", "labels"])
def test_fingerprint_notices_any_edit_of_small_data(name):
    original = fingerprint(arrays(), {})["data"]
    assert fingerprint(arrays(), {})["data"] == original
    rng = np.random.default_rng(1)
    for _ in range(20):
        edited = arrays()
        edited[name][rng.integers(len(edited[name]))] += 1
        assert fingerprint(edited, {})["data"] != original
    assert fingerprint({**arrays(), "n_features": 51}, {})["data"] != original
    shorter = arrays()
    shorter[name] = shorter[name][:-1]
    assert fingerprint(shorter, {})["data"] != original
    assert fingerprint({**arrays(), name: arrays()[name].view(arrays()[name].dtype.newbyteorder())}, {})["data"] != original


def test_fingerprint_of_large_and_empty_arrays():
    large = {"labels": np.zeros(3_000_000, np.float32), "values": np.zeros(3_000_000, np.float32)}
    original = fingerprint(large, {})["data"]
    pages = [("labels", 1_234_567 + 1024 * page) for page in range(3)]  # of the others, one in three is read
    for name, spot in (*pages, ("values", 0), ("values", -1)):
        edited = {key: x.copy() for key, x in large.items()}
        edited[name][spot] = 1
        assert fingerprint(edited, {})["data"] != original
    ramp = np.arange(3_000_000, dtype=np.float32)
    assert fingerprint({"values": np.roll(ramp, 1)}, {})["data"] != fingerprint({"values": ramp}, {})["data"]
    assert fingerprint({"a": np.zeros(0)}, {})["data"] != fingerprint({"b": np.zeros(0)}, {})["data"]
    strided = np.arange(10)[::2]
    assert fingerprint({"a": strided}, {}) == fingerprint({"a": strided.copy()}, {})


def test_the_same_run_is_the_same_also_through_a_file(tmp_path):
    configuration = {"seed": np.int64(3), "lr": 0.1, "bound": math.nan, "stop": {"patience": 3}, "scale": 1, "p": Path("a")}
    saved = fingerprint(arrays(), configuration)
    checkpoint.save(tmp_path / "c", {}, {"fingerprint": saved})
    back = checkpoint.load(tmp_path / "c")[1]["fingerprint"]
    demand_same(back, fingerprint(arrays(), dict(reversed({**configuration, "scale": 1.0}.items()))))


def test_what_differs_is_named():
    saved = fingerprint(arrays(), {"seed": 1, "lr": 0.1, "stop": {"patience": 3, "tol": None}, "old": True, "rule": "x" * 99})
    now = fingerprint(arrays(), {"seed": 2, "lr": 0.1, "stop": {"patience": 4, "tol": None}, "rule": "y" * 99})
    with pytest.raises(UserError) as caught:
        demand_same(saved, now)
    message = str(caught.value)
    for part in ("seed 1 (now 2)", "stop.patience 3 (now 4)", "old true (now absent)", "rule"):
        assert part in message
    assert "lr" not in message and "tol" not in message and "data" not in message and "\n" not in message
    assert "x" * 60 not in message
    with pytest.raises(UserError, match="other data") as caught:
        demand_same(saved, fingerprint(arrays(seed=1), saved["configuration"]))
    assert "options" not in str(caught.value)
