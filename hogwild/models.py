"""hogwild.load: saved models in Python."""

from hogwild.families import registry
from hogwild.kernels.compiler.cache import announce


def load(path):
    """The model that `hogwild train` or `sparsecomm train linear` saved at `path`, to predict with; it needs no scikit-learn.

    Of the linear family: a LoadedClassifier or LoadedRegressor (hogwild/families/linear_loaded.py) with `predict`,
    `decision_function`, `predict_proba`, `classes_`, `coef_`, `top_features`, …; of matrix factorization a fitted
    MatrixFactorization. Raises hogwild.errors.UserError for a file
    that is missing, damaged, or of a family that is not hogwild's.
    """
    announce()
    return registry.load(path).for_python()
