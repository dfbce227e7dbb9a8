"""Transforms of the values, row by row: log, binary, tfidf and l2, applied in the order in which they are named."""

import os
import tempfile
from dataclasses import replace

import numpy as np

from hogwild.errors import UserError
from kernels.csr import scale_rows
from kernels.folders import user_cache

NAMES = ("log", "l2", "binary", "tfidf", "none")
BLOCK = 1 << 20  # entries transformed together


def parse(text) -> tuple:
    """Names in "log,l2"; "none" and "" are no transform. Raises UserError for an unknown name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            raise UserError(f"got transform {name!r}, needed one of {', '.join(NAMES)}; separate several by commas")
    return tuple(name for name in names if name != "none")


def fit(names, dataset) -> dict:
    """Arrays the transforms learn from the training data: for tfidf, idf float32[n_features] = ln((1+n)/(1+df)) + 1."""
    if "tfidf" not in names:
        return {}
    return {"idf": (np.log((1.0 + dataset.rows) / (1.0 + dataset.degrees())) + 1.0).astype(np.float32)}


def apply(names, state, dataset):
    """Dataset with new values beside the same indices and labels; `dataset` is not changed.

    Raises UserError for a value <= -1 under log, more features than tfidf was fitted on, and a result out of range.
    """
    if not names:
        return dataset
    if "tfidf" in names and dataset.n_features > state["idf"].size:
        raise UserError(f"{dataset.source}: has {dataset.n_features} features, tfidf was fitted on "
                        f"{state['idf'].size}; read both files with the same number of features")
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
        out = part.values * state["idf"][part.indices]
    _demand(np.isfinite(out), part, first, "times its idf is over float32's range; scale the data")
    return out


def _demand(good, part, first, message):
    if not good.all():
        k = int(np.argmin(good))
        row = first + int(np.searchsorted(part.indptr, k, "right")) - 1
        raise UserError(f"{part.source}, row {row} (from 0): got value {part.values[k]:g}, {message}")


def _new_values(size):
    """float32[size] in memory, or in a file without a name where it would take over a quarter of the memory."""
    if 4 * size <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4:
        return np.empty(size, np.float32)
    folder = user_cache()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, 4 * size)  # now, or a full disk would kill the process while it writes
            return np.memmap(file, np.float32, "r+", shape=(size,))
    except OSError as error:
        raise UserError(f"{folder}: {4 * size} bytes of transformed values cannot be written there ({error.strerror}); "
                        "free some space, or set XDG_CACHE_HOME to another disk") from None
