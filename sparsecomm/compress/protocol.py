"""From a gradient to payloads, on one screen.

    Memory.compensate -> Compressor.rounds -> Payload -> Exchange.sum -> Sum -> Compressor.rounds -> the sum of the bucket

Over all ranks and at every step, the sum + new residuals = gradients + old residuals, exactly where the codes are exact.
`sparsecomm.compress.pipeline` drives the stages, `sparsecomm.exchange.protocol` declares payloads and sums.
"""

import math
from collections.abc import Generator
from typing import NamedTuple, Protocol

import numpy as np

from sparsecomm.exchange.protocol import Payload, Sum


class Bucket(NamedTuple):
    """Tensors that are exchanged together, laid end to end."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    config: object  # the sparsecomm.config.Config, which imports this package
    seed: int = 0  # the same on all ranks, another one for each bucket
    device: object = None  # the torch device of the gradients; None: NumPy arrays
    rank: int = 0  # this rank of so many, see `Pipeline`
    size: int = 1

    @property
    def sizes(self) -> list[int]:
        """Elements of each tensor."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def parts(self) -> list[slice]:
        """Where each tensor lies in the bucket."""
        ends = np.cumsum(self.sizes).tolist()
        return [slice(end - size, end) for size, end in zip(self.sizes, ends)]

    @property
    def n(self) -> int:
        """Elements of all."""
        return sum(self.sizes)


class Gradients(NamedTuple):
    """Of a bucket at one step, compensated by the memory: finite float32, NumPy arrays or tensors on a device."""

    flat: np.ndarray  # [n]
    tensors: list  # a view of `flat` in the shape of each tensor; None: left alone at this step, nothing of it is sent


class Memory(Protocol):
    """Unsent gradient of one rank (residual, velocity)."""

    flat: np.ndarray  # float32[n]: unsent gradient, the residual of the next step

    def compensate(self, gradients: list) -> tuple[Gradients, int]:
        """(Residual + flat gradients, None for a tensor left alone; the number of gradient elements that are not finite)."""

    def sent(self, indices):
        """These elements (uint32 or int64, of the bucket) are sent now."""

    def growth(self):
        """float32[n]: the residual less what it was before the step."""

    def undo(self):
        """Restore the state before the last `compensate`, to the bit; once."""

    def scale(self, factor):
        """Multiply residual and velocity by `factor`, as the unit of the gradients changes."""

    def state(self) -> dict:
        """Flat float32 host arrays by "TENSOR.residual" and "TENSOR.velocity"; other numbers of ranks preserve their sums."""

    def load(self, state: dict):
        """Continue from a `state`; what it does not name stays as it is."""


class CompressorOptions(Protocol):
    """An entry of the registry: a NamedTuple of numbers, each in its `ranges`, that makes compressors."""

    sparse: bool  # payloads have indices of the bucket: ranks may leave different tensors alone

    def compressor(self, bucket: Bucket) -> "Compressor":
        """The compressor of one bucket."""


class Compressor(Protocol):
    """Of one bucket."""

    lossless: bool  # every element is sent exactly: no memory is needed
    decay: float  # factor of the residual from step to step: 1 error feedback, 0 no memory

    def rounds(self, step: int, gradients: Gradients) -> Generator[Payload, Sum, Payload | Sum]:
        """Yield payloads, at least one and on all ranks as many; each gets the `Sum` over the ranks. Return the bucket's sum.

        The unsent gradient of this rank must stay in `gradients.flat`. The returned values are float32[n] where there are no
        indices, with zeros for tensors that are left alone. A generator is not resumed after a sum that is not finite: the
        step is then undone, `gradients.flat` and `state()` included.
        """

    def state(self) -> dict[str, np.ndarray]:
        """State of the next step: host arrays by "TENSOR.kind", whose names and shapes never change."""

    def load(self, state: dict[str, np.ndarray]):
        """Copy from a `state`; what it does not name stays as it is."""


def put_back(flat, unsent: Payload | None):
    """Add the unsent part of this rank's payload to the residual."""
    if unsent is not None and unsent.indices is not None:
        flat[unsent.indices] += unsent.values
    elif unsent is not None:
        flat += unsent.values


def rounded_away(total: Sum):
    """The rounding error of this rank's payload without indices: as many values as the sum has."""
    return total.values * 0 if total.unsent is None else total.unsent.values
