"""Time messages between two ranks, one way and both ways at once: what a link's α and β are fitted to."""

import itertools
import time

import numpy as np

LEAST, MOST = 3, 300  # round trips of a size
FEW = 6  # ranks up to which all pairs are timed, one after another
SMALL, MIDDLE, LARGE = 8, 1 << 14, 1 << 20  # bytes: the latency's, and least and most of the bandwidth's, …
LONG = 0.1  # … which takes about so many seconds: a shaped link passes what fits its bucket at once
NAP = 0.001  # seconds between two looks of a rank that waits: polling would take a core from those that are timed


def trip(comm, buffer, received) -> float:
    """Seconds of half a round trip of `buffer` between the ranks of a pair (2i and 2i + 1)."""
    began = time.perf_counter()
    rank = comm.Get_rank()
    if rank % 2 == 0:
        comm.Send(buffer, rank + 1)
        comm.Recv(received, rank + 1)
    else:
        comm.Recv(received, rank - 1)
        comm.Send(buffer, rank - 1)
    return (time.perf_counter() - began) / 2


def both(comm, buffer, received) -> float:
    """Seconds in which both ranks of a pair send `buffer` to each other at once."""
    began, other = time.perf_counter(), comm.Get_rank() ^ 1
    comm.Sendrecv(buffer, other, 0, received, other, 0)
    return time.perf_counter() - began


def timed(comm, size, seconds, once=trip) -> np.ndarray:
    """float64[repeats]: this rank's times of `once` with `size` bytes, for about `seconds`. Collective over all pairs."""
    buffer, received = np.zeros((2, size), np.uint8)
    once(comm, buffer, received)  # makes the connection, and touches the memory
    repeats = np.array([min(max(seconds / (2 * once(comm, buffer, received)), LEAST), MOST)], np.int64)
    comm.Bcast(repeats)
    return np.array([once(comm, buffer, received) for _ in range(repeats[0])])


def rounds(size) -> list[list[tuple[int, int]]]:
    """Pairs of `size` ranks in rounds of those that are timed at once: each pair alone, or of many ranks a ring."""
    if size <= FEW:
        return [[pair] for pair in itertools.combinations(range(size), 2)]
    ring = [(rank, (rank + 1) % size) for rank in range(size)]
    even = size - size % 2
    return list(filter(None, (ring[0:even:2], ring[1:even:2], ring[even:])))


def time_round(comm, pairs, seconds) -> dict[tuple[int, int], tuple[float, float]]:
    """{pair: (seconds of a short message, seconds a byte of a long one)} on the pair's first rank. Collective.

    pairs: one of `rounds`; seconds: about what a pair spends.
    """
    found = {}
    for pair in pairs:
        if comm.rank in pair:
            group = comm.group.Incl(pair)
            both_of = comm.Create_group(group)
            if comm.rank == pair[0]:
                found[pair] = _link(both_of, seconds / 3)
            else:
                _link(both_of, seconds / 3)
            both_of.Free()
            group.Free()
    others = comm.Ibarrier()
    while not others.Test():
        time.sleep(NAP)
    return found


def _link(comm, seconds) -> tuple[float, float]:
    small, middle = (float(np.median(timed(comm, size, seconds))) for size in (SMALL, MIDDLE))
    size = np.array([min(LARGE, max(MIDDLE, int(MIDDLE * LONG / middle)))])
    comm.Bcast(size)
    long = float(np.median(timed(comm, int(size[0]), seconds))) if size[0] > MIDDLE else middle
    return small, max(long - small, 0.0) / (int(size[0]) - SMALL) or long / int(size[0])
