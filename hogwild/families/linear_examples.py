"""What a linear model is trained and measured on, as options and files give it: for hogwild and for sparsecomm alike."""

from typing import NamedTuple

import numpy as np

from hogwild.data import splits, transforms
from hogwild.data.dataset import Dataset
from hogwild.data.sample_weights import example_weights
from hogwild.families import predictions
from hogwild.families.targets import AS_GIVEN, Units, moments, units_of


class Examples(NamedTuple):
    """Transformed rows with what belongs to them."""

    train: Dataset
    rows: np.ndarray | None  # int64[n] of `train` to train on; None: all
    test: Dataset | None
    planted: np.ndarray | None  # float64[d + 1], weights of which synthetic data were made
    weights: np.ndarray | None  # float32[rows of train], factors of the losses
    classes: np.ndarray | None  # of classification: numbers or text, ascending
    units: Units  # of real targets
    transform: tuple[str, ...]
    state: dict  # arrays of the transforms
    notes: list[str]  # lines for the user on how the files were read

    @property
    def count(self) -> int:
        """Rows to train on."""
        return self.train.rows if self.rows is None else len(self.rows)

    @property
    def row_numbers(self) -> np.ndarray:
        """int64[count]."""
        return np.arange(self.train.rows) if self.rows is None else self.rows

    def content(self) -> dict:
        """Arrays by name, for the fingerprint of a checkpoint."""
        own = {"rows": np.zeros(0, np.int64) if self.rows is None else self.rows}
        return {**self.train.content(), **own}

    def best_accuracy(self) -> float | None:
        """Held-out accuracy of the planted weights, the best that can be expected; None where it is not known."""
        if self.planted is None or self.test is None or self.classes is None:
            return None
        z = predictions.scores(self.planted.astype(np.float32), self.test)
        return float(np.mean((z > 0) == (predictions.signs(self.test, self.classes) > 0)))


def read(data, model, seed) -> Examples:
    """Examples of a LinearData and a loss. model: (loss, a NamedTuple; whether there is an intercept). Raises UserError."""
    loss, intercept = model
    names = transforms.parse(data.transform)
    whole, rows, held_out, planted = splits.read(data, seed)
    weights = example_weights(data.class_weight, data.sample_weight, whole, rows)
    state = transforms.fit(names, whole, rows)
    train = transforms.apply(names, state, whole)
    test = None if held_out is None else transforms.apply(names, state, held_out)
    # The classes of all rows that may be looked at: a sample or a random hold-out may lack a rare one.
    classes = predictions.classes_of(whole) if loss.task == "classification" else None
    units = _units(loss, intercept, train, rows, weights)
    return Examples(train, rows, test, planted, weights, classes, units, names, state, _notes(whole, held_out, classes))


def _units(loss, intercept, data, rows, weights):
    """The unit in which real targets of the training rows are counted."""
    if loss.task != "regression":
        return AS_GIVEN
    y = predictions.targets(data, None, 1)
    y = y if rows is None else y[rows]
    return units_of(loss, moments(y, weights if weights is None or rows is None else weights[rows]), intercept)


def _notes(whole, held_out, classes):
    lines = dict.fromkeys((*whole.notes, *(held_out.notes if held_out else ())))
    unknown = predictions.unknown_line(held_out, classes) if held_out else None
    few = f"{whole.source}: of {whole.width:,} features {whole.n_features:,} occur, and only these need memory"
    return [*lines, *([few] if whole.ids is not None else []), *([unknown] if unknown else [])]
