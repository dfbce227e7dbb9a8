"""What a rank remembers of the gradients it has not sent (the first stage of the pipeline: compensate).

    compensate(gradients) -> (what selection adds to the residual, elements that are not finite)
    sent(indices)         : these elements were sent; indices uint32, counted over the whole bucket
    undo()                : the step is skipped: as before `compensate`, to one rounding

The residual itself is a flat float32 array that selection adds to and takes from, see kernels/dropping.py.
"""

import numpy as np

from kernels.dropping import mask
from kernels.steps import aligned
from kernels.velocity import gather_speed, lose_speed


def memory(sizes, config) -> "Residual":
    """The memory that the configuration asks for, for tensors of the given sizes, which lie one behind the other."""
    if config.momentum:
        return Velocity(sizes, config.momentum, config.masking)
    return Residual(sizes) if config.residual else Nothing(sizes)


class Residual:
    """Error feedback (Aji & Heafield 2017): what was not sent is added to the next gradient."""

    def __init__(self, sizes):
        self.residual = aligned((sum(sizes),))
        ends = np.cumsum(sizes)
        self.parts = [slice(int(end - size), int(end)) for size, end in zip(sizes, ends)]

    @property
    def residuals(self) -> list[np.ndarray]:
        """The residual of each tensor."""
        return [self.residual[part] for part in self.parts]

    def compensate(self, gradients):
        return gradients, 0

    def sent(self, indices):
        pass

    def put_back(self, indices, values):
        """Keep `values`: they were selected, but not all of them arrived."""
        self.residual[indices] += values

    def undo(self):
        pass

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


class Velocity(Residual):
    """Momentum correction (Lin et al. 2018, section 3.1): u = m u + g is accumulated in place of g.

    masking: forget the velocity of what was sent (their momentum factor masking).
    """

    def __init__(self, sizes, m, masking):
        super().__init__(sizes)
        self.m, self.masking, self.velocity, self.gradients = np.float32(m), masking, aligned((sum(sizes),)), None

    def compensate(self, gradients):
        self.gradients = gradients
        velocities = [self.velocity[part] for part in self.parts]
        return velocities, sum(gather_speed(u, g, self.m) for u, g in zip(velocities, gradients))

    def sent(self, indices):
        if self.masking:
            mask(self.velocity, indices)

    def undo(self):
        for part, g in zip(self.parts, self.gradients):
            lose_speed(self.velocity[part], g, self.m)

    def state(self):
        return {**super().state(), "velocity": self.velocity}
