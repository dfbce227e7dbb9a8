"""Where a worker waits in a kernel for its next order: to begin there it needs no Python, where one at a time may pass.

A door is int64[8]: whether its worker is there, the pipe at which that sleeps, two pipes at which others do (-1: nobody), and
the number of the order that it has come for.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.chunks import BEGUN, ORDER
from kernels.jit import kernel

AT, OWN, LEFT, RIGHT, EXPECTED = range(5)  # places in a door
OVER = -1  # the order to go home


def _of_one_byte(name):
    """read(2) or write(2) of a byte on a pipe: below 0 where a signal came first."""
    @intrinsic
    def call(typingctx, pipe):
        def codegen(context, builder, signature, args):
            i8, i32, i64 = (ir.IntType(bits) for bits in (8, 32, 64))
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(i64, [i32, i8.as_pointer(), i64]), name)
            return builder.call(function, [builder.trunc(args[0], i32), cgutils.alloca_once_value(builder, i8(0)), i64(1)])
        return types.int64(types.int64), codegen
    return call


_read, _write = _of_one_byte("read"), _of_one_byte("write")


@kernel
def wait_at(door, queue, t):
    """Steps done before the order. A worker at its door sleeps there until it is woken, and wakes two others: one thread that
    wakes all takes as long as a short epoch. -1 where the order is not the expected one, but the one that then stands there.
    """
    if door[AT] == 0:
        return t
    door[AT] = 0
    while _read(door[OWN]) < 0:
        pass
    found, expected = queue[ORDER], door[EXPECTED]
    door[EXPECTED] = found
    if found != OVER:
        for k in range(LEFT, RIGHT + 1):
            if door[k] >= 0:
                _write(door[k])
    return queue[BEGUN] if found == expected else -1
