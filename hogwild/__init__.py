"""Floor 1: lock-free training on one machine."""

import importlib

from hogwild import _version

LATE = {"HogwildClassifier": "estimators", "HogwildRegressor": "estimators"}  # need scikit-learn, which the rest does not


def __getattr__(name):
    if name in LATE:
        return getattr(importlib.import_module(f"hogwild.{LATE[name]}"), name)
    return _version.attribute("hogwild", name)


def __dir__():
    return sorted([*LATE, "__version__"])
