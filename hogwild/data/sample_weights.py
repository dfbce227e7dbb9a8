"""Factors of the examples' losses, as options of the command lines give them."""

import numpy as np

from hogwild.data import files
from hogwild.data.class_names import number_text, numeric
from hogwild.data.labels import canonical, shown
from hogwild.errors import UserError

SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), 1e15  # the largest one's square times that of a value must be finite
LEAST = 1e-15  # of the largest weight, so that the squares that rules add up are not 0


def for_kernel(weights):
    """Weights float64[n], not negative, as float32. Raises UserError where the kernels could not multiply by them."""
    largest = weights.max(initial=0.0)
    if largest > LARGEST or 0 < largest < LEAST:
        raise UserError(f"the largest weight of a row, times that of its class, is {largest:g} (row {weights.argmax() + 1}); "
                        f"needed one from {LEAST:g} to {LARGEST:g}: divide all weights by their mean")
    return weights.astype(np.float32)


def example_weights(class_weight, sample_weight, dataset, rows):
    """float32[rows of dataset]: the weight of each row's class times its own; None where neither is given.

    class_weight: "balanced", LABEL=WEIGHT,… or None; sample_weight: a file or None, as of the options of these names; rows:
    int64[n], those to train on, None for all. Raises UserError.
    """
    by_class, by_row = _of_classes(class_weight, dataset, rows), _of_rows(sample_weight, dataset)
    if by_class is None or by_row is None:
        weights = by_row if by_class is None else by_class
    else:
        weights = by_class * by_row
    if weights is None:
        return None
    gone = (weights > 0) & (weights < SMALLEST)
    if gone.any():
        row = gone.argmax()
        raise UserError(f"{dataset.source}: row {row + 1} has weight {weights[row]:g}, which float32 holds as 0; "
                        f"needed 0 or at least {SMALLEST:.2g}: multiply all weights by one number, or write 0")
    weights = for_kernel(weights)
    if not (weights if rows is None else weights[rows]).any():
        raise UserError(f"all rows of {dataset.source} to train on have weight 0; needed one above it")
    return weights


def _of_classes(text, dataset, rows):
    """float64[n] from "balanced" or "LABEL=WEIGHT,…"; a label that no row has is a mistake."""
    if text is None:
        return None
    values, numbers = np.unique(dataset.labels, return_inverse=True)
    names = [number_text(value) if dataset.names is None else dataset.names[int(value)] for value in values]
    if text == "balanced":
        number = np.bincount(numbers if rows is None else numbers[rows], minlength=len(names))
        factors = number.sum() / (np.count_nonzero(number) * np.maximum(number, 1))
    else:
        factors = np.ones(len(names))
        for part in text.split(","):
            name, _, weight = part.rpartition("=")
            label, weight = canonical(name), numeric(weight)
            if not name or weight is None or not 0 <= weight < np.inf:
                raise UserError(f"--class-weight must be balanced or LABEL=WEIGHT,… with weights not negative, got '{text}'")
            if label not in names:
                raise UserError(f"--class-weight has label {label}, which no row of {dataset.source} has; its labels are "
                                f"{shown(names)}")
            factors[names.index(label)] = weight
    with np.errstate(over="ignore"):
        return factors[numbers]


def _of_rows(path, dataset):
    """float64[n] from a text file, packed or not, with a number a line, in the order of the rows."""
    if path is None:
        return None
    with files.opened(path) as file:
        lines = b"".join(files.unpacked(path, file)).rstrip().split(b"\n")
    numbers = (numeric(line.decode("latin-1")) for line in lines)
    with np.errstate(over="ignore"):
        weights = np.fromiter((-1.0 if number is None else number for number in numbers), np.float64)
    valid = (weights >= 0) & (weights <= np.finfo(np.float32).max)
    if not valid.all():
        line = int(valid.argmin())
        raise UserError(f"{files.place(path, line + 1)}: needed a finite number, not negative, got "
                        f"{files.excerpt(lines[line])}; give a weight a line, one for each row of the data")
    if len(weights) != dataset.rows:
        raise UserError(f"{files.place(path)}: holds {len(weights):,} weights, {dataset.source} {dataset.rows:,} rows; "
                        "needed one a line for each row, in the same order")
    return weights
