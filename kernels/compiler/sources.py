"""What the machine code of a kernel depends on: its file, and the files of kernels/ and of the user's own that it imports."""

import ast
import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

import numba
from numba.core import config

_FOREIGN = tuple(os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib"))
_INSTALLED = {"site-packages", "dist-packages"}
_KERNELS = "hogwild.kernels"
_PROJECT = {"hogwild", "sparsecomm"}  # no kernel needs more of it than kernels/


@functools.cache
def source_stamp(file, name) -> str:
    """Hash of Numba's version and settings, the file of module `name`, and every file of kernels/ or of the user's own that
    it imports, directly or through others of these.

    Numba itself notices an edit only in the kernel's own file, and takes the values of module variables into the machine
    code. Of modules that are not loaded nothing can be in it. Raises OSError where there is no such file.
    """
    digest = hashlib.sha256(f"boundscheck={config.BOUNDSCHECK} numba={numba.__version__}".encode())
    digest.update(Path(file).read_bytes())
    modules, pending = {}, list(_with_packages({name}))
    while pending:
        module = sys.modules.get(name := pending.pop())
        if name not in modules and _matters(name, path := getattr(module, "__file__", None)):
            modules[name], imported = _source(path, module.__package__ or "")
            pending += imported
    for name, source in sorted(modules.items()):
        digest.update(name.encode() + b"\0" + source)
    return digest.hexdigest()[:16]


def _matters(name, path) -> bool:
    """Whether module `name` may be edited: by this project, among its kernels, or by the user."""
    if not path or not path.endswith(".py"):
        return False
    if name.partition(".")[0] in _PROJECT:
        return f"{name}.".startswith(f"{_KERNELS}.")
    return not os.path.realpath(path).startswith(_FOREIGN) and not _INSTALLED & set(Path(path).parts)


@functools.cache
def _source(path, package):
    """(digest of a file, names of what may be a module of those that it imports anywhere, with the packages around them)."""
    source, names = Path(path).read_bytes(), set()
    digest = hashlib.sha256(source).digest()
    try:
        tree = ast.parse(source)
    except SyntaxError:  # edited since it was imported
        return digest, names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            within = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{within}.{alias.name}" for alias in node.names}
    return digest, _with_packages(names)


def _with_packages(names):
    return {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
