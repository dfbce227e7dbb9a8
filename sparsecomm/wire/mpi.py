"""Collective transfers of bytes: no pickles, sizes as int64, calls of at most 2^31 - 1 bytes, the most that MPI counts."""

import numpy as np

from sparsecomm.wire.message import MessageError

LIMIT = 2**31 - 1  # of the bytes in one call
BYTE = "B"  # as mpi4py calls it; this file must not import that, for the hook of torch's DDP works without MPI


def demand_possible(sizes, most):
    """Raise MessageError, before memory is allocated, for the first rank that announces an impossible number of bytes.

    sizes: announced bytes by rank. most: the most bytes of a message, one number or one by rank.
    """
    for rank, (size, bound) in enumerate(zip(sizes, np.broadcast_to(most, len(sizes)).tolist())):
        if not 0 <= size <= bound:
            raise MessageError(f"rank {rank} announces a message of {size} bytes, where at most {bound} are possible; start "
                               "again from the last checkpoint")


class Wire:
    """A communicator with counts of the bytes that this rank has sent to the others and received from them.

    limit: the most bytes in one call, the same on all ranks.
    """

    def __init__(self, comm, limit=LIMIT):
        self.comm, self.rank, self.size, self.limit = comm, comm.Get_rank(), comm.Get_size(), limit
        self.sent, self.received = 0, 0

    def traffic(self) -> tuple[int, int]:
        """(sent, received) since the last call."""
        counts, self.sent, self.received = (self.sent, self.received), 0, 0
        return counts

    def _count(self, sent, received):
        self.sent, self.received = self.sent + int(sent), self.received + int(received)

    def numbers(self, row) -> np.ndarray:
        """int64[P, len(row)]: the row of int64 of every rank."""
        row = np.ascontiguousarray(row, np.int64)
        table = np.empty((self.size, row.size), np.int64)
        self.comm.Allgather(row, table)
        self._count(*[row.nbytes * (self.size - 1)] * 2)
        return table

    def gather(self, mine, most) -> list[np.ndarray]:
        """Allgather of uint8 arrays of different sizes, up to `most` (see `demand_possible`)."""
        sizes = self.numbers([mine.size])[:, 0]
        demand_possible(sizes.tolist(), most)
        ends = np.cumsum(sizes)
        every = np.empty(ends[-1], np.uint8)
        pieces = [every[end - size:end] for size, end in zip(sizes, ends)]
        if every.size <= self.limit:
            self.comm.Allgatherv([mine, BYTE], [every, sizes, ends - sizes, BYTE])
        else:
            pieces[self.rank][:] = mine
            for root, piece in enumerate(pieces):
                for chunk in self._chunks(piece):
                    self.comm.Bcast([chunk, BYTE], root)
        self._count(mine.size * (self.size - 1), every.size - mine.size)
        return pieces

    def exchange(self, pieces, most) -> list[np.ndarray]:
        """All-to-all of uint8 arrays: pieces[r] is for rank r; the piece of every rank for this one, its own without a copy.

        most: as for `gather`.
        """
        sizes = np.empty(self.size, np.int64)
        self.comm.Alltoall(np.array([piece.size for piece in pieces], np.int64), sizes)
        demand_possible(sizes.tolist(), most)
        theirs = [piece if r == self.rank else np.empty(size, np.uint8) for r, (piece, size) in enumerate(zip(pieces, sizes))]
        # Nearest first, so that not all ranks send to the same one at once. Two messages of a pair never overtake.
        near = [(self.rank + k) % self.size for k in range(1, self.size)]
        requests = [self.comm.Irecv([chunk, BYTE], r) for r in reversed(near) for chunk in self._chunks(theirs[r])]
        requests += [self.comm.Isend([chunk, BYTE], r) for r in near for chunk in self._chunks(pieces[r])]
        for request in requests:
            request.Wait()
        self._count(*(sum(8 + array.size for r, array in enumerate(arrays) if r != self.rank) for arrays in (pieces, theirs)))
        return theirs

    def add(self, x):
        """Sum x (float32) over the ranks, in place."""
        from mpi4py import MPI
        for start in range(0, x.size, max(self.limit // 4, 1)):
            self.comm.Allreduce(MPI.IN_PLACE, x[start:start + max(self.limit // 4, 1)])
        self._count(*[2 * x.nbytes * (self.size - 1) // self.size] * 2)  # as the algorithms for long vectors do

    def _chunks(self, array):
        return [array[start:start + self.limit] for start in range(0, array.size, self.limit)]
