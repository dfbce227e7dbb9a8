"""Problem family "linear": binary classification and regression on sparse rows (kernel: kernels/linear.py)."""

import numpy as np

from hogwild import metrics
from hogwild.errors import UserError
from hogwild.workers import spread
from kernels import linear as kernel
from kernels.csr import degrees
from kernels.hyper import checked
from kernels.steps import columns, new_theta

# Rows of unit length want larger steps than dense networks; chosen on imdb, 20newsgroups, a9a and RCV1's sample.
DEFAULT_LR = {"AdaGrad": 0.1, "SGD": 0.5, "Momentum": 0.05, "Nesterov": 0.05, "Apollo": 0.01} | dict.fromkeys(
    ("RMSProp", "Adam", "AdamW", "Nadam", "RAdam", "AdaBelief"), 3e-3)


def classes_of(labels, source) -> np.ndarray:
    """The two label values, ascending; the larger is the positive class. Raises UserError for one or more than two."""
    classes = np.unique(labels)
    if len(classes) != 2:
        seen = ", ".join(f"{c:g}" for c in classes[:5]) + (", …" if len(classes) > 5 else "")
        raise UserError(f"{source}: classification needs rows of two classes, got {len(classes)} ({seen}); "
                        "for real-valued targets use --loss squared or huber")
    return classes


def signs(labels, classes, source) -> np.ndarray:
    """Labels as ±1 (float32). Raises UserError on a label that is not one of `classes`."""
    unknown = np.flatnonzero((labels != classes[0]) & (labels != classes[1]))
    if unknown.size:
        raise UserError(f"{source}: row {unknown[0] + 1} has label {labels[unknown[0]]:g}, the model knows "
                        f"{classes[0]:g} and {classes[1]:g}")
    return np.where(labels == classes[1], 1, -1).astype(np.float32)


def peak(schedule) -> float:
    """The learning rate that the schedule's field `lr` names, which is its highest; a warm-up's first one would be 0."""
    return float(getattr(schedule, "after", schedule).lr)


class Linear:
    """w·x + b under `loss`, trained on dataset `data`, measured on `test` (a dataset or None).

    rows: the row numbers to train on, None for all. decay: weighted at each touch by rows / rows that have the feature,
    so that the sparse penalty is l2/2 |w|² in expectation. The parameters are theta [d + 1, 1 + S] float32, its last row
    the intercept.
    """

    def __init__(self, data, test, loss, rule, schedule, decay=None, clip=None, intercept=True, workers=1, rows=None):
        self.loss, self.workers, self.intercept = checked(loss), workers, bool(intercept)
        self.decay, self.clip = checked(decay), checked(clip)
        self.classes = classes_of(data.labels, data.source) if loss.task == "classification" else None
        self.data, self.test = data, test
        self.labels = self._targets(data)
        self.test_labels = self._targets(test) if test is not None else None
        self.theta = new_theta(rule, data.n_features + 1)
        self.w, self.slots = columns(self.theta)
        self.one = kernel.unit(np.float32)
        self.rows, self.examples = rows, data.rows if rows is None else len(rows)
        self.weight = self._weight(peak(schedule)) if decay else None

    def _targets(self, data):
        return data.labels if self.classes is None else signs(data.labels, self.classes, data.source)

    def _weight(self, lr):
        count = np.zeros(self.data.n_features, np.int64)
        degrees(self.data.csr, count)
        # A feature seen once would be shrunk past zero: cap the weight where one touch takes all of it.
        strongest = 1.0 / max(lr * (self.decay.l2 + self.decay.wd), 1e-30)
        return np.minimum(self.data.rows / np.maximum(count, 1), strongest).astype(np.float32)

    def private(self):
        return kernel.private_row(self.theta)

    def run(self, rule, schedule, own, order, t, stride, tally):
        order = order if self.rows is None else self.rows[order]
        kernel.train(rule, schedule, self.loss, self.decay, self.clip, self.intercept, self.theta, self.w, self.slots,
                     own, self.one, self.data.csr, self.labels, self.weight, order, t, stride, tally)

    def evaluate(self):
        if self.test is None:
            return {}
        return measure(scores(self.w, self.test, self.workers), self.test_labels, self.loss)


def scores(w, data, workers=1) -> np.ndarray:
    """Scores float32[rows] of `data` under weights w [d + 1], the intercept last.

    Raises UserError when the data have features that the model lacks.
    """
    if data.n_features > len(w) - 1:
        raise UserError(f"{data.source}: has {data.n_features} features, the model {len(w) - 1}; "
                        "train with --features at least that number")
    out, w = np.zeros(data.rows, np.float32), np.ascontiguousarray(w)
    spread(lambda start, stop: kernel.scores(w, data.csr, start, stop, out), data.rows, workers)
    return out


def measure(z, labels, loss) -> dict[str, float]:
    """Metrics of scores z against ±1 labels or targets; the log-loss only where scores are log-odds."""
    if loss.task == "regression":
        return metrics.regression(z, labels)
    result = metrics.classification(z, labels)
    if type(loss).__name__ != "Logistic":
        result.pop("log_loss", None)
    return result
