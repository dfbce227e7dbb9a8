"""Streaming readers of svmlight text, CSV and .npz: each yields `Chunk`s and holds one block of the file in memory."""

import bz2
import csv
import gzip
import io
import lzma
import os
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from hogwild.errors import UserError
from hogwild.schema import Chunk, Schema, Source
from kernels import csr, text

CHUNK_BYTES = 4 << 20  # text parsed at once
EXCERPT = 40
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
FOREIGN = {b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "zstd-compressed", b"\x93NUMPY": "a .npy array",
           b"\x89HDF": "an HDF5 file", b"PAR1": "a Parquet file"}
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
WRITE_NPZ = "write it with hogwild.formats.save_npz(path, X, y)"


def excerpt(got) -> str:
    """At most 40 characters of what the file holds, escaped."""
    got = got.decode("utf-8", "replace") if isinstance(got, bytes) else str(got)
    shown = repr(got[:EXCERPT])
    return shown if len(shown) <= EXCERPT and len(got) <= EXCERPT else shown[:EXCERPT - 1] + "…"


def place(path, line=None) -> str:
    """`FILE` or `FILE, line N`, on one line whatever the name holds."""
    name = os.fspath(path)
    name = name if name.isprintable() else repr(name)
    return name if line is None else f"{name}, line {line}"


def kind(path) -> str:
    """"csv", "npz" or "svmlight", from the name without a compression suffix."""
    path = Path(path)
    path = path.with_suffix("") if path.suffix.lower() in (".gz", ".bz2", ".xz") else path
    return path.suffix.lower()[1:] if path.suffix.lower() in (".csv", ".npz") else "svmlight"


def source(path, *, zero_based=None, label=None, header="auto", categorical=None, schema=None) -> Source:
    """The file at `path` as a Source.

    zero_based: of svmlight, whether indices count from 0; label: of a table, the label column's name or number; header: of a
    CSV, auto, yes or no; categorical: names of columns, each of whose values becomes a feature. What is not given (None) is
    as in `schema`, that of an earlier file: a table's columns are then found by their names. Raises UserError.
    """
    form = kind(path)
    if label is not None and form != "csv":
        raise UserError(f"{place(path)}: a label column was given, but only .csv files have columns; leave it out")
    if zero_based is None:
        zero_based = schema is not None and schema.zero_based
    found = Schema(form, zero_based=zero_based and form == "svmlight", label=None if label is None else str(label))
    return Source(path, found, _rows)


def _rows(source):
    found = source.schema
    options = {"csv": {"label": found.label}, "npz": {}, "svmlight": {"zero_based": found.zero_based}}[found.kind]
    reader = {"csv": read_csv, "npz": read_npz, "svmlight": read_svmlight}[found.kind]
    rows = 0
    for chunk in reader(source.path, **options):
        rows += chunk.labels.size
        yield chunk
    if rows == 0:
        raise UserError(f"{place(source.path)}: holds no row; needed at least one example, check how the file was made")


def read_chunks(path, **options):
    """Yield the rows of a file as Chunks; options of `source`."""
    yield from source(path, **options).chunks()


def opened(path):
    """The file, open for reading bytes; UserError where it is missing, a folder, empty or unreadable."""
    try:
        file = open(path, "rb")
        if file.peek(1):
            return file
        file.close()
    except IsADirectoryError:
        raise UserError(f"{place(path)}: is a folder; needed a file, name one inside it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{place(path)}: cannot be read ({reason}); check the name and its permissions") from None
    raise UserError(f"{place(path)}: is empty (0 bytes); needed at least one row, check how the file was made")


def unpacked(path, file):
    """Yield the decompressed bytes of an open file, in pieces, without a byte order mark."""
    head = file.peek(8)[:8]
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            raise UserError(f"{place(path)}: is {what}, got {excerpt(head)}; needed text (plain, gzip, bzip2 or xz) "
                            "or a name that ends in .npz; convert or rename it")
    unpack = next((unpack for magic, unpack in PACKED.items() if head.startswith(magic)), None)
    stream = unpack(file) if unpack else file
    try:
        piece = stream.read(3)
        if piece == b"\xef\xbb\xbf":  # a byte order mark, which Windows programs put in front of UTF-8
            piece = stream.read(CHUNK_BYTES)
        while piece:
            yield piece
            piece = stream.read(CHUNK_BYTES)
    except READ_ERRORS as error:
        if unpack is None:
            raise UserError(f"{place(path)}: reading failed ({error}); check the disk it lies on") from None
        state = "truncated" if isinstance(error, EOFError) else "corrupt"
        raise UserError(f"{place(path)}: {state} compressed file ({error}); copy it again") from None


def line_blocks(path):
    """Yield (number of the first line, whole lines as bytes); only the last line may lack its end."""
    first, parts = 1, []
    with opened(path) as file:
        for piece in unpacked(path, file):
            cut = piece.rfind(b"\n") + 1
            if cut:
                block = b"".join((*parts, piece[:cut]))
                yield first, block
                first, parts = first + block.count(b"\n"), []
            if cut < len(piece):
                parts.append(piece[cut:])
        if parts:
            yield first, b"".join(parts)


PAIR = "needed index:value"
SVMLIGHT = {  # status: what was needed, what to do
    text.NOT_A_NUMBER: ("needed a number such as -1.5e3", "correct it, or see that the file is svmlight text"),
    text.OVER_RANGE: ("needed a number within float32's range, ±3.4e38", "scale the data"),
    text.NO_VALUE: ("needed a value after the colon", "add it or drop the entry"),
    text.NO_COLON: (PAIR, "add the colon and the value, and keep one label a line"),
    text.BAD_INDEX: (f"{PAIR} with a whole number as index", "replace names by numbers"),
    text.INDEX_ZERO: ("needed indices from 1", "pass --zero-based (zero_based=True) if they count from 0"),
    text.NEGATIVE_INDEX: ("needed an index that is not negative", "correct it"),
    text.INDEX_OVER_RANGE: ("needed an index below 2^32", "hash or renumber the features"),
    text.DUPLICATE: ("needed each index once in a row", "add up its values"),
    text.UNSORTED: ("needed indices in increasing order", "sort each row"),
    text.BAD_QID: ("needed qid: and a whole number", "correct it or drop it"),
}
FLOAT32_END = (2 - 2.0**-24) * 2.0**127  # from here on float32 rounds to infinity
NOT_FINITE = ("needed a finite number", "replace or drop it")


def read_svmlight(path, *, zero_based=False):
    """Chunks of `label [qid:N] index:value … [# comment]` lines; indices count from 1, or 0 if zero_based."""
    for first, block in line_blocks(path):
        status, position, labels, indptr, indices, values = text.parse(block, 0 if zero_based else 1)
        if status != text.OK:
            token = re.split(rb"[ \t\n#]", block[position:], maxsplit=1)[0]
            needed, remedy = NOT_FINITE if status == text.NOT_A_NUMBER and _not_finite(token) else SVMLIGHT[status]
            where = place(path, first + block.count(b"\n", 0, position))
            raise UserError(f"{where}: got {excerpt(token)}, {needed}; {remedy}")
        yield Chunk(labels.astype(np.float64), np.diff(indptr), indices, values)


def line_of_row(path, row):
    """Line number of row `row` (from 0) of an svmlight or CSV text; the last one of a CSV row that spans some."""
    head = kind(path) == "csv"  # the first line may be a header, which is no row
    for first, block in line_blocks(path):
        if kind(path) == "csv":
            rows = csv_rows(path, first, csv_lines(block))
        else:
            rows = ((line, content) for line, content in enumerate(block.split(b"\n"), first)
                    if content.split(b"#")[0].strip(b" \t\r"))
        for line, cells in rows:
            row -= not (head and is_header(cells))
            head = False
            if row < 0:
                return line


def _not_finite(token):
    try:
        return not np.isfinite(float(token.split(b":")[-1]))
    except ValueError:
        return False


def read_csv(path, *, label=None):
    """Chunks of comma-separated numbers, zeros dropped; label is a column's name or index, by default the last."""
    width = None
    for first, block in line_blocks(path):
        lines = csv_lines(block)
        if width is None:
            last, cells = next(csv_rows(path, first, lines), (0, None))
            if cells is None:
                continue
            header, width = is_header(cells), len(cells)
            column = label_column(path, cells, header, label)
            if header:
                first, lines = last + 1, lines[last + 1 - first:]
        if not any(map(str.strip, lines)):
            continue
        table = csv_table(path, first, lines, width)
        features = np.delete(table, column, axis=1)
        stored = features != 0
        yield Chunk(table[:, column].astype(np.float64), stored.sum(axis=1, dtype=np.int64),
                    np.nonzero(stored)[1].astype(np.uint32), features[stored], width - 1)


def csv_lines(block):
    return io.StringIO(block.decode("utf-8", "replace"), newline="").readlines()


def csv_rows(path, first, lines):
    """Yield (line number, cells) of the lines that are not blank; a quoted cell may span some."""
    reader = csv.reader(lines)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) or len(cells) > 1:
                yield first + reader.line_num - 1, cells
    except csv.Error as error:
        where = place(path, first + reader.line_num - 1)
        raise UserError(f"{where}: {error}; needed comma-separated numbers, correct the line") from None


def numeric(cell):
    """float(cell); None where it is no decimal number (Python alone would take `1_000`)."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def is_header(cells) -> bool:
    """Whether a first line names the columns: a cell is text, and the others are no numbers but those of columns."""
    rest = [cell.strip() for cell in cells if numeric(cell) is None]
    return any(rest) and all(cell.strip().isdigit() for cell in cells if numeric(cell) is not None)


def label_column(path, cells, header, label):
    """Place of the label's column: named in the header, or counted from 0 (from the end if negative)."""
    width = len(cells)
    if width < 2:
        raise UserError(f"{place(path)}: has one column, got {excerpt(cells[0])}; needed a label and at least one "
                        "feature, separated by commas")
    names = [cell.strip() for cell in cells] if header else []
    if names.count(str(label)) == 1:
        return names.index(str(label))
    try:
        column = -1 if label is None else int(label)
        return range(width)[column]
    except (ValueError, IndexError):
        known = f"one of {excerpt(', '.join(names))} or " if header else "(the file has no header) "
        raise UserError(f"{place(path)}: got label column {excerpt(label)}, needed {known}"
                        f"a column's number from {-width} to {width - 1}; pass --label") from None


def csv_table(path, first, lines, width):
    """float32[rows, width] of some lines; where NumPy's parser refuses, the csv module finds the mistake."""
    try:
        with np.errstate(over="ignore"):
            table = np.loadtxt(lines, delimiter=",", comments=None, quotechar='"', ndmin=2).astype(np.float32)
        if table.shape[1] == width and np.isfinite(table).all():
            return table
    except ValueError:
        pass
    return _csv_slow(path, csv_rows(path, first, lines), width)


def _csv_slow(path, rows, width):
    table = []
    for line, cells in rows:
        if len(cells) != width:
            raise UserError(f"{place(path, line)}: got {len(cells)} columns, needed {width} as in the first line; "
                            "add or drop the difference")
        table.append([numeric(cell) for cell in cells])
        for column, (value, cell) in enumerate(zip(table[-1], cells), 1):
            if value is None or not abs(value) < FLOAT32_END:
                needed, remedy = (("needed a number, the cell is empty", "fill it") if not cell.strip() else
                                  SVMLIGHT[text.NOT_A_NUMBER] if value is None else
                                  NOT_FINITE if cell.strip().lower().strip("+-")[:1] in "ni" else
                                  SVMLIGHT[text.OVER_RANGE])
                raise UserError(f"{place(path, line)}, column {column}: got {excerpt(cell)}, {needed}; {remedy}")
    return np.array(table, np.float32).reshape(-1, width)


NUMBERS = {"iu": "whole numbers", "iufb": "real numbers", "S": "bytes"}  # by NumPy's dtype.kind


class Member:
    """A one-dimensional array in an .npz file, read piece by piece."""

    def __init__(self, path, archive, name, kinds="iu"):
        self.name = name
        try:
            self.file = archive.open(f"{name}.npy")
        except KeyError:
            raise UserError(f"{place(path)}: has no array {name!r}, got {excerpt(', '.join(archive.namelist()))}; "
                            f"{WRITE_NPZ}") from None
        version = np.lib.format.read_magic(self.file)
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
        shape, _, self.dtype = read_header(self.file)
        if len(shape) > 1 or self.dtype.kind not in kinds:
            raise UserError(f"{place(path)}: array {name!r} has shape {shape} and dtype {self.dtype}, "
                            f"needed one dimension of {NUMBERS[kinds]}; {WRITE_NPZ}")
        self.size = shape[0] if shape else 1

    def take(self, count=None):
        """The next `count` items, by default all."""
        count = self.size if count is None else count
        data = self.file.read(count * self.dtype.itemsize)
        if len(data) < count * self.dtype.itemsize:
            raise EOFError(f"array {self.name!r} is shorter than it says")
        return np.frombuffer(data, self.dtype)


def read_npz(path):
    """Chunks of the arrays of scipy.sparse.save_npz (CSR) and the labels `y`; only row pointers are held in memory."""
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            yield from _npz_chunks(path, archive)
    except (*READ_ERRORS, zipfile.BadZipFile, ValueError, KeyError, NotImplementedError) as error:
        raise UserError(f"{place(path)}: truncated, corrupt or no .npz file ({excerpt(error)}); {WRITE_NPZ}") from None


def _npz_chunks(path, archive):
    layout = Member(path, archive, "format", "S").take()[0] if "format.npy" in archive.namelist() else b"csr"
    if layout != b"csr":
        raise UserError(f"{place(path)}: got sparse format {excerpt(layout)}, needed CSR; {WRITE_NPZ}")
    indptr, shape = Member(path, archive, "indptr").take(), Member(path, archive, "shape").take()
    y = Member(path, archive, "y", "iufb").take()
    indices, data = Member(path, archive, "indices"), Member(path, archive, "data", "iufb")
    rows = indptr.size - 1
    if shape.size != 2 or not rows == shape[0] == y.size or not indices.size == data.size == indptr[-1]:
        raise UserError(f"{place(path)}: shape {shape.tolist()} with {rows + 1} row pointers, {y.size} labels, "
                        f"{indices.size} indices and {data.size} values do not fit together; {WRITE_NPZ}")
    indptr, width = indptr.astype(np.int64), int(shape[1])
    if indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise UserError(f"{place(path)}: row pointers do not increase from 0; {WRITE_NPZ}")
    start = 0
    while start < rows:
        stop = max(np.searchsorted(indptr, indptr[start] + CHUNK_BYTES // 8, "right") - 1, start + 1)
        count = int(indptr[stop] - indptr[start])
        yield checked(place(path), start, y[start:stop], indptr[start:stop + 1] - indptr[start], indices.take(count),
                      data.take(count), width)
        start = stop


CSR_MISTAKES = {csr.UNSORTED: "indices not strictly increasing; call X.sum_duplicates()",
                csr.OVER_WIDTH: "an index outside the matrix's width; correct its shape",
                csr.NOT_FINITE: "a value that is not finite in float32; replace it, or scale the data",
                csr.BAD_INDPTR: "row pointers that do not increase; rebuild the matrix"}


def checked(source, first, y, indptr, indices, values, width):
    """A Chunk of plain CSR rows, of which the first is row `first` of `source`; UserError names the first bad row."""
    with np.errstate(over="ignore", invalid="ignore"):
        labels, values = np.asarray(y).astype(np.float32), np.asarray(values).astype(np.float32)
    if not np.isfinite(labels).all():
        row = int(np.flatnonzero(~np.isfinite(labels))[0])
        raise UserError(f"{source}, row {first + row} (from 0): got label {excerpt(y[row])}, needed a finite float32 "
                        "number; replace it or drop the row")
    bad = np.flatnonzero((indices < 0) | (indices >= min(width, 2**32)))  # here, as uint32 would wrap them around
    if bad.size:
        status, row = csr.OVER_WIDTH, int(np.searchsorted(indptr, bad[0], "right")) - 1
    else:
        indptr, indices = np.ascontiguousarray(indptr, np.int64), indices.astype(np.uint32)
        status, row = csr.check(csr.CSR(indptr, indices, values), width)
    if status != csr.OK:
        raise UserError(f"{source}, row {first + row} (from 0): {CSR_MISTAKES[status]}")
    return Chunk(labels.astype(np.float64), np.diff(indptr), indices, values, width)


def save_npz(path, X, y):
    """Write a matrix (scipy sparse or 2-D array) and labels y as an .npz that `read_chunks` streams, without pickle."""
    from scipy import sparse
    X, y = sparse.csr_array(X, copy=True), np.asarray(y)
    X.sum_duplicates()
    if y.shape != X.shape[:1]:
        raise UserError(f"got labels of shape {y.shape}, needed ({X.shape[0]},); pass one for each row of X")
    checked("matrix", 0, y, X.indptr, X.indices, X.data, X.shape[1])
    with open(path, "wb") as file:
        np.savez(file, indptr=X.indptr, indices=X.indices, data=X.data, shape=X.shape, format=b"csr", y=y)
