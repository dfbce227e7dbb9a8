"""What the machine code of a user's own rule depends on: its file, and the user's own files that it imports."""

import ast
import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

_FOREIGN = tuple(os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib"))
_INSTALLED = {"site-packages", "dist-packages"}
_PROJECT = {"hogwild", "sparsecomm"}  # all of kernels is in `sources_hash`, no kernel needs more


@functools.cache
def source_stamp(file, name) -> str:
    """Hash of the file of module `name`, and of those that it imports, as far as these are files of the user's own.

    Numba takes the values of module variables into the machine code. Raises OSError where there is no such file.
    """
    digest, seen, pending = hashlib.sha256(Path(file).read_bytes()), set(), [name]
    while pending:
        name = pending.pop()
        module = sys.modules.get(name)
        if name not in seen and _users_own(name, getattr(module, "__file__", None)):
            source = Path(module.__file__).read_bytes()
            digest.update(name.encode() + b"\0" + source)
            pending += sorted(_imported(source, module.__package__ or ""))
        seen.add(name)
    return digest.hexdigest()


def _users_own(name, path) -> bool:
    if not path or not path.endswith(".py") or name.partition(".")[0] in _PROJECT:
        return False
    return not os.path.realpath(path).startswith(_FOREIGN) and not _INSTALLED & set(Path(path).parts)


def _imported(source, package):
    """Names of what may be a module of those that are imported anywhere in a source, with the packages that they are in."""
    names = set()
    try:
        tree = ast.parse(source)
    except SyntaxError:  # edited since it was imported
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            within = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {f"{within}.{alias.name}" for alias in node.names}
    return {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
