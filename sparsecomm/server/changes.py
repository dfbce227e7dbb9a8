"""Dropping on pull (Aji & Heafield 2017): a worker is sent the largest of what changed since it last pulled.

A server keeps, for every worker, the values that this worker has: its view. Values less view is the residual for that worker.
Server and worker add the same decoded changes, so that the worker's copy equals the view to the bit, whatever the code has
rounded away. Memory: a float32 an element and worker; `--pull dense` needs none.
"""

import numpy as np

from hogwild.kernels.compression.selection import Selector
from sparsecomm.exchange.protocol import Payload
from sparsecomm.server.filters import Filters


class Changes:
    """The views that workers have of one shard, see views.py; values at lists of keys are sent as they are.

    parts: the slice of the shard of each tensor. config: its keep (in a warm-up of so many pulls), threshold, scope and
    codes. filters: see filters.py; what they hold back is sent later. seed: of the samples of the thresholds.
    """

    def __init__(self, parts, config, filters=(), seed=0):
        self.parts, self.config, self.filters = parts, config, Filters(filters)
        self.views, self.pulls = {}, {}  # by worker: float32[n]; its sparse pulls so far
        self.selector = Selector([part.stop - part.start for part in parts.values()], config.keep, config.threshold,
                                 config.scope, seed=seed)

    def answer(self, worker, values, keys=None, whole=False) -> tuple[Payload, int, bool]:
        """As `Views.answer`. whole, and a worker's first pull: every value as it is, from which its view begins anew."""
        if keys is not None:
            return Payload(None, values[keys]), keys.size, False
        view = self.views.get(worker)
        if whole or view is None:
            return Payload(None, values.copy(), "float32"), values.size, False
        changes, step = values - view, self.pulls[worker]
        self.pulls[worker] += 1
        tensors = [changes[part] for part in self.parts.values()]
        indices, values, _ = self.selector.select(tensors, [None] * len(tensors), step, self.config.share(step))
        if self.filters.filters:
            going, _ = self.filters.sift(step, indices, values, view[indices])
            indices, values = indices[going], values[going]
        return Payload(indices.copy(), values.copy(), self.config.value_code, self.config.index_code), view.size, True

    def sent(self, worker, keys, message, changes):
        """As `Views.sent`."""
        if changes:
            self.views[worker][message.indices] += message.values
        elif keys is None:
            self.views[worker] = message.values.copy()
            self.pulls.setdefault(worker, 0)
        elif worker in self.views:
            self.views[worker][keys] = message.values

    def left(self, worker):
        """As `Views.left`."""
        self.views.pop(worker, None), self.pulls.pop(worker, None)

    def state(self) -> dict[str, np.ndarray]:
        """float32[n] by "view.WORKER", and pulls by "pulls.WORKER"; not copied."""
        return {**{f"view.{worker}": view for worker, view in self.views.items()},
                **{f"pulls.{worker}": np.array([count]) for worker, count in self.pulls.items()}}

    def load(self, state):
        """Continue from a `state` of the same shard; workers that it does not have get whole values first."""
        self.views, self.pulls = {}, {}
        for key, x in state.items():
            kind, _, worker = key.partition(".")
            if kind == "view":
                self.views[int(worker)] = np.array(x, np.float32)
            else:
                self.pulls[int(worker)] = int(x[0])
