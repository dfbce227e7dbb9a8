"""Gradient dropping (Aji & Heafield 2017): the elements of largest magnitude are sent."""

from typing import NamedTuple

from sparsecomm.compress.operations import operations
from sparsecomm.compress.protocol import Payload, put_back


class Threshold(NamedTuple):
    """The elements above the threshold for the configuration's share `keep`, which a warm-up reaches in stages."""

    sparse = True

    def compressor(self, bucket):
        return _Threshold(bucket)


class _Threshold:
    lossless, decay = False, 1.0

    def __init__(self, bucket):
        self.share, self.selector = bucket.config.share, operations(bucket.device).selector(bucket)

    def rounds(self, step, gradients):
        indices, values, _ = self.selector.select(gradients, step, self.share(step))
        total = yield Payload(indices, values)
        put_back(gradients.flat, total.unsent)
        return total

    def state(self):
        return {}  # a threshold is found anew at each step

    def load(self, state):
        pass
