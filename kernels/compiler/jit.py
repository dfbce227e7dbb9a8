"""The one `kernel` decorator, the disk cache behind it, and dispatch on the type of a NamedTuple."""

import contextlib
import fcntl
import functools
import hashlib
import inspect
import os
import time
from pathlib import Path

import numba
from numba import types
from numba.core import caching, cgutils, config
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic, overload

from hogwild.kernels.compiler.cache_folders import held_folder, private_folder, remove_stale, say, user_cache
from hogwild.kernels.compiler.linkable import Part, PartCacheImpl, Whole
from hogwild.kernels.compiler.sources import source_stamp

# Full fastmath would remove NaN checks; this set keeps them and still lets loops vectorize.
FASTMATH = {"contract", "reassoc", "nsz", "arcp", "afn"}
# For overloads that add up in loops.
SUM = {"jit_options": {"pipeline_class": Part, "fastmath": FASTMATH, "error_model": "numpy"}}
# For what is done to each element by itself: vectorizes as it is, and gives the same bits in a vector as alone behind it.
LOOP = {"jit_options": {"pipeline_class": Part, "fastmath": False, "error_model": "numpy"}}
# For the few large ones: as calls they would cost a fifth of the time of an example.
INLINE = {"jit_options": {**SUM["jit_options"], "forceinline": True}}
when_missing = []  # functions to call, once, when a kernel is not in the cache: it is compiled then, or waited for


@functools.cache
def sources_hash() -> str:
    """Hash of every file in kernels/ and its folders: Numba itself notices an edit only in the kernel's own file."""
    digest = hashlib.sha256(f"boundscheck={config.BOUNDSCHECK} numba={numba.__version__}".encode())
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _bases():
    """Where the compiled kernels may lie, the best first."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(os.environ["NUMBA_CACHE_DIR"])
    yield user_cache() / "kernels"
    yield private_folder("the user's cache folder cannot be used")


@functools.cache
def cache_folder() -> Path:
    """Folder of the compiled kernels of exactly these sources; those unused for 30 days are removed.

    What is read from there is unpickled: a folder to which others may write is not taken.
    """
    name = f"hogwild-{sources_hash()}"
    for base in _bases():
        try:
            new = not (base / name).exists()
            folder = held_folder(base / name)
        except OSError as error:
            say(f"{error}: it is not used for compiled kernels")
            continue
        if new:
            remove_stale(base, "hogwild-*")
        return folder
    raise OSError("no folder for compiled kernels: set NUMBA_CACHE_DIR to one of your own")


class _Locator(caching._CacheLocator):
    def __init__(self, function):
        self.where = f"{function.__module__}.{function.__qualname__}:{inspect.getfile(function)}"
        self.source, self.module = inspect.getfile(function), function.__module__

    @classmethod
    def from_function(cls, py_func, py_file):
        return cls(py_func)

    def get_cache_path(self):
        return str(cache_folder())

    def get_source_stamp(self):
        return source_stamp(self.source, self.module)

    def get_disambiguator(self):
        return hashlib.sha256(self.where.encode()).hexdigest()[:10]


class _CacheImpl(caching.CompileResultCacheImpl):
    _locator_classes = [_Locator]


class _PartCacheImpl(PartCacheImpl):
    _locator_classes = [_Locator]


def _classes(numba_type):
    """Every NamedTuple class inside a Numba type, nested ones too."""
    if isinstance(numba_type, (types.NamedTuple, types.NamedUniTuple)):
        yield numba_type.instance_class
    for inner in getattr(numba_type, "types", ()) if isinstance(numba_type, types.BaseTuple) else ():
        yield from _classes(inner)


@functools.cache
def _class_key(cls) -> tuple:
    """Name of `cls` and hash of its file: an edit to a rule of the user's own must not meet its old machine code."""
    try:
        stamp = source_stamp(inspect.getfile(cls), cls.__module__)
    except (OSError, TypeError):  # typed into an interpreter: never the same twice
        stamp = str(time.time_ns())
    return cls.__module__, cls.__qualname__, stamp


@functools.cache
def _lock_file(folder):
    return open(folder / "lock", "ab")


@contextlib.contextmanager
def _alone(key):
    """Let no other process do what `key` says meanwhile; a file system without locks does not prevent it."""
    # A byte of one file for each key: these locks end with their process, whatever ends it.
    byte = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    try:
        file = _lock_file(cache_folder())
        fcntl.lockf(file, fcntl.LOCK_EX, 1, byte)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)


class _Cache(caching.FunctionCache):
    _impl_class = _CacheImpl
    compiling: contextlib.ExitStack  # what ends with the compilation

    def _index_key(self, sig, codegen):
        # Text, not types: all programs read one index, and one that cannot import another's rule could not unpickle it.
        classes = tuple(_class_key(cls) for argument in sig for cls in _classes(argument))
        return (str(sig), *super()._index_key(sig, codegen)[1:], classes)

    def load_overload(self, sig, target_context):
        found = super().load_overload(sig, target_context)
        if found is None:
            while when_missing:
                when_missing.pop()()
            # Ranks need the same kernels at the same time: one compiles, the others wait, and read what it has made.
            key = self._impl.filename_base, self._index_key(sig, target_context.codegen())
            self.compiling.enter_context(_alone(key))
            found = super().load_overload(sig, target_context)
        if found is None:
            return None
        # A class of __main__ comes back as a copy; under the caller's own types the next call finds the machine code.
        found.fndesc.argtypes = tuple(sig)
        return found._replace(signature=found.signature.replace(args=tuple(sig)))

    def save_overload(self, sig, data):
        with _alone(self._impl.filename_base):  # two that add to one index would give both codes one file
            super().save_overload(sig, data)


class _PartCache(_Cache):
    _impl_class = _PartCacheImpl
    open = 0  # parts that are being compiled, each for the one before

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


def _dispatcher(function, cache, **options):
    """Numba's, with this disk cache."""
    dispatcher = numba.njit(nogil=True, fastmath=FASTMATH, error_model="numpy", **options)(function)
    dispatcher._cache, compile_ = cache(function), dispatcher.compile

    def compile_or_wait(sig):
        with global_compiler_lock, contextlib.ExitStack() as dispatcher._cache.compiling:
            return compile_(sig)
    dispatcher.compile = compile_or_wait
    return dispatcher


def kernel(function=None, *, inline=False, once=False):
    """Compile `function` for nogil use, cached on disk. It must be at the top level of a module, and not call itself.

    Rules, schedules and losses reach it as NamedTuple arguments, never as functions: those miss the disk cache. inline: make
    it a part of each kernel that calls it: a call with tuples of 20 arrays takes 100 ns, for they are passed by value.
    once: for a large one that one kernel calls in one place, of which it becomes a part before either is compiled. Else it
    is optimized by itself, and then again with the one that calls it. Not where the caller is compiled for more types than
    it would be.
    """
    if function is None:
        return functools.partial(kernel, inline=inline, once=once)
    inlined = "always" if once else "never"
    dispatcher = _dispatcher(function, _Cache, pipeline_class=Whole, inline=inlined, no_cfunc_wrapper=True)
    part = _dispatcher(function, _PartCache, pipeline_class=Part, forceinline=inline)  # for kernels that call it
    dispatcher.part, dispatcher.get_overload, resolve = part, part.get_overload, part.get_call_template
    # A kernel that calls it with True and False, 0 and n would have a version of it compiled for each.
    dispatcher.get_call_template = lambda args, named: resolve(
        tuple(map(types.unliteral, args)), {name: types.unliteral(x) for name, x in named.items()})
    return dispatcher


def where_given(function):
    """function(x, ...) where x is not None, and else nothing. For a large kernel: an overload that calls it, or does not, is
    a library of its own for Numba, in which all of the kernel is optimized once more.
    """
    def call(typingctx, x, *others):
        result = types.none(x, *others)
        if isinstance(x, types.NoneType):
            return result, lambda context, *_: context.get_dummy_value()
        dispatcher = typingctx.resolve_value_type(function)

        def codegen(context, builder, signature, args):
            return context.get_function(dispatcher, dispatcher.get_call_type(typingctx, signature.args, {}))(builder, args)
        return result, codegen
    parameters = inspect.signature(function.py_func).parameters.values()
    context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__signature__ = inspect.Signature([context, *parameters])  # Numba wants them by name
    return functools.wraps(function.py_func)(intrinsic(call))


def by_type(generic):
    """Make `generic(x, ...)` call the method of the same name of `x`'s class, in Python and inside kernels alike."""
    name = generic.__name__

    @functools.wraps(generic)
    def call(x, *args):
        return getattr(x, name)(*args) if hasattr(x, name) else generic(x, *args)

    @overload(call, strict=False, **LOOP)
    def resolve(x, *args):
        method = inspect.getattr_static(x.instance_class, name, None)
        if method is None:
            method = generic
        if not isinstance(method, staticmethod):
            return method
        # A static method does not take x: put an ignored argument in front.
        names = list(inspect.signature(method.__func__).parameters)
        scope = {"f": numba.njit(error_model="numpy", pipeline_class=Part)(method.__func__)}
        exec(f"def {name}(x, {', '.join(names)}): return f({', '.join(names)})", scope)
        return scope[name]

    return call


def _prefetching(write):
    def codegen(context, builder, signature, args):
        struct = context.make_array(signature.args[0])(context, builder, args[0])
        pointer = builder.bitcast(builder.gep(struct.data, [args[1]]), cgutils.voidptr_t)
        i32 = cgutils.int32_t
        function = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t],
                                                    fnty=_prefetch_type(i32))
        builder.call(function, [pointer, i32(write), i32(3), i32(1)])
        return context.get_dummy_value()
    return codegen


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of `array[index]`; harmless when the index is past the end."""
    return types.void(array, types.intp), _prefetching(0)


@intrinsic
def prefetch_to_write(typingctx, array, index):
    """The same, and no other core may keep it: a line that was only read would have to be asked for again."""
    return types.void(array, types.intp), _prefetching(1)


def _prefetch_type(i32):
    from llvmlite import ir
    return ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
