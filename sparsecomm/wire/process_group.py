"""Collective transfers of bytes over a process group of torch, without MPI."""

import numpy as np
import torch
import torch.distributed as dist

from sparsecomm.wire.mpi import demand_possible


class TorchWire:
    """As `mpi.Wire`, over a process group of torch for tensors in host memory (gloo)."""

    def __init__(self, group):
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        self.sent, self.received = 0, 0

    def traffic(self) -> tuple[int, int]:
        """(sent, received) since the last call."""
        counts, self.sent, self.received = (self.sent, self.received), 0, 0
        return counts

    def numbers(self, row) -> np.ndarray:
        """int64[P, len(row)]: the row of int64 of every rank."""
        row = torch.from_numpy(np.ascontiguousarray(row, np.int64))
        table = torch.empty(self.size * len(row), dtype=torch.int64)
        self._swap(table, row.repeat(self.size), [len(row)] * self.size, [len(row)] * self.size)
        return table.numpy().reshape(self.size, -1)

    def gather(self, mine, most) -> list[np.ndarray]:
        """Allgather of uint8 arrays of different sizes, up to `most`."""
        return self.exchange([mine] * self.size, most)

    def exchange(self, pieces, most) -> list[np.ndarray]:
        """All-to-all of uint8 arrays: pieces[r] is for rank r; returns the piece of every rank for this one."""
        sizes = [piece.size for piece in pieces]
        received = torch.empty(self.size, dtype=torch.int64)
        self._swap(received, torch.tensor(sizes), [1] * self.size, [1] * self.size)
        demand_possible(received.tolist(), most)
        every = torch.empty(int(received.sum()), dtype=torch.uint8)
        self._swap(every, torch.from_numpy(np.concatenate(pieces)), received.tolist(), sizes)
        return np.split(every.numpy(), np.cumsum(received.numpy())[:-1])

    def add(self, x):
        """Sum x (float32) over the ranks, in place."""
        dist.all_reduce(torch.from_numpy(x), group=self.group)
        moved = 2 * x.nbytes * (self.size - 1) // self.size
        self.sent, self.received = self.sent + moved, self.received + moved

    def _swap(self, out, mine, received, sent):
        dist.all_to_all_single(out, mine, received, sent, group=self.group)
        for name, sizes, item in (("received", received, out), ("sent", sent, mine)):
            total = getattr(self, name) + (sum(sizes) - sizes[self.rank]) * item.element_size()
            setattr(self, name, total)
