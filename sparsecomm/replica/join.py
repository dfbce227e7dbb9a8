"""Ranks with different numbers of batches: a rank without further batches steps with the others, with zero gradients.

As torch's Join, but over gradients that all count alike: the mean is over all ranks, with zeros of those that have ended (as
under DistributedDataParallel's divide_by_initial_world_size). Their residuals continue to be sent.
"""

import json

import numpy as np
import torch

from hogwild.errors import UserError
from sparsecomm import guard
from sparsecomm.wire import launch

CYCLED = "lr", "momentum", "betas"  # what torch's schedulers set in a parameter group


class Join:
    """A context of `optimizer`; see `DistributedOptimizer.join`."""

    def __init__(self, optimizer):
        self.optimizer, self.comm = optimizer, optimizer.synchronizer.comm
        self.ended = self.met = False  # this rank has no more batches; the roll of the present call was called

    def __enter__(self):
        if self.optimizer.joined:
            raise UserError("optimizer.join() is already entered")
        self.optimizer._agree("optimizer.join()")  # on all ranks
        self.optimizer.joined = self
        return self.optimizer

    def __exit__(self, kind, error, trace):
        optimizer = self.optimizer
        try:
            if kind is None:
                optimizer.zero_grad()
                self.ended = True
                while self._step_without_batch():
                    pass
        finally:
            optimizer.joined, optimizer.buffers.root = None, 0

    def roll(self, call) -> str:
        """The call of the first rank that has a batch, "" where none has. Collective, before each agreement.

        The ranks that have ended use its bound of the norm, and what its schedulers have set.
        """
        if self.met:
            self.met = False
            return call
        rank, size, optimizer = self.comm.Get_rank(), self.comm.Get_size(), self.optimizer
        least = np.array([size if self.ended else rank, not self.ended], np.int64)
        self.comm.Allreduce(launch.mpi().IN_PLACE, least, launch.mpi().MIN)
        first, everyone = int(least[0]), bool(least[1])
        if everyone or first == size:
            return call if everyone else ""
        optimizer.buffers.root = first
        groups = optimizer.param_groups
        cycled = [{key: _plain(group[key]) for key in CYCLED if group.get(key) is not None} for group in groups]
        told = json.dumps([call, optimizer.bound, cycled]).encode()
        length = np.array([len(told)], np.int64)
        self.comm.Bcast(length, first)
        raw = np.frombuffer(told, np.uint8).copy() if rank == first else np.empty(min(int(length[0]), 1 << 20), np.uint8)
        self.comm.Bcast(raw, first)
        if self.ended:
            call, optimizer.bound, cycled = json.loads(raw.tobytes())
            for group, numbers in zip(groups, cycled):
                for key, value in numbers.items():
                    _set(group, key, value)
        return call

    def _step_without_batch(self) -> bool:
        """Do with no gradient what the others do; False: all have ended."""
        optimizer, sync = self.optimizer, self.optimizer.synchronizer
        with guard.together(sync.names, f"step {sync.round + 1}, of which it has no batch"):
            call = self.roll("")
            self.met = True
            if call == "step":
                optimizer.step()
                optimizer.zero_grad()  # a wrapped optimizer leaves the mean in .grad
            elif call == "clip_grad_norm_":
                optimizer.clip_grad_norm_(optimizer.bound)
            elif call:
                optimizer._cancel(call)
        self.met = False
        return bool(call)


def _plain(x):
    """Numbers as JSON has them, exact in both directions; whole ones stay whole, as the ranks compare the settings' texts."""
    return [_plain(value) for value in x] if isinstance(x, tuple | list) else x if isinstance(x, int) else float(x)


def _set(group, key, value):
    """Set group[key]; in place where it is a tensor, which torch's capturable optimizers hold on to."""
    if isinstance(group.get(key), torch.Tensor):
        group[key].fill_(value)
    else:
        group[key] = tuple(value) if isinstance(value, list) else value
