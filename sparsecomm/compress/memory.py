"""Residual and velocity of the unsent gradients of a rank: the first stage of the pipeline, see protocol.py.

Each array exists twice: a step writes into the other one, so that the step can be undone to the bit. A subtraction would not
undo it: the addition has rounded.
"""

import numpy as np

from sparsecomm.compress.operations import host, operations
from sparsecomm.compress.protocol import Gradients

SUMMED = "residual", "velocity"  # kinds of arrays whose sum over the ranks counts


def memory(bucket, decay=1.0) -> "Residual | NoMemory":
    """The memory that the bucket's configuration names. decay: the compressor's factor of the residual from step to step; 0:
    no residual.
    """
    kind = Residual(bucket, decay) if decay and bucket.config.residual else NoMemory(bucket)
    return Velocity(bucket, kind) if bucket.config.momentum else kind


class _Laid:
    """A flat array of a bucket, with views of its tensors that are made once: a step has many small tensors."""

    def __init__(self, bucket):
        self.flat = operations(bucket.device).zeros((bucket.n,))
        self.parts = [self.flat[part] for part in bucket.parts]
        self.tensors = [part.reshape(shape) for part, shape in zip(self.parts, bucket.shapes)]

    def live(self, gradients) -> Gradients:
        """The gradients of the step: its tensors, None where `gradients` has None."""
        return Gradients(self.flat, [None if g is None else x for x, g in zip(self.tensors, gradients)])

    def accumulate(self, operations, old, gradients, m) -> int:
        """Set it to m old + gradients, or to old for tensors left alone; the number of elements that are not finite."""
        bad = 0
        for part, before, g in zip(self.parts, old.parts, gradients):
            if g is None:
                part[:] = before
            else:
                bad += operations.accumulate(before, g, m, part)
        return bad


class NoMemory:
    """The trivial twin: unsent gradient is discarded."""

    def __init__(self, bucket):
        self.operations, self.now = operations(bucket.device), _Laid(bucket)

    @property
    def flat(self):
        return self.now.flat

    def compensate(self, gradients):
        bad = 0
        for part, g in zip(self.now.parts, gradients):
            if g is None:
                part[:] = 0
            else:
                bad += self.operations.copy_finite(g, part)
        return self.now.live(gradients), bad

    def sent(self, indices):
        pass

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


class Residual:
    """Error feedback (Aji & Heafield 2017): what was not sent, times `decay`, is added to the next gradient."""

    def __init__(self, bucket, decay=1.0):
        self.bucket, self.operations, self.decay = bucket, operations(bucket.device), np.float32(decay)
        self.now, self.before = _Laid(bucket), _Laid(bucket)

    @property
    def flat(self):
        return self.now.flat

    def compensate(self, gradients):
        self.now, self.before = self.before, self.now
        bad = self.now.accumulate(self.operations, self.before, gradients, self.decay)
        return self.now.live(gradients), bad

    def sent(self, indices):
        pass

    def growth(self):
        return self.now.flat - self.before.flat

    def undo(self):
        self.now, self.before = self.before, self.now

    def scale(self, factor):
        self.now.flat *= factor

    def state(self):
        return by_tensor(self.bucket, "residual", self.flat)

    def load(self, state):
        fill(self.bucket, "residual", self.flat, state)


class Velocity:
    """Momentum correction (Lin et al. 2018, section 3.1): u = m u + g is accumulated in place of g, in `memory`.

    config.masking: set the velocity of sent elements to 0 (their momentum factor masking).
    """

    def __init__(self, bucket, memory):
        self.bucket, self.operations, self.memory = bucket, operations(bucket.device), memory
        self.m, self.masking = np.float32(bucket.config.momentum), bucket.config.masking
        self.now, self.before = _Laid(bucket), _Laid(bucket)

    @property
    def velocity(self):
        """float32[n]."""
        return self.now.flat

    @property
    def flat(self):
        return self.memory.flat

    def compensate(self, gradients):
        self.now, self.before = self.before, self.now
        bad = self.now.accumulate(self.operations, self.before, gradients, self.m)
        velocities = [None if g is None else part for part, g in zip(self.now.parts, gradients)]
        compensated, more = self.memory.compensate(velocities)
        return compensated, bad + more

    def sent(self, indices):
        if self.masking:
            self.operations.clear(self.velocity, indices)

    def growth(self):
        return self.memory.growth()

    def undo(self):
        self.memory.undo()
        self.now, self.before = self.before, self.now

    def scale(self, factor):
        self.memory.scale(factor)
        self.now.flat *= factor

    def state(self):
        return {**self.memory.state(), **by_tensor(self.bucket, "velocity", self.velocity)}

    def load(self, state):
        self.memory.load(state)
        fill(self.bucket, "velocity", self.velocity, state)


def by_tensor(bucket, kind, flat) -> dict[str, np.ndarray]:
    """The tensors of `flat`, as flat host arrays by "TENSOR.kind"."""
    whole = host(flat)
    return {f"{name}.{kind}": whole[part] for name, part in zip(bucket.names, bucket.parts)}


def fill(bucket, kind, flat, state):
    """The inverse of `by_tensor`; a tensor that `state` does not name stays as it is."""
    for name, part in zip(bucket.names, bucket.parts):
        x = state.get(f"{name}.{kind}")
        if x is not None:
            flat[part] = operations(bucket.device).here(x)
