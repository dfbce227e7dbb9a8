"""The one form of all data, CSR with labels: read from files through a cache of memory maps, or taken from arrays."""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hogwild import formats
from hogwild.errors import UserError
from kernels import csr
from kernels.csr import CSR
from kernels.folders import own_folder, remove_stale, user_cache

FORMAT_VERSION = 1  # of the cache's files and of what the readers make of a text; part of the key
ARRAYS = {"indptr": np.int64, "indices": np.uint32, "values": np.float32, "labels": np.float32}
SETTLED_NS = 2 * 10**9  # a file younger than this may change again within one tick of its modification time
SCAN = 1 << 22  # entries looked at together


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows of sparse features with labels, all read-only: one Numba type, whether mapped from disk or in memory."""

    indptr: np.ndarray  # int64[n + 1], from 0
    indices: np.ndarray  # uint32[nnz], strictly increasing in a row
    values: np.ndarray  # float32[nnz]
    labels: np.ndarray  # float32[n]
    n_features: int
    source: str

    def __post_init__(self):
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

    def degrees(self):
        """Rows that have each feature, int64[n_features]."""
        count = np.zeros(self.n_features, np.int64)
        csr.degrees(self.csr, count)
        return count

    def subset(self, start, stop) -> "Dataset":
        """Rows start … stop - 1, sharing entries and labels; the row pointers alone are copied, to begin at 0."""
        first, last = self.indptr[start], self.indptr[stop]
        return Dataset(self.indptr[start:stop + 1] - first, self.indices[first:last], self.values[first:last],
                       self.labels[start:stop], self.n_features, self.source)

    def blocks(self, entries=SCAN):
        """Yield (start, stop) of consecutive rows with at most `entries` entries together, or one row."""
        start = 0
        while start < self.rows:
            stop = int(np.searchsorted(self.indptr, self.indptr[start] + entries, "right")) - 1
            stop = min(max(stop, start + 1), start + entries)
            yield start, stop
            start = stop


def take(dataset, rows) -> Dataset:
    """Copy of the given rows (int array), in that order."""
    starts, lengths = dataset.indptr[rows], dataset.indptr[rows + 1] - dataset.indptr[rows]
    indptr = np.concatenate(([0], np.cumsum(lengths)))
    entries = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
    return Dataset(indptr, dataset.indices[entries], dataset.values[entries], dataset.labels[rows],
                   dataset.n_features, dataset.source)


def from_arrays(X, y, source="array") -> Dataset:
    """Dataset of a scipy sparse matrix of any format or a 2-D array X [n, d] and labels y [n], neither of them changed.

    Duplicates are summed, indices sorted, zeros of a dense X dropped. Whatever has the right form already (CSR with sorted
    and unique int32 indices, float32 values and labels) is not copied, so leave it unchanged while the dataset is in use.
    Raises UserError, which names the row.
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
        indices = indices.view(np.uint32) if indices.dtype == np.int32 else indices
        with np.errstate(over="ignore", invalid="ignore"):
            dataset = Dataset(indptr, indices, values, y, X.shape[1], source)
        good = csr.check(dataset.csr, X.shape[1])[0] == csr.OK and np.isfinite(dataset.labels).all()
    if not good:
        formats.checked(source, 0, y, indptr, indices, values, X.shape[1])  # raises, and names the row
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


def read(path, *, zero_based=False, label=None, n_features=None, cache=True) -> Dataset:
    """Dataset of an svmlight, .csv or .npz file, mapped from the parsed copy in the cache, so it may exceed memory.

    zero_based: svmlight indices count from 0; label: the CSV column of labels; n_features: by default what the file
    tells. cache=False: the parsed copy is a temporary file that vanishes with the dataset. Raises UserError.
    """
    try:
        before = os.stat(path)
        cache = cache and stat.S_ISREG(before.st_mode)
    except (OSError, ValueError):
        cache = False  # the reader says what is wrong
    options = {"zero_based": zero_based, "label": label}
    try:
        dataset = _cached(path, before, options) if cache else _parsed(path, options, None)
    except OSError as error:
        raise UserError(f"{formats.place(path)}: cannot be read ({error.strerror or error}); try again") from None
    if n_features is None:
        return dataset
    if dataset.n_features > n_features:
        _refuse_width(path, dataset, n_features, zero_based)
    return Dataset(dataset.indptr, dataset.indices, dataset.values, dataset.labels, n_features, dataset.source)


def _cached(path, before, options):
    try:
        root = own_folder(user_cache() / "data")
    except OSError as error:
        raise UserError(f"{error}; or pass --no-cache (cache=False)") from None
    parts = {"content": _content_hash(root, path, before), "version": FORMAT_VERSION, "kind": formats.kind(path),
             **{name: str(value) for name, value in options.items()}}
    folder = root / hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    dataset = _opened(folder, formats.place(path))
    if dataset is not None:
        with contextlib.suppress(OSError):
            os.utime(folder)
        return dataset
    remove_stale(root)
    dataset = _parsed(path, options, folder)
    if _identity(path, os.stat(path)) != _identity(path, before):
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{formats.place(path)}: changed while it was read; wait until it is complete, then try again")
    return dataset


def _identity(path, status):
    return f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"


def _content_hash(root, path, status):
    """SHA-256 of the file; not computed again while its path, size, modification time and inode stay the same."""
    seen = root / f"{hashlib.sha256(_identity(path, status).encode('utf-8', 'surrogateescape')).hexdigest()}.seen"
    with contextlib.suppress(OSError, ValueError):
        known = seen.read_text()
        if len(known) == 64:
            os.utime(seen)
            return known
    with formats.opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - status.st_mtime_ns > SETTLED_NS:
        with contextlib.suppress(OSError):  # on a full disk the hash is computed again next time
            with tempfile.NamedTemporaryFile("w", dir=root, delete=False) as fresh:
                fresh.write(digest)
            os.replace(fresh.name, seen)
    return digest


def _parsed(path, options, folder):
    """Parse into a temporary folder and map it; then rename it to `folder`, or delete it if that is None."""
    chunks = formats.read_chunks(path, **options)
    where = Path(tempfile.gettempdir()) if folder is None else folder.parent
    remedy = "set TMPDIR" if folder is None else "set XDG_CACHE_HOME to another disk, or pass --no-cache"
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix="hogwild-", dir=where))
        _write(chunks, temporary)
        dataset = _opened(temporary, formats.place(path))
        if folder is not None:  # the maps stay valid when their folder is renamed or deleted
            _publish(temporary, folder)
        return dataset
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{where}: the parsed data cannot be written there ({reason}); free some space, or {remedy}"
                        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary, folder):
    try:
        temporary.rename(folder)
    except OSError:  # there is one: of a process that was faster, or damaged
        if _opened(folder, "") is None:
            with contextlib.suppress(OSError):
                folder.rename(temporary / "damaged")
                temporary.rename(folder)
                shutil.rmtree(folder / "damaged", ignore_errors=True)


def _write(chunks, folder):
    """Append every chunk to the raw files of the four arrays, then describe them in meta.json."""
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in ARRAYS}
        nnz, top = 0, 0
        files["indptr"].write(np.zeros(1, np.int64))
        for chunk in chunks:
            ends = nnz + np.cumsum(chunk.lengths, dtype=np.int64)
            nnz = int(ends[-1]) if ends.size else nnz
            top = max(top, chunk.width, int(chunk.indices.max()) + 1 if chunk.indices.size else 0)
            for name, array in (("indptr", ends), ("indices", chunk.indices), ("values", chunk.values),
                                ("labels", chunk.labels)):
                files[name].write(np.ascontiguousarray(array, ARRAYS[name]))
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave right sizes with wrong content
    sizes = {name: (folder / name).stat().st_size for name in ARRAYS}
    (folder / "meta.json").write_text(json.dumps({"n_features": top, "bytes": sizes}))


def _opened(folder, source):
    """The Dataset mapped from a folder, or None where it is missing or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        arrays = {}
        for name, dtype in ARRAYS.items():
            if (folder / name).stat().st_size != meta["bytes"][name]:
                return None
            size = meta["bytes"][name] // np.dtype(dtype).itemsize
            arrays[name] = np.memmap(folder / name, dtype, "r", shape=(size,)) if size else np.empty(0, dtype)
        return Dataset(**arrays, n_features=meta["n_features"], source=source)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_width(path, dataset, n_features, zero_based):
    """Raise the UserError for a file with more than n_features features; of text, at the first line that shows it."""
    say = "raise the number of features or leave it out"
    if formats.kind(path) != "svmlight":
        raise UserError(f"{formats.place(path)}: got {dataset.n_features} features, needed at most {n_features}; {say}")
    over = (start + np.flatnonzero(dataset.indices[start:start + SCAN] >= n_features)
            for start in range(0, dataset.nnz, SCAN))
    entry = next(found[0] for found in over if found.size)
    row = int(np.searchsorted(dataset.indptr, entry, "right")) - 1
    where = formats.where(path, row)
    base = 0 if zero_based else 1
    got, top = int(dataset.indices[entry]) + base, n_features - 1 + base
    raise UserError(f"{where}: got index {got}, needed at most {top}; {say}")
