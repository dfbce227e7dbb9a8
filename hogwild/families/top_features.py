"""The features that a linear model gives most weight to."""

from numbers import Integral
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError


class TopFeatures(NamedTuple):
    """Features and their weights, the largest in size first. A feature is its name, or the number of its column from 0."""

    positive: list[tuple[str | int, float]]  # weights above 0: a larger value speaks for the class, or raises the prediction
    negative: list[tuple[str | int, float]]  # weights below 0


def top_features(coef, names, n, classes, class_) -> TopFeatures:
    """The n largest and n smallest weights of one column of coef, float[d, K], or [d, 1] of two classes or a regression.

    names: of the d features, text or numbers, or None for 0 … d - 1; classes: K or 2 labels, or None of a regression;
    class_: one of them; of two classes None is the second. Raises UserError.
    """
    if not isinstance(n, Integral) or isinstance(n, bool) or n < 1:
        raise UserError(f"n must be a whole number of at least 1, got {n!r}")
    w = _of_class(coef, classes, class_)
    # Weights of 0 are no reason for anything; of equal ones the first comes first.
    ends = (np.argsort(-w, kind="stable")[:n], np.argsort(w, kind="stable")[:n])
    return TopFeatures(*([(_plain(k if names is None else names[k]), float(w[k])) for k in end if sign * w[k] > 0]
                         for sign, end in zip((1, -1), ends)))


def _of_class(coef, classes, class_):
    if class_ is None and (classes is None or len(classes) == 2):
        return coef[:, 0] if coef.shape[1] == 1 else coef[:, 1] - coef[:, 0]
    known = [] if classes is None else classes.tolist()
    if class_ not in known:
        what = f"one of {', '.join(map(repr, known))}" if known else "None: a regression has no classes"
        raise UserError(f"class_ must be {what}, got {class_!r}")
    if len(known) > 2:
        return coef[:, known.index(class_)]
    return (-1, 1)[known.index(class_)] * _of_class(coef, classes, None)


def _plain(feature):
    return str(feature) if isinstance(feature, str) else int(feature)
