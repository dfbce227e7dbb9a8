"""Dropping on pull (Aji & Heafield 2017): a worker is sent the largest of what changed since it last pulled.

A server keeps, for every worker, the values that this worker has: its view. Parameters less view is the residual for that
worker. Server and worker add the same decoded values, so that the worker's copy equals the view to the bit, whatever the
code has rounded away. Memory: a float32 an element and worker; `--pull dense` needs none.
"""

import numpy as np

from hogwild.kernels.compression.selection import Selector
from sparsecomm.server.filters import Filters, Significant
from sparsecomm.server.flat import Flat
from sparsecomm.wire.message import pack, unpack


class Views:
    """The views that workers have of one shard.

    tensors: the shard's flat float32 arrays by name, as they change. config: its keep (in a warm-up of so many clocks),
    threshold, scope and codes are those of the pulls. significant: changes no larger than this share of the value wait.
    """

    def __init__(self, tensors, config, significant=0.0, seed=0):
        self.now, self.config, self.seed = Flat(tensors), config, seed
        self.filters = Filters([Significant(significant, self.now)] if significant else ())
        self.views, self.selectors = {}, {}  # by worker

    def whole(self, worker):
        """The worker gets every value as it is, exactly: its view begins anew."""
        self._begin(worker, {name: w.copy() for name, w in self.now.tensors.items()})

    def _begin(self, worker, tensors):
        self.views[worker] = Flat(tensors)
        self.selectors[worker] = Selector(self.now.sizes, self.config.keep, self.config.threshold, self.config.scope,
                                          seed=self.seed)

    def answer(self, worker, step) -> np.ndarray:
        """The message (uint8, see wire/message.py) for a worker at its clock `step`: changes at flat indices of the shard,
        which the worker adds to its copy. Its view has them already."""
        view = self.views[worker]
        changes = [w - v for w, v in zip(self.now.tensors.values(), view.tensors.values())]
        indices, values, _ = self.selectors[worker].select(changes, [None] * len(changes), step, self.config.share(step))
        if self.filters.filters:
            going, _ = self.filters.sift(step, indices, values)
            indices, values = indices[going], values[going]
        raw = pack(step, self.now.n, indices, values, self.config.index_code, self.config.value_code)
        sent = unpack(raw, step, self.now.n, 0)
        view.add(sent.indices, sent.values)
        return raw

    def forget(self, worker):
        """Free the view of a worker that has left."""
        self.views.pop(worker, None), self.selectors.pop(worker, None)

    def state(self) -> dict[str, np.ndarray]:
        """Flat float32 arrays by "TENSOR.view.WORKER"; not copied."""
        return {f"{name}.view.{worker}": v for worker, view in self.views.items() for name, v in view.tensors.items()}

    def load(self, state):
        """Continue from a `state` of the same tensors; workers that it does not have need `whole`."""
        views = {}
        for key, v in state.items():
            name, _, worker = key.rpartition(".view.")
            views.setdefault(int(worker), {})[name] = np.array(v, np.float32)
        for worker, tensors in views.items():
            self._begin(worker, {name: tensors[name] for name in self.now.tensors})
