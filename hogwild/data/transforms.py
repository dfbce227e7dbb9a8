"""Transforms of the values: log, binary, l2, tfidf and scale, applied in the order in which they are named."""

import os
import tempfile
from dataclasses import replace

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.compiler.cache_folders import user_cache
from hogwild.kernels.data.csr import scale_rows
from hogwild.training.machine import memory

NAMES = ("log", "l2", "binary", "tfidf", "scale", "none")
LEARNT = {"tfidf": "idf", "scale": "scale"}  # what of the training data these need
BLOCK = 1 << 20  # entries transformed together


def parse(text) -> tuple:
    """Names in "log,l2"; "none" and "" are no transform. Raises UserError for an unknown name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise UserError(f"got transform {name!r}, needed one of {', '.join(NAMES)}; separate several by commas")
    if names.count("scale") > 1:
        raise UserError("got transform 'scale' twice, needed it once: it is fitted to the values as they come to it")
    return tuple(name for name in names if name != "none")


def fit(names, dataset, rows=None) -> dict:
    """Arrays float32[n_features] that the transforms learn from the rows to train on, int64[n]; None: from all.

    tfidf: idf = ln((1+n)/(1+df)) + 1. scale: the largest |x| of each feature as the transforms before it leave it, 1 where
    all are 0; to divide by it keeps zeros, as scikit-learn's MaxAbsScaler does.
    """
    own, state = np.ones(dataset.rows, bool), {}
    if rows is not None:
        own[:] = False
        own[rows] = True
    if "tfidf" in names:
        degrees = np.zeros(dataset.n_features, np.int64)
        for part, _, entries in _parts(dataset, own):
            degrees += np.bincount(part.indices[entries], minlength=dataset.n_features)
        state["idf"] = (np.log((1.0 + own.sum()) / (1.0 + degrees)) + 1.0).astype(np.float32)
    if "scale" in names:
        largest = np.zeros(dataset.n_features, np.float32)
        for part, start, entries in _parts(dataset, own):
            for name in names[:names.index("scale")]:
                part = replace(part, values=_transformed(name, state, part, start))
            np.maximum.at(largest, part.indices[entries], np.abs(part.values[entries]))
        state["scale"] = np.where(largest > 0, largest, np.float32(1))
    return state


def _parts(dataset, own):
    """Yield (consecutive rows, number of the first, mask of the entries whose rows are `own`)."""
    for start, stop in dataset.blocks(BLOCK):
        part = dataset.subset(start, stop)
        yield part, start, np.repeat(own[start:stop], np.diff(part.indptr))


def apply(names, state, dataset):
    """Dataset with new values beside the same indices and labels; `dataset` is not changed.

    Raises UserError for a value <= -1 under log, more features than a transform was fitted on, and a result out of range.
    """
    if not names:
        return dataset
    for name in LEARNT.keys() & names:
        if dataset.n_features > state[LEARNT[name]].size:
            raise UserError(f"{dataset.source}: has {dataset.n_features} features, {name} was fitted on "
                            f"{state[LEARNT[name]].size}; read both files with the same number of features")
    out = _new_values(dataset.nnz)
    for start, stop in dataset.blocks(BLOCK):
        part = dataset.subset(start, stop)
        for name in names:
            part = replace(part, values=_transformed(name, state, part, start))
        first = dataset.indptr[start]
        out[first:first + part.nnz] = part.values
    return replace(dataset, values=out)


def _transformed(name, state, part, first):
    if name == "binary":
        return (part.values != 0).astype(np.float32)
    if name == "l2":
        out = np.empty_like(part.values)
        scale_rows(part.csr, out)
        return out
    if name == "log":
        _demand(part.values > -1, part, first, "log needs values above -1; drop log from the transforms")
        return np.log1p(part.values)
    with np.errstate(over="ignore"):
        learnt = state[LEARNT[name]][part.indices]
        out = part.values / learnt if name == "scale" else part.values * learnt
    what = "over the largest of its feature" if name == "scale" else "times its idf"
    _demand(np.isfinite(out), part, first, f"{what} is over float32's range; scale the data")
    return out


def _demand(good, part, first, message):
    if not good.all():
        k = int(np.argmin(good))
        row = first + int(np.searchsorted(part.indptr, k, "right")) - 1
        raise UserError(f"{part.source}, row {row} (from 0): got value {part.values[k]:g}, {message}")


def _new_values(size):
    """float32[size] in memory, or in a file without a name where it would take over a quarter of the memory."""
    if 4 * size <= memory() // 4:
        return np.empty(size, np.float32)
    folder = user_cache()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, 4 * size)  # now, or a full disk would kill the process while it writes
            return np.memmap(file, np.float32, "r+", shape=(size,))
    except OSError as error:
        raise UserError(f"{folder}: {4 * size} bytes of transformed values cannot be written there ({error.strerror}); "
                        "free some space, or set XDG_CACHE_HOME to another disk") from None
