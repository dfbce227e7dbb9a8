"""The protocol of an exchange, on one screen: a compressor yields payloads, an exchange returns their sum over the ranks."""

from typing import NamedTuple, Protocol

import numpy as np


class Payload(NamedTuple):
    """The elements that one rank sends of a bucket of n in one round.

    Arrays are NumPy's; on a device, between compressor and pipeline, also torch tensors (indices int64).
    """

    indices: np.ndarray | None  # uint32[k], strictly ascending, below n; None: the values have no indices
    values: np.ndarray  # float32[k], finite; without indices any k, the same on all ranks. The exchange overwrites them
    value_code: str | None = None  # None: the configuration's
    index_code: str | None = None


class Sum(NamedTuple):
    """The sum of all ranks' payloads: indices, values and bad are the same bits on every rank."""

    indices: np.ndarray | None  # uint32[m], strictly ascending; None: as many values as in the payload
    values: np.ndarray  # float32[m]
    unsent: Payload | None  # this rank's payload less what the sum has of it (rounding, not among the largest); None: 0
    bad: int  # elements that are not finite in the gradients of all ranks and in the sum
    sent: int  # bytes that this rank meant to send to others, headers included
    received: int


class Exchange(Protocol):
    """Sums payloads over the ranks of a wire. Over all ranks, the payloads are the sum plus all `unsent`."""

    rank: int
    size: int

    def sum(self, step: int, n: int, payload: Payload, bad: int = 0) -> Sum:
        """Called by all ranks with the same step and n, elements of the bucket; payloads are alike with or without indices.

        bad: elements of this rank's gradient that are not finite. Raises MessageError for a message that cannot be used.
        """

    def bucket(self) -> "Exchange":
        """The exchange of one bucket, on the same wire: it may have state of the bucket, such as ranges."""

    def state(self) -> dict[str, np.ndarray]:
        """State of the next step of this bucket: host arrays, the same on all ranks."""

    def load(self, state: dict[str, np.ndarray]):
        """Continue from a `state`."""
