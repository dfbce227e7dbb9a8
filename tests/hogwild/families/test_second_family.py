"""A second problem family in one file: rank-r factorization of a matrix, two tables of rows of width r.

Its kernel is two methods; modes, replicas, checkpoints, recovery from NaN and resuming are those of `ReplicatedProblem`.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from teams import within

from hogwild.errors import UserError
from hogwild.kernels.optim.rules import AdaGrad
from hogwild.kernels.optim.schedules import Constant
from hogwild.training import checkpoint
from hogwild.training.loop import train
from hogwild.training.replicated import ReplicatedProblem, Sharing, Steps, Tables
from hogwild.training.replication import MODES, Touches

USERS, ITEMS, RANK = 60, 40, 3
RULE, RATE = AdaGrad(), Constant(0.1)  # of all tests: each compiles a mode's kernel once


class Ratings(NamedTuple):
    """(u·v - value)² / 2 for each observed entry; items have the rows behind the users'."""

    users: np.ndarray  # int64[n]
    items: np.ndarray  # int64[n]
    values: np.ndarray  # float32[n]
    first_item: int

    def rows_of(model, i, rows):
        rows[0], rows[1] = model.users[i], model.first_item + model.items[i]
        return 2

    def gradient_of(model, scratch, i, width):
        w, g, z = scratch.before[0], scratch.gradient, 0.0
        for k in range(width):
            z += w[k] * w[width + k]
        error = z - model.values[i]
        for k in range(width):
            g[k], g[width + k] = error * w[width + k], error * w[k]
        return 0.5 * error * error


class Factorization(ReplicatedProblem):
    """Of a matrix float[users, items] with NaN where nothing is known."""

    def __init__(self, matrix, workers=1, mode="wild", replicas="auto", l1=0.0):
        users, items = np.nonzero(~np.isnan(matrix))
        self.matrix = matrix
        self.model = Ratings(users, items, matrix[users, items].astype(np.float32), matrix.shape[0])
        tables = Tables({"users": matrix.shape[0], "items": matrix.shape[1]}, RANK, 2, sum(matrix.shape), 2 * RANK)
        super().__init__(tables, Steps(RULE, l1=l1), Sharing(workers, mode, replicas), len(users))
        self.shared[..., 0] = 0.3 * np.random.default_rng(0).standard_normal(self.shared.shape[:2])

    def touches(self):
        counts = [np.bincount(x, minlength=n) for x, n in zip(self.model[:2], self.matrix.shape)]
        return Touches(self.examples, np.concatenate(counts))

    def product(self):
        return self.table("users")[..., 0] @ self.table("items")[..., 0].T


def low_rank(seed=0, noise=0.1):
    """A whole matrix, close to one of rank RANK."""
    rng = np.random.default_rng(seed)
    product = rng.standard_normal((USERS, RANK)) @ rng.standard_normal((RANK, ITEMS))
    return product + noise * rng.standard_normal((USERS, ITEMS))


def best(matrix):
    """Least mean loss of any matrix of rank RANK (Eckart & Young 1936)."""
    return (np.linalg.svd(matrix)[1][RANK:] ** 2).sum() / 2 / matrix.size


CASES = [(mode, "auto") for mode in MODES] + [("wild", "none"), ("wild", "hot"), ("wild", "all"), ("atomic", "hot")]


@pytest.mark.parametrize("mode, replicas", CASES)
def test_every_mode_comes_near_the_best_factors(mode, replicas):
    matrix = low_rank()
    made = Factorization(matrix, 3, mode, replicas)
    history = within(300, lambda: train(made, RULE, RATE, epochs=60, workers=3))
    assert np.square(made.product() - matrix).mean() / 2 < 1.3 * best(matrix) < 0.05 * history[0].loss
    assert made.replicas == {"auto": {"wild": "all", "atomic": "hot"}.get(mode, "none")}.get(replicas, replicas)


def test_one_worker_is_the_sequential_algorithm():
    matrix, order = low_rank(), np.random.default_rng((0, 1)).permutation(USERS * ITEMS)
    made = Factorization(matrix)
    u, v = (made.table(name)[..., 0].astype(np.float64) for name in ("users", "items"))
    U, V = np.zeros_like(u), np.zeros_like(v)
    train(made, RULE, RATE, epochs=1, workers=1)
    for i, j in zip(*np.divmod(order, ITEMS)):
        error = u[i] @ v[j] - matrix[i, j]
        gradient_u, gradient_v = error * v[j], error * u[i]
        U[i], V[j] = U[i] + gradient_u**2, V[j] + gradient_v**2
        u[i] -= 0.1 * gradient_u / np.sqrt(U[i])
        v[j] -= 0.1 * gradient_v / np.sqrt(V[j])
    np.testing.assert_allclose(made.product(), u @ v.T, rtol=1e-2, atol=1e-2)


def test_deterministic_has_the_same_bits_for_any_number_of_workers():
    results = []
    for workers in (1, 2, 3):
        made = Factorization(low_rank(), workers, "deterministic")
        train(made, RULE, RATE, epochs=3, workers=workers)
        results.append(made.shared.tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_loss_that_is_not_finite_brings_back_the_last_good_state(mode):
    matrix = low_rank()
    matrix[7, 5] = np.inf
    made = Factorization(matrix, 2, mode)
    start = made.shared.copy()
    with pytest.raises(UserError, match=f"no longer finite at example {7 * ITEMS + 6} .*, halved 2 times before"):
        within(300, lambda: train(made, RULE, RATE, epochs=3, workers=2, retries=2))
    assert np.array_equal(made.shared, start)


def run(path, workers, resume, epochs=30):
    """A run with checkpoints, as a process that may be killed."""
    made = Factorization(low_rank(), workers, "deterministic")
    train(made, RULE, RATE, epochs=epochs, workers=workers, checkpoint=checkpoint.Writer(path, 0.0, {}),
          resume=checkpoint.load(path) if resume else None)
    return made.shared


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path):
    program = f"import test_second_family as t; t.run({str(tmp_path / 'run')!r}, 2, False, 10**6)"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2] / "support")])
    killed = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths})
    within(120, lambda: [time.sleep(0.01) for _ in iter(lambda: checkpoint.exists(tmp_path / "run"), True)])
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    epochs = checkpoint.load(tmp_path / "run")[1]["epoch"] + 5
    again = run(tmp_path / "run", 3, True, epochs)
    assert np.array_equal(again, run(tmp_path / "other", 1, False, epochs))


@pytest.mark.parametrize("mode, replicas, says", [
    ("locked", "all", "replicas 'all' need mode wild, got mode 'locked'"), ("atomic", "all", "need mode wild, got"),
    ("deterministic", "hot", "need mode wild or atomic"), ("wild", "some", "unknown replicas 'some': choose from")])
def test_what_cannot_be_shared_so_is_said(mode, replicas, says):
    with pytest.raises(UserError, match=says):
        Factorization(low_rank(), 2, mode, replicas)


def test_replicas_that_have_no_room_in_memory_are_refused(monkeypatch):
    monkeypatch.setattr("hogwild.training.machine.memory", lambda: 10_000)
    with pytest.raises(UserError, match="replicas of 100 rows with 6 float32 each, for 9 workers, .*; use replicas hot"):
        Factorization(low_rank(), 9, "wild", "all")
    assert Factorization(low_rank(), 9, "wild", "none").replicas == "none"
