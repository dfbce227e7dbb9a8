"""What a worker pushes: its `Pipeline` over one bucket of all tensors, whose exchange hands the payload to the servers."""

from collections import Counter

import numpy as np

from hogwild.errors import UserError
from sparsecomm.compress.keep_everything import KeepEverything
from sparsecomm.compress.registry import options_of
from sparsecomm.exchange.protocol import Payload, Sum
from sparsecomm.server.filters import Filters

NO_INDICES, NO_VALUES = np.zeros(0, np.uint32), np.zeros(0, np.float32)


def demand_pushable(config, filtered=False):
    """Raise UserError unless a push of this configuration is defined. filtered: there are filters."""
    options = options_of(config)
    if not (options.sparse or isinstance(options, KeepEverything)):
        raise UserError(f"compressor {config.compressor} is not defined for exchange server, where a worker pushes alone: it "
                        "needs sums over all ranks; use threshold, chunk-top-k or none")
    if config.combine == "local":
        raise UserError("combine local is not defined for exchange server, whose parameters are the servers'")
    if filtered and (not options.sparse or not config.residual):
        raise UserError("filters need a compressor with a residual for what they hold back; use threshold, with --keep 1 to "
                        "drop nothing")


class PushExchange:
    """An `Exchange` (sparsecomm/exchange/protocol.py) whose payloads go to servers; the sum stays there, and is empty here.

    send(step, indices, values, index_code, value_code, bad) -> bytes sent: values (float32[k]) at flat indices (uint32[k],
    strictly ascending; None: a value for each element) go to their servers, and become what was rounded away.
    """

    def __init__(self, send, config, rank, size, filters=()):
        demand_pushable(config, bool(filters))
        self.send, self.rank, self.size, self.filters = send, rank, size, Filters(filters)
        self.index_code, self.value_code, self.seconds = config.index_code, config.value_code, Counter()

    def bucket(self):
        """As `Exchange.bucket`."""
        return self

    def state(self):
        """As `Exchange.state`."""
        return {}

    def load(self, state):
        """As `Exchange.load`."""

    def sum(self, step, n, payload, bad=0) -> Sum:
        """Push. A gradient that is not finite is told by an empty push, and by the `bad` of the result."""
        codes = payload.index_code or self.index_code, payload.value_code or self.value_code
        indices, values = payload[:2]
        if bad:
            return Sum(NO_INDICES, NO_VALUES, None, bad, self.send(step, NO_INDICES, NO_VALUES, *codes, bad), 0)
        if indices is None:
            lost = values.copy()
            sent = self.send(step, None, lost, *codes, 0)
            return Sum(None, np.zeros_like(values), None if codes[1] == "float32" else Payload(None, lost), 0, sent, 0)
        going, discarded = self.filters.sift(step, indices, values)
        lost = values[going]
        sent = self.send(step, indices[going], lost, *codes, 0)
        unsent = np.where(discarded, np.float32(0), values)
        unsent[going] = lost
        return Sum(NO_INDICES, NO_VALUES, Payload(indices, unsent), 0, sent, 0)
