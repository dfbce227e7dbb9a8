"""What the first lines of a CSV tell: its separator, and whether its first line names the columns."""

import csv
import io
import itertools
import math
import re
from typing import NamedTuple

import numpy as np

from hogwild.data.class_names import MISSING, numeric
from hogwild.data.files import excerpt, place
from hogwild.errors import UserError

SEPARATORS = "\t;|,"  # of several that fit alike, the first
ROWS, CELLS = 1000, 200_000  # looked at, from which a column's kind is told
LINES, LINE_BYTES = 50, 1 << 20  # looked at, from which the separator is told
RUN = 4  # so many numbers at equal distances, above columns of other numbers, are names (years, wavelengths, pixels)
MANY = 10  # rows: a first row of texts, of which none recurs in so many, names the columns; or so many such numbers do
FAR = 3  # times what a column spans: a number so far from it is none of it
SURE = 1e-5  # a first row that is less likely by chance names the columns


class Head(NamedTuple):
    """The first lines. names: as they stand, or None if the first line is a row; skip: lines in front of the first row."""

    separator: str
    names: list[str] | None
    width: int
    skip: int
    rows: list[list[str]]  # the first rows


def rows_of(path, first, block, separator):
    """Yield (number of its last line, cells) of the rows of whole lines; a quoted cell may span some, a blank one is none."""
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(block.decode("utf-8", "replace"), newline=""), delimiter=separator)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) or len(cells) > 1:
                yield first + reader.line_num - 1, cells
    except csv.Error as error:
        where = place(path, first + reader.line_num - 1)
        raise UserError(f"{where}: {error}; needed a row of cells, correct the line") from None


def without_lines(block, count):
    """A block without its first lines, as csv counts them."""
    parts = re.split(rb"\r\n|\r|\n", block, maxsplit=count) if count else [block]
    return parts[count] if len(parts) > count else b""


def head_of(path, block, header="auto", expected=()):
    """The Head of a CSV that begins with `block`, None if that has no row.

    header: auto, yes or no; expected: names, of which the first line has some if it names the columns. Raises UserError
    where auto cannot tell.
    """
    separator, skip = stated_separator(block)
    block = without_lines(block, skip)
    separator = separator or separator_of(path, block)
    sample, cells = [], 0
    for line, row in rows_of(path, 1 + skip, block, separator):
        sample.append((line, row))
        cells += len(row)
        if len(sample) >= ROWS or cells >= CELLS and len(sample) > 2:
            break
    if not sample:
        return None
    lines, rows = zip(*sample, strict=True)
    width = len(rows[0])
    if width < 2:
        raise UserError(f"{place(path)}: has one column, got {excerpt(rows[0][0])}; needed a label and at least one feature, "
                        "separated by commas, semicolons, tabs or |")
    named = {"yes": True, "no": False}.get(header)
    if named is None and {cell.strip("# ") for cell in rows[0]} & set(expected):
        named = True
    if named is None:
        named = _quoted_alone(block) or names_columns([row for row in rows if len(row) == width])
    if named is None:
        column, cell = next(((k, cell) for k, cell in enumerate(rows[0], 1) if numeric(cell) is None), (1, rows[0][0]))
        raise UserError(f"{place(path, lines[0])}, column {column}: got {excerpt(cell)}, a name or a mistake in a row; pass "
                        "--header yes if the line names the columns, else --header no")
    names = [cell.strip() for cell in rows[0]] if named else None
    if named:
        names[0] = names[0].removeprefix("#").strip()  # as numpy.savetxt has it
    return Head(separator, names, width, lines[0] if named else skip, list(rows[named:]))


def stated_separator(block):
    """(separator, 1) where the first line is `sep=;`, as Excel has it; else (None, 0)."""
    line = block.split(b"\n", 1)[0].rstrip(b"\r").strip(b'"')
    return (chr(line[4]), 1) if line[:4].lower() == b"sep=" and len(line) == 5 else (None, 0)


def separator_of(path, block):
    """The separator with which most of the first lines have as many cells as the first one."""
    lines, size = [], 0
    for line in block.split(b"\n", LINES)[:LINES]:
        if line.strip() and (size < LINE_BYTES or len(lines) < 2):
            lines.append(line)
            size += len(line)
    head, best, most = b"\n".join(lines) + b"\n", ",", 0
    for separator in SEPARATORS:
        widths = [len(cells) for _, cells in rows_of(path, 1, head, separator)]
        alike = sum(width == widths[0] for width in widths) if widths and widths[0] > 1 else 0
        best, most = (separator, alike) if alike > most else (best, most)
    if most == 0 and lines and all(len(line.split()) > 1 for line in lines):
        if re.search(rb"[ ]{2,}", head.strip()):
            raise UserError(f"{place(path)}: runs of blanks separate its columns, got {excerpt(lines[0])}; needed commas, "
                            "semicolons, tabs or |: tr -s ' ' ',' < FILE > NEW")
        return " "
    return best


def _quoted_alone(block):
    """True where all cells of the first line are quoted, and none of the second; else None."""
    lines = [line.strip() for line in itertools.islice((line for line in block.split(b"\n", 3) if line.strip()), 2)]
    return True if len(lines) == 2 and re.fullmatch(rb'"[^"]*"(\W"[^"]*")+', lines[0]) and b'"' not in lines[1] else None


def names_columns(rows):
    """Whether the first of the rows (cells of equal number) names the columns: True, False, or None if nobody can tell.

    The first row is compared with those below it, column by column: a text above numbers is a name; numbers are names if
    they are at equal distances, or lie outside what the column holds, and those of the rows below do not.
    """
    first, below = [cell.strip() for cell in rows[0]], rows[1:]
    numbers = [(k, numeric(cell)) for k, cell in enumerate(first) if numeric(cell) is not None]
    texts = [k for k, cell in enumerate(first) if numeric(cell) is None and cell.lower() not in MISSING]
    missing = len(first) - len(numbers) - len(texts)
    if not below:
        return True if not numbers else None if texts and _sequence([x for _, x in numbers]) else False
    above_numbers = [k for k in texts
                     if all(numeric(row[k]) is not None or row[k].strip().lower() in MISSING for row in below)]
    alike = _look_like_names(numbers, below, bool(texts) or first[0] == "") if len(numbers) > 1 else False
    if alike is not False and missing <= (first[0] == ""):
        return alike
    if above_numbers:
        return True if len(texts) > len(numbers) + missing or not numbers and first[0] == "" else None
    if not texts or numbers:
        return False
    if any(first[k] in {row[k].strip() for row in below} for k in texts):
        return False
    return True if len(below) >= MANY else None


def _look_like_names(numbers, below, texts):
    """Whether numbers [(column, number)] of a first row are names of columns, to judge by the rows below; None: who knows."""
    columns, values = zip(*numbers, strict=True)
    if not np.isfinite(values).all():
        return False
    table = np.array([[np.nan if numeric(row[k]) is None else numeric(row[k]) for k in columns] for row in below])
    low, high = np.nanmin(table, axis=0, initial=np.inf), np.nanmax(table, axis=0, initial=-np.inf)
    outside, n = (values < low) | (values > high), len(values)
    with np.errstate(invalid="ignore"):  # infinity may be among the rows
        off, far = ((values < low - k * (high - low)) | (values > high + k * (high - low)) for k in (1, FAR))
        ordered = (np.sign(np.diff(table, axis=1)) == np.sign(np.diff(values))).all(axis=1)
    if _sequence(values):
        fractions = np.mean([any("." in row[k] for row in below) for k in columns])
        differs = texts or fractions > 0.5 or np.isnan(table).all(axis=0).any() or n >= RUN and outside.mean() > 0.5
        if np.mean([_sequence(row) for row in table]) >= 0.5:
            return False
        if n >= RUN or values[1] - values[0] == 1 and values[0].is_integer() and differs:
            return True if differs or n >= MANY else None
    steps = np.diff(values)
    if not ((steps > 0).all() or (steps < 0).all()) or not off.all() or ordered.mean() >= 0.5:
        return False
    by_chance = 2 / math.factorial(min(n, 20)) * (2 / (len(below) + 1)) ** n
    return bool(n > 2 and len(below) > 2 and far.all()) or by_chance < SURE


def _sequence(values):
    """Whether values are at equal distances, not 0."""
    with np.errstate(invalid="ignore"):
        steps = np.diff(values)
    return len(steps) > 0 and bool(steps[0]) and bool(np.allclose(steps, steps[0], rtol=1e-6, atol=0))
