"""Reader of ratings in lines of text, `user::item::rating[::time]` or CSV, converted block by block by pyarrow."""

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

from hogwild.data import files, foreign_formats
from hogwild.data.class_names import FLOAT32_END, numeric
from hogwild.data.csv_head import rows_of, separator_of, stated_separator, without_lines
from hogwild.data.files import excerpt, place
from hogwild.errors import UserError

COLUMNS = "user", "item", "rating", "time"
NAMES = ({"user", "userid", "users", "uid", "reviewerid", "customer", "customerid"},
         {"item", "itemid", "items", "iid", "movie", "movieid", "film", "filmid", "product", "productid", "asin", "book",
          "bookid", "isbn", "track", "trackid", "song", "songid", "artist", "artistid"},
         {"rating", "ratings", "score", "stars", "value", "overall", "bookrating", "count", "plays"},
         {"time", "timestamp", "date", "datetime", "unixreviewtime"})
DOUBLE = "\x1f"  # stands for :: in blocks that are parsed
FEW = 1000  # rows from which it is told what a column holds


class Layout(NamedTuple):
    """How the lines are made up."""

    separator: str
    width: int  # cells of a line
    skip: int  # lines in front of the first row
    used: tuple  # places of user, item, rating and time; None where there is none
    dated: bool  # times are dates, not numbers


def read(path, pieces, columns, header, notes) -> pa.Table:
    """Table of user and item (dictionaries of text) and, where the file has them, rating and time (float64)."""
    layout, parts = None, []
    for first, block in _head_together(files.line_blocks(path, pieces, quoted=True)):
        if layout is None:
            files.refuse_foreign(path, block[:files.HEAD], foreign_formats.TEXT)
            if not block.strip():
                continue
            layout = _layout(path, block, columns, header, notes)
            first, block = first + layout.skip, without_lines(block, layout.skip)
        if block.strip():
            parts.append(_converted(path, first, block, layout))
    return pa.concat_tables(parts) if parts else pa.table({"user": pa.array([], pa.string())})


def _head_together(blocks):
    """The same blocks, the first two as one: a header alone would tell nothing."""
    start, held = next(blocks, (1, b""))
    for _, block in blocks:
        yield start, held + block
        yield from blocks
        return
    yield start, held


def _layout(path, block, columns, header, notes) -> Layout:
    separator, skip = stated_separator(block)
    rest = without_lines(block, skip)
    line = next(line for line in rest.split(b"\n") if line.strip())
    if separator is None:
        separator = DOUBLE if b"::" in line else separator_of(path, rest)
    rows = []
    for number, cells in rows_of(path, 1 + skip, _plain(rest, separator), separator):
        rows.append((number, [cell.strip() for cell in cells]))
        if len(rows) > FEW:
            break
    number, cells = rows[0]
    if len(cells) < 2:
        raise UserError(f"{place(path, number)}: has one column, got {excerpt(cells[0])}; needed a user, an item and a "
                        "rating, separated by ::, commas, semicolons, tabs, | or blanks")
    asked = set() if columns is None else {name.strip() for name in columns.split(",") if not name.strip().isdigit()}
    named = _named(cells, [row for _, row in rows[1:]], header, separator)
    named = named or header == "auto" and bool(asked.intersection(cells))
    if header == "auto" and named:
        notes.append("the first line is taken as the columns' names; if it is a rating, pass --header no")
    if separator not in (",", DOUBLE):
        notes.append(f"{separator!r} is taken as the separator")
    names = [cell.strip("# ") for cell in cells] if named else list(map(str, range(len(cells))))
    used = list(columns_by_name(place(path), names, columns, named))
    body = [row for _, row in rows[named:] if len(row) == len(cells)]
    dated = False
    if used[3] is not None:
        times = [row[used[3]] for row in body[:1]]
        dated = any(numeric(time) is None for time in times)
        if dated and not _are_dates(times):
            if columns is not None:
                raise UserError(f"{place(path)}: column {names[used[3]]!r} holds {excerpt(times[0])}, needed times: "
                                "numbers, or dates as 2026-12-01 or 2026-12-01T12:00:00")
            notes.append(f"column {names[used[3]]!r} holds {excerpt(times[0])}, which is no time: it is ignored")
            used[3], dated = None, False
    if named or len(cells) > 4 or columns:
        notes.append("columns: " + ", ".join(f"{what} {names[k]!r}" for what, k in zip(COLUMNS, used) if k is not None))
    return Layout(separator, len(cells), number if named else skip, tuple(used), dated)


def _named(first, below, header, separator) -> bool:
    """Whether the first line names the columns: none of its cells is a number, and one is a known name or has numbers
    below."""
    if header != "auto":
        return header == "yes"
    if any(numeric(cell) is not None for cell in first):
        return False
    known = any(_simple(cell) in names for cell in first for names in NAMES)
    below = below[0] if below else []
    return known or separator != DOUBLE and min(len(first), len(below)) > 2 and numeric(below[2]) is not None


def _simple(name) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def columns_by_name(where, names, asked, named=True) -> tuple:
    """Places of user, item, rating and time (None: there is none) among columns of these names. asked: a text of names or
    numbers, see `ratings.read`. Raises UserError."""
    if asked is not None:
        wanted = [name.strip() for name in asked.split(",")]
        if not 2 <= len(wanted) <= 4:
            raise UserError("--columns must be USER,ITEM, or USER,ITEM,RATING, or USER,ITEM,RATING,TIME, got "
                            f"{excerpt(asked)}")
        found = [_place_of(where, name, names, named) for name in wanted]
        if len(set(found)) < len(found):
            raise UserError(f"--columns names a column twice, got {excerpt(asked)}; needed different ones")
        return *found, *[None] * (4 - len(found))
    simple = [_simple(name) for name in names]
    found = [next((k for k, name in enumerate(simple) if name in known), None) for known in NAMES] if named else [None] * 4
    if found[0] is None or found[1] is None:
        found = [k if k < len(names) else None for k in range(4)]
    if found[1] is None:
        raise UserError(f"{where}: has one column, needed a user, an item and a rating")
    return tuple(found)


def _place_of(where, name, names, named):
    if named and name in names:
        return names.index(name)
    if name.isascii() and name.isdigit() and int(name) < len(names):
        return int(name)
    known = f"one of {excerpt(', '.join(names))}, or " if named else ""
    raise UserError(f"{where}: got column {excerpt(name)}, needed {known}a number from 0 to {len(names) - 1}; correct "
                    "--columns")


def _are_dates(texts) -> bool:
    try:
        pa.array(texts).cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        return False
    return True


def _plain(block, separator):
    return block.replace(b"::", DOUBLE.encode()) if separator == DOUBLE else block


def _converted(path, first, block, layout) -> pa.Table:
    text = _plain(block, layout.separator)
    kinds = pa.string(), pa.string(), pa.float64(), pa.timestamp("us") if layout.dated else pa.float64()
    types = {str(k): kind for k, kind in zip(layout.used, kinds) if k is not None}
    try:
        table = csv.read_csv(
            pa.py_buffer(text),
            # Threads of pyarrow's that are just starting abort a process that is about to end.
            csv.ReadOptions(use_threads=False, column_names=list(map(str, range(layout.width))), block_size=len(text) + 1),
            csv.ParseOptions(delimiter=layout.separator, newlines_in_values=b'"' in text,
                             quote_char=False if layout.separator == DOUBLE else '"'),
            csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[]))
    except pa.ArrowInvalid as error:
        _refuse(path, first, text, layout)
        raise UserError(f"{place(path)}: cannot be read as ratings ({excerpt(error)}); correct the file") from None
    made = {}
    for what, k in zip(COLUMNS, layout.used):
        if k is not None:
            column = table[str(k)]
            if what in ("user", "item"):
                column = pa.compute.utf8_trim_whitespace(column).dictionary_encode()
                if "" in column.chunk(0).dictionary.to_pylist():
                    _refuse(path, first, text, layout)
            made[what] = column.cast(pa.int64()).cast(pa.float64(), safe=False) if what == "time" and layout.dated else column
    if any(name in made and not (np.abs(made[name].to_numpy()) < end).all()
           for name, end in (("rating", FLOAT32_END), ("time", np.inf))):
        _refuse(path, first, text, layout)
    return pa.table(made)


def _refuse(path, first, text, layout):
    """Raise the UserError that names the first mistake in a block."""
    for line, cells in rows_of(path, first, text, layout.separator):
        where = place(path, line)
        if len(cells) != layout.width:
            raise UserError(f"{where}: got {len(cells)} fields, needed {layout.width} as in the first line: a user, an item "
                            "and a rating; complete or drop the line")
        for what, k in zip(COLUMNS, layout.used):
            cell = "" if k is None else cells[k].strip()
            number = numeric(cell)
            if k is None or what == "time" and layout.dated and _are_dates([cell]):
                continue
            if what in ("user", "item") and (not cell or "\ufffd" in cell):
                raise UserError(f"{where}: got {excerpt(cell)} as the {what}, needed a name or number in UTF-8; complete or "
                                "drop the line")
            if what == "rating" and (number is None or not abs(number) < FLOAT32_END):
                raise UserError(f"{where}: got rating {excerpt(cell)}, needed a finite number such as 3.5; correct or drop "
                                "the line")
            if what == "time" and (number is None or layout.dated):
                raise UserError(f"{where}: got time {excerpt(cell)}, needed {'a date' if layout.dated else 'a number'} as "
                                "in the lines before; correct or drop the line")
