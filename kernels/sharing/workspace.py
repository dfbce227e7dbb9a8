"""What one step works on: a worker's view of the parameters with its buffers, and the optimizer as it is at this step."""

from typing import NamedTuple

from hogwild.kernels.compiler.jit import kernel
from hogwild.kernels.optim.lazy_l1 import tau_at
from hogwild.kernels.optim.schedules import cycled, rate
from hogwild.kernels.optim.steps import by_value

BAD = 3  # in a tally: the number + 1 of an example whose loss was not finite


class Optimizer(NamedTuple):
    """How a gradient changes the parameters."""

    rule: tuple
    schedule: tuple
    decay: tuple  # Decay or None
    clip: tuple  # Clip or None
    average: tuple  # Average or None


class Step(NamedTuple):
    """The optimizer at one step."""

    rule: tuple  # with the momentum that the schedule has there
    lr: float
    t: int
    tau: float  # see kernels/optim/lazy_l1.py; None without an average
    decay: tuple
    clip: tuple


class Workspace(NamedTuple):
    """What a worker's steps work on."""

    params: tuple  # View
    scratch: tuple  # Scratch; None for a rule without slots, not clipped, of a family that does without
    lasso: tuple  # Lasso or None; the others' too where they share parameters
    buffers: tuple  # what the family needs beside


@kernel(inline=True)
def step_at(optimizer, like, t):
    """The Step t; like: dtype of the parameters."""
    rule, schedule = optimizer.rule, optimizer.schedule
    return Step(cycled(rule, schedule, t), rate(schedule, t), t, tau_at(optimizer.average, like, t), optimizer.decay,
                optimizer.clip)


@kernel(inline=True)
def clipped_step_at(optimizer, like, t):
    """The same for a gradient whose norm was clipped before."""
    rule, schedule = optimizer.rule, optimizer.schedule
    return Step(cycled(rule, schedule, t), rate(schedule, t), t, tau_at(optimizer.average, like, t), optimizer.decay,
                by_value(optimizer.clip))
