"""What an exchange sums over the ranks, on one screen: a compressor writes payloads, an exchange returns their sum."""

from typing import NamedTuple, Protocol

import numpy as np


class Payload(NamedTuple):
    """What one rank sends of a bucket of n elements in one round.

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
    unsent: Payload | None  # what of this rank's payload did not arrive (rounded away, not among the largest); None: all did
    bad: int  # elements that are not finite in the gradients of all ranks and in the sum
    sent: int  # bytes that this rank meant to send to others, headers included
    received: int


class Exchange(Protocol):
    """Sums payloads over the ranks of a wire. Over all ranks, payloads = sum + what returns unsent."""

    rank: int
    size: int

    def sum(self, step: int, n: int, payload: Payload, bad: int = 0) -> Sum:
        """Called by all ranks with the same step and n, elements of the bucket; payloads are alike with or without indices.

        bad: elements of this rank's gradient that are not finite. Raises MessageError for a message that cannot be used.
        """

    def bucket(self) -> "Exchange":
        """The exchange of one bucket, on the same wire: it may remember something about the bucket's elements."""

    def state(self) -> dict[str, np.ndarray]:
        """What the next step of this bucket depends on, the same on all ranks."""

    def load(self, state: dict[str, np.ndarray]):
        """Continue from a `state`."""
