"""What a worker pushes of its gradients: one Pipeline over all tensors, whose payloads go to the servers."""

import math

import numpy as np

from sparsecomm.compress.pipeline import Pipeline
from sparsecomm.compress.protocol import Bucket
from sparsecomm.exchange.protocol import Payload
from sparsecomm.faults.nonfinite import SKIPS, demand_skippable
from sparsecomm.server import requests as r
from sparsecomm.server.push_exchange import PushExchange


class Nowhere:
    """Stands for a Client: a message is packed and unpacked, and no more."""

    rank = clock = 0

    @staticmethod
    def send(step, indices, values, index_code, value_code, bad=0):
        """As `Client.send`."""
        body = r.pack_values(Payload(indices, values, value_code, index_code), 5, value_code, bad)
        r.unpack_body(body, 5, 0)
        return body.size


def compile_pushes(config, workers):
    """Push five numbers nowhere, so that no kernel is compiled while the clock runs."""
    for sparse in (False, True):
        Pushes(Nowhere, {"five": (5,)}, config, 0, workers, sparse=sparse).push({"five": np.ones(5, np.float32)})


class Pushes:
    """Of one worker. sparse: the gradients are 0 but for a few elements, which alone are pushed where nothing is dropped."""

    def __init__(self, client, shapes, config, seed, workers, filters=(), sparse=False):
        self.client, self.config = client, config
        exchange = PushExchange(self._send_some if sparse else client.send, config, client.rank, workers, filters)
        bucket = Bucket(tuple(shapes), tuple(shapes.values()), config, seed)
        self.pipeline, self.filters, self.skipped = Pipeline(bucket, exchange), exchange.filters, 0

    def push(self, gradients, norm=math.inf) -> bool:
        """Push a gradient (flat float32 arrays by tensor), clipped to `norm`; False: it was not finite, nothing is stepped.

        Raises UserError after many such in a row, or at once where the configuration says so.
        """
        if norm < math.inf:
            length = math.sqrt(sum(float(np.dot(g, g)) for g in gradients.values()))
            for g in gradients.values():
                g *= np.float32(min(1.0, norm / (length + 1e-6)))
        bad = self.pipeline.reduce(self.client.clock, [gradients[name] for name in self.pipeline.bucket.names])
        self.skipped = self.skipped + 1 if bad else 0
        if bad:
            self.pipeline.undo()
            demand_skippable(f"push {self.client.clock} of rank {self.client.rank}: {bad:,} elements of the gradient are not "
                             "finite", self.config, self.skipped, SKIPS)
        return not bad

    def _send_some(self, step, indices, values, *codes) -> int:
        """As `Client.send`, without the zeros."""
        if indices is not None:
            return self.client.send(step, indices, values, *codes)
        some = np.flatnonzero(values).astype(np.uint32)
        lost = values[some]
        sent = self.client.send(step, some, lost, *codes)
        values[:] = 0
        values[some] = lost
        return sent

    @property
    def kept(self) -> int:
        """Entries pushed."""
        return self.pipeline.counts["kept"]

    def residual(self) -> float:
        """Its L2 norm, squared."""
        flat = self.pipeline.memory.flat
        return 0.0 if self.pipeline.compressor.lossless else float(np.dot(flat, flat))

    def state(self):
        """State of the next push: host arrays."""
        return self.pipeline.state()

    def load(self, state):
        """Continue from a `state`."""
        self.pipeline.load(state)
