"""Floor 1: lock-free training on one machine."""

from hogwild._guard import check_kernels, lazy

check_kernels()


def __getattr__(name):
    if name in ("HogwildClassifier", "HogwildRegressor"):  # they need scikit-learn, which the rest does not
        from hogwild import estimators
        return getattr(estimators, name)
    return lazy(name)
