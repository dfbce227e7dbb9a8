"""Reader and writer of .npz files: the arrays of scipy.sparse.save_npz (CSR), and the labels as `y`."""

import io
import math
import zipfile

import numpy as np

from hogwild.data import class_names, files
from hogwild.data.files import excerpt, place
from hogwild.data.schema import Chunk
from hogwild.errors import UserError
from hogwild.kernels.data import csr

WRITE = "write it with hogwild.data.formats.save_npz(path, X, y)"
KINDS = {"iu": "whole numbers", "iufb": "real numbers", "iufbSU": "numbers or texts", "SU": "text"}  # by NumPy's dtype.kind
WIDEST = 2**32  # features


def opened_array(archive, name):
    """(file, shape, whether in Fortran's order, dtype) of the array in an archive's member, the file at its first value.

    Raises anything where it is damaged; memory is not taken yet, and the sizes that it states are those that are there.
    """
    member = archive.getinfo(name)
    if member.flag_bits & 1:
        raise ValueError("it is encrypted")
    if member.header_offset + member.compress_size > archive.start_dir:
        raise EOFError(f"array {name!r} does not end within the archive")
    file = archive.open(member)
    version = np.lib.format.read_magic(file)
    read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
    shape, fortran, dtype = read_header(file)
    if math.prod(shape) * dtype.itemsize != member.file_size - file.tell() or min(shape, default=0) < 0:
        if not dtype.hasobject:
            raise EOFError(f"array {name!r} is not as long as it says")
    return file, shape, fortran, dtype


class Member:
    """A one-dimensional array in an .npz file, read piece by piece."""

    def __init__(self, path, archive, name, kinds="iu"):
        self.name = name
        if f"{name}.npy" not in archive.namelist():
            raise UserError(f"{place(path)}: has no array {name!r}, got {excerpt(', '.join(archive.namelist()))}; {WRITE}")
        self.file, shape, _, self.dtype = opened_array(archive, f"{name}.npy")
        if len(shape) > 1 or self.dtype.kind not in kinds or not self.dtype.itemsize:
            raise UserError(f"{place(path)}: array {name!r} has shape {shape} and dtype {self.dtype}, "
                            f"needed one dimension of {KINDS[kinds]}; {WRITE}")
        self.size = int(shape[0]) if shape else 1

    def read(self, count=None):
        """The next `count` items, by default all."""
        count = self.size if count is None else count
        data = self.file.read(count * self.dtype.itemsize)
        if len(data) < count * self.dtype.itemsize:
            raise EOFError(f"array {self.name!r} is shorter than it says")
        return np.frombuffer(data, self.dtype)


def read(source, file, known=None):
    """Chunks of an open file; row pointers and labels are held in memory. known: a model's Schema, then `y` may lack."""
    where = place(source.path)
    try:
        with zipfile.ZipFile(file if file.seekable() else io.BytesIO(file.read())) as archive:
            source.labelled = known is None or "y.npy" in archive.namelist()
            yield from _chunks(source.path, archive, source.labelled)
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # NumPy evaluates the text of a header: a damaged one makes it raise anything
        reason = str(error).strip() or type(error).__name__
        raise UserError(f"{where}: truncated, corrupt or no .npz file ({excerpt(reason)}); {WRITE}") from None


def _chunks(path, archive, labelled):
    if "format.npy" in archive.namelist():
        layout = Member(path, archive, "format", "SU").read()
        if layout.size != 1 or layout[0] not in (b"csr", "csr"):
            raise UserError(f"{place(path)}: got sparse format {excerpt(layout.tolist())}, needed CSR; {WRITE}")
    indptr, shape = Member(path, archive, "indptr").read(), Member(path, archive, "shape").read()
    y = Member(path, archive, "y", "iufbSU").read() if labelled else np.zeros(max(indptr.size - 1, 0))
    indices, data = Member(path, archive, "indices"), Member(path, archive, "data", "iufb")
    rows = indptr.size - 1
    if shape.size != 2 or not rows == shape[0] == y.size or not indices.size == data.size == indptr[-1]:
        raise UserError(f"{place(path)}: shape {shape.tolist()} with {rows + 1} row pointers, {y.size} labels, "
                        f"{indices.size} indices and {data.size} values do not fit together; {WRITE}")
    indptr, width = indptr.astype(np.int64), int(shape[1])
    if indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise UserError(f"{place(path)}: row pointers do not increase from 0; {WRITE}")
    if not 0 <= width <= WIDEST:
        raise UserError(f"{place(path)}: has {width} columns, needed at most 2^32; hash or renumber the features")
    start = 0
    while start < rows:
        stop = max(np.searchsorted(indptr, indptr[start] + files.CHUNK_BYTES // 8, "right") - 1, start + 1)
        count = int(indptr[stop] - indptr[start])
        chunk = checked(place(path), start, y[start:stop], indptr[start:stop + 1] - indptr[start], indices.read(count),
                        data.read(count), width)
        yield chunk if labelled else chunk._replace(labels=np.full(stop - start, np.nan))
        start = stop


MISTAKES = {csr.UNSORTED: "indices not strictly increasing; call X.sum_duplicates()",
            csr.OVER_WIDTH: "an index outside the matrix's width; correct its shape",
            csr.NOT_FINITE: "a value that is not finite in float32; replace it, or scale the data",
            csr.BAD_INDPTR: "row pointers that do not increase; rebuild the matrix"}


def checked(source, first, y, indptr, indices, values, width):
    """A Chunk of plain CSR rows, of which the first is row `first` of `source`; UserError names the first bad row."""
    labels = class_names.from_array(np.asarray(y))
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.asarray(values).astype(np.float32)
        finite = (np.isfinite(labels.astype(np.float32)) if labels.dtype.kind == "f" else
                  np.array([label.lower() not in class_names.MISSING for label in labels], bool))
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise UserError(f"{source}, row {first + row} (from 0): got label {excerpt(y[row])}, needed a finite float32 "
                        "number, or a class name; replace it or drop the row")
    bad = np.flatnonzero((indices < 0) | (indices >= min(width, WIDEST)))  # here, as uint32 would wrap them around
    if bad.size:
        status, row = csr.OVER_WIDTH, int(np.searchsorted(indptr, bad[0], "right")) - 1
    else:
        indptr, indices = np.ascontiguousarray(indptr, np.int64), indices.astype(np.uint32)
        status, row = csr.check(csr.CSR(indptr, indices, values), width)
    if status != csr.OK:
        raise UserError(f"{source}, row {first + row} (from 0): {MISTAKES[status]}")
    return Chunk(labels, np.diff(indptr), indices, values, width)


def save_npz(path, X, y):
    """Write a matrix (scipy sparse or 2-D array) and labels y (numbers or texts) as an .npz that `source` streams."""
    from scipy import sparse
    X, y = sparse.csr_array(X, copy=True), np.asarray(y)
    y = y.astype(str) if y.dtype.kind == "O" else y
    X.sum_duplicates()
    if y.shape != X.shape[:1]:
        raise UserError(f"got labels of shape {y.shape}, needed ({X.shape[0]},); pass one for each row of X")
    checked("matrix", 0, y, X.indptr, X.indices, X.data, X.shape[1])
    with open(path, "wb") as file:
        np.savez(file, indptr=X.indptr, indices=X.indices, data=X.data, shape=X.shape, format=b"csr", y=y)
