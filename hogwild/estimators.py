"""HogwildClassifier and HogwildRegressor: the linear family as scikit-learn estimators. Needs scikit-learn 1.6."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import issparse

from hogwild.families import predictions
from hogwild.families.linear_sklearn import Hogwild  # first: it says what is needed where scikit-learn is missing or old
from hogwild.kernels.losses import LOSSES

# isort: split
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted


def _has_probabilities(self):
    if self.loss not in ("logistic", "modified-huber", "softmax"):
        raise AttributeError(f"probabilities are not available for loss={self.loss!r}: use logistic, modified-huber "
                             "or softmax")
    return True


@dataclass(kw_only=True, eq=False, repr=False)
class HogwildClassifier(ClassifierMixin, Hogwild):
    """Linear classifier trained by lock-free workers.

    More than two classes get a row of weights each: softmax compares them, another loss takes each against the rest.
    Parameters beside these two: those of `hogwild.families.linear_sklearn.Hogwild`.

    Parameters
    ----------
    loss
        logistic, hinge, squared-hinge, modified-huber, perceptron or softmax.
    class_weight
        Factors of the classes' losses: {label: factor}, or "balanced".

    Attributes
    ----------
    classes_ : array
        The labels of the first fit, ascending; also one whose rows all have weight 0, which is then not learnt.
    """

    loss: str = "logistic"
    class_weight: Any = None

    _losses = ("logistic", "hinge", "squared-hinge", "modified-huber", "perceptron", "softmax")

    def fit(self, X, y, sample_weight=None, *, coef_init=None, intercept_init=None):
        """Train on X [n, d] (dense or sparse) and labels y [n]; sample_weight [n]: factors of the examples' losses.
        coef_init, intercept_init: weights to begin at, of the shapes of coef_ and intercept_."""
        X, y = self._validated(X, y)
        check_classification_targets(y)
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(f"a classifier needs rows of two classes, got 1 class: {classes[0]!r}")
        if self.warm_start and hasattr(self, "_state") and not np.array_equal(classes, self.classes_):
            raise ValueError(f"warm_start needs the classes of the first fit, {self.classes_}, got {classes}")
        self.classes_ = classes
        return self._train(X, *self._encoded(X, y, sample_weight), len(classes), go_on=self.warm_start,
                           begin=(coef_init, intercept_init))

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """One epoch on this batch, from where the last call ended. classes: all labels, needed in the first call."""
        X, y = self._validated(X, y, reset=not hasattr(self, "classes_"))
        check_classification_targets(y)
        if isinstance(self.class_weight, str):
            raise ValueError(f"class_weight={self.class_weight!r} needs all rows and partial_fit sees some: give a dict")
        _check_partial_fit_first_call(self, classes)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs two classes, got 1 class: {self.classes_[0]!r}")
        return self._train(X, *self._encoded(X, y, sample_weight), len(self.classes_), once=True, go_on=True)

    def _encoded(self, X, y, sample_weight):
        """(class numbers float32[n], weights float64[n] or None)."""
        encoder, weights = LabelEncoder(), None
        encoder.classes_ = self.classes_
        numbers = encoder.transform(y)
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if self.class_weight is not None:
            counted = y if weights is None else y[weights > 0]
            factors = np.ones(len(self.classes_))
            # A class whose rows all have weight 0 is not one to be balanced.
            having = np.isin(self.classes_, counted) if isinstance(self.class_weight, str) else slice(None)
            factors[having] = compute_class_weight(self.class_weight, classes=self.classes_[having], y=counted)
            weights = factors[numbers] if weights is None else weights * factors[numbers]
        return numbers.astype(np.float32), weights

    def decision_function(self, X):
        """Scores [n] of X's rows for the second of two classes (above 0: it is predicted); [n, K] for K > 2."""
        z = self._scores(X)
        return z[:, 0] if z.shape[1] == 1 else z

    def predict(self, X):
        """Labels [n]."""
        z = self.decision_function(X)
        return self.classes_[predictions.decide(z)]

    @available_if(_has_probabilities)
    def predict_proba(self, X):
        """Probabilities [n, K] in the order of `classes_`; for losses logistic, modified-huber and softmax."""
        z = self.decision_function(X)
        return predictions.probabilities(z, LOSSES["logistic" if z.ndim == 1 and self.loss == "softmax" else self.loss]())

    @available_if(_has_probabilities)
    def predict_log_proba(self, X):
        """Their logarithms."""
        return np.log(self.predict_proba(X))


@dataclass(kw_only=True, eq=False, repr=False)
class HogwildRegressor(RegressorMixin, Hogwild):
    """Linear regression trained by lock-free workers.

    y may be of any size: it is trained on scaled by its mean and standard deviation (of all rows so far, in partial_fit),
    while coef_, intercept_, penalties and the losses' parameters are in its own unit, and lr in that of the scaled ones.
    Parameters beside `loss`: those of `hogwild.families.linear_sklearn.Hogwild`.

    Parameters
    ----------
    loss
        squared, huber[:delta=1.35], epsilon-insensitive[:epsilon=0.1] or squared-epsilon-insensitive[:epsilon=0.1].
    """

    loss: str = "squared"

    _losses = ("squared", "huber", "epsilon-insensitive", "squared-epsilon-insensitive")

    def fit(self, X, y, sample_weight=None, *, coef_init=None, intercept_init=None):
        """Train on X [n, d] (dense or sparse) and targets y [n]; sample_weight [n]: factors of the examples' losses.
        coef_init [d], intercept_init: weights to begin at."""
        return self._learn(X, y, sample_weight, reset=True, go_on=self.warm_start, begin=(coef_init, intercept_init))

    def partial_fit(self, X, y, sample_weight=None):
        """One epoch on this batch, from where the last call ended."""
        return self._learn(X, y, sample_weight, reset=not hasattr(self, "_state"), once=True, go_on=True)

    def _learn(self, X, y, sample_weight, reset, **how):
        X, y = self._validated(X, y, y_numeric=True, reset=reset)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self._train(X, y, sample_weight, **how)
        self.coef_ = self.coef_[0]
        return self

    def predict(self, X):
        """Values [n]."""
        return self._scores(X).ravel()  # sparsify() makes a row of coef_

    def sparsify(self):
        """Make `coef_` a SciPy matrix [1, d]; `predict` takes it."""
        check_is_fitted(self)
        self.coef_ = self.coef_ if issparse(self.coef_) else self.coef_[None]
        return super().sparsify()

    def densify(self):
        """Make `coef_` an array [d] again."""
        self.coef_ = super().densify().coef_.ravel()
        return self
