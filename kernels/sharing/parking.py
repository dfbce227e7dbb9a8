"""Where a worker waits in a kernel for its next order: to begin there it needs no Python, where one at a time may pass.

Each of W workers has a door, 8 numbers of int64[8 W]: whether it is there (1), or has come from there (2); the two ends of
the pipe at which it sleeps; the number of the order that it has come for; the last call that it has heard, and the last for
which it is done; whether it sleeps; how often it looks for a call once it was woken, before it sleeps again.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hogwild.kernels.compiler.atomics import atomic_add, atomic_load, atomic_store, compare_swap, seen_soon
from hogwild.kernels.compiler.jit import kernel
from hogwild.kernels.sharing.work_queue import BEGUN, CALLS, ORDER

AT, OWN, BELL, EXPECTED, HEARD, FINISHED, ASLEEP, PATIENCE = range(8)  # places in a door
DOOR = 8
OVER = -1  # the order to go home
PAUSE = 2000  # µs between two looks for a call where no bell can ring: 0.3% of a core


def _of_one_byte(name):
    """read(2) or write(2) of a byte on a pipe: 1; below 0 where a signal came first; else, or 0, where the pipe is closed."""
    @intrinsic
    def call(typingctx, pipe):
        def codegen(context, builder, signature, args):
            i8, i32, i64 = (ir.IntType(bits) for bits in (8, 32, 64))
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(i64, [i32, i8.as_pointer(), i64]), name)
            return builder.call(function, [builder.trunc(args[0], i32), cgutils.alloca_once_value(builder, i8(0)), i64(1)])
        return types.int64(types.int64), codegen
    return call


_read, _write = _of_one_byte("read"), _of_one_byte("write")


@intrinsic
def _sleep(typingctx, microseconds):
    """usleep(3)."""
    def codegen(context, builder, signature, args):
        i32 = ir.IntType(32)
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(i32, [i32]), "usleep")
        builder.call(function, [builder.trunc(args[0], i32)])
        return context.get_dummy_value()
    return types.void(types.int64), codegen


@kernel
def _wake(doors, k):
    """Wake the two whom k wakes, where they sleep: one thread that wakes all takes as long as a short epoch."""
    for other in range(2 * k + 1, min(2 * k + 3, doors.size // DOOR)):
        if compare_swap(doors, DOOR * other + ASLEEP, 1, 0):
            _write(doors[DOOR * other + BELL])


@kernel
def summon(doors, queue, calls):
    """Call all workers to the order in the queue (calls: 1), or have them look out for a call that will soon come (0)."""
    atomic_add(queue, CALLS, calls)
    _wake(doors, 0)


@kernel
def wait_at(doors, k, queue, t):
    """Steps done before the order. A worker at its door waits there until it is called; -1: to another order than the one it
    expects, which then stands there."""
    door = DOOR * k
    if doors[door + AT] == 0:
        return t
    heard, looks = doors[door + HEARD], 0
    while atomic_load(queue, CALLS) == heard:
        if seen_soon(queue, CALLS, heard + 1, looks):
            break
        # Either the caller sees that it sleeps, or it sees the call: both change both numbers, one after the other.
        atomic_add(doors, door + ASLEEP, 1)
        if atomic_add(queue, CALLS, 0) == heard or not compare_swap(doors, door + ASLEEP, 1, 0):
            while _read(doors[door + OWN]) != 1:
                # Nobody can ring where the pipe is closed, as a program that makes itself a daemon may do.
                if atomic_load(queue, CALLS) != heard:
                    break
                _sleep(PAUSE)
            atomic_store(doors, door + ASLEEP, 0)  # it is so already, unless a fork of this process has rung
            _wake(doors, k)
            looks = doors[door + PATIENCE]
    doors[door + HEARD] = atomic_load(queue, CALLS)
    _wake(doors, k)
    found, expected = queue[ORDER], doors[door + EXPECTED]
    doors[door + EXPECTED] = found
    doors[door + AT] = 2 if found == expected else 0
    return queue[BEGUN] if found == expected else -1


@kernel
def at_rest(doors, queue, helpers):
    """Whether so many helpers are done with all that they were called to; what they have done is then seen."""
    calls = atomic_load(queue, CALLS)
    for k in range(1, helpers + 1):
        if atomic_load(doors, DOOR * k + FINISHED) != calls:
            return False
    return True


@kernel
def back_at(doors, k):
    """Whether a worker that is done with an order had come from its door; it then waits there again."""
    door = DOOR * k
    if doors[door + AT] != 2:
        return False
    doors[door + AT] = 1
    atomic_store(doors, door + FINISHED, doors[door + HEARD])
    return True
