"""Buffers of torch modules, such as the running means of BatchNorm: they differ between ranks unless made equal."""

import numpy as np
import torch

from hogwild.errors import UserError
from sparsecomm.wire import launch

WAYS = "broadcast", "average", "own"
CHUNK = 1 << 28  # numbers, or bytes, in one call: MPI counts are int32


class Buffers:
    """The buffers of some modules. how: broadcast: those of rank 0 on all ranks; average: the mean over the ranks of
    floating-point ones, of the others those of rank 0; own: each rank has its own.
    """

    def __init__(self, modules, how, comm):
        if how not in (None, *WAYS):
            raise UserError(f"buffers must be one of {', '.join(WAYS)}, got {how!r}")
        if how in ("broadcast", "average") and not modules:
            raise UserError(f"buffers={how!r} needs the model in place of its parameters: DistributedOptimizer(model, …)")
        self.modules, self.how, self.comm, self.root = modules, how or "broadcast", comm, 0

    def tensors(self) -> list[torch.Tensor]:
        """Every buffer once; none where how is own."""
        found = {} if self.how == "own" else {id(b): b for module in self.modules for b in module.buffers() if b.numel()}
        return list(found.values())

    def size(self) -> int:
        """Bytes of all of them."""
        return sum(b.numel() * b.element_size() for b in self.tensors())

    def equalize(self):
        """Make them equal, to the bit. Collective, with the same shapes."""
        buffers = self.tensors()
        if self.how == "average":
            self._average([b for b in buffers if b.is_floating_point()])
            buffers = [b for b in buffers if not b.is_floating_point()]
        broadcast_tensors(self.comm, buffers, self.root)

    @torch.no_grad()
    def _average(self, buffers):
        if not buffers:
            return
        values = torch.cat([b.detach().cpu().double().reshape(-1) for b in buffers]).numpy()
        for start in range(0, values.size, CHUNK):
            self.comm.Allreduce(launch.mpi().IN_PLACE, values[start:start + CHUNK])
        means = torch.from_numpy(values / self.comm.Get_size())
        for b, part in zip(buffers, means.split([b.numel() for b in buffers])):
            b.copy_(part.reshape(b.shape))


@torch.no_grad()
def broadcast_tensors(comm, tensors, root=0):
    """Copy the values of rank `root` into the tensors, dense and of any dtype, of all ranks. Collective."""
    if not tensors:
        return
    every = np.concatenate([_bytes(t) for t in tensors])
    for start in range(0, every.size, CHUNK):
        comm.Bcast(every[start:start + CHUNK], root)
    at = 0
    for t in tensors:
        part = torch.from_numpy(every[at:at + t.numel() * t.element_size()].copy())
        at += len(part)
        if comm.Get_rank() != root:
            t.copy_(part.view(t.dtype).reshape(t.shape))


def _bytes(t) -> np.ndarray:
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
