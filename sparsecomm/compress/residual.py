"""What a rank remembers of the gradients it has not sent (the first stage of the pipeline: compensate).

    compensate(gradients) -> (what selection adds to the residual, elements that are not finite); a gradient None: its tensor
                             is left alone, and so is None of what is returned
    sent(indices)         : these elements were sent; indices uint32, counted over the whole bucket
    undo()                : the step is skipped: to the bit as before `compensate`, also when the step was already settled

The residual itself is a flat float32 array that selection adds to and takes from, see kernels/compression/selection.py.
"""

import numpy as np

from hogwild.kernels.compression.momentum_correction import gather_speed
from hogwild.kernels.compression.selection import mask
from hogwild.kernels.optim.steps import aligned


def memory(sizes, config) -> "Residual":
    """The memory that the configuration asks for, for tensors of the given sizes, which lie one behind the other."""
    kind = Residual if config.residual else Nothing
    return Velocity(kind(sizes), config.momentum, config.masking) if config.momentum else kind(sizes)


class Residual:
    """Error feedback (Aji & Heafield 2017): what was not sent is added to the next gradient."""

    def __init__(self, sizes):
        self.residual, self.before = aligned((sum(sizes),)), aligned((sum(sizes),))
        ends = np.cumsum(sizes)
        self.parts = [slice(int(end - size), int(end)) for size, end in zip(sizes, ends)]

    @property
    def residuals(self) -> list[np.ndarray]:
        """The residual of each tensor."""
        return [self.residual[part] for part in self.parts]

    def compensate(self, gradients):
        np.copyto(self.before, self.residual)  # the sum cannot be taken back exactly: it is rounded
        return gradients, 0

    def sent(self, indices):
        pass

    def put_back(self, indices, values):
        """Keep `values`: they were selected, but not all of them arrived."""
        self.residual[indices] += values

    def undo(self):
        np.copyto(self.residual, self.before)

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that the next step depends on; `load` restores them in place."""
        return {"residual": self.residual}

    def load(self, state):
        for name, array in self.state().items():
            array[:] = state[name]


class Nothing(Residual):
    """The trivial twin: what is not sent is lost."""

    def compensate(self, gradients):
        self.residual[:] = 0
        return gradients, 0

    def put_back(self, indices, values):
        pass

    def undo(self):
        self.residual[:] = 0


class Velocity:
    """Momentum correction (Lin et al. 2018, section 3.1): u = m u + g is accumulated in place of g, in `memory`.

    masking: forget the velocity of what was sent (their momentum factor masking).
    """

    def __init__(self, memory, m, masking):
        self.memory, self.m, self.masking = memory, np.float32(m), masking
        self.velocity, self.before = (aligned(memory.residual.shape) for _ in range(2))

    @property
    def residuals(self) -> list[np.ndarray]:
        """The residual of each tensor."""
        return self.memory.residuals

    def compensate(self, gradients):
        np.copyto(self.before, self.velocity)
        velocities = [None if g is None else self.velocity[part] for part, g in zip(self.memory.parts, gradients)]
        bad = sum(gather_speed(u, g, self.m) for u, g in zip(velocities, gradients) if g is not None)
        return self.memory.compensate(velocities)[0], bad

    def sent(self, indices):
        if self.masking:
            mask(self.velocity, indices)

    def put_back(self, indices, values):
        self.memory.put_back(indices, values)

    def undo(self):
        self.memory.undo()
        np.copyto(self.velocity, self.before)

    def state(self):
        return {**self.memory.state(), "velocity": self.velocity}

    def load(self, state):
        self.memory.load(state)
        self.velocity[:] = state["velocity"]
