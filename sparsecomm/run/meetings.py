"""Meetings of the ranks of a run over servers: all workers stop, and all ranks do what rank 0 says.

Where workers wait for each other, rank 0 calls one for a step that all of them have yet to reach, so that all stop at the
same; where nobody waits, each comes when it hears of it.
"""

import time

import numpy as np
from mpi4py import MPI

from sparsecomm.wire.gather import broadcast_json

MEET, SIGNAL = 11, 13  # tags
NAP = 0.001  # seconds
NOTHING = {"stop": None, "signal": 0, "observe": None, "save": False}  # what rank 0 may say


class Meetings:
    """One worker's view of them. total: the steps of the run; bound: steps that a worker may be ahead of another."""

    def __init__(self, client, comm, bound, total):
        self.client, self.comm, self.group, self.bound, self.total = client, comm, client.link.group, bound, total
        self.held, self.due = 0, None  # meetings so far; the step of the next one that was called
        self.action, self.notes = dict(NOTHING), []  # what rank 0 will say; sends under way
        self.seen = 0  # the signal of this worker, on rank 0 of any
        self.told = False

    def call(self, **action):
        """Rank 0: have all workers meet. action: stop (a reason), signal (its number), observe (a metric), save (a truth)."""
        self.action |= action
        if self.due is None:
            self.due = min(self.client.clock + (0 if self.bound == np.inf else int(self.bound) + 1), self.total)
            for worker in range(1, self.group.size):
                self._send([self.held + 1, self.due], worker, MEET)

    def called(self) -> bool:
        """Whether this worker has come to the step of a meeting."""
        while self.group.rank and self.group.Iprobe(0, MEET):
            note = np.zeros(2, np.int64)
            self.group.Recv(note, 0, MEET)
            if note[0] > self.held:
                self.due = int(note[1])
        return self.due is not None and self.client.clock >= self.due

    def signalled(self) -> int:
        """The signal that this worker has got; it tells rank 0, which hears of all workers'."""
        if self.group.rank:
            if self.seen and not self.told:
                self.told = True
                self._send([self.seen], 0, SIGNAL)
            return self.seen
        while not self.seen and self.group.Iprobe(MPI.ANY_SOURCE, SIGNAL):
            note = np.zeros(1, np.int64)
            self.group.Recv(note, MPI.ANY_SOURCE, SIGNAL)
            self.seen = int(note[0])
        return self.seen

    def hold(self, ended, saves) -> dict:
        """Stop with all others, servers too; what rank 0 says, with `end`: whether the run is over. Collective.

        ended: whether this worker has made its steps; saves: whether there are checkpoints.
        """
        self.client.pause()
        everyone = self.group.Ibarrier()
        while not everyone.Test():
            if self.signalled() and not self.group.rank and self.due is None:
                self.call(signal=self.seen)
            time.sleep(NAP)
        action = self.action
        action["end"] = bool(ended or action["stop"] or action["signal"])
        action["save"] = saves and (action["save"] or action["end"])
        action = broadcast_json(self.comm, action)
        self.held, self.due, self.action = self.held + 1, None, dict(NOTHING)
        return action

    def end(self):
        """Take in the calls of meetings that have been held."""
        self.called()

    def _send(self, numbers, to, tag):
        self.notes = [note for note in self.notes if not note[0].Test()]
        numbers = np.array(numbers, np.int64)
        self.notes.append((self.group.Isend(numbers, to, tag), numbers))
