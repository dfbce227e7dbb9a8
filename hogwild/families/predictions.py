"""What a linear model's labels are to its loss, and what its scores say."""

import numpy as np

from hogwild.data.class_names import number_text, numeric
from hogwild.data.labels import named, shown
from hogwild.errors import UserError
from hogwild.kernels.families import linear as kernel
from hogwild.kernels.losses import Logistic, ModifiedHuber, SoftmaxCrossEntropy
from hogwild.training import metrics
from hogwild.training.workers import spread

MOST_CLASSES = 1000
SEVERAL = 20  # labels with fractions that may be classes, such as ratings by half stars
LOG_ODDS = Logistic, SoftmaxCrossEntropy  # losses whose scores are log-odds
SCORED = 1 << 20  # products of a call: a few ms, between which Ctrl-C is seen


def classes_of(data, rows=None, classes=None) -> np.ndarray:
    """The label values of the training rows, ascending, or `classes` as given: numbers, or text where the data have names.

    Raises UserError for fewer than two.
    """
    if classes is None:
        classes = np.unique(data.labels if rows is None else data.labels[rows])
        if data.names is not None:
            classes = np.array(data.names)[classes.astype(np.int64)]
    classes = np.asarray(classes)
    if len(classes) < 2:
        raise UserError(f"{data.source}: classification needs rows of two classes, got {len(classes)} "
                        f"({shown(classes)}); for real-valued targets use --loss squared or huber")
    if len(classes) > MOST_CLASSES:
        raise UserError(f"{data.source}: has {len(classes)} different labels, a classifier takes up to {MOST_CLASSES}; "
                        "for real-valued targets use --loss squared or huber")
    if classes.dtype.kind == "f" and len(classes) > SEVERAL and (classes % 1).any():
        raise UserError(f"{data.source}: has {len(classes)} different labels with fractions ({shown(classes)}), which are no "
                        "classes; use --loss squared or huber")
    return classes


def numbers(data, classes) -> np.ndarray:
    """Labels as numbers of their classes (float32); those that are none of `classes` count on from the last of these."""
    count = len(classes)
    if data.names is None and classes.dtype.kind != "U":
        place = np.minimum(np.searchsorted(classes, data.labels), count - 1)
        unknown = np.flatnonzero(classes[place] != data.labels)
        if unknown.size:
            place[unknown] = count + np.unique(data.labels[unknown], return_inverse=True)[1]
        return place.astype(np.float32)
    number = {named(label): k for k, label in enumerate(classes)}
    values, inverse = np.unique(data.labels, return_inverse=True)
    names = map(number_text, values) if data.names is None else (data.names[int(value)] for value in values)
    return np.array([number.setdefault(name, len(number)) for name in names], np.float32)[inverse]


def unknown_line(data, classes) -> str | None:
    """What to say where some rows have a label that is none of `classes`."""
    if classes is None or not data.labelled:
        return None
    rows = np.flatnonzero(numbers(data, classes) >= len(classes))
    if not rows.size:
        return None
    found = np.unique(data.labels[rows])
    found = found if data.names is None else [data.names[int(code)] for code in found]
    return (f"{data.source}: {rows.size:,} of {data.rows:,} rows have a label that training had not ({shown(found)}); they "
            "count as wrong, and not at all in log-loss and AUC")


def signs(data, classes) -> np.ndarray:
    """Labels of two classes as ±1 (float32); the later is the positive one. Those that are none of them are above 1."""
    return 2 * numbers(data, classes) - 1


def targets(data, classes, outputs_ndim) -> np.ndarray:
    """What the scores of weights with so many dimensions are measured against: ±1, class numbers (both float32), or real
    targets (float64). Raises UserError for data without labels, and for targets that are text."""
    if not data.labelled:
        raise UserError(f"{data.source}: has no label column{f' {data.schema.label!r}' if data.schema.label else ''}; "
                        "add it, or name it by --label")
    if classes is not None:
        return signs(data, classes) if outputs_ndim == 1 else numbers(data, classes)
    if data.names is None:
        return data.labels
    values = [numeric(name) for name in data.names]
    if None in values:
        raise UserError(f"{data.source}: has the label {data.names[values.index(None)]!r}, which is text, and this loss "
                        "needs numbers; use --loss logistic, or another --label column")
    return np.array(values)[data.labels.astype(np.int64)]


def outputs_of(loss, classes) -> int:
    """Scores of a row under `loss`: one a class (of a number `classes`), or a single one for two classes or a target."""
    return classes if classes > 2 or isinstance(loss, SoftmaxCrossEntropy) else 1


def scores(w, data, workers=1) -> np.ndarray:
    """Scores [rows] of `data` under weights w [d + 1], the intercept last, in their dtype; [rows, K] under [d + 1, K].

    Raises UserError when the data have features that the model lacks.
    """
    if data.n_features > len(w) - 1:
        raise UserError(f"{data.source}: has {data.n_features} features, the model {len(w) - 1}; "
                        "train with --features at least that number")
    table, csr = np.ascontiguousarray(w.reshape(len(w), -1)), data.csr
    out = np.zeros((data.rows, table.shape[1]), w.dtype)
    parts = list(data.blocks(max(min(SCORED // table.shape[1], (data.nnz + data.rows) // workers), 1)))
    spread(lambda first, last: kernel.scores(table, csr, parts[first][0], parts[last - 1][1], out), len(parts), workers, 1)
    return out[:, 0] if w.ndim == 1 else out


def decide(z) -> np.ndarray:
    """Class numbers of scores [n] (1 where above 0) or [n, K] (the largest)."""
    return (z > 0).astype(np.int64) if z.ndim == 1 else z.argmax(axis=1)


def probabilities(z, loss) -> np.ndarray | None:
    """Probabilities float64[n, K] of scores z [n] or [n, K]; None where the loss gives none.

    One against the rest: each class's own, scaled to a sum of 1, as scikit-learn does.
    """
    z = np.asarray(z, np.float64)
    if isinstance(loss, ModifiedHuber):  # Zhang 2004; of a row whose classes all have 0, all are equally likely
        p = (np.clip(z, -1, 1) + 1) / 2
        if z.ndim == 1:
            return np.stack([1 - p, p], axis=1)
        p[~p.any(axis=1)] = 1
        return p / p.sum(axis=1, keepdims=True)
    if not isinstance(loss, LOG_ODDS):
        return None
    logs = z if isinstance(loss, SoftmaxCrossEntropy) else -np.logaddexp(0, -z)
    if z.ndim == 1:
        return np.stack([1 - np.exp(logs), np.exp(logs)], axis=1)
    e = np.exp(logs - logs.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def measure(z, labels, loss) -> dict[str, float]:
    """Metrics of scores z [n] or [n, K] against ±1 labels, class numbers or targets; log-loss only of log-odds.

    Rows whose label is of none of the classes, as `numbers` and `signs` give it, count as wrong in accuracy and F1, and not
    at all in log-loss and AUC.
    """
    if loss.task == "regression":
        return metrics.regression(z, labels)
    known = labels < (z.shape[1] if z.ndim == 2 else 2)
    if not known.all():
        result = measure(z[known], labels[known], loss)
        if z.ndim == 2:
            return result | metrics.multiclass(z, labels.astype(np.int64), False)
        right = known & ((z > 0) == (labels > 0))
        return result | {"accuracy": float(right.mean()), "f1": metrics.f1(z, np.where(known, labels, -1))}
    if z.ndim == 2:
        return metrics.multiclass(z, labels.astype(np.int64), isinstance(loss, LOG_ODDS),
                                  each=isinstance(loss, Logistic))
    result = metrics.classification(z, labels)
    if not isinstance(loss, Logistic):
        result.pop("log_loss", None)
    return result
