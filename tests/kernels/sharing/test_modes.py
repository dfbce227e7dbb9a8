"""The five modes of sharing: what each promises, for any number of workers."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from teams import COUNTS, in_turn, sparse, within

from hogwild.data.dataset import from_arrays
from hogwild.errors import UserError
from hogwild.families import linear as family
from hogwild.kernels.losses import Hinge, Logistic, Squared
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import SGD, AdaGrad, Momentum, RMSProp
from hogwild.kernels.optim.schedules import Constant, InverseSqrt
from hogwild.kernels.optim.steps import array_step
from hogwild.training import replicated, replication
from hogwild.training.loop import train
from hogwild.training.replication import MODES
from hogwild.training.stopping import Stop
from hogwild.training.workers import Workers

TINY = 2.0**-20  # so small a rate that a hinge stays on its slope, and sums of it are exact


# Updates that do not depend on the weights: their sum is known.


def on_the_slope(n=6000, d=6, seed=0):
    """Rows ±1 on a few contended features; under a tiny rate a hinge's gradient stays -y x."""
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 0.0, 1.0], (n, d), p=[0.2, 0.2, 0.6])
    x[:, -1] *= np.arange(n) % 10 == 0  # a rare one
    return x, rng.choice([-1.0, 1.0], n, p=[0.3, 0.7])


def trained(x, y, mode, workers, rule, epochs=2, lr=TINY, **options):
    linear = family.Linear(from_arrays(x, y), None, Hinge(), rule, workers=workers, mode=mode, **options)
    linear.model = linear.model._replace(intercept=float(linear.model.intercept > 0))  # at the full rate
    history = within(120, lambda: train(linear, rule, Constant(lr), epochs=epochs, workers=workers, seed=1))
    assert sum(epoch.examples for epoch in history) == epochs * len(y)
    return linear


@pytest.mark.parametrize("workers", COUNTS)
@pytest.mark.parametrize("mode", ["atomic", "locked", "round-robin"])
def test_no_update_is_lost(mode, workers):
    x, y = on_the_slope()
    linear = trained(x, y, mode, workers, SGD())
    want = 2 * TINY * np.append(y @ x, y.sum())
    assert np.array_equal(linear.w, want.astype(np.float32)) and np.abs(want).max() < 0.05


@pytest.mark.parametrize("workers", [2, 3, 7])
@pytest.mark.parametrize("outputs", [1, 3])
def test_no_update_of_copies_is_lost(workers, outputs, monkeypatch):
    """Wild: every worker trains a copy, and only sums of changes are shared. AdaGrad's slots too are sums."""
    monkeypatch.setattr(replication, "ROWS", workers)  # blocks of so many of the seven
    x, y = on_the_slope()
    y = y if outputs == 1 else np.arange(len(x)) % 3
    signs = y[:, None] if outputs == 1 else np.where(y[:, None] == np.arange(3), 1, -1)
    linear = trained(x, y, "wild", workers, SGD(), replicas="all")
    want = 2 * TINY * np.vstack((x.T @ signs, signs.sum(0)))
    assert linear.replicas == "all" and np.array_equal(linear.shared[:, :, 0], want.astype(np.float32))
    if outputs == 1:
        linear = trained(x, y, "wild", workers, AdaGrad(G0=1.0), replicas="all", average=0)
        assert np.array_equal(linear.shared[:, 0, 1], 1 + 2 * np.append((x**2).sum(0), len(y)))
        assert (np.sign(linear.w) == np.sign(want[:, 0])).all()


def test_large_steps_on_dense_rows_leave_one_worker_which_loses_nothing(monkeypatch):
    x, y = on_the_slope(20_000)
    for lr, pays in ((1e-4, True), (0.2, False)):
        linear = family.Linear(from_arrays(x, y), None, Squared(), SGD(), workers=2, replicas="all")
        train(linear, SGD(), Constant(lr), epochs=10, workers=2)
        assert linear.pays() == pays
    monkeypatch.setattr(replicated, "PAYS", math.nan)  # never
    monkeypatch.setattr(replicated, "SETTLED", 0)
    linear = trained(x, y, "wild", 3, SGD(), replicas="all")
    assert np.array_equal(linear.w, (2 * TINY * np.append(y @ x, y.sum())).astype(np.float32))
    assert linear.exchanged()["stale_updates"] == 0 and [kept.state[0] for kept in linear.kept.values()] == [40_000, 0, 0]


def test_copies_of_shared_parameters_meet_while_the_workers_run():
    """Both are brought together as often as was planned, neither more seldom nor at each chunk, and the record knows it."""
    x, y = on_the_slope(20_000)
    linear = family.Linear(from_arrays(x, y), None, Hinge(), SGD(), workers=2, replicas="all")
    in_turn(linear, SGD(), Constant(TINY), epochs=4, burst=512)
    assert linear.most == 256 and linear.plan.spacing.tolist() == [1, 8]
    for kept in linear.kept.values():
        merges, planned = kept.merges[:2], kept.state[0] / linear.plan.spacing / linear.most
        assert kept.state[0] > 30_000 and (merges >= 0.8 * planned).all()
        assert (merges <= planned + 4 * 6).all()  # the first of each round after 16, 24, 36, … updates; one at its end
    assert sum(kept.state[0] for kept in linear.kept.values()) == 80_000
    seen = linear.exchanged()
    assert linear.most / 2 < seen["stale_updates"] < seen["stale_examples"] < 1.25 * linear.most


def test_under_a_penalty_too_each_worker_goes_on_where_it_was():
    """The penalty that untouched features owe is applied between the epochs; it must not start a worker's count anew."""
    x, y = on_the_slope(2000)
    linear = trained(x, y, "wild", 2, SGD(), replicas="all", l1=0.01, epochs=3)
    assert sum(kept.state[0] for kept in linear.kept.values()) == 3 * 2000


def test_weights_are_merged_with_those_as_common_as_they(monkeypatch):
    """Tier k: features of more than one row in 2^(k + 1), up to one in 2^k; the intercept is in the first. Blocks of them."""
    x, n = np.zeros((64, 7)), 64
    for j, degree in enumerate((3, 64, 20, 33, 0, 16, 40)):
        x[:degree, j] = 1
    linear = family.Linear(from_arrays(x, np.arange(n) % 2), None, Hinge(), SGD(), workers=2, replicas="all")
    assert linear.plan.ends.tolist() == [6, 7] and linear.plan.spacing.tolist() == [1, 16]  # few rows, nearly as common
    monkeypatch.setattr(replication, "FEW", 5)
    linear = family.Linear(from_arrays(x, np.arange(n) % 2), None, Hinge(), SGD(), workers=2, replicas="all")
    assert linear.plan.ends.tolist() == [5, 7] and linear.plan.spacing.tolist() == [1, 4]
    monkeypatch.setattr(replication, "FEW", 1)
    linear = family.Linear(from_arrays(x, np.arange(n) % 2), None, Hinge(), SGD(), workers=2, replicas="all")
    assert linear.plan.shared_rows.tolist() == [7, 1, 3, 6, 2, 5, 0] and linear.plan.ends.tolist() == [4, 5, 6, 7]
    assert linear.plan.updates.tolist() == [n + 64 + 33 + 40, 20, 16, 3] and linear.plan.spacing.tolist() == [1, 2, 4, 16]
    monkeypatch.setattr(replication, "ROWS", 3)
    linear = family.Linear(from_arrays(x, np.arange(n) % 2), None, Hinge(), SGD(), workers=2, replicas="all")
    assert linear.plan.ends.tolist() == [3, 4, 5, 6, 7] and linear.plan.spacing.tolist() == [1, 1, 2, 4, 16]
    assert linear.plan.updates.tolist() == [n + 64 + 33, 40, 20, 16, 3]


def test_parameters_are_shared_where_there_are_many_of_them():
    x, y = on_the_slope(2000)

    def copied(n=2000, **more):
        rows = np.append(np.flatnonzero(y > 0)[:n // 2], np.flatnonzero(y < 0)[:n // 2])
        return family.Linear(from_arrays(x[rows], y[rows]), None, Hinge(), SGD(), workers=2, **more).replicas == "all"
    assert copied() and copied(l1=0.1) and not copied(2) and not copied(mode="atomic") and not copied(l1=0.1, average=0)
    for features, nnz, few in ((1_000_000, 3_999_999, True), (1_000_000, 1_999_999, False), (5_000_000, 59_999_999, False),
                               (5_000_000, 60_000_000, True)):
        assert replication.few_enough(features, nnz, 2) == few


def test_a_model_trained_again_keeps_its_parameters():
    """What `train` calls to compile, before the workers begin, must not bring anything to the shared ones."""
    x, y = on_the_slope(2000)
    for mode, rule, options in (("wild", AdaGrad(G0=1.0), {"average": 0}), ("atomic", SGD(), {})):
        linear = trained(x, y, mode, 3, rule, epochs=1, **options)
        before = linear.shared.copy()
        train(linear, rule, Constant(TINY), epochs=0, workers=3)
        assert np.array_equal(linear.shared, before)


def test_locked_changes_weight_and_slots_together():
    """Every gradient of a coordinate is the same, so its weight and slots tell how many updates it has had, and no less."""
    rng, n, rule = np.random.default_rng(0), 5000, AdaGrad()
    y, x = rng.choice([-1.0, 1.0], n), np.zeros((n, 4))
    x[:, :2] = (rng.random((n, 2)) < 0.8) * (y > 0)[:, None]
    x[:, 2:] = (rng.random((n, 2)) < 0.8) * (y < 0)[:, None]
    same = None
    for workers in COUNTS[1:]:
        linear = trained(x, y, "locked", workers, rule, intercept=False, epochs=1)
        for j, updates in enumerate((x != 0).sum(0)):
            w, slot, g = np.zeros(1, np.float32), np.zeros(1, np.float32), np.full(1, -1 if j < 2 else 1, np.float32)
            for _ in range(updates):
                array_step(rule, w, g, (slot,), TINY, 1)
            assert linear.shared[j, 0] == pytest.approx([w[0], slot[0]], rel=2e-5)
        assert same is None or np.array_equal(linear.shared, same)
        same = linear.shared


# The paper's algorithm.


@pytest.mark.parametrize("workers, burst", [(2, 400), (2, 1), (3, 7)])
@pytest.mark.parametrize("intercept", [True, False])
def test_wild_without_replicas_is_the_papers_algorithm_to_the_letter(workers, burst, intercept):
    """Niu et al. 2011, algorithm 1: sample e, read x_e, x_v -= γ b_v' G_e(x) for v in e. Workers in turn, which see all
    that the others have changed, are one; the first case is one of two. There is nothing to merge, damp or divide by.
    """
    x, y = sparse(400, 12, 3)
    order, lr, data = np.random.default_rng(0).permutation(400), 0.05, from_arrays(x, y)
    w, results = np.zeros(13), []
    for made in (family.Linear(data, None, Squared(), SGD(), intercept=intercept, workers=workers, replicas="none"),
                 family.Linear(data, None, Squared(), SGD(), intercept=intercept)):
        own, queue, tally = [made.private(k) for k in range(made.workers)], np.zeros(16, np.int64), np.zeros(8)
        assert made.plan is None and all(each[1].replica is None and each[1].space.params.flat is made.flat for each in own)
        made.begin(0)
        for turn in range(400):
            over = made.work(SGD(), checked(Constant(lr)), own[turn % made.workers], order, 0, queue, burst, turn == 0, tally)
            if over:
                break
        before = made.flat.copy()
        made.leave(SGD(), checked(Constant(lr)), own[0])
        made.end()
        made.settle(SGD(), 400)
        assert tally[1] == 400 and np.array_equal(made.flat, before) and made.flat.size == 13
        results.append(made.w)
    for i in order:
        e = np.append(np.flatnonzero(x[i]), [12] * intercept).astype(int)
        w[e] -= lr * (x[i] @ w[:12] + w[12] - y[i]) * np.append(x[i], made.pace)[e]
    assert np.array_equal(*results) and np.abs(w).max() > 0.1
    np.testing.assert_allclose(results[0], w, atol=1e-5)


# Strict turns.


@pytest.mark.parametrize("workers", COUNTS)
@pytest.mark.parametrize("n", [5, 1000])
def test_round_robin_is_one_workers_training_in_the_order_of_turns(workers, n):
    """Momentum on dense coordinates depends on the order; gradients here do not depend on the weights."""
    x, y = sparse(n, 8, 3, density=1.0)
    y[:2] = 1, -1
    data, rule, schedule = from_arrays(x, y), Momentum(), checked(InverseSqrt(1e-4, 0.01))
    make = lambda count: family.Linear(data, None, Hinge(), rule, workers=count, mode="round-robin")  # noqa: E731
    many, one, order = make(workers), make(1), np.random.default_rng((0, 1)).permutation(n)
    within(120, lambda: train(many, rule, schedule, epochs=1, workers=workers))
    Workers(one, 1).run(checked(rule), schedule, order, 0)
    assert np.array_equal(many.shared, one.shared)
    theta = np.zeros((9, 2))
    for t, i in enumerate(order):
        j = np.append(np.flatnonzero(x[i]), 8)
        theta[j, 1] = 0.9 * theta[j, 1] - y[i] * np.append(x[i], one.model.intercept)[j]
        theta[j, 0] -= 1e-4 / np.sqrt(1 + 0.01 * t) * theta[j, 1]
    assert np.allclose(many.shared[:, 0], theta, rtol=1e-3, atol=1e-6) and np.any(theta[:, 0])


def test_round_robin_under_l1_is_sequential():
    """A row is judged in its turn there, so even gradients that depend on the weights come in order.

    The workers' clocks of the penalty differ by up to three steps of l1 lr / (1 - mu) = 2e-5.
    """
    x, y = sparse(400, 8, 4, density=1.0)
    data, rule, schedule = from_arrays(x, y), Momentum(), checked(Constant(0.02))
    make = lambda count: family.Linear(data, None, Logistic(), rule, workers=count, mode="round-robin",  # noqa: E731
                                       l1=1e-4)
    many, one = make(3), make(1)
    within(120, lambda: train(many, rule, schedule, epochs=1, workers=3))
    Workers(one, 1).run(checked(rule), schedule, np.random.default_rng((0, 1)).permutation(400), 0)
    one.settle(checked(rule), 400)
    assert np.allclose(many.w, one.w, atol=1e-4) and np.abs(one.w).max() > 1


class Interrupts:
    """A report that is a person's Ctrl-C."""

    def progress(self, *args):
        raise KeyboardInterrupt

    def epoch(self, *args, **more):
        pass

    say = event = epoch


@pytest.mark.parametrize("mode", ["round-robin", "locked", "deterministic"])
def test_a_stop_in_the_middle_is_no_deadlock(mode):
    x, y = sparse(5001, 8, 5)
    data, rule, schedule = from_arrays(x, y), SGD(), Constant(0.01)
    make = lambda: family.Linear(data, None, Hinge(), rule, workers=3, mode=mode)  # noqa: E731
    linear = make()
    with pytest.raises(KeyboardInterrupt):
        within(120, lambda: train(linear, rule, schedule, epochs=10**6, workers=3, report=Interrupts()))
    assert np.isfinite(linear.w).all() and linear.steps > 0
    linear = make()
    history = within(120, lambda: train(linear, rule, schedule, epochs=10**6, workers=3, stop=Stop(max_seconds=0.2)))
    assert sum(epoch.examples for epoch in history) == linear.steps
    assert mode != "round-robin" or linear.sharing.turn[0] == linear.steps  # whoever goes on has the next turn


class Fails(family.Linear):
    """Worker 1's third call raises, with a lock in its hands."""

    calls = 0

    def run(self, rule, schedule, own, *rest):
        self._count(own)
        super().run(rule, schedule, own, *rest)

    def work(self, rule, schedule, own, *rest):
        if not self.lockstep:
            self._count(own)
        return super().work(rule, schedule, own, *rest)

    def _count(self, own):
        self.calls += own[0] == 1
        if own[0] == 1 and self.calls == 3:
            for locks in (getattr(self.sharing, "locks", None), self.plan and self.group.locks):
                if locks is not None:
                    locks.fill(1)
            raise ZeroDivisionError("a worker")


@pytest.mark.parametrize("mode", ["round-robin", "locked", "deterministic", "wild"])
def test_a_worker_that_raises_is_no_deadlock(mode):
    """The others would wait for its turn, at the barrier, or for what it has locked; what it raised is raised."""
    x, y = sparse(5001, 8, 5)
    linear, rule, schedule = Fails(from_arrays(x, y), None, Hinge(), SGD(), workers=3, mode=mode), SGD(), Constant(0.01)
    with pytest.raises(ZeroDivisionError, match="a worker"):
        within(60, lambda: train(linear, rule, schedule, epochs=10**6, workers=3))
    history = within(60, lambda: train(linear, rule, schedule, epochs=2, workers=3))  # nothing stays locked
    assert [epoch.examples for epoch in history] == [5001, 5001] and np.isfinite(linear.w).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_example_that_is_not_finite_is_no_deadlock(mode):
    x, y = sparse(700, 8, 6)
    x[350, 0] = 3e38
    data, rule, schedule = from_arrays(x, y), SGD(), Constant(0.5)
    linear, lines = family.Linear(data, None, Hinge(), rule, workers=3, mode=mode), []
    report = Interrupts()
    report.progress, report.say = lambda *args: None, lines.append
    with pytest.raises(UserError, match="no longer finite at array, row 351 .*, halved 2 times before"):
        within(120, lambda: train(linear, rule, schedule, epochs=3, workers=3, report=report, retries=2))
    assert len(lines) == 2 and all("no longer finite at array, row 351" in line for line in lines)
    assert not linear.shared.any()  # back where it began


@pytest.mark.parametrize("mode", MODES)
def test_more_workers_than_examples(mode):
    x, y = np.eye(3), np.array([1.0, -1.0, 1.0])
    linear = trained(x, y, mode, 7, SGD(), epochs=4)
    assert np.array_equal(linear.w[:3], (4 * TINY * y).astype(np.float32))
    assert mode == "wild" or linear.w[3] == np.float32(4 * TINY)


# Common features.


@pytest.mark.parametrize("mode, intercept", [("wild", True), ("wild", False), ("atomic", True)])  # of all, and of the hottest
def test_many_workers_do_not_swing(mode, intercept):
    """Features that all rows have, and a strong rate: eight workers' sums may not go eight times too far."""
    rng = np.random.default_rng(11)
    x = (rng.random((10_000, 20)) < np.linspace(0.9, 0.05, 20)).astype(float)
    p = 1 / (1 + np.exp(-(x @ rng.standard_normal(20) - 0.5)))
    data, loss = from_arrays(x, np.where(rng.random(10_000) < p, 1.0, -1.0)), {}
    for workers in (1, 8):
        linear = family.Linear(data, None, Logistic(), SGD(), workers=workers, intercept=intercept,
                               mode=mode if workers > 1 else "wild")
        loss[workers] = in_turn(linear, SGD(), InverseSqrt(0.5, 0.001), epochs=5, burst=4)[1:].mean()
    assert loss[8] < loss[1] + 0.03  # merged every 32 updates of a worker: 4


class Signs(NamedTuple):
    """A rule of a user's own: momentum of signs; it has a slot, and no `pace`."""

    keep: float = 0.5

    def start(hp):
        return (0.25,)

    def prepare(hp, lr, t):
        return (lr, hp.keep)

    @staticmethod
    def update(c, g, slots):
        m = c[1] * slots[0] + (1 - c[1]) * g / (abs(g) + 1e-6)
        return c[0] * m, (m,)


@pytest.mark.parametrize("mode", ["wild", "deterministic"])
def test_a_users_own_rule(mode):
    x, y = sparse(1000, 12, 12)
    linear = trained(x, y, mode, 3, Signs(), lr=0.02, epochs=3, l1=1e-3)
    accuracy = np.mean((x @ linear.w[:-1] + linear.w[-1] > 0) == (y > 0))
    assert accuracy > 0.85 and np.abs(linear.shared[:, 0, 1]).max() <= 3


@pytest.mark.parametrize("share", [None, 1.0])
def test_private_slots_are_averaged_not_summed(share):
    """Eight workers, each with what was common at the start of an epoch: running means must stay such."""
    rng, lowest, rule = np.random.default_rng(0), [], RMSProp()

    class Watched(family.Linear):
        def end(self):
            super().end()
            lowest.append(self.shared[:, :, -1].min())
    linear = Watched(from_arrays(np.ones((1024, 1)), rng.integers(0, 2, 1024)), None, Logistic(), rule, workers=8)
    linear.share = share or linear.share  # 1: as it would be without
    linear.most, linear.dense_coupling = 1e9, 0.0  # merged only at the end of an epoch
    in_turn(linear, rule, Constant(1e-4), epochs=24, burst=128)
    assert (min(lowest) < 0) if share else (min(lowest) >= 0 and np.abs(linear.shared[:, :, 0]).max() < 3)
