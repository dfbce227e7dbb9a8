"""What a reader of a file yields (Chunk), how the file was read (Schema), and both together (Source)."""

import os
import stat
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np

from hogwild.data.files import place


class Chunk(NamedTuple):
    """Some rows. width: number of features where the format tells it, else 0."""

    labels: np.ndarray  # float64[n]; text (object[n] of str) where a label is no number that float64 holds
    lengths: np.ndarray  # int64[n], entries per row
    indices: np.ndarray  # uint32[nnz]
    values: np.ndarray  # float32[nnz]
    width: int = 0


@dataclass(frozen=True)
class Schema:
    """How a file was read: what another file needs to be read alike. Models keep it in their header."""

    kind: str  # svmlight, csv, parquet, npz or array
    zero_based: bool = False  # svmlight indices count from 0
    columns: tuple[str, ...] | None = None  # the features' names in order, where the file names them
    categories: tuple[tuple[str, str], ...] = ()  # (column, value) of the last features, which are 1 in rows with the value
    label: str | None = None  # a table's label column: its name, or its number from 0 where the table has no header
    header: bool | None = None  # whether the first line of a CSV names the columns
    width: int | None = None  # columns of a table, the label's and those left out among them
    left_out: tuple[str, ...] = ()  # columns of a table that are no features

    def to_json(self) -> dict:
        """A dict that json can write."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict) -> "Schema":
        """The Schema that `to_json` gave, after its way through JSON."""
        names = {name: tuple(found[name]) for name in ("columns", "left_out") if found.get(name) is not None}
        pairs = tuple((column, value) for column, value in found.get("categories", ()))
        return cls(**{**found, **names, "categories": pairs})


@dataclass
class Source:
    """A data file: its name, its kind, how it is to be read, and what tells it from others. `chunks` opens it, once; schema,
    notes and labelled are complete after the last chunk."""

    path: object
    schema: Schema
    reader: Callable  # reader(source) yields Chunks and fills in schema and notes
    asked: dict = field(default_factory=dict)  # how the user wants it read, in what json can write
    notes: list[str] = field(default_factory=list)  # lines for the user, about the file, without its name
    labelled: bool = True  # False: a table without its label column, all labels NaN

    @property
    def name(self) -> str:
        """The file as messages name it."""
        return place(self.path)

    @property
    def kind(self) -> str:
        """svmlight, csv, parquet or npz: by the file's name, until the first chunk tells it by the content."""
        return self.schema.kind

    def status(self) -> os.stat_result | None:
        """Of a regular file, which may be read again; None of what can be read once, and where the reader will say what is
        wrong."""
        try:
            found = os.stat(self.path)
        except (OSError, ValueError):
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def chunks(self):
        """Yield the rows as Chunks, once. Raises UserError with one line: file, line, what was got and needed, what to do."""
        return self.reader(self)
