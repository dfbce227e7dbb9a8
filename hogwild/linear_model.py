"""A saved linear model: its weights, and how the file that it was trained on was read, so that others are read alike."""

from dataclasses import dataclass, replace

import numpy as np

from hogwild import data, features, judge, model, transforms
from hogwild.errors import UserError
from hogwild.schema import Schema
from hogwild.spec import build
from hogwild.workers import cores
from kernels.losses import LOSSES

TABLES = ("csv", "parquet")


@dataclass
class LinearModel:
    """What `contents` describes, in memory."""

    path: object
    weights: np.ndarray  # float32 or float64 [d + 1], or [d + 1, K]; the intercept last
    loss: tuple  # one of kernels.losses
    classes: np.ndarray | None  # numbers or text, ascending
    transform: list[str]
    state: dict[str, np.ndarray]  # of the transforms
    width: int
    ids: np.ndarray | None  # as of a Dataset
    schema: Schema | None  # None: of an older version

    @property
    def n_features(self) -> int:
        return len(self.weights) - 1

    def read(self, path, cache=True, **options):
        """(Dataset as the model wants it, lines for the user) of a file, read as the training file was, options on top."""
        options = {name: value for name, value in options.items() if value is not None}
        raw = data.read(path, cache=cache, schema=self.schema, **options)
        lines = list(raw.notes)
        if self.schema is None:  # whose labels were float32
            raw = replace(raw, labels=raw.labels.astype(np.float32))
            if raw.schema.kind != "npz":
                lines.append(f"{self.path}: does not say how its training file was read, as models of older versions; the "
                             f"features of {raw.source} are taken by their places")
        elif raw.schema.kind in TABLES and self.schema.kind not in TABLES:
            lines.append(f"{raw.source}: the training data were no table: its columns are taken by their places")
        else:
            lines += _contradictions(self.schema, raw.schema, options.get("zero_based"))
        raw, line = features.onto(raw, self)
        return transforms.apply(self.transform, self.state, raw), [*lines, *([line] if line else [])]

    def scores(self, dataset) -> np.ndarray:
        """float64[rows] or [rows, K]."""
        return judge.scores(self.weights, dataset, cores())


def _contradictions(schema, read, zero_based):
    """Lines on where a file was read, as an option said, otherwise than the training file."""
    lines = []
    if zero_based and not schema.zero_based:
        lines.append("--zero-based: indices count from 0 as given, those of the training file counted from 1")
    if schema.kind in TABLES and read.label != schema.label:
        lines.append(f"--label: the label is column {read.label!r} as given, in the training file it was {schema.label!r}")
    return lines


def contents(weights, dataset, loss, transform, state, classes, **more):
    """(tensors, header) of a model file. dataset: what it was trained on; state: of the transforms."""
    listed = None if classes is None else [c if isinstance(c, str) else float(c) for c in classes.tolist()]
    header = {"family": "linear", "loss": loss, "transform": list(transform), "classes": listed, "width": dataset.width,
              "schema": dataset.schema.to_json(), **more}
    ids = {} if dataset.ids is None else {"ids": dataset.ids}
    return {"weights": np.ascontiguousarray(weights), **state, **ids}, header


def load(path) -> LinearModel:
    """The model at `path`. Raises UserError."""
    tensors, header = model.load(path)
    if header.get("family") != "linear":
        raise UserError(f"{path}: is a model of family {header.get('family')!r}, this command knows linear")
    weights, ids = tensors.pop("weights"), tensors.pop("ids", None)
    schema, classes = header.get("schema"), header["classes"]
    return LinearModel(path, weights, build(header["loss"], LOSSES, "loss"), None if classes is None else np.array(classes),
                       header["transform"], tensors, header.get("width", len(weights) - 1), ids,
                       None if schema is None else Schema.from_json(schema))
