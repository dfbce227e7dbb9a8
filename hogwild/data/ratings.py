"""Ratings of items by users, read from files or made from arrays: pairs of numbers, with the identifiers they stand for.

Files: lines `user::item::rating[::time]`, or CSV of any separator (plain, .gz, .bz2, .xz), Parquet, and the CSR matrix of
scipy.sparse.save_npz. Without ratings a pair is a positive, of value 1. Of a pair that occurs twice the latest is taken.
"""

import io
import zipfile
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from hogwild.data import files, foreign_formats, formats, rating_text
from hogwild.data.files import excerpt, opened, place, unpacked
from hogwild.data.npz import Member
from hogwild.data.rating_ids import Ids, first_seen, numbered, texts_of, with_kind
from hogwild.errors import UserError

NPZ = "write it with scipy.sparse.save_npz(path, csr_array)"


class Ratings(NamedTuple):
    """Pairs, each once."""

    users: np.ndarray  # uint32[n], numbers of user_ids
    items: np.ndarray  # uint32[n]
    values: np.ndarray  # float32[n]; 1 where there are none
    times: np.ndarray | None  # float64[n]; None: not known, the order of the pairs is then that of time
    user_ids: Ids
    item_ids: Ids
    source: str
    notes: tuple[str, ...] = ()  # lines for the user on how they were read
    rated: bool = True  # False: positives alone

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.users)

    def select(self, chosen) -> "Ratings":
        """The chosen pairs (int[m] or bool[n]), numbers and identifiers as they are."""
        times = None if self.times is None else self.times[chosen]
        return self._replace(users=self.users[chosen], items=self.items[chosen], values=self.values[chosen], times=times)

    def renumbered(self) -> "Ratings":
        """The same, with the users and items alone that occur, numbered in the order of their first occurrence."""
        users, user_ids = first_seen(self.users, self.user_ids)
        items, item_ids = first_seen(self.items, self.item_ids)
        return self._replace(users=users, items=items, user_ids=user_ids, item_ids=item_ids)

    def content(self) -> dict[str, np.ndarray]:
        """Arrays by name that tell these ratings from others."""
        return {"users": self.users, "items": self.items, "values": self.values,
                **self.user_ids.tensors("user"), **self.item_ids.tensors("item")}


def read(path, columns=None, header="auto", repeated=False) -> Ratings:
    """The Ratings in a file, or in standard input for -.

    columns: USER,ITEM[,RATING[,TIME]], names or numbers from 0 of the columns of a table; None: found by their names, else
    the first ones. header: whether the first line of a text names the columns: auto, yes or no. repeated: pairs that occur
    several times stay, each in its place. Raises UserError.
    """
    if header not in formats.HEADER:
        raise UserError(f"--header must be one of {', '.join(formats.HEADER)}, got {excerpt(header)}")
    notes = []
    with opened(path) as file:
        head = file.peek(files.HEAD)
        form = formats.kind(path)
        form = "parquet" if head.startswith(foreign_formats.PARQUET) else form
        form = "npz" if head.startswith(foreign_formats.ZIP) and b".npy" in head[:200] else form
        if form == "npz":
            users, items, values = _npz(path, file, columns)
            made = _of_numbers(users, items, values, place(path))
            return made if repeated else distinct(made)
        table = _parquet(path, file, columns, notes) if form == "parquet" else rating_text.read(
            path, unpacked(path, file), columns, header, notes)
    if not table.num_rows:
        raise UserError(f"{place(path)}: holds no rating; needed at least one, check how the file was made")
    users, user_ids = numbered(table["user"])
    items, item_ids = numbered(table["item"])
    rated = "rating" in table.column_names
    values = table["rating"].to_numpy().astype(np.float32) if rated else np.ones(len(users), np.float32)
    times = table["time"].to_numpy() if "time" in table.column_names else None
    if not rated:
        notes.append("has no ratings: its pairs are positives")
    made = Ratings(users, items, values, times, with_kind(user_ids), with_kind(item_ids), place(path),
                   tuple(f"{place(path)}: {note}" for note in notes), rated)
    return made if repeated else distinct(made)


def given(ratings, source="ratings") -> Ratings:
    """Ratings of what Python users have: the path of a file; a SciPy sparse matrix [users, items], whose entries are the
    ratings; a data frame or pyarrow table with columns user, item and, if it has them, rating and time, or else these as its
    first columns; a tuple (users, items[, ratings[, times]]) of arrays. Identifiers are whole numbers or texts."""
    if isinstance(ratings, Ratings):
        return ratings
    if isinstance(ratings, (str, bytes)) or hasattr(ratings, "__fspath__"):
        return read(ratings)
    if hasattr(ratings, "tocoo"):
        matrix = ratings.tocsr().tocoo()
        matrix.sum_duplicates()
        return _checked(_of_numbers(matrix.row, matrix.col, matrix.data, source), matrix.data)
    names = getattr(ratings, "column_names", getattr(ratings, "columns", None))
    if names is not None:
        names = [str(name) for name in names]
        found = rating_text.columns_by_name(source, names, None)
        columns = [ratings[names[k]] for k in found if k is not None]
    else:
        columns = list(ratings) if isinstance(ratings, (tuple, list)) else []
    if not 2 <= len(columns) <= 4:
        raise UserError(f"{source}: got {type(ratings).__name__}, needed a file's path, a SciPy sparse matrix, a data frame "
                        "with columns user, item, rating, or a tuple of arrays (users, items, ratings)")
    return _of_arrays(source, *columns)


def _of_arrays(source, users, items, values=None, times=None) -> Ratings:
    (users, whole_users), (items, whole_items) = texts_of(users), texts_of(items)
    raw = np.ones(len(users)) if values is None else np.asarray(values)
    lengths = {len(users), len(items), len(raw)} | ({len(times)} if times is not None else set())
    if len(lengths) > 1 or raw.ndim != 1:
        raise UserError(f"{source}: got {len(users):,} users, {len(items):,} items and ratings of shape {raw.shape}, needed "
                        "as many of each")
    if users.null_count or items.null_count:
        raise UserError(f"{source}: an identifier is missing; fill it or drop the row")
    numbers, user_ids = numbered(users)
    others, item_ids = numbered(items)
    try:
        times = None if times is None else np.asarray(times)
        lacking = times != times  # NaN and NaT alone differ from themselves
        times = None if times is None else times.astype(np.float64)
    except (ValueError, TypeError):
        raise UserError(f"{source}: times must be numbers or datetime64, got {np.asarray(times).dtype}") from None
    if times is not None and (bad := np.flatnonzero(lacking)).size:
        raise UserError(f"{source}, row {bad[0]} (from 0): the time is missing; fill it, or give no times")
    ids = Ids(user_ids.texts, whole_users), Ids(item_ids.texts, whole_items)
    made = Ratings(numbers, others, np.zeros(0), times, *ids, source, rated=values is not None)
    return _checked(made, raw)


def _checked(made, values):
    """With values of real, finite numbers, each pair once."""
    if values.dtype.kind not in "iufb":
        raise UserError(f"{made.source}: ratings have dtype {values.dtype}, needed real numbers; convert them")
    with np.errstate(over="ignore"):
        made = made._replace(values=values.astype(np.float32))
    if (bad := np.flatnonzero(~np.isfinite(made.values))).size:
        raise UserError(f"{made.source}, row {bad[0]} (from 0): got rating {values[bad[0]]}, needed a finite float32 number")
    return distinct(made)


def _of_numbers(users, items, values, source) -> Ratings:
    """Ratings whose identifiers are whole numbers."""
    users, user_ids = numbered(pa.array(users).cast(pa.string()))
    items, item_ids = numbered(pa.array(items).cast(pa.string()))
    return Ratings(users, items, values, None, Ids(user_ids.texts, True), Ids(item_ids.texts, True), source)


def distinct(made) -> Ratings:
    """Each pair once: the latest, or the last in the file where times are equal or not known."""
    keys = made.users.astype(np.int64) * max(len(made.item_ids), 1) + made.items
    order = np.argsort(keys, kind="stable") if made.times is None else np.lexsort((made.times, keys))
    last = np.append(np.diff(keys[order]) != 0, True) if len(keys) else np.zeros(0, bool)
    if last.all():
        return made
    what = "the last one is" if made.times is None else "the latest one is"
    note = f"{made.source}: {int((~last).sum()):,} ratings are of a user and an item that another one is of; {what} taken"
    return made.select(np.sort(order[last]))._replace(notes=(*made.notes, note))


def _npz(path, file, columns):
    """(users, items, values float32) of the CSR matrix in an open .npz file."""
    if columns is not None:
        raise UserError(f"{place(path)}: --columns was given, but npz files have none; leave it out")
    try:
        with zipfile.ZipFile(file if file.seekable() else io.BytesIO(file.read())) as archive:
            names = "indptr", "indices", "shape", "format"
            indptr, indices, shape, layout = (Member(path, archive, name, "SU" if name == "format" else "iu").read()
                                              for name in names)
            values = Member(path, archive, "data", "iufb").read()
    except UserError as error:
        raise UserError(str(error).partition("; ")[0] + f"; {NPZ}") from None
    except Exception as error:  # NumPy evaluates the text of a header: a damaged one makes it raise anything
        raise UserError(f"{place(path)}: truncated, corrupt or no .npz file ({excerpt(error)}); {NPZ}") from None
    fits = layout.tolist() in ([b"csr"], ["csr"]) and shape.size == 2 and indptr.size == shape[0] + 1 and (
        indptr[0] == 0 and (np.diff(indptr.astype(np.int64)) >= 0).all() and indptr[-1] == indices.size == values.size)
    if not fits or indices.size and not (0 <= indices.min() and indices.max() < shape[1]):
        raise UserError(f"{place(path)}: is no CSR matrix whose arrays fit together; {NPZ}")
    if not indices.size:
        raise UserError(f"{place(path)}: holds no rating; needed at least one stored entry")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    users = np.repeat(np.arange(indptr.size - 1), np.diff(indptr.astype(np.int64)))
    if (bad := np.flatnonzero(~np.isfinite(values))).size:
        raise UserError(f"{place(path)}, row {users[bad[0]]} (from 0): got rating {values[bad[0]]}, needed a finite number")
    return users, indices.astype(np.int64), values


def _parquet(path, file, columns, notes):
    """The table of a Parquet file, as rating_text.read gives it."""
    from pyarrow import parquet
    try:
        source = parquet.ParquetFile(file if file.seekable() else io.BytesIO(file.read()))
        names = source.schema_arrow.names
        found = rating_text.columns_by_name(place(path), names, columns)
        used = {what: names[k] for what, k in zip(rating_text.COLUMNS, found) if k is not None}
        table = source.read(columns=list(used.values()))
        table = pa.table({what: table[name] for what, name in used.items()})
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{place(path)}: truncated, corrupt or no Parquet file ({excerpt(error)}); write it again") from None
    notes.append("columns: " + ", ".join(f"{what} {name!r}" for what, name in used.items()))
    kinds = {"user": pa.string(), "item": pa.string(), "rating": pa.float64(), "time": pa.float64()}
    for k, (what, name) in enumerate(used.items()):
        column = table[what]
        if column.null_count:
            raise UserError(f"{place(path)}, column {name!r}: {column.null_count:,} values are missing; fill them or drop "
                            "the rows")
        if what == "time" and pa.types.is_temporal(column.type):
            column = column.cast(pa.timestamp("us")).cast(pa.int64())
        try:
            table = table.set_column(k, what, column.cast(kinds[what]))
        except pa.ArrowInvalid as error:
            raise UserError(f"{place(path)}, column {name!r}: {excerpt(error)}; needed {what}s") from None
    if "time" in used and np.isnan(table["time"].to_numpy()).any():
        raise UserError(f"{place(path)}, column {used['time']!r}: holds a time that is no number; correct it")
    if "rating" in used and not np.isfinite(table["rating"].to_numpy().astype(np.float32)).all():
        raise UserError(f"{place(path)}, column {used['rating']!r}: holds a number that is not finite in float32; correct it")
    return table
