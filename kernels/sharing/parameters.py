"""Where the coordinates of a worker's row of data are.

The parameters of d features with K outputs each are one flat array; coordinate (row, k) has its columns side by side from
(row K + k) width on: the weight, the rule's S slots, and one more where weights are averaged. Feature j has row j, unless it
is one of the hot ones that each worker keeps for itself (kernels/sharing/replicas.py): these are found by a hash that has
one place for a feature, so that no table is as large as the parameters.
"""

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from hogwild.kernels.compiler.jit import INLINE, LOOP, kernel, prefetch
from hogwild.kernels.optim.steps import aligned

HASH = np.uint64(2654435769)  # 2^32 over the golden ratio: Knuth, volume 3, section 6.4
LARGE = 1 << 20  # parameters, 4 MB: more than a core's own cache, so that a row's come from far away


class Place(NamedTuple):
    """A worker's view of the parameters."""

    mode: tuple
    flat: np.ndarray  # the parameters that it works on: its own, or all workers'
    first: int  # row of its intercept
    hot: np.ndarray = None  # uint32[2^k]: feature hot[s] is the worker's own, row first + 1 + s; None: no feature is
    rows: np.ndarray = None  # uint32[longest row]: rows of the features at work, where some are the worker's own


class Outputs(NamedTuple):
    """A worker's scores and their gradient, where there are K > 1 outputs (None: one output, plain numbers)."""

    z: np.ndarray  # float64[K]
    gradient: np.ndarray  # float64[K]


class Scratch(NamedTuple):
    """A worker's contiguous copy of one row's coordinates, so that a rule's arithmetic runs on vectors."""

    before: tuple  # 1 + S arrays [(longest row + 1) K]
    after: tuple
    gradient: np.ndarray
    weight: np.ndarray


def new_scratch(columns, size, dtype) -> Scratch:
    """Scratch for rows of `size` coordinates with `columns` columns each."""
    new = lambda: tuple(aligned((size,), dtype) for _ in range(columns))  # noqa: E731
    return Scratch(new(), new(), *(aligned((size,), dtype) for _ in range(2)))


def count(outputs):
    """K."""


@overload(count, **LOOP)
def _count(outputs):
    if isinstance(outputs, types.NoneType):
        return lambda outputs: 1  # a constant, so that loops over outputs vanish
    return lambda outputs: outputs.z.shape[0]


def part(factor, k):
    """Element k of the gradient by the scores, which is a number where there is one output."""


@overload(part, **LOOP)
def _part(factor, k):
    if isinstance(factor, types.Array):
        return lambda factor, k: factor[k]
    return lambda factor, k: factor


def width(scratch, tau):
    """Columns of a coordinate."""


@overload(width, **LOOP)
def _width(scratch, tau):
    columns = 1 if isinstance(scratch, types.NoneType) else len(scratch.types[0])
    columns += not isinstance(tau, types.NoneType)
    return lambda scratch, tau: columns


@kernel(inline=True)
def slot_of(hot, j):
    """The one place of `hot` where feature j may be. `slot_of.py_func` takes arrays too."""
    return ((np.uint64(j) * HASH) >> np.uint64(16)) & np.uint64(hot.shape[0] - 1)


def locate(place, indices, start, stop):
    """Look up the rows of the features start … stop - 1, where some are the worker's own: once for all that a step does."""


@overload(locate, **INLINE)
def _locate(place, indices, start, stop):
    if isinstance(place.types[3], types.NoneType):
        return lambda place, indices, start, stop: None

    def find(place, indices, start, stop):
        rows, hot, own = place.rows, place.hot, np.uint64(place.first + 1)
        for q in range(np.uint64(stop - start)):
            j = indices[np.uint64(start) + q]
            s = slot_of(hot, j)
            rows[q] = np.uint32(own + s) if hot[s] == j else j
    return find


def row_of(place, indices, i, start):
    """Row of entry i of those that begin at `start`, after `locate`."""


@overload(row_of, **LOOP)
def _row_of(place, indices, i, start):
    if isinstance(place.types[3], types.NoneType):
        return lambda place, indices, i, start: np.uint64(indices[i])
    return lambda place, indices, i, start: np.uint64(place.rows[np.uint64(i) - np.uint64(start)])


def fetch(place, scratch, outputs, tau, csr, i):
    """Have the coordinates of row i of the data, which comes next, brought into the cache where they are far away.

    Only to read: a common one that is the worker's own would be taken from the others for nothing.
    """


@overload(fetch, **INLINE)
def _fetch(place, scratch, outputs, tau, csr, i):
    def ask(place, scratch, outputs, tau, csr, i):
        flat, indices = place.flat, csr.indices
        if flat.shape[0] > LARGE:
            size = np.uint64(count(outputs) * width(scratch, tau))
            for k in range(np.uint64(csr.indptr[i]), np.uint64(csr.indptr[i + 1])):
                prefetch(flat, np.intp(np.uint64(indices[k]) * size))
    return ask
