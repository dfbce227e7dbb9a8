"""How the ranks' payloads become their sum, the same bits on every rank; see protocol.py.

    Allgather: every message to every rank, which adds all of them       2 k (P - 1) words a rank
    Balanced:  split by index range among the ranks, added up there, the largest sums to every rank    <= 6 k (P - 1) / P,
               headers aside, with what agreeing on the ranges takes, where k >= 16 P
    Dense:     n values, as of every payload without indices                         2 n (P - 1) / P

The part of a rank's payload that is not in the sum (rounded away, or not among the largest sums) returns to it as `unsent`:
over all ranks, the payloads are the sum plus all `unsent`.
"""

import copy
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np

from hogwild.kernels.compression.momentum_correction import count_bad
from hogwild.kernels.compression.sparse_sum import add_lists, largest, settle
from sparsecomm.exchange.protocol import Payload, Sum
from sparsecomm.wire.message import Message, most_room, pack, unpack_all
from sparsecomm.wire.mpi import LIMIT, Wire

AGREE_EVERY = 64  # steps between two agreements of Balanced on its ranges (Ok-Topk, Li & Hoefler 2022)
NOTHING = np.zeros(0, np.uint8)
SAMPLES = 64  # indices of each rank, at most, that the ranges are agreed from


class Exchange:
    """Base of the three, which sums values without indices. comm: a communicator of its own, or a wire.

    A subclass has `_sum_sparse(step, n, payload, bad)`, for payloads with indices.
    """

    def __init__(self, comm, config, limit=LIMIT):
        self.wire = Wire(comm, limit) if hasattr(comm, "Get_rank") else comm
        self.rank, self.size = self.wire.rank, self.wire.size
        self.index_code, self.value_code = config.index_code, config.value_code
        self.seconds = Counter()

    def bucket(self) -> "Exchange":
        """As `protocol.Exchange.bucket`."""
        return self

    def state(self) -> dict[str, np.ndarray]:
        """As `protocol.Exchange.state`."""
        return {}

    def load(self, state):
        """As `protocol.Exchange.load`."""

    def sum(self, step, n, payload, bad=0) -> Sum:
        """As `protocol.Exchange.sum`."""
        payload = payload._replace(value_code=payload.value_code or self.value_code,
                                   index_code=payload.index_code or self.index_code)
        if payload.indices is not None:
            return self._sum_sparse(step, n, payload, bad)
        if payload.value_code == "float32":
            return self._sum_exact(payload.values, bad)
        return self._sum_rounded(step, payload, bad)

    @contextmanager
    def _clock(self, phase):
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start

    def _pack(self, step, n, payload, bad):
        with self._clock("encode"):
            return pack(step, n, payload.indices, payload.values, payload.index_code, payload.value_code, bad)

    def _sum_exact(self, values, bad) -> Sum:
        """Sum in place. Only values are sent: a NaN tells the other ranks that an element is not finite here."""
        if bad:
            values[0] = np.nan
        with self._clock("exchange"):
            self.wire.add(values)
        return Sum(None, values, None, count_bad(values), *self.wire.traffic())

    def _sum_rounded(self, step, payload, bad) -> Sum:
        """Each rank sums one range of the rounded values and sends the sums, rounded, to the others."""
        lost = payload.values.copy()
        bad += _silence(lost)
        bounds = [lost.size * r // self.size for r in range(self.size + 1)]
        parts, sizes = [slice(*pair) for pair in zip(bounds, bounds[1:])], np.diff(bounds).tolist()
        own = Message(None, lost[parts[self.rank]].copy(), bad)
        pieces = [self._pack(step, size, payload._replace(values=lost[part]), bad) if r != self.rank else NOTHING
                  for r, (part, size) in enumerate(zip(parts, sizes))]
        with self._clock("exchange"):
            raws = self.wire.exchange(pieces, most_room(sizes[self.rank]))
        with self._clock("decode"):
            raws[self.rank] = None
            every, _ = unpack_all(raws, step, [sizes[self.rank]] * self.size, dense=True, own=own)
            sums = np.zeros(sizes[self.rank], np.float32)
            for values in every.values.reshape(self.size, sums.size):
                sums += values
        over = _silence(sums)
        mine = self._pack(step, sums.size, payload._replace(values=sums), over)
        lost[parts[self.rank]] = sums
        with self._clock("exchange"):
            raws = self.wire.gather(mine, [most_room(size) for size in sizes])
        with self._clock("decode"):
            total, _ = unpack_all(raws, step, sizes, dense=True)
        return Sum(None, total.values, Payload(None, lost), every.bad + total.bad, *self.wire.traffic())


class Allgather(Exchange):
    """Every rank's message to every rank."""

    def _sum_sparse(self, step, n, payload, bad):
        mine = self._pack(step, n, payload, bad)
        with self._clock("exchange"):
            raws = self.wire.gather(mine, most_room(n))
        with self._clock("decode"):
            every, ends = unpack_all(raws, step, [n] * self.size)
            at, sums = add_lists(every.indices, every.values, ends)
            bad = every.bad + count_bad(sums)
        unsent = None if payload.value_code == "float32" else Payload(*payload[:2])
        return Sum(at, sums, unsent, bad, *self.wire.traffic())


class Balanced(Exchange):
    """Every rank sums one range of the indices and sends its largest sums to all: as many in all as a rank has sent.

    The ranges hold about equally many of the indices that all ranks send. After Ok-Topk (Li & Hoefler 2022), but with
    an exact selection in each range, and with any number of ranks.
    """

    def __init__(self, comm, config, limit=LIMIT):
        super().__init__(comm, config, limit)
        self.bounds = None

    def bucket(self):
        return copy.copy(self)

    def state(self):
        return {} if self.bounds is None else {"bounds": self.bounds}

    def load(self, state):
        bounds = state.get("bounds")  # those for another number of ranks are agreed anew
        self.bounds = bounds if bounds is not None and len(bounds) == self.size + 1 else None

    def _sum_sparse(self, step, n, payload, bad):
        if self.bounds is None or self.bounds[-1] != n or step % AGREE_EVERY == 0:
            with self._clock("exchange"):
                self.bounds = self._agree(step, n, payload.indices)
        sizes, starts = np.diff(self.bounds).tolist(), self.bounds[:-1].astype(np.uint32)
        values = payload.values.copy()
        at, sums, bad = self._add_own(step, sizes, starts, payload, bad)
        over = _silence(sums)
        mine = self._pack(step, sizes[self.rank], payload._replace(indices=at, values=sums), over)
        with self._clock("exchange"):
            raws = self.wire.gather(mine, [most_room(size) for size in sizes])
        with self._clock("decode"):
            every, ends = unpack_all(raws, step, sizes)
            for start, first, end in zip(starts, [0, *ends], ends):
                every.indices[first:end] += start
            unsent = settle(payload.indices, values, payload.values, every.indices)
            if payload.value_code != "float32":
                pairs = zip(unsent, (at + starts[self.rank], sums))
                unsent = add_lists(*(np.concatenate(pair) for pair in pairs), [unsent[0].size, unsent[0].size + at.size])
        return Sum(every.indices, every.values, Payload(*unsent), bad + every.bad, *self.wire.traffic())

    def _add_own(self, step, sizes, starts, payload, bad):
        """(indices within the own range, the largest of their sums, non-finite elements of all ranks).

        The payload's values become the rounding errors of those sent to other ranges.
        """
        indices, lost = payload[:2]
        cuts = [*np.searchsorted(indices, starts).tolist(), indices.size]
        parts = [slice(*cut) for cut in zip(cuts, cuts[1:])]
        own = Message(indices[parts[self.rank]] - starts[self.rank], lost[parts[self.rank]].copy(), bad)
        lost[parts[self.rank]] = 0
        pieces = [self._pack(step, size, payload._replace(indices=indices[part] - start, values=lost[part]), bad)
                  if r != self.rank else NOTHING for r, (part, size, start) in enumerate(zip(parts, sizes, starts))]
        with self._clock("exchange"):
            raws = self.wire.exchange(pieces, most_room(sizes[self.rank]))
        with self._clock("decode"):
            raws[self.rank] = None
            every, ends = unpack_all(raws, step, [sizes[self.rank]] * self.size, own=own)
            at, sums = add_lists(every.indices, every.values, ends)
            chosen = largest(sums, -(-ends[-1] // self.size))
        return at[chosen], sums[chosen], every.bad

    def _agree(self, step, n, indices) -> np.ndarray:
        raws = self.wire.gather(sampled(step, n, indices, self.rank, self.size), most_room(min(SAMPLES, n)))
        every, _ = unpack_all(raws, step, [n] * self.size)
        edges = np.unique(every.indices)
        counts = counted(indices, edges, n)
        self.wire.add(counts)
        return divided(edges, counts, n, self.size)


def sampled(step, n, indices, rank, size) -> np.ndarray:
    """The message with the indices of a rank between which all ranks count theirs: evenly spaced ones, at most SAMPLES.

    Every rank receives those of all P, and two words of counts for each: so of k indices k / 3 P are enough. The ranks'
    samples lie between each other's, so that where all send alike indices, all samples together divide them.
    """
    count = min(SAMPLES, max(indices.size // (3 * size), 1), indices.size)
    if indices.size and rank % -(-3 * size // indices.size):
        count = 0  # where ranks send fewer than 3 P, those of some are enough
    at = ((np.arange(count) + (rank + 0.5) / size) * (indices.size / max(count, 1))).astype(np.int64)
    return pack(step, n, indices[at], np.ones(count, np.float32), "auto", "1bit" if count > 4 else "bfloat16")


def counted(indices, edges, n) -> np.ndarray:
    """float32[M + 1]: how many of a rank's indices are below each of M edges, between two, and below n."""
    return np.diff(np.searchsorted(indices, edges), prepend=0, append=indices.size).astype(np.float32)


def divided(edges, counts, n, size) -> np.ndarray:
    """int64[P + 1]: where each range begins, and n: the quantiles of all indices, of which `counts` are between the edges.

    Between two edges they count as evenly spread. However narrow the part of the elements is that most indices lie in,
    edges that are indices themselves divide it.
    """
    before = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    at = np.interp(before[-1] * np.arange(1, size) / size, before, np.concatenate([[0], edges, [n]]))
    return np.concatenate([[0], np.ceil(at).astype(np.int64), [n]]) if before[-1] else np.arange(size + 1) * n // size


class Dense(Exchange):
    """The twin that moves every element, also of payloads with indices."""

    def _sum_sparse(self, step, n, payload, bad):
        values = np.zeros(n, np.float32)
        values[payload.indices] = payload.values
        total = self.sum(step, n, payload._replace(indices=None, values=values), bad)
        indices = np.flatnonzero(total.values).astype(np.uint32)
        return total._replace(indices=indices, values=total.values[indices])


def _silence(values) -> int:
    """Set elements that are not finite to 0, for no value code has them; their number (the step is then skipped)."""
    bad = count_bad(values)
    if bad:
        values[~np.isfinite(values)] = 0
    return bad


EXCHANGES = {"dense": Dense, "allgather": Allgather, "balanced": Balanced}
FEW = 4  # ranks up to which all messages go to all of them; among more, balanced moves fewer bytes


def sparse(size) -> str:
    """Name of the exchange that is chosen without a measurement for `size` ranks."""
    return "allgather" if size <= FEW else "balanced"
