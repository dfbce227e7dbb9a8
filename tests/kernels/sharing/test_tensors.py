"""Steps on shared tensors: against the rules' slow oracle, and nothing lost where the mode promises it."""

import numpy as np
import pytest
from teams import team

from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import SGD, AdaGrad, Adam, Apollo
from hogwild.kernels.optim.steps import Clip, Decay, array_step
from hogwild.kernels.sharing import tensors
from hogwild.kernels.sharing.modes import Atomic, Wild
from hogwild.kernels.sharing.tensors import Claimed, Step, Tensor, block_of, step_tensor

LOCKS, HALT = np.zeros(64, np.uint32), np.zeros(8, np.int64)
LOCKED = Claimed(LOCKS, 1, HALT)


def made(rule, w, width=1):
    slots = tuple(np.full_like(w, value) for value in rule.start())
    return Tensor(w, slots, np.zeros(1, np.int64), width, block_of(rule, w.size, width), 0)


@pytest.mark.parametrize(("mode", "rule", "dtype"), [(Wild(), Adam(), np.float64), (LOCKED, AdaGrad(), np.float32)])
def test_dense_steps_are_the_rules(mode, rule, dtype):
    """Of three blocks and a part of one."""
    rng, rule, decay, clip = np.random.default_rng(0), checked(rule), checked(Decay(l2=0.1)), checked(Clip(value=1.0))
    w = rng.standard_normal(3 * tensors.BLOCK + 5).astype(dtype)
    tensor, want = made(rule, w.copy()), w.copy()
    slots = [slot.copy() for slot in tensor.slots]
    for t in range(3):
        g = rng.standard_normal(w.size).astype(dtype)
        assert step_tensor(mode, Step(rule, 0.1, 0.5, decay, clip), tensor, None, g) == t
        array_step(rule, want, g, slots, 0.1, t, decay, clip, 0.5)
    np.testing.assert_allclose(tensor.w, want, rtol=1e-5 if dtype == np.float32 else 1e-12)
    np.testing.assert_allclose(tensor.slots, slots, rtol=1e-5 if dtype == np.float32 else 1e-12)
    assert not LOCKS.any() and tensor.updates[0] == 3


@pytest.mark.parametrize("mode", [LOCKED, Atomic()])
def test_sparse_steps_are_those_of_the_rows_alone(mode):
    rng, rule, width = np.random.default_rng(1), checked(AdaGrad()), 6
    w = rng.standard_normal((3000, width)).astype(np.float32)
    tensor, want = made(rule, w.reshape(-1).copy(), width), w.copy()
    state = np.zeros_like(want)
    for t in range(3):
        rows = np.sort(rng.choice(3000, 40, replace=False))
        g = rng.standard_normal((40, width)).astype(np.float32)
        step_tensor(mode, Step(rule, 0.1, 1.0, None, None), tensor, rows, g.reshape(-1))
        part, slot = want[rows], state[rows]
        array_step(rule, part, g, [slot], 0.1, t)
        want[rows], state[rows] = part, slot
    np.testing.assert_allclose(tensor.w.reshape(w.shape), want, rtol=1e-5, atol=1e-6)
    untouched = state.sum(1) == 0
    assert untouched.sum() > 2800 and np.array_equal(tensor.w.reshape(w.shape)[untouched], w[untouched])


@pytest.mark.parametrize("mode", ["atomic", "locked"])
def test_no_update_is_lost(mode):
    """Three threads, dense and sparse steps on the same tensor: sums of whole numbers are exact."""
    rule, width, steps, threads = checked(SGD()), 8, 200, 3
    tensor = made(rule, np.zeros(2 * tensors.BLOCK + 16, np.float32), width)
    rows, step = np.arange(0, tensor.w.size // width, 3), Step(rule, 1.0, 1.0, None, None)
    ones = np.full(tensor.w.size, -1.0, np.float32)

    def work(k):
        how = Atomic() if mode == "atomic" else Claimed(LOCKS, k + 1, HALT)
        for _ in range(steps):
            step_tensor(how, step, tensor, None, ones)
            step_tensor(how, step, tensor, rows, ones[:len(rows) * width])
    team(threads, work)
    want = np.full(tensor.w.size, steps * threads).reshape(-1, width)
    want[rows] *= 2
    assert np.array_equal(tensor.w, want.reshape(-1)) and tensor.updates[0] == 2 * steps * threads and not LOCKS.any()


def test_blocks_are_whole_rows_and_all_of_a_block_rule():
    assert [block_of(SGD(), 10**6, width) for width in (1, 300, 5000)] == [4096, 3900, 5000]
    assert block_of(Apollo(), 10**6, 300) == 10**6 and block_of(SGD(), 0, 0) > 0
