"""Atomic operations on array elements inside kernels, and what a waiting thread does.

Plain loads and stores may stay in a register for a whole loop; these never do. Indices are not checked.
"""

import platform
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hogwild.kernels.compiler.jit import kernel

PATIENCE = 4096  # looks until `reached` gives up


def _pointer(context, builder, array_type, array, index):
    struct = context.make_array(array_type)(context, builder, array)
    return builder.gep(struct.data, [index])


@intrinsic
def atomic_load(typingctx, array, index):
    """`array[index]` as some thread has stored it last (acquire)."""
    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], *args)
        return builder.load_atomic(pointer, "acquire", array.dtype.bitwidth // 8)
    return array.dtype(array, types.intp), codegen


@intrinsic
def atomic_store(typingctx, array, index, value):
    """`array[index] = value`, seen by every thread, and after all that this one stored before (release)."""
    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], *args[:2])
        builder.store_atomic(args[2], pointer, "release", array.dtype.bitwidth // 8)
        return context.get_dummy_value()
    return types.void(array, types.intp, array.dtype), codegen


@intrinsic
def atomic_add(typingctx, array, index, value):
    """`array[index] += value` without a lost update; the value before. Integers (one instruction) and floats (a
    compare-and-swap loop)."""
    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], *args[:2])
        operation = "fadd" if isinstance(array.dtype, types.Float) else "add"
        return builder.atomic_rmw(operation, pointer, args[2], "acq_rel")
    return array.dtype(array, types.intp, array.dtype), codegen


@intrinsic
def compare_swap(typingctx, array, index, expected, value):
    """Store `value` if `array[index] == expected`; whether it was so. Integers only."""
    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], *args[:2])
        return builder.extract_value(builder.cmpxchg(pointer, args[2], args[3], "acq_rel", "acquire"), 1)
    return types.boolean(array, types.intp, array.dtype, array.dtype), codegen


@intrinsic
def _pause(typingctx):
    """Tell the core that this is a waiting loop, so that its other thread gets the units."""
    def codegen(context, builder, signature, args):
        machine, i32 = platform.machine(), ir.IntType(32)
        if machine in ("x86_64", "AMD64"):
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(ir.VoidType(), [])), [])
        elif machine in ("aarch64", "arm64"):
            kind = ir.FunctionType(ir.VoidType(), [i32])
            builder.call(builder.module.declare_intrinsic("llvm.aarch64.hint", (), kind), [i32(1)])
        return context.get_dummy_value()
    return types.void(), codegen


@intrinsic
def _give_way(typingctx):
    """sched_yield(2): with more threads than cores, the one that is waited for may have none."""
    def codegen(context, builder, signature, args):
        from numba.core import cgutils
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()
    return types.void(), codegen


@kernel
def wait_for(array, index, value, halt):
    """Whether `array[index]` has come to be `value` (an integer of the array's dtype); not if halt[0] is no longer 0."""
    spins = 0
    while atomic_load(array, index) != value:
        spins += 1
        if spins % 128:
            _pause()
        elif atomic_load(halt, 0) != 0:  # who would have stored the value has failed
            return False
        else:
            _give_way()
    return True


@kernel
def reached(array, index, value):
    """Whether `array[index]` comes to be `value` or more, within about 0.1 ms where there is a core to spare."""
    for spins in range(PATIENCE):
        if atomic_load(array, index) >= value:
            return True
        if spins % 128:
            _pause()
        else:
            _give_way()
    return False


@kernel
def acquire(locks, index, halt):
    """Take spin lock `index` of locks (uint32, 0 is free), or give up when halt[0] is no longer 0."""
    free = locks.dtype.type(0)
    while not compare_swap(locks, index, free, locks.dtype.type(1)):
        if not wait_for(locks, index, free, halt):  # by loads, which leave the cache line with the holder
            return


@kernel
def release(locks, index):
    """Give spin lock `index` back."""
    atomic_store(locks, index, locks.dtype.type(0))


class Gate(NamedTuple):
    """Where threads meet."""

    marks: np.ndarray  # int64[16] of zeros: [0] arrivals, [8] rounds passed
    halt: np.ndarray  # int64[8]: from halt[0] = 1 on nobody waits


@kernel
def barrier(gate, count):
    """Return when `count` threads have come to this Gate."""
    marks = gate.marks
    turn = atomic_load(marks, 8)
    if atomic_add(marks, 0, 1) == count - 1:
        atomic_store(marks, 0, 0)
        atomic_store(marks, 8, turn + 1)
    else:
        wait_for(marks, 8, turn + 1, gate.halt)
