"""What the next step depends on, as arrays by name: apart by tensor, so that it fits buckets of any size."""

import numpy as np

from hogwild.errors import UserError

SUMMED = "residual", "velocity"  # arrays with a number for each element of each tensor; over all ranks their sum counts
SELECTOR = "threshold", "exponent", "drift", "age", "target"  # numbers that selection has for each tensor


def split(bucket, b, state) -> dict[str, np.ndarray]:
    """The state of bucket b's reducer, by tensor: "NAME.residual", "NAME.selector" …; what belongs to none as "b.KIND"."""
    parts = {}
    for kind in filter(state.__contains__, SUMMED):
        for name, part in zip(bucket.names, np.split(state[kind], bucket.starts[1:])):
            parts[f"{name}.{kind}"] = part
    if SELECTOR[0] in state:
        table = np.array([state[kind] for kind in SELECTOR], np.float64)
        local = table.shape[1] == len(bucket.names)
        rows = zip(bucket.names, table.T.copy()) if local else [(b, table)]
        parts |= {f"{name}.selector": row for name, row in rows}
    return parts | {f"{b}.{kind}": x for kind, x in state.items() if kind not in SUMMED + SELECTOR}


def joined(bucket, b, own, state) -> dict[str, np.ndarray]:
    """The state of bucket b's reducer from `own`, parts by tensor; `state`: one of its shape."""
    new = {}
    for kind in filter(state.__contains__, SUMMED):
        new[kind] = np.concatenate([own[f"{name}.{kind}"] for name in bucket.names])
    if SELECTOR[0] in state:
        local = len(state[SELECTOR[0]]) == len(bucket.names)
        table = np.array([own[f"{name}.selector"] for name in bucket.names]).T if local else own[f"{b}.selector"]
        new |= {kind: row.astype(state[kind].dtype) for kind, row in zip(SELECTOR, table)}
    bounds = own.get(f"{b}.bounds")  # the ranges of a balanced exchange, for buckets of this size
    n = bucket.starts[-1] + bucket.sizes[-1]
    return new if bounds is None or bounds[-1] != n else new | {"bounds": bounds}


def fit(needed, got):
    """Raise UserError unless both, arrays by name, have the same names, dtypes and shapes."""
    needed, got = ({name: f"{x.dtype}{list(x.shape)}" for name, x in part.items() if not name.endswith(".bounds")}
                   for part in (needed, got))  # ranges come with the first step, and are agreed anew where they do not fit
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
