"""State of the next step as arrays by name: one by tensor, so that it fits buckets of any size."""

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.optim.catch_up import LONGEST, low16
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


def repaced(common, names, new, old) -> dict[str, np.ndarray]:
    """A `common` of the tensors `names`, for a run that makes `new` steps where `old` were made: its clock, and all waits.

    What is unsent came from so many more or fewer ranks that its mean is that of a wait as much shorter or longer.
    """
    if new == old:
        return common
    changed = {name: common[name] * new // old for name in ("clock", "missed")}
    steps = {name: (common["clock"][0] - before, changed["clock"][0] - after)
             for name, before, after in zip(names, common["missed"], changed["missed"])}
    return {**common, **changed, **rewaited(common, steps, new, old)}


def rewaited(common, steps, new, old) -> dict[str, np.ndarray]:
    """The last steps in a `common` where waits become new / old times as long. steps: (so far, so far in the new count)."""
    changed = {}
    for name in (name for name in steps if f"last.{name}" in common):
        before, after = (int(t) - 1 for t in steps[name])
        waited = ((before - common[f"last.{name}"].astype(np.int64)) & 0xFFFF) * new // old
        changed[f"last.{name}"] = low16(after - np.minimum(waited, LONGEST - 1)).astype(np.int16)
    return changed


def as_just_stepped(common, lasts) -> dict[str, np.ndarray]:
    """A `common` of a run in which nothing waited, for one with these last steps by name, in the order of `missed`."""
    before = dict(zip(lasts, common["clock"][0] - common["missed"] - 1))
    return {**{f"last.{name}": np.full(len(last), low16(int(before[name])), np.int16)
               for name, last in lasts.items() if last is not None}, **common}


def _summed(name):
    return name.rpartition(".")[2] in SUMMED
