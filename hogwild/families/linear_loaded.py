"""A saved linear model in Python: what hogwild.load gives. Its predictions are those of `hogwild predict`, to the digit."""

import os
import warnings

import numpy as np

from hogwild.data import dataset
from hogwild.errors import UserError
from hogwild.families import predictions
from hogwild.families.top_features import top_features


def loaded(model):
    """A LoadedClassifier or LoadedRegressor of a hogwild.families.linear_model.LinearModel."""
    return (LoadedRegressor if model.classes is None else LoadedClassifier)(model)


class LoadedRegressor:
    """A regression. `coef_` [d], `intercept_` [1], `n_features_in_`.

    X, wherever it is taken: numbers [n, d], dense or a SciPy sparse matrix of any width (what is missing is 0, what training
    had not is ignored with a warning); a data frame whose columns are the model's features in their order; or the path of a
    file, read as the training file was. Column j is the feature with index j of a zero-based svmlight file, j + 1 of another.
    The model's transforms are applied to it. Raises UserError, which says what is wrong with X.
    """

    def __init__(self, model):
        self._model = model
        self.n_features_in_ = model.width

    def __repr__(self):
        model = self._model
        transform = f", transform {','.join(model.transform)}" if model.transform else ""
        return f"<{type(self).__name__} {model.path}: {type(model.loss).__name__}, {model.width:,} features{transform}>"

    @property
    def _weights(self) -> np.ndarray:
        """[d, 1 or K] of the features that it has, those of two softmax classes as the second's log-odds."""
        w = self._model.weights.reshape(self._model.n_features + 1, -1)
        return w[:, 1:] - w[:, :1] if w.shape[1] == 2 else w

    @property
    def coef_(self) -> np.ndarray:
        """Weights of the transformed values, in a new array: [d] of a regression, [1, d] of two classes, [K, d] of more."""
        w, ids = self._weights[:-1].T, self._model.ids
        if ids is not None:
            narrow, w = w, np.zeros((len(w), self._model.width), w.dtype)
            w[:, ids] = narrow
        return np.ascontiguousarray(w[0] if self._model.classes is None else w)

    @property
    def intercept_(self) -> np.ndarray:
        return self._weights[-1].copy()

    def _scores(self, X) -> np.ndarray:
        if isinstance(X, (str, os.PathLike)):
            data, lines = self._model.read(X)
        else:
            data, lines = self._model.prepared(self._given(X))
        for line in lines:
            warnings.warn(line, stacklevel=3)
        return self._model.scores(data)

    def _given(self, X):
        """X as a Dataset without labels."""
        columns, schema = getattr(X, "column_names", getattr(X, "columns", None)), self._model.schema
        if columns is not None and schema is not None and schema.columns is not None:
            wrong = next((pair for pair in zip([*columns, None], [*schema.columns, None]) if pair[0] != pair[1]), None)
            if wrong:
                raise UserError(f"X has column {wrong[0]!r} where the model has feature {wrong[1]!r}; give its columns in "
                                f"the model's order ({', '.join(schema.columns)[:200]}), or the path of a file, whose "
                                "columns are found by name")
        try:
            X = X if hasattr(X, "tocsr") else np.asarray(X)
        except ValueError as error:
            raise UserError(f"X must be an array of [rows, features]: {error}") from None
        if not hasattr(X, "tocsr") and X.ndim == 2 and X.shape[1] != self.n_features_in_:
            raise UserError(f"X has {X.shape[1]} columns, the model {self.n_features_in_} features; only a sparse matrix may "
                            "have another width")
        return dataset.from_arrays(X, np.zeros(X.shape[:1]), "X")

    def predict(self, X) -> np.ndarray:
        """Values [n], float32 or, of a model with targets beyond that, float64."""
        return self._scores(X)

    def top_features(self, n=20, class_=None):
        """The features with the n largest and the n smallest weights: hogwild.families.top_features.TopFeatures, whose
        `positive` and `negative` are lists of (feature, weight), largest in size first.

        A feature is its name where the training file named its columns, else its column in X, an int from 0. class_: whose
        weights; of two classes the second by default (those of the first have the other sign); of more it must be given; a
        regression has none. Weights are those of transformed values, and compare features of one scale.
        """
        model = self._model
        columns = None if model.schema is None else model.schema.columns
        names = columns if model.ids is None or columns is None else [columns[k] for k in model.ids]
        return top_features(self._weights[:-1], model.ids if names is None else names, n, model.classes, class_)


class LoadedClassifier(LoadedRegressor):
    """A classifier. `classes_` [K], ascending: float64, or text where the training file had text; `coef_` [1, d] or [K, d],
    `intercept_` [1] or [K], `n_features_in_`. X as of a LoadedRegressor."""

    @property
    def classes_(self) -> np.ndarray:
        return self._model.classes

    def decision_function(self, X) -> np.ndarray:
        """Scores [n] for the second of two classes (above 0: it is predicted), [n, K] of more."""
        z = self._scores(X)
        return z[:, 1] - z[:, 0] if z.ndim == 2 and z.shape[1] == 2 else z

    def predict(self, X) -> np.ndarray:
        """Labels [n], of `classes_`."""
        return self.classes_[predictions.decide(self._scores(X))]

    @property
    def predict_proba(self):
        """A function of X: probabilities float64[n, K] in the order of `classes_`. Not there where the loss gives none."""
        if predictions.probabilities(np.zeros((1, 2)), self._model.loss) is None:
            raise AttributeError(f"{self._model.path} has no probabilities, its loss is {type(self._model.loss).__name__}: "
                                 "train with --loss logistic or softmax, or use decision_function")
        return lambda X: predictions.probabilities(self._scores(X), self._model.loss)
