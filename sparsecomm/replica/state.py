"""State of the next step as arrays by name: one by tensor, so that it fits buckets of any size."""

import numpy as np

from hogwild.errors import UserError
from sparsecomm.compress.memory import SUMMED

# Ranges of a balanced exchange are agreed anew where they do not fit; selectors stand in files of older versions alone.
OPTIONAL = ".bounds", ".selector"


def fit(needed, got):
    """Raise UserError unless both, arrays by name, have the same names, dtypes and shapes."""
    needed, got = ({name: f"{x.dtype}{list(x.shape)}" for name, x in part.items() if not name.endswith(OPTIONAL)}
                   for part in (needed, got))
    for name in sorted(set(needed) | set(got)):
        if needed.get(name) != got.get(name):
            raise UserError(f"the state does not fit: needed {needed.get(name, 'no')} {name}, got {got.get(name, 'none')}; "
                            "go on with the same tensors, rule and config, its exchange named instead of auto")


def reshared(own, size) -> list[dict[str, np.ndarray]]:
    """States of `size` ranks from the `own` states of another number: residuals and velocities keep their sum.

    Old rank r is added to new rank r modulo size; the other arrays are taken from the old rank of that number.
    """
    new = []
    for rank in range(size):
        old = own[rank::size] or [{name: np.zeros_like(x) if _summed(name) else x for name, x in own[0].items()}]
        new.append({name: np.sum([state[name] for state in old], axis=0, dtype=x.dtype) if _summed(name) else x
                    for name, x in old[0].items()})
    return new


def _summed(name):
    return name.rpartition(".")[2] in SUMMED
