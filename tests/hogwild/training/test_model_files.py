"""Model files: round trips, every kind of damage, and writes that fail half-way."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hogwild.errors import UserError
from hogwild.training import model_files

DTYPES = [np.float32, np.float64, np.uint32, np.int64, np.uint8, np.bool_, np.dtype(">f4")]
arrays = st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=4)))
header_values = st.one_of(st.integers(), st.text(), st.floats(allow_nan=False), st.none(), st.lists(st.text()))


def small(path):
    tensors = {"weights": np.arange(3, dtype=np.float32), "idf": np.ones(2)}
    model_files.save(path, tensors, {"family": "linear", "note": "é\n\""})
    return path.read_bytes()


def refused(path, *parts):
    with pytest.raises(UserError) as caught:
        model_files.load(path)
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in (str(path), *parts)), message


@given(st.dictionaries(st.text(min_size=1).filter(lambda s: s != "__metadata__"), arrays, max_size=4),
       st.dictionaries(st.text().filter(lambda s: s != "format"), header_values, max_size=4))
def test_round_trip(tmp_path_factory, tensors, header):
    path = tmp_path_factory.getbasetemp() / "round-trip"
    model_files.save(path, tensors, header)
    back, found = model_files.load(path)
    assert found == header and back.keys() == tensors.keys()
    for name, x in tensors.items():
        assert back[name].dtype == x.dtype.newbyteorder("=") and back[name].shape == x.shape
        assert back[name].tobytes() == x.astype(back[name].dtype).tobytes()
    foreign = safetensors.numpy.load_file(path)
    assert foreign.keys() == tensors.keys()


def test_strided_tensors_and_equal_bytes(tmp_path):
    theta = np.arange(12, dtype=np.float32).reshape(6, 2)
    for name in "ab":
        model_files.save(tmp_path / name, {"w": theta[:, 0], "g": theta.T}, {"z": 1, "a": 2})
    back, _ = model_files.load(tmp_path / "a")
    assert np.array_equal(back["w"], theta[:, 0]) and np.array_equal(back["g"], theta.T) and back["w"].flags.writeable
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_bit_flipped(tmp_path):
    path = tmp_path / "m"
    whole = small(path)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused(path)
    path.write_bytes(whole)
    assert model_files.load(path)[1]["note"] == "é\n\""


def test_cut_at_every_byte_and_grown(tmp_path):
    path = tmp_path / "m"
    whole = small(path)
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        refused(path)
    path.write_bytes(whole + b"\0")
    refused(path)


def test_not_a_model(tmp_path):
    refused(tmp_path / "missing", "no such file")
    refused(tmp_path, "not a file")
    (tmp_path / "text").write_text("1 3:0.5\n" * 100)
    refused(tmp_path / "text", "not a model")
    safetensors.numpy.save_file({"a": np.ones(3)}, tmp_path / "foreign")
    refused(tmp_path / "foreign", "not written by hogwild")


def test_newer_format(tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "FORMAT", 2)
    small(tmp_path / "m")
    monkeypatch.undo()
    refused(tmp_path / "m", "format 2", "update")


LIMITED = """
import json, resource, sys
import numpy as np
from hogwild.training import model_files
from hogwild.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    if sys.argv[2] == "model":
        model_files.save(sys.argv[1], {"w": np.zeros(100_000)}, {})
    else:
        model_files.write_atomically(sys.argv[1], [bytes(150_000), bytes(50_000)])
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["model", "bytes"])
def test_full_disk(tmp_path, what):
    path = tmp_path / "m"
    old = small(path)
    root = os.path.dirname(os.path.dirname(os.path.dirname(model_files.__file__)))
    result = subprocess.run([sys.executable, "-c", LIMITED, path, what], capture_output=True, text=True,
                            env={**os.environ, "PYTHONPATH": root}, check=True)
    assert str(path) in result.stdout and "large" in result.stdout and result.stdout.count("\n") == 1
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_interrupted_or_failed_late(tmp_path, monkeypatch, error, where):
    path = tmp_path / "m"
    old = small(path)

    def fail(*_):
        raise error
    monkeypatch.setattr(model_files.os, where, fail)
    with pytest.raises(UserError if isinstance(error, OSError) else error):
        model_files.save(path, {"w": np.zeros(5)}, {})
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["m"]


def test_header_that_json_cannot_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        model_files.save(tmp_path / "m", {}, {"a": object()})
    assert not os.listdir(tmp_path)


def test_unwritable_paths(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "none" / "m", tmp_path / "file" / "m", tmp_path / "fifo", tmp_path / ("x" * 300)):
        with pytest.raises(UserError) as caught:
            model_files.check_writable(path)
        assert str(path) in str(caught.value)
        if path.name != "fifo":
            with pytest.raises(UserError):
                model_files.save(path, {"w": np.zeros(5)}, {})
    assert sorted(os.listdir(tmp_path)) == ["fifo", "file"]


def test_check_writable_changes_nothing(tmp_path):
    old = small(tmp_path / "m")
    model_files.check_writable(tmp_path / "m")
    model_files.check_writable(tmp_path / "new")
    assert (tmp_path / "m").read_bytes() == old and os.listdir(tmp_path) == ["m"]


def test_symbolic_link_is_kept_and_mode_is_the_users(tmp_path):
    small(tmp_path / "target")
    (tmp_path / "link").symlink_to("target")
    model_files.save(tmp_path / "link", {"w": np.ones(7)}, {"n": 1})
    assert (tmp_path / "link").is_symlink() and model_files.load(tmp_path / "target")[1] == {"n": 1}
    (tmp_path / "plain").touch()
    assert (tmp_path / "target").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_header_is_readable_by_others(tmp_path):
    small(tmp_path / "m")
    with safetensors.safe_open(tmp_path / "m", "numpy") as file:
        text = file.metadata()["hogwild"].partition(" ")[2]
    assert json.loads(text) == {"format": 1, "family": "linear", "note": "é\n\""}
