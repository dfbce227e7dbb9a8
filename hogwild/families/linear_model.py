"""A saved linear model: its weights, and how the file that it was trained on was read, so that others are read alike."""

from dataclasses import dataclass, replace

import numpy as np

from hogwild.data import dataset, features, transforms
from hogwild.data.schema import Schema
from hogwild.errors import UserError, demand, sound
from hogwild.families import linear_loaded, prediction_lines, predictions
from hogwild.kernels.losses import LOSSES
from hogwild.training.registry import build
from hogwild.training.workers import cores

TABLES = ("csv", "parquet")


@dataclass
class LinearModel:
    """What `contents` describes, in memory."""

    path: object
    weights: np.ndarray  # float32 or float64 [d + 1], or [d + 1, K]; the intercept last
    loss: tuple  # one of hogwild.kernels.losses
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
        raw = dataset.read(path, cache=cache, schema=self.schema, **options)
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
        data, more = self.prepared(raw)
        return data, lines + more

    def prepared(self, raw):
        """(Dataset, lines for the user): the features of `raw` numbered as the model's, its transforms applied."""
        raw, line = features.onto(raw, self)
        return transforms.apply(self.transform, self.state, raw), [line] if line else []

    def scores(self, dataset) -> np.ndarray:
        """float64[rows] or [rows, K]."""
        return predictions.scores(self.weights, dataset, cores())

    def measure(self, data):
        """(metrics by name, lines for the user) of data that `read` gave. Raises UserError where they have no labels."""
        labels = predictions.targets(data, self.classes, self.weights.ndim)
        unknown = predictions.unknown_line(data, self.classes)
        return predictions.measure(self.scores(data), labels, self.loss), [unknown] if unknown else []

    def check_probabilities(self):
        """Raise UserError where the loss gives no probabilities."""
        if predictions.probabilities(np.zeros((1, 2)), self.loss) is None:
            raise UserError(f"--probabilities: {self.path} has none, its loss is {type(self.loss).__name__}; train with "
                            "--loss logistic or softmax")

    def predict(self, data, probabilities=False):
        """Text in whole lines, see hogwild/families/prediction_lines.py."""
        return prediction_lines.lines(self, self.scores(data), probabilities)

    def for_python(self):
        """See hogwild/families/linear_loaded.py."""
        return linear_loaded.loaded(self)


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


def load(path, tensors, header) -> LinearModel:
    """The model at `path`, with this content. Raises UserError."""
    with sound(path, "linear model", "train again, or restore the file"):
        weights, ids = tensors.pop("weights"), tensors.pop("ids", None)
        schema, classes = header.get("schema"), header["classes"]
        made = LinearModel(path, weights, build(header["loss"], LOSSES, "loss"),
                           None if classes is None else np.array(classes), header["transform"], tensors,
                           header.get("width", len(weights) - 1), ids, None if schema is None else Schema.from_json(schema))
        _check(made)
    return made


def _check(fitted):
    """Raise ValueError where the parts of a model do not go together: what is done with them trusts that they do."""
    weights, classes, d, ids = fitted.weights, fitted.classes, fitted.n_features, fitted.ids
    demand(weights.dtype in (np.float32, np.float64) and weights.ndim in (1, 2) and d >= 0, "weights")
    demand((classes is None) == (fitted.loss.task == "regression"), "classes")
    if classes is not None:
        demand(classes.ndim == 1 and classes.dtype.kind in "fU" and len(set(classes.tolist())) == len(classes), "classes")
        demand(classes.dtype.kind == "U" or (classes[1:] > classes[:-1]).all(), "classes")
    demand(weights.ndim == 1 or classes is not None, "classes")
    demand(classes is None or len(classes) == (weights.shape[1] if weights.ndim == 2 else 2), "number of classes")
    demand(isinstance(fitted.transform, list) and transforms.parse(",".join(fitted.transform)) == tuple(fitted.transform),
           "transform")
    for name in transforms.LEARNT.keys() & set(fitted.transform):
        learnt = fitted.state[transforms.LEARNT[name]]
        demand(learnt.dtype == np.float32 and learnt.shape == (d,), transforms.LEARNT[name])
    demand(type(fitted.width) is int and fitted.width >= d, "width")
    schema = fitted.schema
    if schema is not None:
        texts = [schema.kind, *(schema.columns or ()), *schema.left_out, *(x for pair in schema.categories for x in pair)]
        demand(all(isinstance(text, str) for text in texts) and isinstance(schema.label, (str, int, type(None)))
               and isinstance(schema.zero_based, bool) and isinstance(schema.header, (bool, type(None)))
               and isinstance(schema.width, (int, type(None))), "schema")
    demand(ids is None or ids.shape == (d,) and ids.dtype.kind == "u" and (ids[1:] > ids[:-1]).all(), "ids")
