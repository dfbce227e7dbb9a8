"""Which rows a model is trained on and which are held out, of the files that the options name."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hogwild.data import dataset, features, synthetic
from hogwild.data.dataset import Dataset
from hogwild.errors import UserError


class Split(NamedTuple):
    """Data as they were read, untransformed."""

    whole: Dataset  # the training file
    rows: np.ndarray | None  # int64[n] of `whole` to train on; None: all
    held_out: Dataset | None
    planted: np.ndarray | None  # weights [d + 1] of which synthetic data were made


def read(files, seed) -> Split:
    """The Split of a hogwild.data.options.Files; seed: of the held-out rows and of synthetic data. Raises UserError."""
    if files.data is None:
        return _synthetic(files, seed)
    whole = dataset.read(files.data, n_features=files.features, **files.reading())
    if files.test:
        alike = {**files.reading(), "schema": whole.schema, "label": None if whole.schema.label else files.label}
        test, line = features.onto(dataset.read(files.test, **alike), whole)
        return Split(whole, None, replace(test, notes=(*test.notes, *([line] if line else []))), None)
    count = int(files.holdout * whole.rows)
    if count == 0:
        return Split(whole, None, None, None)
    order = np.random.default_rng(seed).permutation(whole.rows)
    return Split(whole, np.sort(order[count:]), dataset.select(whole, np.sort(order[:count])), None)


def _synthetic(files, seed):
    if files.test:
        raise UserError("--test needs DATA: the synthetic data have their own held-out part")
    whole, planted = synthetic.rcv1_like(files.rows + max(files.rows // 10, 1), seed=seed)
    return Split(whole.subset(0, files.rows), None, whole.subset(files.rows, whole.rows), planted)
