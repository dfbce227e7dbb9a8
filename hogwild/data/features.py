"""Which features occur: the numbers (ids) of a file's features are mapped to dense ones where few of many occur."""

from dataclasses import replace

import numpy as np

WIDE = 1 << 20  # features, up to which an array of all of them costs little
FEW = 4  # features for each that occurs, from which on only those that occur are numbered
BLOCK = 1 << 22  # entries looked at together


def too_wide(width, count) -> bool:
    """Whether `count` features, those that occur, are few among `width`."""
    return width > WIDE and FEW * count < width


def narrowed(indices, width) -> np.ndarray | None:
    """The features that occur (uint32, ascending), by whose places `indices` (uint32, below width) are replaced; None, and
    nothing is replaced, where they are not few among `width`.

    Needs memory in proportion to the entries, whatever the width.
    """
    if width <= WIDE:
        return None
    blocks = [slice(start, start + BLOCK) for start in range(0, indices.size, BLOCK)]
    table = width <= FEW * indices.size  # a table of all takes less time than to sort, and no more memory than the entries
    if table:
        place = np.zeros(width, np.uint32)
        for block in blocks:
            place[indices[block]] = 1
        ids = np.flatnonzero(place).astype(np.uint32)
    else:
        ids = np.zeros(0, np.uint32)
        for block in blocks:
            ids = np.union1d(ids, indices[block])
    if not too_wide(width, ids.size):
        return None
    if table:
        place[ids] = np.arange(ids.size, dtype=np.uint32)
    for block in blocks:
        indices[block] = place[indices[block]] if table else np.searchsorted(ids, indices[block])
    return ids


def onto(dataset, like):
    """(dataset with the features numbered as in `like`, line that says what was ignored or None).

    like: n_features, width and ids as of a Dataset; the entries of features that it has not are ignored, as liblinear does.
    """
    ids = dataset.ids, like.ids
    same = ids[0] is ids[1] or all(x is not None for x in ids) and np.array_equal(*ids)
    if same and dataset.n_features <= like.n_features:
        return replace(dataset, n_features=like.n_features, width=like.width), None
    place = places(dataset, like)
    known = place >= 0
    if known.all():
        return _numbered(dataset, like, place.astype(np.uint32)[dataset.indices], dataset.values, dataset.indptr), None
    unknown, indptr, kept = np.zeros(place.size, bool), np.zeros(dataset.rows + 1, np.int64), []
    for start, stop in dataset.blocks(BLOCK):
        part = dataset.subset(start, stop)
        keep = known[part.indices]
        unknown[part.indices[~keep]] = True
        indptr[start + 1:stop + 1] = indptr[start] + np.append(0, np.cumsum(keep))[part.indptr[1:]]
        kept.append((place[part.indices[keep]].astype(np.uint32), part.values[keep]))
    indices, values = (np.concatenate(parts) for parts in zip(*kept))
    return _numbered(dataset, like, indices, values, indptr), _ignored(dataset, unknown, dataset.nnz - indices.size)


def _ignored(dataset, unknown, entries):
    """What is said of the features (mask) that were ignored, in so many entries."""
    count = int(unknown.sum())
    if not count:
        return None
    first, counted_from = int(unknown.argmax()), int(dataset.schema.kind == "svmlight" and not dataset.schema.zero_based)
    number = counted_from + (first if dataset.ids is None else int(dataset.ids[first]))
    which = f"feature {number}" if count == 1 else f"{count:,} features (the first is {number})"
    return f"{dataset.source}: {which} that training had not, in {entries:,} entries, ignored"


def places(dataset, like):
    """Of each of a dataset's features its number in `like`, int64[n_features]; -1 where that has it not."""
    own = np.arange(dataset.n_features) if dataset.ids is None else dataset.ids.astype(np.int64)
    if like.ids is None:
        return np.where(own < like.n_features, own, -1)
    if not like.ids.size:
        return np.full(own.size, -1)
    place = np.minimum(np.searchsorted(like.ids, own), like.ids.size - 1)
    return np.where(like.ids[place] == own, place, -1)


def _numbered(dataset, like, indices, values, indptr):
    return replace(dataset, indices=indices, values=values, indptr=indptr, n_features=like.n_features, width=like.width,
                   ids=like.ids)
