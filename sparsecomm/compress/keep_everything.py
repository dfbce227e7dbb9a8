"""The trivial compressor: every element is sent. The rounding error of a value code stays in the residual."""

from typing import NamedTuple

from sparsecomm.compress.operations import operations
from sparsecomm.compress.protocol import Payload


class KeepEverything(NamedTuple):
    """Every element of every tensor."""

    sparse = False

    def compressor(self, bucket):
        return _KeepEverything(bucket)


class _KeepEverything:
    decay = 1.0

    def __init__(self, bucket):
        self.parts, self.operations = bucket.parts, operations(bucket.device)
        self.lossless = bucket.config.value_code == "float32"

    def rounds(self, step, gradients):
        """Without tensors left alone, an exact code lets the exchange sum in `gradients.flat`, which is then no residual."""
        flat, live = gradients.flat, [part for part, g in zip(self.parts, gradients.tensors) if g is not None]
        whole = len(live) == len(self.parts)
        total = yield Payload(None, flat if whole else self.operations.concatenate([flat[part] for part in live]))
        unsent = total.unsent  # None: the code is exact, and there is no residual
        if whole:
            if unsent is not None:
                flat[:] = unsent.values
            return total
        if unsent is not None:
            _spread(unsent.values, live, flat)
        sums = self.operations.zeros(flat.shape)
        _spread(total.values, live, sums)
        return Payload(None, sums)

    def state(self):
        return {}

    def load(self, state):
        pass


def _spread(values, parts, out):
    """Put values, laid end to end, into the parts of `out`."""
    start = 0
    for part in parts:
        out[part] = values[start:start + part.stop - part.start]
        start += part.stop - part.start
