"""The files that are read, svmlight text, CSV, Parquet and .npz, each as a `Source` that holds one block of it in memory."""

import contextlib
import itertools
import os
import re
from dataclasses import replace
from pathlib import Path

from hogwild.data import csv_tables, files, foreign_formats, npz, parquet_tables, svmlight
from hogwild.data.class_names import count_words, numeric
from hogwild.data.files import excerpt, opened, place, unpacked
from hogwild.data.npz import save_npz
from hogwild.data.schema import Schema, Source
from hogwild.errors import UserError

__all__ = ["kind", "save_npz", "source", "where"]
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".tab": "csv", ".parquet": "parquet", ".pq": "parquet", ".npz": "npz"}
HEADER = ("auto", "yes", "no")
LOOK = 20  # lines from which CSV is told from svmlight text


def kind(path) -> str:
    """"csv", "parquet", "npz" or "svmlight", from the name without a compression suffix."""
    return _named(path) or "svmlight"


def _named(path):
    path = Path(path)
    path = path.with_suffix("") if path.suffix.lower() in (".gz", ".bz2", ".xz") else path
    return SUFFIXES.get(path.suffix.lower())


def source(path, *, zero_based=None, label=None, header="auto", categorical=None, schema=None) -> Source:
    """The file at `path`, or standard input for -, as a Source. It is not opened yet.

    zero_based: of svmlight, whether indices count from 0; label: of a table, the label column's name or number; header: of a
    CSV, whether the first line names the columns (auto, yes or no); categorical: names or numbers of a table's columns, a
    list or a text with commas, each of whose values becomes a feature. What is not given (None) is as in `schema`, that of an
    earlier file: a table's columns are then found by their names. The format is known by the name, or else by the content.
    Raises UserError.
    """
    if header not in HEADER:
        raise UserError(f"--header must be one of {', '.join(HEADER)}, got {excerpt(header)}")
    if zero_based is None:
        zero_based = schema is not None and schema.zero_based
    columns = categorical.split(",") if isinstance(categorical, str) else list(categorical or ())
    columns = [str(column).strip() for column in columns]
    found = Schema(kind(path), zero_based=zero_based, label=None if label is None else str(label))
    asked = {"zero_based": zero_based, "label": found.label, "header": header, "categorical": columns,
             "schema": schema and schema.to_json()}
    return Source(path, found, lambda source: _rows(source, header, columns, schema), asked)


def _rows(source, header, asked, known):
    rows, words = 0, 0
    with opened(source.path) as file:
        form, pieces = _content(source.path, file)
        if _named(source.path) is None and form != "svmlight":
            source.notes.append(f"read as {form}, as it looks like that")
        tabular = form in ("csv", "parquet")
        source.schema = replace(source.schema, kind=form, zero_based=source.schema.zero_based and form == "svmlight")
        for name, given, fits in (("--label", source.schema.label is not None, tabular), ("--categorical", asked, tabular),
                                  ("--header", header != "auto", form == "csv")):
            if given and not fits:
                raise UserError(f"{place(source.path)}: {name} was given, but {form} files have no "
                                f"{'header' if name == '--header' else 'columns with names'}; leave it out")
        if known is not None and known.columns is not None and not tabular:
            source.notes.append("names no columns; its features are taken in the model's order")
        reader = {"csv": lambda: csv_tables.read(source, pieces, header, asked, known),
                  "parquet": lambda: parquet_tables.read(source, file, asked, known),
                  "npz": lambda: npz.read(source, file, known), "svmlight": lambda: svmlight.read(source, pieces)}[form]
        for chunk in reader():
            rows, words = rows + chunk.labels.size, words + count_words(chunk.labels)
            yield chunk
    if 0 < words < rows:
        source.notes.append(f"labels: {rows - words:,} rows have numbers and {words:,} have text, a class of its own")
    if rows == 0:
        raise UserError(f"{place(source.path)}: holds no row; needed at least one example, check how the file was made")


def _content(path, file):
    """(format, pieces of an open file that is text, or None)."""
    form, head = _named(path), file.peek(files.HEAD)
    if form is None and head.startswith(foreign_formats.PARQUET):
        form = "parquet"
    if form is None and head.startswith(foreign_formats.ZIP) and b".npy" in head[:200]:
        form = "npz"
    if form in ("parquet", "npz"):
        if not head.startswith(foreign_formats.PARQUET if form == "parquet" else foreign_formats.ZIP):
            files.refuse_foreign(path, head, foreign_formats.TEXT)
        return form, None
    pieces = unpacked(path, file)
    first = next(pieces, b"")
    return form or ("csv" if _is_csv(first[:files.HEAD]) else "svmlight"), itertools.chain([first], pieces)


def _is_csv(head):
    """Whether text looks like CSV: each line has as many separators as the others, and none has index:value."""
    lines = [line for line in head[:head.rfind(b"\n") + 1].split(b"\n") if line.strip()][:LOOK]
    if not lines or foreign_formats.name(head, foreign_formats.TEXT + foreign_formats.PAIRS) or \
            re.search(rb"(^|\s)\d+:\S", b"\n".join(lines)):
        return False
    for separator in (b"\t", b";", b",", b"|"):
        numbers = [numeric(cell.decode("latin-1")) for cell in lines[-1].split(separator)]
        if len({line.count(separator) for line in lines}) == 1 and len(numbers) > 1 and any(x is not None for x in numbers):
            return True
    return False


def where(path, row, header="auto") -> str:
    """`FILE, line N` of row number `row` (from 0) of a text file, `FILE, row N` where there are no lines to be read again."""
    if os.fspath(path) != files.STDIN and os.path.isfile(path):
        with contextlib.suppress(UserError, OSError), opened(path) as file:
            form, pieces = _content(path, file)
            lines = {"csv": lambda: csv_tables.lines(path, pieces, header), "svmlight": lambda: svmlight.lines(path, pieces)}
            if form in lines:
                return place(path, next(itertools.islice(lines[form](), row, None))[0])
    return f"{place(path)}, row {row + 1}"
