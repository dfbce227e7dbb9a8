"""Reader of CSV: lines of cells between commas, semicolons, tabs or |, converted block by block by pyarrow."""

import re
from dataclasses import replace

import numpy as np

from hogwild.data import class_names, files, foreign_formats, tables
from hogwild.data.class_names import FLOAT32_END, MISSING, numeric
from hogwild.data.csv_head import head_of, rows_of, without_lines
from hogwild.data.files import excerpt, place
from hogwild.data.svmlight import NOT_FINITE
from hogwild.errors import UserError

LF = 10
WIDE = 2000  # columns: of more it costs less to read them as one, where all hold numbers
NUMBER_LIKE = re.compile(r"[-+$€£]?\s*[0-9][0-9.,' ]*\s*[%$€£]?")  # a number as people write it
NO_NUMBER = ("needed a number such as -1.5e3", "correct it, or pass --categorical {} if each value is to be a feature")
STYLED = ("needed a number such as 1234.5", "write it with a decimal point, no other separator and no unit")
NO_VALUE = ("needed a value, this one is missing", "fill it or drop the row")
NO_CATEGORY = (NO_VALUE[0], tables.COUNT_MISSING)
TOO_LARGE = ("needed a number within float32's range, ±3.4e38", "scale the data")
NO_UTF8 = ("needed text in UTF-8", "convert the file: iconv -f LATIN1 -t UTF-8 FILE > NEW")


def read(source, pieces, header="auto", asked=(), known=None):
    """Chunks of the file's pieces, zeros dropped. header: auto, yes, no; asked: columns declared as categories; known: the
    Schema of a model."""
    path, blocks = source.path, files.line_blocks(source.path, pieces, quoted=True)
    head = None
    for first, block in _joined(blocks):
        if head is None:
            files.refuse_foreign(path, block[:files.HEAD], foreign_formats.TEXT)
            head = head_of(path, block, header, _expected(known))
            if head is None:
                continue
            found = _columns(source, head, header, asked, known)
            plain = head.width > WIDE and not any(numeric(cell) is None for row in head.rows for cell in row)
            first, block = first + head.skip, without_lines(block, head.skip)
        rows = _all_numbers(block, head, found) if plain else None
        if rows is None:
            plain, rows = False, _converted(path, first, block, head, found)
        if rows is not None:
            yield tables.chunk(source, found, *rows)
    if head is not None:
        tables.close(source, found)


def lines(path, pieces, header="auto"):
    """Yield (line number, cells) of the rows, the header left out."""
    head = None
    for first, block in _joined(files.line_blocks(path, pieces, quoted=True)):
        head = head or head_of(path, block, header)
        if head is not None:
            yield from ((line, cells) for line, cells in rows_of(path, first, block, head.separator) if line > head.skip)


def _joined(blocks):
    """The same blocks, the first ones together as far as the file's head goes."""
    start, parts, size = 1, [], 0
    for first, block in blocks:
        if parts is None:
            yield first, block
            continue
        parts.append(block)
        size += len(block)
        if size >= files.HEAD and sum(part.count(b"\n") for part in parts) > 2:
            yield start, b"".join(parts)
            parts = None
    if parts:
        yield start, b"".join(parts)


def _expected(known):
    if known is None or known.columns is None:
        return ()
    return {*known.columns, *(column for column, _ in known.categories)}


def _columns(source, head, header, asked, known):
    """Which columns are what; notes say how the first line was taken."""
    rows = [row for row in head.rows if len(row) == head.width]
    source.schema = replace(source.schema, header=head.names is not None)
    if header == "auto" and known is None:
        taken = ("the columns' names; if it is a row, pass --header no" if head.names else
                 "a row; if it names the columns, pass --header yes")
        source.notes.append(f"the first line is taken as {taken}")
    if head.separator != ",":
        source.notes.append(f"{head.separator!r} is taken as the separator")
    kinds = [_kind({row[k].strip() for row in rows}) for k in range(head.width)]
    found = tables.columns_of(source, head.names, kinds, asked, known, lambda k: _counts([row[k].strip() for row in rows]))
    for column in found.texts:
        values = [row[column].strip() for row in rows]
        why = None if column in found.asked else tables.suspicious(values)
        if why:
            tables.refuse_text(source, found, column, why, max(values, key=len))
    return found


def _kind(cells):
    """number, unless all cells that are there hold text."""
    cells = [cell for cell in cells if cell.lower() not in MISSING]
    text = cells and not any(numeric(cell) is not None or NUMBER_LIKE.fullmatch(cell) for cell in cells)
    return "text" if text else "number"


def _counts(cells):
    """Whether the cells are whole numbers and all different, as those of an index."""
    return len(cells) > 1 and all(cell.isdigit() for cell in cells) and len(set(cells)) == len(cells)


def _all_numbers(block, head, found):
    """What `_converted` gives of a block that holds numbers alone, however many its columns: read as one; else None."""
    import pyarrow as pa
    from pyarrow import csv
    block = block if block.endswith(b"\n") else block + b"\n"
    text, separator = np.frombuffer(block, np.uint8), ord(head.separator)
    ends = text[(text == separator) | (text == LF)]
    if b'"' in block or found.texts or ends.size % head.width:
        return None
    ends = ends.reshape(-1, head.width)
    if not ((ends[:, -1] == LF).all() and (ends[:, :-1] == separator).all()):
        return None
    try:
        column = csv.read_csv(
            pa.py_buffer(block.replace(head.separator.encode(), b"\n")), csv.ReadOptions(column_names=["all"]),
            csv.ParseOptions(ignore_empty_lines=False, quote_char=False),
            csv.ConvertOptions(column_types={"all": pa.float64()}, null_values=[])).column(0)
    except pa.ArrowInvalid:
        return None
    table = column.to_numpy().reshape(-1, head.width)
    labels = None if found.label is None else table[:, found.label].copy()
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(table[:, found.numbers], np.float32)
    exact = labels is None or (abs(labels) < class_names.EXACT).all()
    return (labels, numbers, []) if exact and np.isfinite(numbers).all() else None


def _converted(path, first, block, head, found):
    """(labels or None, numbers float32[n, k], texts) as `tables.chunk` wants them; None where the block has no row."""
    import pyarrow as pa
    from pyarrow import csv
    used = [*found.numbers, *found.texts, *([] if found.label is None else [found.label])]
    types = {str(k): pa.float64() if i < len(found.numbers) else pa.string() for i, k in enumerate(used)}
    try:
        table = csv.read_csv(
            pa.py_buffer(block),
            csv.ReadOptions(column_names=list(map(str, range(head.width))), block_size=len(block) + 1),
            csv.ParseOptions(delimiter=head.separator, newlines_in_values=b'"' in block),
            csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[]))
    except pa.ArrowInvalid:
        return _by_rows(path, first, block, head, found)
    numbers = np.empty((table.num_rows, len(found.numbers)), np.float32)
    with np.errstate(over="ignore"):
        for i in range(numbers.shape[1]):
            numbers[:, i] = table.column(i).to_numpy()
    texts = [tables.encoded(table.column(i)) for i in range(len(found.numbers), len(found.numbers) + len(found.texts))]
    labels = None if found.label is None else tables.labels(table.column(len(used) - 1))
    lacking = any(column not in found.asked and any(value.lower() in MISSING for value in values)
                  for column, (_, values) in zip(found.texts, texts, strict=True))
    if lacking or not np.isfinite(numbers).all() or not tables.good(labels):
        return _by_rows(path, first, block, head, found)
    return labels, numbers, texts


def _by_rows(path, first, block, head, found):
    """The same cell by cell. Raises the UserError that names the first mistake."""
    rows, used = [], sorted({*found.numbers, *found.texts, found.label} - {None})
    for line, cells in rows_of(path, first, block, head.separator):
        if len(cells) != head.width:
            raise UserError(f"{place(path, line)}: got {len(cells)} columns, needed {head.width} as in the first line; "
                            "add or drop the difference")
        rows.append([cell.strip() for cell in cells])
        mistakes = ((k, _mistake(rows[-1][k], k, found)) for k in used)
        column, mistake = next((each for each in mistakes if each[1]), (0, None))
        if mistake:
            needed, remedy = mistake
            shown = found.option(column)
            name = f" ({shown})" if found.named else ""
            raise UserError(f"{place(path, line)}, column {column + 1}{name}: got {excerpt(cells[column])}, {needed}; "
                            f"{remedy.format(shown)}")
    if not rows:
        return None
    numbers = np.array([[float(row[k]) for k in found.numbers] for row in rows], np.float32).reshape(len(rows), -1)
    texts = []
    for k in found.texts:
        values, codes = np.unique(np.array([row[k] for row in rows], object), return_inverse=True)
        texts.append((codes, values.tolist()))
    labels = None if found.label is None else class_names.joined([class_names.from_text(row[found.label]) for row in rows])
    return labels, numbers, texts


def _mistake(cell, column, found):
    """(what was needed, what to do) of a wrong cell, or None."""
    text = column in found.texts
    if text and column in found.asked:
        return NO_UTF8 if "\ufffd" in cell else None
    if cell.lower() in MISSING:
        return NO_CATEGORY if text else NO_VALUE
    value = None if text else numeric(cell)
    if text or column == found.label and value is None:
        return NO_UTF8 if "\ufffd" in cell else None
    if value is None:
        return STYLED if NUMBER_LIKE.fullmatch(cell) else NO_NUMBER
    if column == found.label and not isinstance(class_names.from_text(cell), float):
        return None
    infinite = cell.strip("+-").lower().startswith("inf")
    return None if abs(value) < FLOAT32_END else NOT_FINITE if infinite else TOO_LARGE
