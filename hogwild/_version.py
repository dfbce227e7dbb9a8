"""The version of both packages, looked up when it is asked for: that takes longer than to import them."""

import functools


def attribute(package, name):
    """`__getattr__` of a package: its version. Raises AttributeError for any other name."""
    if name != "__version__":
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return _version()


@functools.cache
def _version():
    from importlib import metadata  # takes longer than importing the packages
    try:
        return metadata.version("hogwild-sparsecomm")
    except metadata.PackageNotFoundError:
        return "not installed"
