"""Tensors by their settings, and tensors that are exchanged together."""

from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.optim.hyperparameters import checked


class Group(NamedTuple):
    """Tensors that step with a rule, schedule and decay of their own."""

    names: tuple
    rule: tuple
    schedule: tuple
    decay: tuple | None = None
    asleep: frozenset = frozenset()  # names of those that are in no bucket, and do not move, until `wake`


class Bucket(NamedTuple):
    """Tensors that are exchanged together."""

    names: tuple
    sizes: tuple
    starts: tuple  # where each tensor begins in the bucket
    reducer: object


def checked_group(group) -> Group:
    """The group with every number checked, see kernels/optim/hyperparameters.py."""
    return group._replace(rule=checked(group.rule), schedule=checked(group.schedule), decay=checked(group.decay))


def validate(tensors, rank):
    """Raise UserError unless every tensor is what the kernels can step in place."""
    if not tensors:
        raise UserError(f"rank {rank}: there are no parameters to train")
    for name, w in tensors.items():
        if not isinstance(w, np.ndarray) or w.dtype != np.float32 or w.ndim != 1 or not w.flags.c_contiguous \
                or not w.flags.writeable or not w.size:
            raise UserError(f"rank {rank}: parameter {name} must be a flat, contiguous, writable float32 array that is not "
                            f"empty, got {getattr(w, 'dtype', type(w).__name__)} of shape {getattr(w, 'shape', '?')}")
