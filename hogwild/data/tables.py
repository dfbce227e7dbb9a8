"""Which columns of a table are features, label and categories, and rows of columns made into Chunks: of CSV and Parquet."""

import re
from dataclasses import dataclass, field, replace

import numpy as np

from hogwild.data import class_names
from hogwild.data.class_names import FLOAT32_END, MISSING
from hogwild.data.files import excerpt, place
from hogwild.data.schema import Chunk
from hogwild.errors import UserError

MOST_VALUES = 256  # of a text column that becomes features without being asked for
LONGEST, MOST_WORDS = 64, 6  # of a text that may be a category's name
FEW = 20  # rows: of fewer it cannot be told whether their texts recur
INDEX = re.compile(r"|Unnamed: \d+(\.\d+)*|__index_level_\d+__")  # what pandas calls an index without a name
COUNT_MISSING = "fill it, drop the row, or pass --categorical {} to count it as a value"
LABEL_NAMES = {"label", "labels", "target", "class", "y"}


@dataclass
class Columns:
    """The columns of a table that are read. Numbers come first as features, in their order, then the values of texts."""

    names: list[str]
    label: int | None
    numbers: list[int]
    texts: list[int]
    named: bool  # whether the file names its columns
    asked: set[int] = field(default_factory=set)  # of texts, those that the user declared as categories
    features: dict[tuple[int, str], int] = field(default_factory=dict)  # (column, value): index
    fixed: bool = False  # a model knows these features only
    unknown: dict[int, int] = field(default_factory=dict)  # column: rows with a value that the model does not know

    @property
    def width(self):
        return len(self.numbers) + len(self.features)

    def option(self, column) -> str:
        """The column as an option names it, on one line."""
        return self.names[column] if self.names[column].isprintable() else repr(self.names[column])

    def name(self, column) -> str:
        return f"column {self.names[column]!r}" if self.named else f"column {column + 1}"


def numbered(path, given, names, named):
    """Place of a column: its name, or its number from 0 (from the end if negative)."""
    if named and names.count(str(given)) == 1:
        return names.index(str(given))
    try:
        return range(len(names))[int(given)]
    except (ValueError, IndexError):
        known = f"one of {excerpt(', '.join(names))} or " if named else "(the file has no header) "
        raise UserError(f"{place(path)}: got column {excerpt(given)}, needed {known}a column's number from {-len(names)} to "
                        f"{len(names) - 1}; correct --label or --categorical") from None


def unique(names):
    """The names, empty ones and those that occur before told apart by numbers."""
    found = []
    for k, name in enumerate(names):
        name = name or (f"Unnamed: {k}" if k else "")
        count = 1
        while name in found[:k] and f"{name}.{count}" in found:
            count += 1
        found.append(f"{name}.{count}" if name in found else name)
    return found


def choose(source, names, kinds, asked, is_index):
    """The Columns of a file read for the first time, and its schema and notes.

    names: of all columns, or None; kinds: of each, number, text or another word that refuses it; asked: columns declared as
    categories; is_index(k): whether column k numbers the rows.
    """
    path, named, width = source.path, names is not None, len(kinds)
    names = unique(names) if named else [str(k) for k in range(width)]
    given = source.schema.label
    label = width - 1 if given is None else numbered(path, given, names, named)
    asked = {numbered(path, column, names, named) for column in asked}
    if label in asked:
        raise UserError(f"{place(path)}: column {names[label]!r} is the label, and cannot be one of --categorical")
    left_out = [k for k in range(width) if named and INDEX.fullmatch(names[k]) and k not in {*asked, label} and is_index(k)]
    used = [k for k in range(width) if k != label and k not in left_out]
    texts = [k for k in used if k in asked or kinds[k] == "text"]
    numbers = [k for k in used if k not in texts]
    for k in numbers:
        if kinds[k] != "number":
            raise UserError(f"{place(path)}, column {names[k]!r}: holds {kinds[k]}, needed numbers or text; convert it")
    found = Columns(names, label, numbers, texts, named, asked)
    source.schema = replace(source.schema, columns=tuple(names[k] for k in numbers) if named else None, label=names[label],
                            width=width, left_out=tuple(names[k] for k in left_out))
    _tell(source, found, left_out, given)
    return found


def _tell(source, found, left_out, given):
    what = f"label: {found.name(found.label)}{' (the last)' if given is None else ''}"
    others = [name for name in found.names if name.lower() in LABEL_NAMES and name != found.names[found.label]]
    if given is None and others:
        what += f"; if the label is {others[0]!r}, pass --label"
    source.notes.append(what)
    if left_out:
        names = ", ".join(repr(found.names[k]) for k in left_out)
        source.notes.append(f"column {names} numbers the rows and is left out")
    told = [found.name(k) for k in found.texts if k not in found.asked]
    if told:
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        source.notes.append(f"text, each value of it one feature: {', '.join(told[:5])}{more}")


def match(source, names, known):
    """The Columns of a file that is read as another one was, whose Schema is `known`; columns are found by their names."""
    path, named, chosen = source.path, names is not None, source.schema.label
    values = list(dict.fromkeys(column for column, _ in known.categories))
    if known.columns is not None:
        if not named:
            raise UserError(f"{place(path)}: its first line does not name the columns; needed the training file's names "
                            f"({excerpt(', '.join(known.columns))}); add them, or pass --header yes if it has them")
        names = unique(names)
        wanted = list(known.columns[:len(known.columns) - len(known.categories)])
    else:
        names = _positions(path, names, known)
        wanted = [str(k) for k in range(known.width) if str(k) not in {known.label, *known.left_out, *values}]
    place_of = {name: k for k, name in enumerate(names)}
    lacking = [name for name in wanted + values if name not in place_of]
    if lacking:
        raise UserError(f"{place(path)}: has no column {', '.join(map(repr, lacking[:5]))}{' …' * (len(lacking) > 5)} "
                        f"({len(lacking)} of {len(wanted) + len(values)} features' columns are missing), got "
                        f"{excerpt(', '.join(names))}; needed all columns of the training file, in any order")
    label = place_of.get(known.label) if chosen is None else numbered(path, chosen, names, named)
    numbers, texts = [place_of[name] for name in wanted], [place_of[name] for name in values]
    if label in {*numbers, *texts}:
        raise UserError(f"{place(path)}: column {names[label]!r} is a feature of the model, not the label; correct --label")
    rest = [name for name in names if place_of[name] not in {label, *numbers, *texts} and name not in known.left_out]
    if rest:
        source.notes.append(f"{len(rest)} columns that the model does not know are ignored: {excerpt(', '.join(rest))}")
    if label is None:
        source.labelled = False
    source.schema = replace(known, kind=source.schema.kind, label=known.label if label is None else names[label],
                            width=len(names) if known.columns is not None else known.width)
    features = {(place_of[column], value): len(numbers) + k for k, (column, value) in enumerate(known.categories)}
    return Columns(names, label, numbers, texts, named, set(texts), features, fixed=True)


def _positions(path, names, known):
    """Numbers as names of the columns of a file whose training file had none: the same, or all but the label's."""
    width, all_names = len(names), [str(k) for k in range(known.width)]
    if width == known.width:
        return all_names
    if width == known.width - 1:
        return [name for name in all_names if name != known.label]
    raise UserError(f"{place(path)}: has {width} columns, needed {known.width} as in the training file, or one less, without "
                    "the label; add or drop the difference")


def columns_of(source, names, kinds, asked, known, is_index):
    """`match` where a model tells of a table, else `choose`."""
    if known is not None and (known.columns is not None or known.width is not None):
        return match(source, names if names is not None or known.columns is not None else [""] * len(kinds), known)
    found = choose(source, names, kinds, asked, is_index)
    if known is not None and found.texts:
        refuse_text(source, found, found.texts[0], "holds text, and the training file had numbers alone", "text")
    return found


def suspicious(values):
    """What is wrong with texts as the names of categories, if the user did not declare them to be; else None."""
    rows, distinct = len(values), len(set(values))
    if any(len(value) > LONGEST or len(value.split()) > MOST_WORDS for value in values):
        return "holds free text"
    if distinct > MOST_VALUES or rows >= FEW and distinct > rows / 2:
        return f"holds text with {distinct:,} different values in {rows:,} rows"
    return None


def refuse_text(source, found, column, why, example):
    """Raise the UserError for a column of texts that are not categories."""
    raise UserError(f"{place(source.path)}, {found.name(column)}: {why}, got {excerpt(example)}; drop the column, turn it "
                    f"into numbers, or pass --categorical {found.option(column)} if each value is to be a feature")


def encoded(column):
    """(codes int[n], values list of str) of a pyarrow column of text, blanks around the texts dropped."""
    from pyarrow import compute
    array = compute.utf8_trim_whitespace(column.combine_chunks()).dictionary_encode()
    return array.indices.to_numpy(), array.dictionary.to_pylist()


def labels(column):
    """Labels of a pyarrow column of text: float64[n], or object[n] of str."""
    import pyarrow as pa
    from pyarrow import compute
    try:
        numbers = compute.cast(compute.utf8_trim_whitespace(column.combine_chunks()), pa.float64()).to_numpy()
        if (abs(numbers) < class_names.EXACT).all():
            return numbers
    except pa.ArrowInvalid:
        pass
    codes, values = encoded(column)
    return class_names.joined([class_names.from_text(value) for value in values])[codes]


def good(labels) -> bool:
    """Whether all labels (float64[n], object[n] or None) are there, and numbers among them finite in float32."""
    if labels is None:
        return True
    if labels.dtype.kind == "f":
        return bool((abs(labels) < FLOAT32_END).all())
    return not any(label.lower() in MISSING or "\ufffd" in label for label in set(labels.tolist()))


def chunk(source, found, labels, numbers, texts) -> Chunk:
    """A Chunk of some rows. labels: as in Chunk, or None; numbers: float32[n, numbers]; texts: for each column (codes
    int[n], values), values being str."""
    n, k = numbers.shape
    stored, values = numbers != 0, numbers
    if texts:
        codes = np.stack([_codes(source, found, *text) for text in zip(found.texts, texts, strict=True)], axis=1)
        codes.sort(axis=1)
        stored = np.hstack((stored, codes >= 0))
        values = np.hstack((numbers, np.ones(codes.shape, np.float32)))
    indices = np.broadcast_to(np.arange(k, dtype=np.uint32), (n, k))
    indices = np.hstack((indices, codes.astype(np.uint32))) if texts else indices
    labels = np.full(n, np.nan) if labels is None else labels
    return Chunk(labels, stored.sum(axis=1, dtype=np.int64), indices[stored], values[stored], found.width)


def _codes(source, found, column, text):
    """Index of each row's feature, int64[n]; -1 where the model does not know the value. New values get the next indices."""
    codes, values = text
    known = np.empty(len(values), np.int64)
    for k, value in enumerate(values):
        if (column, value) not in found.features and not found.fixed:
            found.features[column, value] = found.width
            if column not in found.asked and sum(key[0] == column for key in found.features) > MOST_VALUES:
                refuse_text(source, found, column, f"holds text with more than {MOST_VALUES} different values", value)
        known[k] = found.features.get((column, value), -1)
    rows = known[codes]
    missing = int((rows < 0).sum())
    if missing:
        found.unknown[column] = found.unknown.get(column, 0) + missing
    return rows


def close(source, found):
    """Complete schema and notes, once all rows are read."""
    if found.fixed:
        source.notes += [f"{found.name(column)}: {rows:,} rows have a value that the model does not know; it counts as none"
                         for column, rows in found.unknown.items()]
        return
    pairs = tuple((found.names[column], value) for column, value in found.features)
    columns = source.schema.columns
    source.schema = replace(source.schema, categories=pairs, columns=None if columns is None else (
        *columns, *(f"{column}={value}" for column, value in pairs)))
