"""Floor 1: lock-free training on one machine."""

import importlib

from hogwild import _version

# Where each name is: the estimators of linear models need scikit-learn, plot needs matplotlib, and nothing else does.
LATE = {"HogwildClassifier": "estimators", "HogwildRegressor": "estimators", "load": "models",
        "MatrixFactorization": "families.mf_estimator", "plot": "plots"}


def __getattr__(name):
    if name in LATE:
        return getattr(importlib.import_module(f"hogwild.{LATE[name]}"), name)
    return _version.attribute("hogwild", name)


def __dir__():
    return sorted([*LATE, "__version__"])
