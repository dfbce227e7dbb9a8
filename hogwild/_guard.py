"""What both packages need at import: the right `kernels`, and the version."""

from importlib import metadata

import kernels


def check_kernels():
    """Raise ImportError when another distribution's `kernels` is imported in place of ours."""
    if not getattr(kernels, "HOGWILD_SPARSECOMM", False):
        found = kernels.__file__ or list(kernels.__path__)
        raise ImportError(f"hogwild-sparsecomm needs its own package `kernels`, but Python found another one: {found}. "
                          "Run `pip uninstall kernels`, then reinstall hogwild-sparsecomm.")


def lazy(name):
    """`__getattr__` of both packages. To look the version up takes longer than to import the package."""
    if name != "__version__":
        raise AttributeError(f"the package has no attribute {name!r}")
    try:
        return metadata.version("hogwild-sparsecomm")
    except metadata.PackageNotFoundError:
        return "not installed"
