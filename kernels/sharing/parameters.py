"""Where the coordinates of a row of parameters are, in a worker's view of them.

The parameters are tables of rows, one table behind another in one flat array; rows are numbered through all tables. A row is
`width` coordinates that change together. Coordinate (row, k) has its columns side by side from (row width + k) columns on:
the weight, the rule's S slots, and one more where weights are averaged. Each worker may have replicas of the hot rows
(kernels/sharing/replicas.py): these are found by a hash with one slot a row, so that no table is as large as the parameters.
"""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.jit import INLINE, LOOP, kernel, prefetch
from hogwild.kernels.optim.steps import aligned

HASH = np.uint64(2654435769)  # 2^32 over the golden ratio: Knuth, volume 3, section 6.4
LARGE = 1 << 20  # parameters, 4 MB: more than a core's own cache, so that a row's come from far away


class View(NamedTuple):
    """A worker's view of the parameters."""

    mode: tuple
    flat: np.ndarray  # the parameters that it works on: its own, or all workers'
    width: int = None  # coordinates of a row; None: 1, known when a kernel is compiled
    first_replica: int = 0  # the row of `flat` that replicates row hot_rows[0]
    hot_rows: np.ndarray = None  # uint32[2^k]: row hot_rows[s] is replicated in row first_replica + s; None: no row is
    local_rows: np.ndarray = None  # uint32[longest example]: rows of `flat` of the example at work, see `locate`


class Scratch(NamedTuple):
    """A worker's contiguous copy of an example's coordinates, so that a rule's arithmetic runs on vectors."""

    before: tuple  # 1 + S arrays [rows of the longest example x width]
    after: tuple
    gradient: np.ndarray
    weight: np.ndarray  # factors of the decay


def new_scratch(columns, size, dtype) -> Scratch:
    """Scratch for examples of `size` coordinates with `columns` columns each."""
    new = lambda: tuple(aligned((size,), dtype) for _ in range(columns))  # noqa: E731
    return Scratch(new(), new(), *(aligned((size,), dtype) for _ in range(2)))


def field_type(value, name):
    """The Numba type of a NamedTuple type's field."""
    return value.types[value.fields.index(name)]


def row_width(view):
    """Coordinates of a row."""


@overload(row_width, **LOOP)
def _row_width(view):
    if isinstance(field_type(view, "width"), types.NoneType):
        return lambda view: 1  # a constant, so that loops over the coordinates vanish
    return lambda view: view.width


def columns_of(scratch, tau):
    """Columns of a coordinate."""


@overload(columns_of, **LOOP)
def _columns_of(scratch, tau):
    columns = 1 if isinstance(scratch, types.NoneType) else len(scratch.types[0])
    columns += not isinstance(tau, types.NoneType)
    return lambda scratch, tau: columns


@kernel(inline=True)
def slot_of(hot_rows, row):
    """The one slot of `hot_rows` where a row may be. `slot_of.py_func` takes arrays too."""
    return ((np.uint64(row) * HASH) >> np.uint64(16)) & np.uint64(hot_rows.shape[0] - 1)


def local_row(view, row):
    """Where a row is in view.flat."""


@overload(local_row, **LOOP)
def _local_row(view, row):
    if isinstance(field_type(view, "hot_rows"), types.NoneType):
        return lambda view, row: np.uint64(row)

    def find(view, row):
        slot = slot_of(view.hot_rows, row)
        return np.uint64(view.first_replica) + slot if view.hot_rows[slot] == row else np.uint64(row)
    return find


def locate(view, rows, start, stop):
    """Look up where rows[start:stop] are, where some are replicated: once for all that a step does with them."""


@overload(locate, **INLINE)
def _locate(view, rows, start, stop):
    if isinstance(field_type(view, "hot_rows"), types.NoneType):
        return lambda view, rows, start, stop: None

    def find(view, rows, start, stop):
        local_rows, hot_rows, own = view.local_rows, view.hot_rows, np.uint64(view.first_replica)
        for q in range(np.uint64(stop - start)):
            row = rows[np.uint64(start) + q]
            slot = slot_of(hot_rows, row)
            local_rows[q] = np.uint32(own + slot) if hot_rows[slot] == row else row
    return find


def located(view, rows, i, start):
    """Where rows[i], of those from `start` on, is in view.flat, after `locate`."""


@overload(located, **LOOP)
def _located(view, rows, i, start):
    if isinstance(field_type(view, "hot_rows"), types.NoneType):
        return lambda view, rows, i, start: np.uint64(rows[i])
    return lambda view, rows, i, start: np.uint64(view.local_rows[np.uint64(i) - np.uint64(start)])


@kernel(inline=True)
def prefetch_rows(flat, size, rows, start, stop):
    """Ask for the coordinates of rows[start:stop], `size` values a row, where the parameters are more than a cache holds.

    Only to read, and the shared ones: a common row that is replicated would be fetched from the others for nothing.
    """
    if flat.shape[0] > LARGE:
        for k in range(np.uint64(start), np.uint64(stop)):
            prefetch(flat, np.intp(np.uint64(rows[k]) * np.uint64(size)))
