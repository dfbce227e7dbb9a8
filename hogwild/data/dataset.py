"""The one form of all data, CSR with labels: read from files through a cache of memory maps, or made from arrays."""

from dataclasses import dataclass, replace

import numpy as np

from hogwild.data import cache as store
from hogwild.data import features, formats, npz
from hogwild.data.cache import ARRAYS
from hogwild.data.labels import Coder
from hogwild.data.schema import Schema
from hogwild.errors import UserError
from hogwild.kernels.data import csr
from hogwild.kernels.data.csr import CSR

SCAN = 1 << 22  # entries looked at together


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows of sparse features with labels, all read-only: one Numba type, whether mapped from disk or in memory."""

    indptr: np.ndarray  # int64[n + 1], from 0
    indices: np.ndarray  # uint32[nnz], strictly increasing in a row
    values: np.ndarray  # float32[nnz]
    labels: np.ndarray  # float64[n]: numbers, or codes into names; NaN where the file has none
    n_features: int
    source: str
    names: tuple[str, ...] | None = None  # of the labels, ascending, where these are text
    ids: np.ndarray | None = None  # uint32[n_features], ascending: the features' numbers in the file, where few of many occur
    width: int | None = None  # features that the file's numbers reach to
    schema: Schema = Schema("array")  # how the file was read
    notes: tuple[str, ...] = ()  # lines for the user on how it was read
    labelled: bool = True  # False: a table without its label column

    def __post_init__(self):
        object.__setattr__(self, "width", self.n_features if self.width is None else self.width)
        for name, dtype in ARRAYS.items():
            array = np.ascontiguousarray(getattr(self, name), dtype).view(np.ndarray)
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def rows(self) -> int:
        return self.labels.size

    @property
    def nnz(self) -> int:
        return self.indices.size

    @property
    def csr(self) -> CSR:
        return CSR(self.indptr, self.indices, self.values)

    def content(self) -> dict:
        """All that makes this data set what it is, arrays by name, for a fingerprint."""
        names = np.frombuffer("\0".join(self.names or ()).encode(), np.uint8)
        ids = np.zeros(0, np.uint32) if self.ids is None else self.ids
        return {name: getattr(self, name) for name in ARRAYS} | {"n_features": self.n_features, "ids": ids, "names": names}

    def where(self, row) -> str:
        """`FILE, line N` of a row (from 0), its CSV taken to begin with names, or not, as when it was read."""
        return formats.where(self.source, row, {None: "auto", True: "yes", False: "no"}[self.schema.header])

    def degrees(self):
        """Rows that have each feature, int64[n_features]."""
        count = np.zeros(self.n_features, np.int64)
        csr.degrees(self.csr, count)
        return count

    def subset(self, start, stop) -> "Dataset":
        """Rows start … stop - 1, sharing entries and labels; the row pointers alone are copied, to begin at 0."""
        first, last = self.indptr[start], self.indptr[stop]
        return replace(self, indptr=self.indptr[start:stop + 1] - first, indices=self.indices[first:last],
                       values=self.values[first:last], labels=self.labels[start:stop])

    def blocks(self, entries=SCAN):
        """Yield (start, stop) of consecutive rows with at most `entries` entries together, or one row."""
        start = 0
        while start < self.rows:
            stop = int(np.searchsorted(self.indptr, self.indptr[start] + entries, "right")) - 1
            stop = min(max(stop, start + 1), start + entries)
            yield start, stop
            start = stop


def select(dataset, rows) -> Dataset:
    """Copy of the given rows (int array), in that order."""
    starts, lengths = dataset.indptr[rows], dataset.indptr[rows + 1] - dataset.indptr[rows]
    indptr = np.concatenate(([0], np.cumsum(lengths)))
    entries = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
    return replace(dataset, indptr=indptr, indices=dataset.indices[entries], values=dataset.values[entries],
                   labels=dataset.labels[rows])


def from_arrays(X, y, source="array", narrow=True) -> Dataset:
    """Dataset of a scipy sparse matrix of any format or a 2-D array X [n, d] and labels y [n], neither of them changed.

    Duplicates are summed, indices sorted, zeros of a dense X dropped; narrow: where few of many features occur, these alone
    are numbered (`ids`). Whatever has the right form already (CSR with sorted and unique int32 indices, float32 values,
    float64 labels) is not copied, so leave it unchanged while the dataset is in use. Raises UserError, which names the row.
    """
    try:
        y, X = np.asarray(y), X if hasattr(X, "tocsr") else np.asarray(X)
    except ValueError:
        raise UserError(f"{source}: rows of different lengths, needed a matrix; pad them") from None
    for name, array in (("X", X), ("y", y)):
        if array.dtype.kind not in "iufb":
            raise UserError(f"{source}: {name} has dtype {array.dtype}, needed real numbers; convert it")
    if X.ndim != 2 or y.shape != X.shape[:1] or X.shape[0] == 0:
        raise UserError(f"{source}: X has shape {X.shape} and y {y.shape}, needed [n, d] and [n] with n >= 1; "
                        "reshape them")
    if hasattr(X, "tocsr"):
        rows = X.tocsr()  # X itself where it is CSR
        if not rows.has_canonical_format:
            rows = rows.copy() if rows is X else rows
            rows.sum_duplicates()
        indptr, indices, values = rows.indptr, rows.indices[:rows.indptr[-1]], rows.data[:rows.indptr[-1]]
    else:
        indptr, indices, values = _compressed(X)
    good = not indices.size or (indices.min() >= 0 and indices.max() < min(X.shape[1], 2**32))
    if good:
        indices, ids, coder = indices.view(np.uint32) if indices.dtype == np.int32 else indices, None, Coder()
        if narrow and X.shape[1] > features.WIDE:
            indices = indices.astype(np.uint32)
            ids = features.narrowed(indices, X.shape[1])
        labels = coder(y)
        with np.errstate(over="ignore", invalid="ignore"):
            dataset = Dataset(indptr, indices, values, labels, X.shape[1] if ids is None else ids.size, source,
                              coder.finished(labels), ids, X.shape[1])
        good = csr.check(dataset.csr, dataset.n_features)[0] == csr.OK and np.isfinite(dataset.labels).all()
    if not good:
        npz.checked(source, 0, y, indptr, indices, values, X.shape[1])  # raises, and names the row
    return dataset


def _compressed(X):
    """(indptr, indices uint32, values float32) of a 2-D array, made from a few rows at a time."""
    step = max(SCAN // max(X.shape[1], 1), 1)
    parts = [X[start:start + step] for start in range(0, len(X), step)]
    indptr = np.concatenate(([0], np.cumsum(np.concatenate([np.count_nonzero(part, axis=1) for part in parts]))))
    indices, values, at = np.empty(indptr[-1], np.uint32), np.empty(indptr[-1], np.float32), 0
    for part in parts:
        row, column = part.nonzero()
        indices[at:at + len(row)] = column
        with np.errstate(over="ignore"):
            values[at:at + len(row)] = part[row, column]
        at += len(row)
    return indptr, indices, values


def read(path, *, n_features=None, cache=True, **options) -> Dataset:
    """Dataset of an svmlight, table or .npz file, mapped from the parsed copy in the cache, so it may exceed memory.

    options: those of formats.source, such as zero_based, label, and schema, with which a file is read as an earlier one was.
    n_features: most features, by default what the file tells. cache=False: the parsed copy is a temporary file that
    vanishes with the dataset. Raises UserError.
    """
    source = formats.source(path, **options)
    try:
        arrays, known = store.parsed(source, cache)
    except OSError as error:
        raise UserError(f"{source.name}: cannot be read ({error.strerror or error}); try again") from None
    names = known["names"]
    dataset = Dataset(**arrays, n_features=known["n_features"], source=source.name, names=names and tuple(names),
                      width=known["width"], schema=Schema.from_json(known["schema"]), labelled=known["labelled"],
                      notes=tuple(f"{source.name}: {note}" for note in known["notes"]))
    if n_features is None:
        return dataset
    if dataset.width > n_features:
        _refuse_width(source, dataset, n_features)
    # Of those that no row has there are none to be learnt: arrays of them would only cost.
    own = dataset.n_features if dataset.ids is not None or features.too_wide(n_features, dataset.n_features) else n_features
    return replace(dataset, width=n_features, n_features=own)


def _refuse_width(source, dataset, n_features):
    """Raise the UserError for a file with more than n_features features; of text, at the first line that shows it."""
    say = "raise the number of features or leave it out"
    if dataset.schema.kind != "svmlight":
        raise UserError(f"{source.name}: got {dataset.width} features, needed at most {n_features}; {say}")
    ids = dataset.ids
    first = n_features if ids is None else int(np.searchsorted(ids, n_features))
    over = (start + np.flatnonzero(dataset.indices[start:start + SCAN] >= first) for start in range(0, dataset.nnz, SCAN))
    entry = next(found[0] for found in over if found.size)
    row = int(np.searchsorted(dataset.indptr, entry, "right")) - 1
    where = formats.where(source.path, row)
    base, index = 0 if dataset.schema.zero_based else 1, int(dataset.indices[entry])
    got, top = (index if ids is None else int(ids[index])) + base, n_features - 1 + base
    raise UserError(f"{where}: got index {got}, needed at most {top}; {say}")
