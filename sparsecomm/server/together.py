"""Pushes of one clock wait for each other (bsp): their order is then the workers', not that of their arrival."""

from typing import NamedTuple

import numpy as np


class Push(NamedTuple):
    """A worker's gradient on one shard."""

    worker: int
    clock: int  # pushes that the worker has made before
    staleness: int  # steps of the shard since the values were pulled that the gradient was computed at
    indices: np.ndarray | None  # uint32[m] of the shard, ascending; None: all
    values: np.ndarray  # float32[m]
    bad: int = 0  # elements of the worker's gradient that are not finite: the step is then not made


class OnArrival:
    """The twin: no push waits."""

    def pushed(self, push, live) -> list[list[Push]]:
        """The groups of pushes, each for a step, that are due with this one; live: the workers that may still push."""
        return [[push]]

    def left(self, live) -> list[list[Push]]:
        """The groups that are due now that only the workers `live` may still push."""
        return []

    def state(self) -> dict[str, np.ndarray]:
        """What waits: arrays by name."""
        return {}

    def load(self, state):
        """Continue from a `state`."""


class Together(OnArrival):
    """A clock's pushes are due when all workers that may still push have made theirs."""

    def __init__(self):
        self.waiting = {}  # by clock: the push of each worker

    def pushed(self, push, live):
        self.waiting.setdefault(push.clock, {})[push.worker] = push
        return self.left(live)

    def left(self, live):
        due = []
        while self.waiting and live <= (first := self.waiting[min(self.waiting)]).keys():
            due.append([first[worker] for worker in sorted(first)])
            del self.waiting[min(self.waiting)]
        return due

    def state(self):
        pushes = [push for each in self.waiting.values() for push in each.values()]
        state = {"numbers": np.array([[*push[:3], push.bad] for push in pushes], np.int64)} if pushes else {}
        for i, push in enumerate(pushes):
            state |= {f"{i}.values": push.values} | ({} if push.indices is None else {f"{i}.indices": push.indices})
        return state

    def load(self, state):
        self.waiting = {}
        for i, (worker, clock, staleness, bad) in enumerate(state["numbers"].tolist() if state else []):
            push = Push(worker, clock, staleness, state.get(f"{i}.indices"), state[f"{i}.values"], bad)
            self.waiting.setdefault(clock, {})[worker] = push
