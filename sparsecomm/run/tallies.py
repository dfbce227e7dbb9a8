"""What the workers of a run over servers did in an epoch: each tells rank 0 at the end of its own."""

import time
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from hogwild.errors import UserError
from sparsecomm.server.link import LONGEST

TALLY = 12  # tag
PHASES = "compute", "push", "wait"  # a worker's seconds
NAP = 0.001


class Tally(NamedTuple):
    """What a worker did since its last tally."""

    epoch: float = 0
    loss: float = 0  # sum
    examples: float = 0
    skipped: float = 0
    kept: float = 0
    pushes: float = 0
    sent: float = 0  # bytes
    residual: float = 0  # squared L2 norm, now
    compute: float = 0
    push: float = 0
    wait: float = 0


class Tallies:
    """One worker's, and on rank 0 those that have come. waits: whether rank 0 waits for all of an epoch."""

    def __init__(self, group, waits):
        self.group, self.waits, self.early, self.notes = group, waits, [], []
        self.all = np.zeros(len(Tally._fields))

    def tell(self, tally):
        """Add up a tally, and have rank 0 get it."""
        self.all += tally
        if self.group.rank:
            numbers = np.array(tally, np.float64)
            self.notes = [note for note in self.notes if not note[0].Test()]
            self.notes.append((self.group.Isend(numbers, 0, TALLY), numbers))
        else:
            self.early.append(tally)

    def sum(self, epoch) -> Tally:
        """Rank 0: of all workers in this epoch; where they do not wait for each other, of those that have come."""
        end = time.monotonic() + LONGEST
        self._receive()
        while self.waits and sum(each.epoch == epoch for each in self.early) < self.group.size:
            if time.monotonic() > end:
                raise UserError(f"rank 0 has waited {LONGEST:.0f} s for the end of epoch {epoch} on all workers; start again "
                                "from the last checkpoint")
            time.sleep(NAP)
            self._receive()
        now = [each for each in self.early if not self.waits or each.epoch <= epoch]
        self.early = [each for each in self.early if each not in now]
        return Tally(*np.sum(now, axis=0).tolist())

    def end(self):
        """Rank 0: take in those that nobody asks for any more."""
        if not self.group.rank:
            self._receive()

    def _receive(self):
        while self.group.Iprobe(MPI.ANY_SOURCE, TALLY):
            numbers = np.zeros(len(Tally._fields))
            self.group.Recv(numbers, MPI.ANY_SOURCE, TALLY)
            self.early.append(Tally(*numbers.tolist()))
