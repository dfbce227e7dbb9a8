"""Readers of labelled images against files that NumPy, struct and scikit-learn wrote, and what is said of bad ones."""

import bz2
import gzip
import lzma
import struct

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hogwild.errors import UserError
from sparsecomm.data import images

PACK = {"": lambda raw: raw, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def idx(array, kind=8) -> bytes:
    """MNIST's format: 0 0 type dimensions, sizes big-endian, bytes."""
    return bytes((0, 0, kind, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def made(n=20, height=5, width=4, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes).astype(np.uint8)
    return rng.integers(256, size=(n, height, width), dtype=np.uint8), y


def written(folder, x, y, part="train", end=".gz"):
    folder.mkdir(exist_ok=True)
    (folder / f"{part}-images-idx3-ubyte{end}").write_bytes(PACK[end](idx(x)))
    (folder / f"{part}-labels-idx1-ubyte{end}").write_bytes(PACK[end](idx(y)))
    return folder / f"{part}-images-idx3-ubyte{end}"


@pytest.mark.parametrize("end", PACK)
def test_idx_files_in_every_packing(tmp_path, end):
    x, y = made()
    path = written(tmp_path, x, y, end=end)
    split = images.load(path, holdout=0)
    assert np.array_equal(split.train.x[..., 0], x) and np.array_equal(split.train.y, y)
    assert split.train.x.dtype == np.uint8 and split.classes == 3 and split.test is None and not len(split.test_rows)
    assert split.rows.tolist() == list(range(20))


def test_labels_of_their_own_name(tmp_path):
    x, y = made()
    (tmp_path / "pictures").write_bytes(idx(x))
    (tmp_path / "classes.xz").write_bytes(lzma.compress(idx(y)))
    assert np.array_equal(images.load(tmp_path / "pictures", tmp_path / "classes.xz").train.y, y)
    with pytest.raises(UserError, match="pictures: its name does not tell that of its labels; pass --labels"):
        images.load(tmp_path / "pictures")


def test_folder_of_mnist(tmp_path):
    (x, y), (u, v) = made(), made(8, seed=1)
    written(tmp_path, x, y)
    written(tmp_path, u, v, "t10k", "")
    split = images.load(tmp_path)
    assert np.array_equal(split.test.x[..., 0], u) and np.array_equal(split.test.y, v) and len(split.test_rows) == 8
    assert len(split.rows) == 20


def test_share_held_out(tmp_path):
    path = written(tmp_path, *made(50))
    split, again, other = (images.load(path, holdout=0.2, seed=seed) for seed in (3, 3, 4))
    assert len(split.test_rows) == 10 and split.test is split.train
    assert sorted([*split.rows, *split.test_rows]) == list(range(50))
    assert np.array_equal(split.rows, again.rows) and not np.array_equal(split.test_rows, other.test_rows)


@pytest.mark.parametrize("keys", [("x", "y"), ("X", "y"), ("x_train", "y_train", "x_test", "y_test")])
def test_npz(tmp_path, keys):
    (x, y), (u, v) = made(), made(8, seed=1)
    np.savez_compressed(tmp_path / "a.npz", **dict(zip(keys, (x, y, u, v))))
    split = images.load(tmp_path / "a.npz", holdout=0)
    assert np.array_equal(split.train.x[..., 0], x) and np.array_equal(split.train.y, y)
    assert split.test is None if len(keys) == 2 else np.array_equal(split.test.x[..., 0], u)
    both = images.load(tmp_path / "a.npz", test=tmp_path / "a.npz")
    assert np.array_equal(both.test.x[..., 0], x if len(keys) == 2 else u)


@pytest.mark.parametrize("shape, becomes", [((6, 4), (6, 1, 4, 1)), ((6, 4, 5), (6, 4, 5, 1)), ((6, 4, 5, 3), (6, 4, 5, 3)),
                                            ((6, 3, 4, 5), (6, 4, 5, 3))])
def test_npz_shapes_and_types(tmp_path, shape, becomes):
    rng = np.random.default_rng(0)
    for x in (rng.integers(256, size=shape), rng.standard_normal(shape), rng.random(shape) < 0.5):
        np.savez(tmp_path / "a.npz", x=x, y=np.arange(6.0)[:, None] % 2)
        got = images.load(tmp_path / "a.npz").train.x
        assert got.shape == becomes and got.dtype == (np.float32 if x.dtype == np.float64 else np.uint8)
        want = np.moveaxis(x, 1, 3) if shape == (6, 3, 4, 5) else x.reshape(becomes)
        assert np.array_equal(got, want.astype(got.dtype))


def test_digits():
    split, digits = images.load(), load_digits()
    assert np.array_equal(split.train.x[..., 0], digits.images) and np.array_equal(split.train.y, digits.target)
    assert split.train.x.dtype == np.uint8 and len(split.test_rows) == 179


def test_scales(tmp_path):
    x = np.random.default_rng(0).integers(256, size=(30, 5, 4, 3))
    x[..., 2] = 7
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(30) % 2)
    split = images.load(tmp_path / "a.npz")
    mean, deviation = images.scales(split.train, split.rows)
    own = x[split.rows].reshape(-1, 3)
    assert np.allclose(mean, own.mean(0)) and np.allclose(deviation[:2], own.std(0)[:2]) and deviation[2] == 1


def test_mnist(data_set):
    split = images.load(data_set("mnist"))
    assert split.train.x.shape == (60_000, 28, 28, 1) and split.test.x.shape == (10_000, 28, 28, 1)
    assert np.bincount(split.train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


X, Y = made()
XZ = lzma.compress(idx(X))
GOOD = {"train-images-idx3-ubyte": idx(X), "train-labels-idx1-ubyte": idx(Y)}
BAD_FILES = {
    "no idx": ({"train-images-idx3-ubyte": b"P5 28 28"}, "train-images-idx3-ubyte: is no idx file, got 'P5 28 28'"),
    "a zip": ({"train-images-idx3-ubyte": b"PK\3\4xxxx"}, "is no idx file, got .*a name that ends in .npz"),
    "empty": ({"train-images-idx3-ubyte": b""}, "is empty"),
    "missing": ({"train-images-idx3-ubyte": None}, "needed one file of training images .* got none"),
    "several": ({"a-train-images": idx(X)}, "needed one file of training images .* got a-train-images, train-images"),
    "no labels": ({"train-labels-idx1-ubyte": None}, "found no train-labels-idx1-ubyte beside it; pass --labels"),
    "floats": ({"train-images-idx3-ubyte": idx(X, 13)}, "type 0x0d with 3 dimensions, needed bytes"),
    "cut header": ({"train-images-idx3-ubyte": idx(X)[:9]}, "ends within its header of 16 bytes; copy it again"),
    "cut": ({"train-images-idx3-ubyte": idx(X)[:-1]}, r"holds 399 bytes behind its header, which says 400 .*copy it again"),
    "too long": ({"train-images-idx3-ubyte": idx(X) + b"\0"}, "holds 401 bytes behind its header, which says 400"),
    "cut gz": ({"train-images-idx3-ubyte": gzip.compress(idx(X))[:-20]}, "truncated compressed file .*copy it again"),
    "corrupt xz": ({"train-images-idx3-ubyte": XZ[:200] + bytes(6) + XZ[206:]}, "corrupt compressed file"),
    "labels for images": ({"train-images-idx3-ubyte": idx(Y)}, "shape .20,., needed images .*is it the file of the labels"),
    "images for labels": ({"train-labels-idx1-ubyte": idx(X)}, "needed labels .*is it the file of the images"),
    "no images": ({"train-images-idx3-ubyte": idx(X[:0])}, "needed numbers .* with n >= 1"),
    "counts": ({"train-labels-idx1-ubyte": idx(Y[:-1])}, "train-labels-idx1-ubyte: holds 19 labels, needed one number "
               "for each of the 20 images of .*train-images.* are these files of one set"),
    "one class": ({"train-labels-idx1-ubyte": idx(0 * Y)}, "has labels up to 0, needed classes"),
    "test classes": ({"t10k-images-idx3-ubyte": idx(X), "t10k-labels-idx1-ubyte": idx(Y + 1)},
                     "t10k.*has label 3, the training images have up to 2"),
    "test sizes": ({"t10k-images-idx3-ubyte": idx(X.reshape(20, 4, 5)), "t10k-labels-idx1-ubyte": idx(Y)},
                   "t10k.*holds images of 4 x 5 x 1, the training images are 5 x 4 x 1"),
}


@pytest.mark.parametrize("files, message", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(tmp_path, files, message):
    for name, raw in (GOOD | files).items():
        if raw is not None:
            (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=message) as told:
        images.load(tmp_path)
    assert "\n" not in str(told.value) and str(tmp_path) in str(told.value)


BAD_NPZ = {
    "no labels": ({"x": X}, "has no array 'y', got 'x'; write it with"),
    "no images": ({"y": Y}, "has no array 'x'"),
    "half of a test part": ({"x_train": X, "y_train": Y, "x_test": X}, "has no array 'y_test'"),
    "counts": ({"x": X, "y": Y[:-1]}, "a.npz, y: holds 19 labels, needed one number for each of the 20 images"),
    "matrix of labels": ({"x": X, "y": np.eye(20)}, r"a.npz, y: holds an array of shape \(20, 20\) and dtype float64"),
    "words": ({"x": X, "y": Y.astype(str)}, "y: holds an array of shape .20,. and dtype <U3"),
    "objects": ({"x": X, "y": Y.astype(object)}, "truncated, corrupt or no .npz"),
    "negative label": ({"x": X, "y": Y - 1.0}, "a.npz, y: label .* is -1.0, needed whole numbers from 0 to 999"),
    "half a label": ({"x": X, "y": Y + 0.5}, "needed whole numbers from 0"),
    "many classes": ({"x": X, "y": Y + 999.0}, r"is 100\d.0, needed whole numbers from 0 to 999"),
    "NaN label": ({"x": X, "y": Y * np.nan}, "label 1 is nan"),
    "NaN": ({"x": np.where(np.arange(20)[:, None, None] == 6, np.nan, X), "y": Y},
            "x: image 7 holds a value that is not finite"),
    "over range": ({"x": X * 1e300, "y": Y}, "not finite in float32"),
    "one dimension": ({"x": Y, "y": Y}, r"a.npz, x: has shape \(20,\) and dtype uint8, needed numbers \[n"),
    "complex": ({"x": X + 1j, "y": Y}, "dtype complex128, needed numbers"),
    "channels": ({"x": np.zeros((20, 5, 5, 4)), "y": Y}, "has 4 channels, needed at most 3"),
}


@pytest.mark.parametrize("arrays, message", BAD_NPZ.values(), ids=BAD_NPZ)
def test_bad_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message) as told:
        images.load(tmp_path / "a.npz")
    assert "\n" not in str(told.value) and "a.npz" in str(told.value)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-30], lambda raw: b"\0" + raw[1:], lambda raw: b"no zip at all",
                                    lambda raw: raw[:200] + bytes(200) + raw[400:],
                                    lambda raw: raw.replace(b"'shape': (", b"'shape': (("),
                                    lambda raw: raw.replace(b"'shape': (", b"'shape': 9*(", 1)])
def test_damaged_npz(tmp_path, damage):
    save = np.savez if b"(" in damage(b"'shape': (") else np.savez_compressed
    save(tmp_path / "a.npz", x=X, y=Y)
    (tmp_path / "a.npz").write_bytes(damage((tmp_path / "a.npz").read_bytes()))
    with pytest.raises(UserError, match="a.npz: truncated, corrupt or no .npz file"):
        images.load(tmp_path / "a.npz")


def test_options_that_say_nothing(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    with pytest.raises(UserError, match="an .npz holds its own labels"):
        images.load(tmp_path / "a.npz", labels=tmp_path / "b")
    for options in ({"labels": "b"}, {"test_labels": "b"}):
        with pytest.raises(UserError, match="--labels needs DATA"):
            images.load(**options)
    with pytest.raises(UserError, match="nowhere: cannot be read .No such file"):
        images.load(tmp_path / "nowhere", labels=tmp_path / "a.npz")


def test_no_scikit_learn(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install '\.\[sklearn\]', or give DATA"):
        images.load()
