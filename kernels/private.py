"""Rows that every worker keeps privately, and when it brings them together with the others'."""

from numba import types
from numba.extending import overload

from kernels.jit import LOOP
from kernels.sharing import count, flush, width

FLUSH = 256  # most examples between two flushes of a worker's private rows


def private_intercept(seen, flat, place, scratch, outputs, tau):
    """The private intercept (of the first output)."""


@overload(private_intercept, **LOOP)
def _private_intercept(seen, flat, place, scratch, outputs, tau):
    if isinstance(seen, types.NoneType):
        return lambda seen, flat, place, scratch, outputs, tau: flat.dtype.type(0)
    return lambda seen, flat, place, scratch, outputs, tau: flat[place.first * count(outputs) * width(scratch, tau)]


def observe(seen, flat, place, scratch, outputs, tau, clock, before, push):
    """Count an example, how far it moved the private intercept, and how hard it pushed."""


@overload(observe, **LOOP)
def _observe(seen, flat, place, scratch, outputs, tau, clock, before, push):
    if isinstance(seen, types.NoneType):
        return lambda seen, flat, place, scratch, outputs, tau, clock, before, push: None

    def note(seen, flat, place, scratch, outputs, tau, clock, before, push):
        clock[1] += 1
        clock[4] += 1
        clock[2] += abs(flat[place.first * count(outputs) * width(scratch, tau)] - before)
        clock[3] += abs(push)
    return note


def flush_due(seen, place, scratch, outputs, tau, names, clock, workers):
    """`flush` the private rows that are due; all of them at once for workers = 0.

    Each worker moves its private rows alone and the moves are summed. They may therefore not go far between two flushes:
    `workers` of them would go that many times too far, and soon swing. So the period is what the steps' size allows.
    """


@overload(flush_due, **LOOP)
def _flush_due(seen, place, scratch, outputs, tau, names, clock, workers):
    if isinstance(seen, types.NoneType):
        return lambda seen, place, scratch, outputs, tau, names, clock, workers: None
    hot = not isinstance(place.types[place.fields.index("hot")], types.NoneType)

    def due(seen, place, scratch, outputs, tau, names, clock, workers):
        columns, slots = width(scratch, tau), width(scratch, None) - 1
        size = count(outputs) * columns
        if hot and (workers == 0 or clock[4] >= FLUSH or clock[6] * clock[4] * clock[2] >= clock[3]):
            flush(place, seen, names, size, 1, names.shape[0], columns, slots, clock[7])
            clock[4] = 0.0
        if workers == 0 or clock[1] >= FLUSH or clock[5] * clock[1] * clock[2] >= clock[3]:
            flush(place, seen, names, size, 0, 1, columns, slots, clock[7])
            clock[1] = clock[2] = clock[3] = 0.0
    return due
