"""The reader of .npz files against NumPy and scipy, and against damage of any kind."""

import io
import struct
import zipfile

import numpy as np
import pytest
from scipy import sparse
from tables import refused, table

from hogwild.data import formats
from hogwild.data.schema import Schema
from hogwild.errors import UserError

GOOD = {"indptr": np.array([0, 1, 3], np.int32), "indices": np.array([4, 0, 2], np.int32), "data": np.float32([1, 2, 3]),
        "shape": np.array([2, 5]), "y": np.array([1, 0], np.int8)}


def packed(save=np.savez, **change):
    out = io.BytesIO()
    save(out, **{**GOOD, **change})
    return out.getvalue()


@pytest.mark.parametrize("y, labels", [
    (np.array([2**53 + 1, 5]), [str(2**53 + 1), "5"]), (np.array([2**63, 1], np.uint64), [2.0**63, 1]),
    (np.array([2**63 + 1, 1], np.uint64), [str(2**63 + 1), "1"]), (np.array([16777217, -1]), [16777217, -1]),
    (np.array(["cat", "dög"]), ["cat", "dög"]), (np.array([b"cat", b"3"]), ["cat", "3"]), (np.array([True, False]), [1, 0]),
    (np.array([0.1, 1e-300]), [0.1, 1e-300]), (np.array([1, 2], ">i4"), [1, 2]), (np.array(["1", "2.50"]), [1, 2.5])])
def test_labels_of_any_kind(tmp_path, y, labels):
    formats.save_npz(tmp_path / "x.npz", np.eye(2), y)
    assert table(tmp_path / "x.npz")[1] == labels


def test_format_as_text_and_files_beyond_4_gb_in_their_headers(tmp_path):
    sparse.save_npz(tmp_path / "x.npz", sparse.csr_array(np.eye(2)))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive, archive.open("y.npy", "w", force_zip64=True) as member:
        np.save(member, np.array([1, 2]))
    assert table(tmp_path / "x.npz")[0].tolist() == [[1, 0], [0, 1]]
    (tmp_path / "x.npz").write_bytes(packed(format=np.array("csr")))
    assert table(tmp_path / "x.npz")[1] == [1, 0]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_flipped_bit_is_refused_or_harmless(tmp_path, save):
    content, path = packed(save), tmp_path / "x.npz"
    path.write_bytes(content)
    right = table(path)[:2]
    rng = np.random.default_rng(0)
    for place in range(0, len(content), 2):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            X, labels, _ = table(path)
        except UserError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path))
        else:  # a name of a member, a date
            np.testing.assert_array_equal(X, right[0])
            assert labels == right[1]


def with_header(text, name="indptr"):
    """The good archive, but an array of which the header says `text`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member, array in GOOD.items():
            with archive.open(f"{member}.npy", "w") as file:
                if member == name:
                    file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + array.tobytes())
                else:
                    np.save(file, array)
    return out.getvalue()


@pytest.mark.parametrize("shape", ["(1152921504606846976,)", "(-1,)", "(3.5,)", "(True,)", "(2, 2)", "((", "()", "'x'",
                                   "(99**99,)", "(4611686018427387904, 4)"])
@pytest.mark.parametrize("name", ["indptr", "y", "data", "shape"])
def test_absurd_headers(tmp_path, shape, name):
    (tmp_path / "x.npz").write_bytes(with_header(f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}", name))
    assert "save_npz" in refused(tmp_path / "x.npz")


def test_a_model_needs_no_labels(tmp_path):
    sparse.save_npz(tmp_path / "x.npz", sparse.csr_array(np.eye(2)))
    assert "no array 'y'" in refused(tmp_path / "x.npz")
    X, labels, source = table(tmp_path / "x.npz", schema=Schema("svmlight"))
    assert X.tolist() == [[1, 0], [0, 1]] and np.isnan(labels).all() and not source.labelled


def test_encrypted_and_other_archives(tmp_path):
    content = bytearray(packed())
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + flags] |= 1
    (tmp_path / "x.npz").write_bytes(content)
    assert "encrypted" in refused(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(packed(shape=np.array([2, 2**40])))
    assert "needed at most 2^32" in refused(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(packed(y=np.array([b"", b"a"])))
    assert "row 0" in refused(tmp_path / "x.npz")
