"""What a rank remembers of the gradients that it has not sent: the first stage of the pipeline, see protocol.py.

Each array exists twice: a step writes into the other one, so that the step can be undone to the bit. What rounds an
addition cannot be subtracted again.
"""

import numpy as np

from sparsecomm.compress.operations import host, operations
from sparsecomm.compress.protocol import Gradients

SUMMED = "residual", "velocity"  # kinds of arrays whose sum over the ranks counts


def memory(bucket, decay=1.0) -> "Residual | NoMemory":
    """The memory of the bucket's configuration, for a compressor with this factor of the residual; 0: none."""
    kind = Residual(bucket, decay) if decay and bucket.config.residual else NoMemory(bucket)
    return Velocity(bucket, kind) if bucket.config.momentum else kind


class _Flat:
    """Gradients of a bucket, end to end."""

    def __init__(self, bucket):
        self.names, self.shapes, self.parts = bucket.names, bucket.shapes, bucket.parts
        self.operations = operations(bucket.device)
        self.flat = self.operations.zeros((bucket.n,))

    def _views(self, gradients):
        return Gradients(self.flat, [None if g is None else self.flat[part].reshape(shape)
                                     for part, shape, g in zip(self.parts, self.shapes, gradients)])

    def sent(self, indices):
        pass


class NoMemory(_Flat):
    """The trivial twin: what is not sent is lost."""

    def compensate(self, gradients):
        bad = 0
        for part, g in zip(self.parts, gradients):
            if g is None:
                self.flat[part] = 0
            else:
                bad += self.operations.copy_finite(g, self.flat[part])
        return self._views(gradients), bad

    def growth(self):
        return self.flat

    def undo(self):
        pass

    def scale(self, factor):
        pass

    def state(self):
        return {}

    def load(self, state):
        pass


class Residual(_Flat):
    """Error feedback (Aji & Heafield 2017): what was not sent, times `decay`, is added to the next gradient."""

    def __init__(self, bucket, decay=1.0):
        super().__init__(bucket)
        self.before, self.decay = self.operations.zeros((bucket.n,)), np.float32(decay)

    def compensate(self, gradients):
        self.flat, self.before = self.before, self.flat
        bad = _accumulated(self.operations, self.parts, self.before, gradients, self.decay, self.flat)
        return self._views(gradients), bad

    def growth(self):
        return self.flat - self.before

    def undo(self):
        self.flat, self.before = self.before, self.flat

    def scale(self, factor):
        self.flat *= factor

    def state(self):
        return by_tensor(self, "residual", self.flat)

    def load(self, state):
        fill(self, "residual", self.flat, state)


class Velocity:
    """Momentum correction (Lin et al. 2018, section 3.1): u = m u + g is accumulated in place of g, in `memory`.

    config.masking: forget the velocity of what was sent (their momentum factor masking).
    """

    def __init__(self, bucket, memory):
        self.memory, self.m, self.masking = memory, np.float32(bucket.config.momentum), bucket.config.masking
        self.names, self.parts, self.operations = bucket.names, bucket.parts, operations(bucket.device)
        self.velocity, self.before = (self.operations.zeros((bucket.n,)) for _ in range(2))

    @property
    def flat(self):
        return self.memory.flat

    def compensate(self, gradients):
        self.velocity, self.before = self.before, self.velocity
        bad = _accumulated(self.operations, self.parts, self.before, gradients, self.m, self.velocity)
        velocities = [None if g is None else self.velocity[part] for part, g in zip(self.parts, gradients)]
        compensated, more = self.memory.compensate(velocities)
        return compensated, bad + more

    def sent(self, indices):
        if self.masking:
            self.operations.clear(self.velocity, indices)

    def growth(self):
        return self.memory.growth()

    def undo(self):
        self.memory.undo()
        self.velocity, self.before = self.before, self.velocity

    def scale(self, factor):
        self.memory.scale(factor)
        self.velocity *= factor

    def state(self):
        return {**self.memory.state(), **by_tensor(self, "velocity", self.velocity)}

    def load(self, state):
        self.memory.load(state)
        fill(self, "velocity", self.velocity, state)


def _accumulated(operations, parts, old, gradients, m, out) -> int:
    """out = m old + gradients, tensor by tensor, old for those that are None; elements that are not finite."""
    bad = 0
    for part, g in zip(parts, gradients):
        if g is None:
            out[part] = old[part]
        else:
            bad += operations.accumulate(old[part], g, m, out[part])
    return bad


def by_tensor(bucket, kind, flat) -> dict[str, np.ndarray]:
    """The parts of `flat`, as host arrays by "TENSOR.kind"."""
    whole = host(flat)
    return {f"{name}.{kind}": whole[part] for name, part in zip(bucket.names, bucket.parts)}


def fill(bucket, kind, flat, state):
    """The inverse of `by_tensor`; a part that `state` does not name stays as it is."""
    for name, part in zip(bucket.names, bucket.parts):
        x = state.get(f"{name}.{kind}")
        if x is not None:
            flat[part] = bucket.operations.here(x)
