"""Sixteen float32 elements at a time: add, compare with a threshold, pack what passes, put the rest back."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from hogwild.kernels.compiler.jit import LOOP, kernel

WIDTH = 16
MAGNITUDE = 0x7FFFFFFF  # mask of the bits of |x|; as integers they are ordered as |x| is
INFINITY = 0x7F800000  # bits of infinity; those of a NaN lie above

_I1, _I32, _I64, _F32 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()


def _vector(item):
    return ir.VectorType(item, WIDTH)


def _constant(item, values):
    return ir.Constant(_vector(item), values)


def _splat(builder, x):
    """A vector of the 32-bit integer x."""
    one = builder.insert_element(_constant(_I32, ir.Undefined), x, _I32(0))
    return builder.shuffle_vector(one, one, _constant(_I32, [0] * WIDTH))


def _pack(builder, vector, mask, name):
    """The elements of `vector` under `mask`, moved together to its front; what is behind them is undefined.

    In a register and then stored whole: on Zen 4 a compressing store to memory is many times slower.
    """
    kind = ir.FunctionType(vector.type, [vector.type, mask.type, vector.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.experimental.vector.compress.v{WIDTH}{name}")
    return builder.call(function, [vector, mask, ir.Constant(vector.type, ir.Undefined)])


def _bits(builder, mask):
    return builder.bitcast(mask, ir.IntType(WIDTH))


def _count(builder, mask):
    return builder.ctpop(builder.zext(_bits(builder, mask), _I64))


@intrinsic
def take(typingctx, residual, gradient, i, least, indices, values, count, base):
    """(hits, bad) among s = residual[i:i + 16] + gradient[i:i + 16]; bad: elements of s that are not finite.

    A hit is finite and the bits of its |s| are at least `least`, which must be 1 or more. From `count` on, `values` gets
    the hits and `indices` their i + base; 16 elements are written whatever the hits. The residual becomes 0 at a hit,
    stays as it is at a bad element, and is s elsewhere. gradient None: s is the residual. indices None: `values` gets
    |s|, and the residual stays. Arrays are contiguous float32, indices uint32, all else int64. Nothing is checked.
    """
    no_sum, only_look = isinstance(gradient, types.NoneType), isinstance(indices, types.NoneType)

    def codegen(context, builder, signature, args):
        def pointer(k, index, item):
            struct = context.make_array(signature.args[k])(context, builder, args[k])
            return builder.bitcast(builder.gep(struct.data, [index]), _vector(item).as_pointer())

        at, end = args[2], args[6]
        old = builder.load(pointer(0, at, _F32), align=4)
        s = old if no_sum else builder.fadd(old, builder.load(pointer(1, at, _F32), align=4))
        size = builder.and_(builder.bitcast(s, _vector(_I32)), _constant(_I32, [MAGNITUDE] * WIDTH))
        large = builder.icmp_signed(">=", size, _splat(builder, builder.trunc(args[3], _I32)))
        hits, bad = (cgutils.alloca_once_value(builder, _I64(0)) for _ in range(2))

        def crowded():
            finite = builder.icmp_signed("<", size, _constant(_I32, [INFINITY] * WIDTH))
            hit = builder.and_(large, finite)
            if only_look:
                magnitude = builder.bitcast(size, _vector(_F32))
                builder.store(_pack(builder, magnitude, hit, "f32"), pointer(5, end, _F32), align=4)
            else:
                rest = builder.select(hit, _constant(_F32, [0.0] * WIDTH), builder.select(finite, s, old))
                builder.store(rest, pointer(0, at, _F32), align=4)
                place = builder.add(_splat(builder, builder.trunc(builder.add(at, args[7]), _I32)),
                                    _constant(_I32, list(range(WIDTH))))
                builder.store(_pack(builder, s, hit, "f32"), pointer(5, end, _F32), align=4)
                builder.store(_pack(builder, place, hit, "i32"), pointer(4, end, _I32), align=4)
            builder.store(_count(builder, hit), hits)
            builder.store(_count(builder, builder.not_(finite)), bad)

        # AVX-512 packs in two instructions: without a branch, that is also the fastest when most blocks have no hit.
        if "+avx512f" in context.codegen().magic_tuple()[2]:
            crowded()
        else:
            some = builder.icmp_unsigned("!=", _bits(builder, large), ir.Constant(ir.IntType(WIDTH), 0))
            with builder.if_else(some) as (then, otherwise):
                with then:
                    crowded()
                with otherwise:
                    if not (no_sum or only_look):
                        builder.store(s, pointer(0, at, _F32), align=4)
        return context.make_tuple(builder, signature.return_type, [builder.load(hits), builder.load(bad)])

    integer = types.int64
    return types.UniTuple(integer, 2)(residual, gradient, integer, integer, indices, values, integer, integer), codegen


# Resolved when a kernel is compiled.


def copy(target, at, source, start, count):
    """target[at:at + count] = source[start:start + count]; nothing without a source."""


@overload(copy, **LOOP)
def _copy(target, at, source, start, count):
    if isinstance(source, types.NoneType):
        return lambda target, at, source, start, count: None

    def move(target, at, source, start, count):
        for j in range(count):
            target[at + j] = source[start + j]
    return move


def instead(of, buffer):
    """`buffer`, but None in place of None."""


@overload(instead, **LOOP)
def _instead(of, buffer):
    if isinstance(of, types.NoneType):
        return lambda of, buffer: None
    return lambda of, buffer: buffer


@kernel
def scan(residual, gradient, least, indices, values, start, base):
    """(count, stopped at, bad): `take` from element `start` on, until the end or until a block's hits may not fit."""
    n, room = residual.size, values.size
    i, count, bad = start, 0, 0
    while i <= n - WIDTH and count <= room - WIDTH:
        hits, wrong = take(residual, gradient, i, least, indices, values, count, base)
        i, count, bad = i + WIDTH, count + hits, bad + wrong
    if i == n:
        return count, i, bad
    # By way of copies: the end of the arrays, and blocks that may not fit.
    r, g, v = np.zeros(WIDTH, np.float32), np.zeros(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    at = np.empty(WIDTH, np.uint32)
    while i < n:
        width = min(WIDTH, n - i)
        if width < WIDTH:
            r[:], g[:] = 0, 0
        copy(r, 0, residual, i, width)
        copy(g, 0, gradient, i, width)
        hits, wrong = take(r, instead(gradient, g), 0, least, instead(indices, at), v, 0, base + i)
        if count + hits > room:
            break
        copy(values, count, v, 0, hits)
        if indices is not None:
            copy(indices, count, at, 0, hits)
            copy(residual, i, r, 0, width)
        i, count, bad = i + width, count + hits, bad + wrong
    return count, i, bad
