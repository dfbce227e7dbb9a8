"""Gradients with NaN or infinity: every rank skips the step alike, or all stop."""

import numpy as np

from hogwild.errors import UserError

SKIPS = 20  # so many skipped steps in a row are no accident …
SKIPS_SCALED = 50  # … but a GradScaler needs some to find its scale


def where(wire, gradients, bad) -> str:
    """On which ranks how many elements of the gradients are not finite; bad: how many there are in the sums. Collective."""
    own = sum(int((~(abs(g) < np.inf)).sum()) for g in gradients if g is not None)
    counts = wire.numbers([own])[:, 0]
    return ", ".join(f"{k:,} on rank {r}" for r, k in enumerate(counts) if k) or f"{bad:,} in the sums"


def demand_skippable(line, config, in_a_row, most):
    """Raise UserError with `line` where the configuration wants to stop, or after `most` skipped steps in a row."""
    if config.nonfinite == "stop" or in_a_row >= most:
        raise UserError(f"{line}; use a smaller learning rate, or clip the gradient")
