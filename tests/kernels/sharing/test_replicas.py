"""Copies that are brought together now and then: nothing is lost, whoever comes, merges, leaves or ends when; and nobody
goes too far.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teams import team

from hogwild.data.dataset import from_arrays
from hogwild.families import linear
from hogwild.kernels.losses import Hinge, Squared
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import SGD, AdaGrad
from hogwild.kernels.optim.schedules import Constant
from hogwild.kernels.sharing.merging import Layout, ReplicaGroup, merge
from hogwild.kernels.sharing.replicas import Replica, damp_along_mean
from hogwild.kernels.sharing.worker import Chunks, work
from hogwild.training import replication

N, D, TINY = 400, 7, 2.0**-20  # so small a rate that a hinge stays on its slope, and sums of it are exact
rng = np.random.default_rng(0)
X = rng.choice([-1.0, 0.0, 1.0], (N, D), p=[0.2, 0.2, 0.6]) * (rng.random((N, D)) < 2.0 ** -np.arange(D))
Y = np.where(np.arange(N) % 2, 1.0, -1.0)


def problem(rule, mode, workers, **options):
    made = linear.Linear(from_arrays(X, Y), None, Hinge(), rule, workers=workers, mode=mode, **options)
    made.model = made.model._replace(intercept=1.0)
    made.most = 2.0
    return made


def go_on(made, lr, own, part, t, first=False):
    """The worker trains on the examples `part`."""
    if len(part):
        assert not made.work(made.rule, lr, own, part, t, np.zeros(16, np.int64), len(part), first, np.zeros(8))


def leave(made, lr, own, t, early):
    """The worker is done with the round; early: the others go on."""
    queue = np.zeros(16, np.int64)
    optimizer = made.optimizer._replace(schedule=lr)
    assert work(made.model, optimizer, own[1], Chunks(queue[:0], t, 1, queue, int(not early), False), np.zeros(8))


@pytest.mark.parametrize("rule, mode, options", [
    (SGD(), "wild", {"replicas": "all"}), (AdaGrad(G0=1.0), "wild", {"replicas": "all", "average": 0}), (SGD(), "atomic", {}),
    (SGD(), "wild", {"replicas": "all", "l1": 0.25})])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_nothing_is_lost(rule, mode, options, data):
    """Rounds in which each worker comes or not, trains in turn with the others, and leaves early or ends, which some do
    long before others; then the sums are those of all examples: SGD's weights, AdaGrad's squares.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replication, "ROWS", data.draw(st.integers(1, 3), "rows of a block"))
        made = problem(rule, mode, workers := data.draw(st.integers(2, 4), "workers"), **options)
    made.shared[..., 0] = start = 2.0**-6 * ("l1" in options)  # too far from 0 to be shrunk to it
    random, t = np.random.default_rng(data.draw(st.integers(0, 99), "seed")), 0
    lr = checked(Constant(TINY))
    own, count = [made.private(k) for k in range(workers)], np.zeros(N)
    for _ in range(data.draw(st.integers(1, 3), "rounds")):
        made.begin(t)
        late = set(range(workers))
        came = set()
        for k in data.draw(st.lists(st.integers(0, workers - 1), min_size=1, max_size=30), "turns"):
            if k not in late:
                continue
            if k in came and data.draw(st.integers(0, 3), "ends") == 0:
                late.remove(k)
                leave(made, lr, own[k], t, data.draw(st.booleans(), "early"))
                continue
            part = random.integers(0, N, data.draw(st.integers(1, 40), "examples"))
            go_on(made, lr, own[k], part, t, k not in came)
            came.add(k)
            np.add.at(count, part, 1)
            t += len(part)
        for k in late:
            if k in came or data.draw(st.booleans(), "started"):
                leave(made, lr, own[k], t, False)
        made.end()
    if type(rule).__name__ == "SGD":
        want = start + TINY * np.append((count * Y) @ X - options.get("l1", 0.0) * count.sum(), count @ Y)
        assert np.array_equal(made.shared[:, 0, 0], want.astype(np.float32))
    else:
        assert np.array_equal(made.shared[:, 0, 1], 1 + np.append(count @ X**2, count.sum()))


def test_nothing_is_lost_among_threads():
    """The same with workers that really meet at the blocks, over and over."""
    made, lr, random = problem(SGD(), "wild", 3, replicas="all"), checked(Constant(TINY)), np.random.default_rng(0)
    own, parts = [made.private(k) for k in range(3)], random.integers(0, N, (3, 4, 30_000))
    made.begin(0)

    def work(k):
        for turn, part in enumerate(parts[k]):
            go_on(made, lr, own[k], part, 0, turn == 0)
        leave(made, lr, own[k], 0, False)
    team(3, work)
    made.end()
    count = np.bincount(parts.ravel(), minlength=N)
    want = TINY * np.append((count * Y) @ X, count @ Y)
    assert np.array_equal(made.shared[:, 0, 0], want.astype(np.float32))
    assert all(kept.merges[0] > 20_000 for kept in made.kept.values())


def test_who_is_left_alone_does_not_merge():
    made = problem(SGD(), "wild", 3, replicas="all")
    lr, order = checked(Constant(TINY)), np.arange(N)
    own = [made.private(k) for k in range(3)]
    made.begin(0)
    for k in range(3):
        go_on(made, lr, own[k], order[30 * k:30 * k + 30], 30 * k, True)
    merges = own[0][1].replica.merges
    before = merges.sum()
    go_on(made, lr, own[0], order[90:120], 90)
    assert merges.sum() > before
    for k in (1, 2):
        leave(made, lr, own[k], 90, True)
    before = merges.copy()
    go_on(made, lr, own[0], order[120:], 120)
    assert np.array_equal(merges, before)
    leave(made, lr, own[0], N, False)
    made.end()
    assert np.array_equal(made.shared[:, 0, 0], (TINY * np.append(Y @ X, Y.sum())).astype(np.float32))


@pytest.mark.parametrize("rule, lr", [(SGD(), 0.1), (AdaGrad(G0=1.0), 0.1)])
@pytest.mark.parametrize("workers", [2, 5])
def test_a_weight_of_one_worker_alone_shrinks_for_all(rule, lr, workers):
    """Each row has a feature of its own, so that only one worker has its weight, which shrinks at all workers' steps."""
    x, y = np.eye(20 * workers, 20 * workers), np.ones(20 * workers)
    weights = []
    for w in (1, workers):
        made = linear.Linear(from_arrays(x, y), None, Hinge(), rule, workers=w, replicas="all" if w > 1 else "none", l1=0.005,
                             classes=[-1.0, 1.0])
        made.mean_curvature = 0.0
        own, queue, order = [made.private(k) for k in range(w)], np.zeros(16, np.int64), np.arange(20 * workers)
        made.begin(0)
        for k in range(w):
            made.work(checked(rule), checked(Constant(lr)), own[k], order, 0, queue, 20 if w > 1 else 1000, True, np.zeros(8))
        for k in range(w if w > 1 else 0):
            leave(made, checked(Constant(lr)), own[k], 20, False)
        made.end()
        made.settle(checked(rule), 20 * workers)
        weights.append(made.w)
    first = 20 * np.arange(workers)
    np.testing.assert_allclose(weights[1][first], weights[0][0] * np.ones(workers), rtol=1e-5)  # what owes for all the steps
    assert np.all(weights[1][:-1] >= 0) and weights[1][-1] > 0 and (weights[1] == 0).sum() >= (weights[0] == 0).sum()


@given(st.floats(-1, 1, width=32), st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=6))
@settings(max_examples=200, deadline=None)
def test_no_weight_is_shrunk_beyond_zero(start, own):
    """Copies of a weight, some of them nearer to 0 than it was: the sum is on its side, unless one has gone to the other."""
    common, seen = np.array([start], np.float32), np.array([start], np.float32)
    for w in own:
        merge(common, np.array([w], np.float32), seen, None, 0, 1, Layout(1, 1, 0, 1.0, 0.0), True, False)
    if start >= 0 and min(own) >= 0:
        assert common[0] >= 0
    if start <= 0 and max(own) <= 0:
        assert common[0] <= 0
    if all(abs(w) >= abs(start) and w * start >= 0 for w in own):
        assert common[0] == pytest.approx(start + sum(w - start for w in own), abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_average_sees_what_a_weight_really_changes_by(data):
    """u + tau w stays what it was, as at each step of a worker, also where a sum is shortened or held at 0."""
    slots, outputs, rows, workers = (data.draw(st.integers(*bounds)) for bounds in ((0, 2), (1, 3), (1, 5), (1, 4)))
    share, held, tau = data.draw(st.sampled_from([1.0, 0.5] if slots else [0.5])), data.draw(st.booleans()), 0.75
    rng, columns, total = np.random.default_rng(data.draw(st.integers(0, 99))), slots + 2, 7
    layout = Layout(outputs * columns, columns, slots, share, tau)
    common = rng.random((rows, outputs, columns)).astype(np.float32)
    common[..., 0] -= 0.5
    kept = common[..., -1] + tau * common[..., 0]
    for _ in range(workers):
        names, seen = rng.permutation(total)[:rows].astype(np.uint32), rng.random((rows, outputs, columns)).astype(np.float32)
        flat = np.zeros((total, outputs, columns), np.float32)
        flat[names] = seen
        flat[names, :, 1:] += rng.random((rows, outputs, columns - 1))
        change = (rng.choice([-0.9, -0.5, 0, 0.5, 1], (rows, outputs)) * seen[..., 0]).astype(np.float32)
        flat[names, :, 0] += change
        flat[names, :, -1] = seen[..., -1] - tau * change
        back = data.draw(st.booleans())
        merge(common.reshape(-1), flat.reshape(-1), seen.reshape(-1), names, 0, rows, layout, held, back)
        np.testing.assert_allclose(common[..., -1] + tau * common[..., 0], kept, atol=1e-5)
        if back:
            assert np.array_equal(flat[names], common) and np.array_equal(seen, common)


def alike(workers, step, average=None):
    """Least squares on rows that are all the same, so that each step takes `step` of what is left of the error."""
    made = linear.Linear(from_arrays(np.ones((N, 3)), np.ones(N)), None, Squared(), SGD(), workers=workers, replicas="all",
                         average=average)
    return made, checked(Constant(step / (3 + made.model.intercept**2)))


def in_rounds(made, lr, rounds, bursts, examples):
    """Rounds in which the workers train in turn, so many times so many examples each."""
    own, t, error = [made.private(k) for k in range(made.workers)], 0, []
    for _ in range(rounds):
        made.begin(t)
        queue, order = np.zeros(16, np.int64), np.zeros(2 * bursts * examples * made.workers, np.int64)
        for turn in range(bursts * made.workers):
            k = turn % made.workers
            assert not made.work(checked(SGD()), lr, own[k], order, t, queue, examples, turn < made.workers, np.zeros(8))
        for k in range(made.workers):
            leave(made, lr, own[k], t + bursts * examples * made.workers, False)
        t += bursts * examples * made.workers
        made.end()
        made.steps = t
        error.append(1 - made.shared[:3, 0, 0].sum() - made.model.intercept * made.shared[3, 0, 0])
    return np.array(error)


@settings(max_examples=40, deadline=None)
@given(workers=st.integers(2, 9), examples=st.integers(1, 15), step=st.floats(0.001, 0.05), rounds=st.integers(1, 4))
def test_workers_go_as_far_as_as_many_steps_one_after_another(workers, examples, step, rounds):
    """A round without merges: a part r of the error is left after each one's steps, r^W of all."""
    made, lr = alike(workers, step)
    error = in_rounds(made, lr, rounds, 1, examples)
    want = (1 - step) ** (workers * examples * np.arange(1, rounds + 1))
    np.testing.assert_allclose(error, want, atol=0.03)


@settings(max_examples=20, deadline=None)
@given(workers=st.integers(2, 9), step=st.floats(0.02, 0.5), examples=st.integers(1, 30))
def test_large_steps_of_many_workers_do_not_overshoot(workers, step, examples):
    made, lr = alike(workers, step)
    error = np.append(1.0, in_rounds(made, lr, 5, 8, examples))
    assert np.all(np.abs(error[1:]) <= np.maximum(0.75 * np.abs(error[:-1]), 0.01))


def test_what_is_taken_back_at_the_end_leaves_the_average_as_it_was():
    averages, errors = [], []
    for pull in (0.0, 1.0):
        made, lr = alike(9, 0.05, average=0)
        made.mean_curvature = pull
        errors += in_rounds(made, lr, 1, 1, 15).tolist()
        averages.append(made.w)
    assert errors[0] < -3 and abs(errors[1]) < 0.02
    np.testing.assert_allclose(*averages, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_toning_down_is_a_projection(data):
    """The twin: a share of what is along a direction is taken from each output's weights, and from nothing else."""
    workers, rows, outputs, slots = (data.draw(st.integers(*bounds)) for bounds in ((2, 9), (1, 6), (1, 3), (0, 2)))
    columns, total = slots + 2, 9
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    flat, seen = rng.standard_normal((total, outputs, columns)), rng.standard_normal((rows, outputs, columns))
    along = rng.standard_normal(rows)
    along /= np.linalg.norm(along)
    names, n, tau = rng.permutation(total)[:rows].astype(np.uint32), 20.0, rng.random()
    pull = 0.05 + rng.random()  # of less than LITTLE nothing comes
    group = ReplicaGroup(np.zeros(0), np.zeros((0, 0)), np.zeros(0), 0, np.zeros(16, np.uint32), np.zeros(32, np.int64),
                         np.zeros(workers, np.int64), np.zeros(0), np.zeros(8, np.int64))
    state, zero = np.array([8 + 2 * n, 0, 0, 0.3, 5.0, 0, 0, 0]), np.zeros(1, np.int64)
    replica = Replica(0, group, names, names, seen.ravel(), zero, np.array([rows]), zero, np.full(1, 2.0), np.zeros(1),
                      np.zeros(1), np.array([8.0]), state, 1.0, 1.0, 1.0, 1, 1.0, pull, along)
    want, kappa = flat.copy(), n * pull * 0.3 / 5
    share = 1 - (1 - np.exp(-workers * kappa)) / (workers * (1 - np.exp(-kappa)))
    back = share * np.einsum("h,g,go->ho", along, along, flat[names, :, 0] - seen[..., 0])
    want[names, :, 0] -= back
    want[names, :, -1] += tau * back
    damp_along_mean(flat.reshape(-1), replica, 0, 0, rows, Layout(outputs * columns, columns, slots, 1.0, tau))
    np.testing.assert_allclose(flat, want, atol=1e-9)
    assert replica.damped_at[0] == 8 + 2 * n
