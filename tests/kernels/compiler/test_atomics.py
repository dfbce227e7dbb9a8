"""Atomic additions, compare-and-swap, spin locks, barriers and turns between threads."""

import numpy as np
import pytest
from teams import team

from hogwild.kernels.compiler.atomics import Gate, acquire, atomic_add, barrier, compare_swap, release, wait_for
from hogwild.kernels.compiler.jit import kernel


@kernel
def hammer(array, n):
    for i in range(n):
        atomic_add(array, i % 2, array.dtype.type(1))


@kernel
def swap_up(array, n):
    for _ in range(n):
        old = array[0]
        while not compare_swap(array, 0, old, old + 1):
            old = array[0]


@kernel
def guarded(locks, halt, total, n):
    for _ in range(n):
        acquire(locks, 3, halt)
        total[0] += 1
        total[1] = total[0]
        release(locks, 3)


@kernel
def rounds(gate, count, me, numbers, n):
    """Mistakes seen in n rounds of: write, meet, read all, meet."""
    wrong = 0
    for r in range(1, n + 1):
        numbers[me] = r
        barrier(gate, count)
        for k in range(count):
            wrong += numbers[k] != r
        barrier(gate, count)
    return wrong


@kernel
def in_turn(turn, halt, me, count, log, n):
    for i in range(n):
        wait_for(turn, 0, me + i * count, halt)
        log[me + i * count] = me + i * count + (log[me + i * count - 1] if me + i > 0 else 0)
        atomic_add(turn, 0, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_atomic_additions_are_never_lost(dtype):
    array = np.zeros(4, dtype)
    hammer(array, 0)
    team(7, lambda k: hammer(array, 200_000))
    assert array.tolist() == [700_000, 700_000, 0, 0]


def test_compare_swap_locks_barrier_and_turns():
    number, locks, total = np.zeros(1, np.int64), np.zeros(5, np.uint32), np.zeros(2, np.int64)
    halt = np.zeros(8, np.int64)
    swap_up(number, 0), guarded(locks, halt, total, 0)
    team(7, lambda k: (swap_up(number, 50_000), guarded(locks, halt, total, 20_000)))
    assert number[0] == 350_000 and total.tolist() == [140_000, 140_000] and not locks.any()
    gate, numbers, wrong = Gate(np.zeros(16, np.int64), halt), np.zeros(7, np.int64), np.full(7, -1)
    turn, log = np.zeros(8, np.int64), np.zeros(5 * 2000, np.int64)
    rounds(gate, 1, 0, numbers, 0), in_turn(turn, halt, 0, 5, log, 0)

    def meet(k):
        wrong[k] = rounds(gate, 7, k, numbers, 2000)
    team(7, meet)
    assert not wrong.any()
    team(5, lambda k: in_turn(turn, halt, k, 5, log, 2000))
    assert np.array_equal(log, np.arange(10_000).cumsum())
    halt[0], locks[3], turn[0] = 1, 1, -1  # who should open the lock, come to the barrier or pass the turn has failed
    team(1, lambda k: (guarded(locks, halt, total, 5), rounds(gate, 7, k, numbers, 5), in_turn(turn, halt, 0, 5, log, 5)))
