"""The one `kernel` decorator, and dispatch on the type of a NamedTuple."""

import contextlib
import functools
import gc
import inspect

import numba
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic, overload, register_jitable

from hogwild.kernels.compiler.cache import BitcodeCache, EntryCache
from hogwild.kernels.compiler.linkable import BitcodeCompiler, EntryCompiler

# Full fastmath would remove NaN checks; this set keeps them and still lets loops vectorize.
FASTMATH = {"contract", "reassoc", "nsz", "arcp", "afn"}
# For overloads that add up in loops.
SUM = {"jit_options": {"pipeline_class": BitcodeCompiler, "fastmath": FASTMATH, "error_model": "numpy"}}
# For what is done to each element by itself: vectorizes as it is, and gives the same bits in a vector as alone behind it.
LOOP = {"jit_options": {"pipeline_class": BitcodeCompiler, "fastmath": False, "error_model": "numpy"}}
# The same as decorators of functions that work in Python too. The length of a tuple and `x is None`, of arguments themselves,
# are known when a kernel is compiled; but where x is not None, the branch for None is still compiled, and must return the
# same type: else an overload is needed.
elementwise, reduction = register_jitable(**LOOP["jit_options"]), register_jitable(**SUM["jit_options"])
# For those that loops call with tuples of arrays: as a call, one with two arrays or more keeps a loop from vectorizing.
inlined = register_jitable(**LOOP["jit_options"], forceinline=True)
# For the few large ones: as calls they would cost a fifth of the time of an example.
INLINE = {"jit_options": {**SUM["jit_options"], "forceinline": True}}


@contextlib.contextmanager
def _uncollected():
    """Without Python's garbage collector, which takes a seventh of the time of a compilation."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _dispatcher(function, cache, **options):
    """Numba's, with this disk cache."""
    dispatcher = numba.njit(nogil=True, fastmath=FASTMATH, error_model="numpy", **options)(function)
    dispatcher._cache, compile_ = cache(function), dispatcher.compile

    def compile_or_wait(sig):
        with global_compiler_lock, _uncollected(), contextlib.ExitStack() as dispatcher._cache.compiling:
            return compile_(sig)
    dispatcher.compile = compile_or_wait
    return dispatcher


def kernel(function=None, *, inline=False):
    """Compile `function` for nogil use, cached on disk. It must be at the top level of a module, and not call itself.

    Rules, schedules and losses reach it as NamedTuple arguments, never as functions: those miss the disk cache. inline: make
    it a part of each kernel that calls it: a call with tuples of 20 arrays takes 100 ns, for they are passed by value.
    """
    if function is None:
        return functools.partial(kernel, inline=inline)
    dispatcher = _dispatcher(function, EntryCache, pipeline_class=EntryCompiler, no_cfunc_wrapper=True)
    # What kernels that call it get in place of it.
    called = _dispatcher(function, BitcodeCache, pipeline_class=BitcodeCompiler, forceinline=inline)
    dispatcher.called, dispatcher.get_overload, resolve = called, called.get_overload, called.get_call_template
    # A kernel that calls it with True and False, 0 and n would have a version of it compiled for each.
    dispatcher.get_call_template = lambda args, named: resolve(
        tuple(map(types.unliteral, args)), {name: types.unliteral(x) for name, x in named.items()})
    return dispatcher


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
        scope = {"f": numba.njit(error_model="numpy", pipeline_class=BitcodeCompiler)(method.__func__)}
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
