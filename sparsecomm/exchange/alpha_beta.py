"""The α-β model: predicted seconds of a step of each exchange, on a network known by its latency and bandwidth.

α: seconds of latency a message; β: seconds a byte. A step of each exchange, for n elements in B buckets, of which each of
P ranks sends k, is predicted as

    dense      B 2 log2 P α + 2 n (P - 1) / P (4 β + add) + n add
    allgather  B 2 log2 P α + (P - 1) (k e + B h) β + n select + k encode + P k decode + B (P + 1) / 2 message
    balanced   B (3 log2 P + P - 1) α + 2 (P - 1) (k e / P + B h) β
                                      + n select + k (1 + 1 / P) encode + 2 k decode + B (3 P - 1) / 2 message
                                      + B (4 log2 P α + (P - 1) (12 s + h) β) / 64

with e bytes an entry, h of a message's header, and s = k / 3 B P, but from 1 to 64, indices of each rank from which all
agree on ranges at every 64th step. Dense with a value code of v bytes is sent as balanced is, which adds
B (P - 1 + log2 P) α + 2 B (P - 1) h β + 2 n (P - 1) / P code + B (3 P - 1) / 2 message, and has v in place of 4. The terms
without α and β are what a rank computes: without them, dropping would always seem to win between ranks of one machine.
"""

import math
import time
from typing import NamedTuple

import numpy as np

from hogwild.kernels.compression.selection import Selector
from hogwild.kernels.compression.sparse_sum import add_lists
from hogwild.kernels.compression.value_codes import VALUES
from sparsecomm.exchange.sparse import AGREE_EVERY, SAMPLES
from sparsecomm.wire import launch
from sparsecomm.wire.message import HEADER, pack, unpack

SMALL = 8  # dimension of a message without entries
LEAST, MOST, SPENT = 3, 20, 0.05  # a timing is repeated so often, or until so many seconds are spent on it
TRIAL = 1 << 20  # elements that the machine is measured with: 4 MB, as much as a bucket of the default size


class Link(NamedTuple):
    """A message of x bytes takes alpha + x beta seconds."""

    alpha: float
    beta: float


class Work(NamedTuple):
    """Computing time of a rank, in seconds by element, entry or message; `entry` is in bytes."""

    select: float = 0.0  # an element, to select
    encode: float = 0.0  # an entry, to write it into a message
    decode: float = 0.0  # an entry, to read it, add it up and put it into a dense array
    add: float = 0.0  # an element of a dense array, to copy and add it
    code: float = 0.0  # an element of a dense array, to write it into a message and read it, unless as float32
    entry: float = 8.0  # bytes an entry takes in a message
    message: float = 0.0  # a message, to write and read it, however short


def _seconds(comm, work) -> float:
    """The least time of `work` on this rank, while the others do it too. The first call does not count."""
    taken = []
    for _ in range(2):
        comm.Barrier()
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    [slowest] = _slowest(comm, taken[1:])
    for _ in range(min(max(int(SPENT / slowest), LEAST), MOST) - 1):
        comm.Barrier()
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def _slowest(comm, numbers) -> list[float]:
    """The largest of each number over the ranks: all of them then decide alike."""
    most = np.array(numbers, np.float64)
    mpi = launch.mpi()
    comm.Allreduce(mpi.IN_PLACE, most, mpi.MAX)
    return most.tolist()


def rehearse(comm, config, n) -> Work:
    """The Work of the ranks, measured on all of them at once: select, encode, decode, … of up to TRIAL of the n elements."""
    n = min(n, TRIAL)
    gradient = np.random.default_rng(comm.Get_rank()).standard_normal(n).astype(np.float32)
    residual, total = np.zeros(n, np.float32), np.zeros(n, np.float32)
    selector = Selector((n,), config.keep, config.threshold, config.scope)
    select = lambda: selector.select([residual], [gradient], 0)  # noqa: E731
    selecting = _seconds(comm, select)
    indices, values, _ = select()
    k, spare = max(indices.size, 1), values.copy()

    def encode():
        spare[:] = values
        return pack(0, n, indices, spare, config.index_code, config.value_code)

    def decode():
        message = unpack(raw, 0, n, 0)
        at, sums = add_lists(message.indices, message.values, [message.indices.size])
        total[at] = 0  # as a step clears the last sum before it writes its own
        total[at] = sums

    def add():
        np.copyto(total, gradient)
        np.add(total, gradient, out=total)

    def message():
        unpack(pack(0, SMALL, indices[:0], values[:0], config.index_code, config.value_code), 0, SMALL, 0)

    def code():
        unpack(pack(0, n, None, gradient.copy(), "auto", config.value_code), 0, n, 0, dense=True)

    raw = encode()
    encoding, decoding, adding = (_seconds(comm, work) for work in (encode, decode, add))
    coding = _seconds(comm, code) if config.value_code != "float32" else 0.0
    fixed, entry = _seconds(comm, message), (raw.size - HEADER.size) / k
    # The fixed time of a message, half of it on either side, does not belong to its entries.
    encoding, decoding = (max(each - fixed / 2, 0.0) for each in (encoding, decoding))
    return Work(*_slowest(comm, [selecting / n, encoding / k, decoding / k, adding / n, coding / n, entry, fixed]))


def predict(link, work, ranks, n, k, buckets=1, value_code="float32") -> dict[str, float]:
    """Seconds of a step of each exchange, by name: n elements in all, k of them sent by each rank."""
    away, rounds, coded = (ranks - 1) / ranks, math.ceil(math.log2(ranks)), value_code != "float32"
    width = VALUES[value_code].nbytes(n) / n
    # once: one message to all ranks; twice: first a range to each rank, then the sums to all.
    heads = buckets * (ranks - 1) * HEADER.size * link.beta
    once = buckets * 2 * rounds * link.alpha
    twice = buckets * ((3 * rounds + ranks - 1) * link.alpha + (3 * ranks - 1) / 2 * work.message) + 2 * heads
    samples = min(max(k / (3 * buckets * ranks), 1), SAMPLES)
    agree = buckets * (4 * rounds * link.alpha + (ranks - 1) * (12 * samples + HEADER.size) * link.beta) / AGREE_EVERY
    selected, value = n * work.select, width * link.beta + work.add + coded * work.code
    return {
        "dense": (twice if coded else once) + 2 * n * away * value + n * work.add,
        "allgather": (once + heads + buckets * (ranks + 1) / 2 * work.message + k * (ranks - 1) * work.entry * link.beta
                      + selected + k * work.encode + ranks * k * work.decode),
        "balanced": (twice + agree + 2 * k * away * work.entry * link.beta
                     + selected + k * (1 + 1 / ranks) * work.encode + 2 * k * work.decode)}
