"""What a worker pushes: its `Pipeline` over one bucket of all tensors, whose exchange hands the payload to the servers."""

from collections import Counter

import numpy as np

from hogwild.errors import UserError
from sparsecomm.compress.keep_everything import KeepEverything
from sparsecomm.compress.registry import options_of
from sparsecomm.exchange.protocol import Payload, Sum
from sparsecomm.server.filters import Filters

NO_INDICES, NO_VALUES = np.zeros(0, np.uint32), np.zeros(0, np.float32)
NOT_FINITE = Payload(np.zeros(1, np.uint32), np.full(1, np.nan, np.float32))


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

    client: a `Client`. current: the worker's parameters, float32 arrays by name in the order of the bucket, for `filters`.
    """

    def __init__(self, client, config, filters=(), current=None):
        demand_pushable(config, bool(filters))
        self.client, self.rank, self.size = client, client.rank, client.workers
        self.filters, self.current = Filters(filters), current and list(current.values())
        self.codes, self.seconds = (config.value_code, config.index_code), Counter()

    def bucket(self):
        """As `Exchange.bucket`."""
        return self

    def state(self):
        """As `Exchange.state`."""
        return {}

    def load(self, state):
        """As `Exchange.load`."""

    def sum(self, step, n, payload, bad=0) -> Sum:
        """Push. A gradient that is not finite is told by a push of a NaN, and by the `bad` of the result."""
        if bad:
            return Sum(NO_INDICES, NO_VALUES, None, bad, self._push(NOT_FINITE)[1], 0)
        codes = payload.value_code or self.codes[0], payload.index_code or self.codes[1]
        indices, values = payload[:2]
        if indices is None:
            lost, sent = self._push(Payload(None, values, *codes))
            return Sum(None, np.zeros_like(values), lost and Payload(None, lost.values), 0, sent, 0)
        if not self.filters.filters:
            lost, sent = self._push(Payload(indices, values, *codes))
            return Sum(NO_INDICES, NO_VALUES, lost, 0, sent, 0)
        going, discarded = self.filters.sift(step, indices, values, self._at(indices))
        lost, sent = self._push(Payload(indices[going], values[going], *codes))
        unsent = np.where(discarded, np.float32(0), values)
        unsent[going] = lost.values if lost else 0
        return Sum(NO_INDICES, NO_VALUES, Payload(indices, unsent), 0, sent, 0)

    def _push(self, payload):
        """(what was rounded away, or None; bytes sent)."""
        before = self.client.sent_bytes
        return self.client.push(payload), self.client.sent_bytes - before

    def _at(self, indices) -> np.ndarray:
        """float32[k]: the worker's parameters at these places of the bucket."""
        ends = np.cumsum([0, *(w.size for w in self.current)])
        cuts = np.searchsorted(indices, ends)
        return np.concatenate([w[indices[a:b] - np.uint32(start)]
                               for w, a, b, start in zip(self.current, cuts, cuts[1:], ends)])
