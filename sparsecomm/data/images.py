"""Labelled images: MNIST's idx files, .npz archives, and the digits that scikit-learn brings along."""

import math
import re
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hogwild.data import files, formats, npz
from hogwild.data.files import excerpt, place
from hogwild.errors import UserError
from sparsecomm.data.folder import pick

MOST_CLASSES, MOST_CHANNELS = 1000, 3
SCAN = 4096  # images looked at together
WRITE_NPZ = "write it with numpy.savez(path, x=images, y=labels)"


class Images(NamedTuple):
    """Images with their classes, the bytes as they are in the file (mapped, where that is not compressed)."""

    x: np.ndarray  # uint8 or float32 [n, height, width, channels]
    y: np.ndarray  # int64[n], from 0
    source: str


class Split(NamedTuple):
    """What is trained on and what is held out: rows of images, of the same ones where a share was held out."""

    train: Images
    rows: np.ndarray  # int64
    test: Images | None
    test_rows: np.ndarray  # int64
    classes: int


def load(data=None, labels=None, test=None, test_labels=None, holdout=0.1, seed=0) -> Split:
    """Images for training and, from `test`, DATA's own test part, or a random share `holdout`, held-out ones.

    data, test: an idx file (labels: its labels; None: the file named alike beside it), a folder with MNIST's files, an
    .npz with x and y, or x_train, y_train, x_test and y_test; None: scikit-learn's digits. Raises UserError.
    """
    if (labels and data is None) or (test_labels and test is None):
        raise UserError("--labels needs DATA, and --test-labels needs --test: an idx file of images")
    train, held = digits() if data is None else _read(Path(data), labels, "train")
    if test is not None:
        held = read_test(test, test_labels)
    classes = int(train.y.max()) + 1
    if not 2 <= classes <= MOST_CLASSES:
        raise UserError(f"{train.source}: has labels up to {classes - 1}, needed classes numbered from 0 to at least 1 and "
                        f"at most {MOST_CLASSES - 1}; renumber them")
    if held is not None:
        check_like(held, train.x.shape[1:], classes)
        return Split(train, np.arange(len(train.y)), held, np.arange(len(held.y)), classes)
    order, cut = np.random.default_rng(seed).permutation(len(train.y)), int(holdout * len(train.y))
    return Split(train, np.sort(order[cut:]), train if cut else None, np.sort(order[:cut]), classes)


def read_test(path, labels=None) -> Images:
    """The images to test on in the file or folder `path`."""
    own, part = _read(Path(path), labels, "test")
    return part or own


def check_like(held, shape, classes):
    """Raise UserError unless the images have the shape (height, width, channels) and classes of those trained on."""
    over = np.flatnonzero(held.y >= classes)
    if over.size:
        raise UserError(f"{held.source}: image {over[0] + 1} has label {held.y[over[0]]}, the training images have up to "
                        f"{classes - 1}; drop it or train on all classes")
    if held.x.shape[1:] != tuple(shape):
        raise UserError(f"{held.source}: holds images of {_shape(held.x.shape[1:])}, the training images are "
                        f"{_shape(shape)}; bring them to one size")


def scales(images, rows) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard deviation) float32[channels] of the pixels of some rows; a constant channel has deviation 1."""
    total = np.zeros((2, images.x.shape[3]))
    for start in range(0, len(rows), SCAN):
        x = images.x[rows[start:start + SCAN]].astype(np.float64)
        total += x.sum((0, 1, 2)), np.square(x).sum((0, 1, 2))
    mean, square = total / (len(rows) * math.prod(images.x.shape[1:3]))
    deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
    return mean.astype(np.float32), np.where(deviation > 1e-6 * np.sqrt(square), deviation, 1.0).astype(np.float32)


def digits() -> tuple[Images, None]:
    """The 1,797 digits of 8x8 pixels that scikit-learn brings along (UCI, Alpaydin & Kaynak 1998)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("without DATA the digits of scikit-learn are needed: pip install '.[sklearn]', or "
                        "give DATA") from None
    found = load_digits()
    return Images(found.images.astype(np.uint8)[..., None], found.target.astype(np.int64), "scikit-learn's digits"), None


def _read(path, labels, part):
    """(images, test images where the source has them too); part: whether "train" or "test" is wanted of a source of both."""
    if not path.exists():
        files.opened(path)  # raises
    if path.is_dir():
        named = {"train": ("training images", "*train*images*"), "test": ("test images", "*t10k*images*", "*test*images*")}
        first = pick(path, *named[part])
        more = pick(path, *named["test"], needed=False) if part == "train" else None
        return _pair(first, labels), _pair(more, None) if more else None
    if formats.kind(path) == "npz":
        if labels:
            raise UserError(f"{place(path)}: an .npz holds its own labels; leave out the file {place(labels)}")
        return _read_npz(path, part)
    return _pair(path, labels), None


def _pair(path, labels):
    """Images of an idx file with the labels of another."""
    labels = labels or _labels_beside(path)
    x, y = read_idx(path), read_idx(labels)
    if x.ndim not in (3, 4):
        raise UserError(f"{place(path)}: holds an array of shape {x.shape}, needed images [n, height, width]; "
                        "is it the file of the labels?")
    if y.ndim != 1:
        raise UserError(f"{place(labels)}: holds an array of shape {y.shape}, needed labels [n]; is it the file of "
                        "the images?")
    return _checked(place(path), x, y, place(labels))


def _labels_beside(path):
    """The labels' file of an idx file of images, by MNIST's naming."""
    stem = re.sub(r"\.(gz|bz2|xz)$", "", path.name)
    name = re.sub(r"idx\d", "idx1", stem.replace("images", "labels"))
    found = [path.with_name(name + end) for end in ("", ".gz", ".bz2", ".xz") if path.with_name(name + end).is_file()]
    if name == stem or not found:
        expected = f"found no {name} beside it" if name != stem else "its name does not tell that of its labels"
        raise UserError(f"{place(path)}: {expected}; pass --labels FILE (--test-labels for --test)")
    return found[0]


def read_idx(path) -> np.ndarray:
    """uint8[…] of an idx file (plain, .gz, .bz2, .xz), mapped where it is not compressed. Raises UserError.

    Format: two zero bytes, the type (8: bytes), the number of dimensions, each of them as big-endian uint32, the values.
    """
    with files.opened(path) as file:
        head = file.peek(8)[:8]
        packed = any(head.startswith(magic) for magic in files.PACKED)
        content = b"".join(files.unpacked(path, file)) if packed else np.memmap(file, np.uint8, "r")
    head = bytes(content[:8])
    if len(head) < 4 or head[:2] != b"\0\0":
        raise UserError(f"{place(path)}: is no idx file, got {excerpt(head)}; needed MNIST's format, or a name "
                        "that ends in .npz")
    kind, dimensions = head[2:4]
    start = 4 + 4 * dimensions
    if kind != 8 or not dimensions:
        raise UserError(f"{place(path)}: is an idx file of type 0x{kind:02x} with {dimensions} dimensions, needed bytes "
                        f"(0x08) in at least one; {WRITE_NPZ}")
    if len(content) < start:
        raise UserError(f"{place(path)}: ends within its header of {start} bytes; copy it again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    needed, got = math.prod(shape), len(content) - start
    if got != needed:
        raise UserError(f"{place(path)}: holds {got:,} bytes behind its header, which says {needed:,} ({shape}); "
                        "copy it again")
    return np.frombuffer(content, np.uint8, needed, start).reshape(shape)


def _read_npz(path, part):
    """As `_read`, of an .npz."""
    try:
        with files.opened(path) as file, zipfile.ZipFile(file) as archive:
            held = {name.removesuffix(".npy").lower(): name for name in archive.namelist()}

            def take(x, y):
                arrays = []
                for name in (x, y):
                    if name not in held:
                        raise UserError(f"{place(path)}: has no array {name!r}, got {excerpt(', '.join(held))}; "
                                        f"{WRITE_NPZ}, or with x_train, y_train, x_test and y_test")
                    member, shape, fortran, dtype = npz.opened_array(archive, held[name])
                    if dtype.hasobject:
                        raise ValueError("Python objects")
                    arrays.append(np.frombuffer(member.read(), dtype).reshape(shape, order="F" if fortran else "C"))
                return _checked(f"{place(path)}, {x}", *arrays, f"{place(path)}, {y}")

            if f"x_{part}" not in held:
                return take("x", "y"), None
            more = part == "train" and "x_test" in held
            return take(f"x_{part}", f"y_{part}"), take("x_test", "y_test") if more else None
    except UserError:
        raise
    except Exception as error:  # NumPy evaluates the text of a header: a damaged one makes it raise anything
        raise UserError(f"{place(path)}: truncated, corrupt or no .npz file ({excerpt(error)}); {WRITE_NPZ}") from None


def _checked(source, x, y, labels_source):
    """Images of arrays as they were read: x [n, d], [n, h, w], [n, h, w, c] or [n, c, h, w], y [n] or [n, 1]."""
    if x.dtype.kind not in "uifb" or x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise UserError(f"{source}: has shape {x.shape} and dtype {x.dtype}, needed numbers [n, height, width] or "
                        f"[n, height, width, channels] with n >= 1; reshape them")
    x = x.reshape(len(x), *{2: (1, -1, 1), 3: (*x.shape[1:], 1), 4: x.shape[1:]}[x.ndim])
    if x.shape[3] > MOST_CHANNELS and x.shape[1] <= MOST_CHANNELS:
        x = np.moveaxis(x, 1, 3)
    if x.shape[3] > MOST_CHANNELS:
        raise UserError(f"{source}: has {x.shape[3]} channels, needed at most {MOST_CHANNELS}, [n, height, width, channels]; "
                        "reshape or drop some")
    if x.dtype.kind in "uib" and x.min() >= 0 and x.max() <= 255:
        x = x.astype(np.uint8, copy=False)
    if x.dtype != np.uint8:
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        good = np.isfinite(x).all((1, 2, 3))
        if not good.all():
            raise UserError(f"{source}: image {np.argmin(good) + 1} holds a value that is not finite in float32; replace "
                            "it or drop the image")
    y = y.ravel() if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or y.dtype.kind not in "uifb" or len(y) != len(x):
        raise UserError(f"{labels_source}: holds {_count(y)}, needed one number for each of the {len(x):,} images of "
                        f"{source}; are these files of one set?")
    bad = np.flatnonzero(~((y >= 0) & (y < MOST_CLASSES) & (y == np.floor(y))))
    if bad.size:
        raise UserError(f"{labels_source}: label {bad[0] + 1} is {y[bad[0]]}, needed whole numbers from 0 to "
                        f"{MOST_CLASSES - 1}; renumber the classes")
    return Images(x, y.astype(np.int64), source)


def _count(y):
    numbers = y.ndim == 1 and y.dtype.kind in "uifb"
    return f"{len(y):,} labels" if numbers else f"an array of shape {y.shape} and dtype {y.dtype}"


def _shape(shape):
    return " x ".join(map(str, shape))
