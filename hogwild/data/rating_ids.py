"""Identifiers of users and items: texts, numbered from 0 in the order of their first occurrence."""

import numpy as np
import pyarrow as pa
from pyarrow import compute

from hogwild.data.files import excerpt
from hogwild.errors import UserError, demand

WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"  # what int64 gives back as the same text


class Ids:
    """Different identifiers, number k at place k.

    texts: pyarrow string array. whole: users get them as int64; else as str.
    """

    def __init__(self, texts, whole=False):
        self.texts, self.whole = pa.array([], pa.string()) if not len(texts) else texts, whole
        self._lookup = None

    def __len__(self):
        return len(self.texts)

    @property
    def values(self) -> np.ndarray:
        """int64[n], or object[n] of str."""
        if self.whole:
            return compute.cast(self.texts, pa.int64()).to_numpy(zero_copy_only=False)
        return self.texts.to_numpy(zero_copy_only=False)

    def find(self, given) -> np.ndarray:
        """int64[m]: numbers of the identifiers `given` (what `texts_of` takes); -1 where they are none of these."""
        found = compute.index_in(texts_of(given)[0], value_set=self.texts)
        return compute.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)

    def demand(self, given, what) -> np.ndarray:
        """`find`, for identifiers that must be known. Raises UserError."""
        numbers = self.find(given)
        if (lacking := np.flatnonzero(numbers < 0)).size:
            first = texts_of(given)[0][int(lacking[0])].as_py()
            raise UserError(f"{len(lacking):,} of {len(numbers):,} {what}s are unknown, the first is {excerpt(first)}; "
                            f"needed {what}s that the model was trained with, such as {excerpt(self.texts[0].as_py())}")
        return numbers

    def name(self, k) -> str:
        """Identifier k on one line."""
        text = self.texts[int(k)].as_py()
        return text if text.isprintable() else repr(text)

    def take(self, numbers) -> "Ids":
        """Those with the given numbers, in that order."""
        return Ids(self.texts.take(pa.array(numbers)), self.whole)

    def joined(self, other) -> "Ids":
        """These, and behind them those of `other` that are new."""
        new = other.take(np.flatnonzero(self.find(other.texts) < 0))
        return Ids(pa.concat_arrays([self.texts, new.texts]), self.whole and other.whole)

    def tensors(self, name) -> dict[str, np.ndarray]:
        """Arrays for a model file: all texts in UTF-8 one behind another, and where each ends."""
        raw = [text.encode() for text in self.texts.to_pylist()]
        return {f"{name}_ids": np.frombuffer(b"".join(raw), np.uint8),
                f"{name}_id_ends": np.cumsum(list(map(len, raw)), dtype=np.int64)}

    @classmethod
    def of_tensors(cls, tensors, name, whole) -> "Ids":
        """The Ids of which `tensors` has the arrays; these are removed. Raises ValueError, KeyError."""
        raw, ends = tensors.pop(f"{name}_ids"), tensors.pop(f"{name}_id_ends")
        demand(raw.dtype == np.uint8 and ends.dtype == np.int64 and raw.ndim == ends.ndim == 1, f"{name} ids")
        offsets = np.concatenate(([0], ends))
        demand((np.diff(offsets) >= 0).all() and offsets[-1] == raw.size and isinstance(whole, bool), f"{name} ids")
        text = raw.tobytes()
        made = cls(pa.array([text[a:b].decode() for a, b in zip(offsets, offsets[1:])], pa.string()), whole)
        demand(len(made.texts.unique()) == len(made) and (not whole or made.values.size == len(made)), f"{name} ids differ")
        return made


def texts_of(given) -> tuple[pa.Array, bool]:
    """(texts, whether they were whole numbers) of a list, a NumPy array, a column of a data frame, or a pyarrow array."""
    if isinstance(given, pa.ChunkedArray):
        given = given.combine_chunks()
    if not isinstance(given, pa.Array):
        # As objects: NumPy's own texts lose NUL characters at their ends.
        given = np.asarray(given, object if isinstance(given, (list, tuple)) else None)
        if given.ndim != 1:
            raise UserError(f"got identifiers of shape {given.shape}, needed a list of them [n]")
        if given.dtype.kind in "iu":
            return pa.array(given).cast(pa.string()), True
        if given.dtype.kind not in "OUST":
            raise UserError(f"identifiers have dtype {given.dtype}, needed whole numbers or texts; convert them")
        given = [text.decode() if isinstance(text, bytes) else text for text in given.tolist()]
        if wrong := [x for x in given if not isinstance(x, (str, int, np.integer)) or isinstance(x, bool)]:
            raise UserError(f"got {excerpt(wrong[0])} as an identifier, needed a whole number or a text")
        try:
            texts = pa.array(map(str, given), pa.string())
        except UnicodeEncodeError as error:
            raise UserError(f"got {excerpt(error.object)} as an identifier, needed text that UTF-8 can hold") from None
        return texts, bool(given) and all(isinstance(x, (int, np.integer)) for x in given)
    whole = pa.types.is_integer(given.type)
    return given.cast(pa.string()), whole


def numbered(column) -> tuple[np.ndarray, Ids]:
    """(uint32[n] numbers, Ids) of a pyarrow array, or a chunked one of which each part may be encoded as a dictionary."""
    if isinstance(column, pa.ChunkedArray):
        column = column.unify_dictionaries().combine_chunks() if column.num_chunks else pa.array([], pa.string())
    if not isinstance(column, pa.DictionaryArray):
        column = column.dictionary_encode()
    return column.indices.to_numpy(zero_copy_only=False).astype(np.uint32), Ids(column.dictionary.cast(pa.string()))


def with_kind(ids) -> Ids:
    """The same Ids of a file, `whole` where all are whole numbers as one writes them."""
    return Ids(ids.texts, len(ids) > 0 and bool(compute.all(compute.match_substring_regex(ids.texts, WHOLE)).as_py()))


def first_seen(numbers, ids) -> tuple[np.ndarray, Ids]:
    """(numbers, Ids) of those alone that occur among `numbers`, in the order of their first occurrence."""
    if not len(numbers):
        return numbers.astype(np.uint32), ids.take(np.zeros(0, np.int64))
    first = np.full(len(ids), len(numbers), np.int64)
    np.minimum.at(first, numbers, np.arange(len(numbers)))
    order = np.argsort(first, kind="stable")[:int((first < len(numbers)).sum())]
    new = np.zeros(len(ids), np.uint32)
    new[order] = np.arange(len(order))
    return new[numbers], ids.take(order)
