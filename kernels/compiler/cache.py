"""The disk cache of compiled kernels, keyed by the sources that each one depends on."""

import contextlib
import fcntl
import functools
import hashlib
import inspect
import os
import sys
import time
from pathlib import Path

from numba import types
from numba.core import caching

from hogwild.kernels.compiler.cache_folders import held_folder, private_folder, remove_stale, say, user_cache
from hogwild.kernels.compiler.linkable import BitcodeCacheImpl
from hogwild.kernels.compiler.sources import source_stamp

_announcing = _silent = False


def announce():
    """Have a line on stderr, once a process, when a kernel must be compiled: nothing else is to be seen for seconds."""
    global _announcing
    _announcing = not _silent


def silence():
    """Have no such line in this process, whoever announces later."""
    global _announcing, _silent
    _announcing, _silent = False, True


@functools.cache
def _announce_now():
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no stderr, or a closed one
        print("compiling kernels for these options, once (up to a minute); later runs find them in "
              f"{cache_root().parent}", file=sys.stderr, flush=True)


def _bases():
    """Where the compiled kernels may lie, the best first."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"])
    yield user_cache() / "kernels"
    yield private_folder("the user's cache folder cannot be used")


@functools.cache
def cache_root() -> Path:
    """Folder of the folders of compiled kernels. What is read there is unpickled: one to which others may write is refused.

    Raises OSError where there is none.
    """
    for base in _bases():
        try:
            return held_folder(base / "hogwild-kernels")
        except OSError as error:
            say(f"{error}: it is not used for compiled kernels")
    raise OSError("no folder for compiled kernels: set NUMBA_CACHE_DIR to one of your own")


@functools.cache
def cache_folder(stamp) -> Path:
    """Folder of the compiled kernels of a module with this `source_stamp`. Where it is new, folders that no process has used
    for 30 days are removed, also those that earlier versions of this project have made."""
    root = cache_root()
    new, folder = not (root / stamp).exists(), held_folder(root / stamp)
    if new:
        remove_stale(root)
        remove_stale(root.parent, "hogwild-*")
    return folder


class _Locator(caching._CacheLocator):
    def __init__(self, function):
        self._py_file = inspect.getfile(function)  # for Numba's warnings
        self.where = f"{function.__module__}.{function.__qualname__}:{self._py_file}"
        self.stamp = source_stamp(self._py_file, function.__module__)

    @classmethod
    def from_function(cls, py_func, py_file):
        return cls(py_func)

    def get_cache_path(self):
        return str(cache_folder(self.stamp))

    def get_source_stamp(self):
        return self.stamp

    def get_disambiguator(self):
        return hashlib.sha256(self.where.encode()).hexdigest()[:10]


class _EntryImpl(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]


class _BitcodeImpl(BitcodeCacheImpl):
    _locator_classes = [_Locator]


def _classes(numba_type):
    """Every NamedTuple class inside a Numba type, nested ones too."""
    if isinstance(numba_type, (types.NamedTuple, types.NamedUniTuple)):
        yield numba_type.instance_class
    for inner in getattr(numba_type, "types", ()) if isinstance(numba_type, types.BaseTuple) else ():
        yield from _classes(inner)


@functools.cache
def _class_key(cls) -> tuple:
    """Name of `cls` and hash of its sources: an edit to a rule must not be answered by its old machine code, also where the
    kernel's module does not import the rule's."""
    try:
        stamp = source_stamp(inspect.getfile(cls), cls.__module__)
    except (OSError, TypeError):  # typed into an interpreter: never the same twice
        stamp = str(time.time_ns())
    return cls.__module__, cls.__qualname__, stamp


@functools.cache
def _lock_file(folder):
    return open(Path(folder) / "lock", "ab")


@contextlib.contextmanager
def _alone(folder, key):
    """Let no other process do what `key` says meanwhile; a file system without locks does not prevent it."""
    # A byte of one file for each key: these locks end with their process, whatever ends it.
    byte = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    try:
        file = _lock_file(folder)
        fcntl.lockf(file, fcntl.LOCK_EX, 1, byte)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)


class EntryCache(caching.FunctionCache):
    """Of kernels that Python calls: machine code."""

    _impl_class = _EntryImpl
    compiling: contextlib.ExitStack  # what ends with the compilation

    def _index_key(self, sig, codegen):
        # Text, not types: all programs read one index, and one that cannot import another's rule could not unpickle it.
        classes = tuple(_class_key(cls) for argument in sig for cls in _classes(argument))
        return (str(sig), *super()._index_key(sig, codegen)[1:], classes)

    def load_overload(self, sig, target_context):
        found = super().load_overload(sig, target_context)
        if found is None:
            if _announcing:
                _announce_now()
            # Ranks need the same kernels at the same time: one compiles, the others wait, and read what it has made.
            key = self._impl.filename_base, self._index_key(sig, target_context.codegen())
            self.compiling.enter_context(_alone(self._cache_path, key))
            found = super().load_overload(sig, target_context)
        if found is None:
            return None
        # A class of __main__ comes back as a copy; under the caller's own types the next call finds the machine code.
        found.fndesc.argtypes = tuple(sig)
        return found._replace(signature=found.signature.replace(args=tuple(sig)))

    def save_overload(self, sig, data):
        with _alone(self._cache_path, self._impl.filename_base):  # two that add to one index would give both codes one file
            super().save_overload(sig, data)


class BitcodeCache(EntryCache):
    """Of functions that only kernels call: LLVM's bitcode."""

    _impl_class = _BitcodeImpl
    open = 0  # functions that are being compiled, each for the one before

    def load_overload(self, sig, target_context):
        found = super().load_overload(sig, target_context)
        if found is None:
            self._count(1)
            self.compiling.callback(self._count, -1)
        return found

    def save_overload(self, sig, data):
        if self.open == 1:  # what it calls is seldom needed without it, and to pickle types takes a tenth of the time
            super().save_overload(sig, data)

    @classmethod
    def _count(cls, number):
        cls.open += number
