"""Matrix factorization against NumPy in float64: a sequential twin, finite differences, and what modes promise."""

import numba
import numpy as np
import pytest
from teams import within

from hogwild.errors import UserError
from hogwild.families import mf_blocks
from hogwild.families.mf_problem import LOSSES, MF_RULES, Factorization, MatrixFactorization, Ratings
from hogwild.kernels.families.mf import HOLD
from hogwild.kernels.families.mf_negatives import BPR, WARP, draw
from hogwild.kernels.families.mf_rows import RowAdaGrad
from hogwild.kernels.losses import Huber, Logistic, Squared
from hogwild.kernels.optim.rules import SGD, AdaGrad
from hogwild.kernels.optim.schedules import Constant, InverseTime
from hogwild.kernels.optim.steps import Clip, Decay
from hogwild.training.loop import train
from hogwild.training.replicated import Sharing, Steps

RANK = 5  # padded to 8


def some(users=40, items=30, n=600, seed=0):
    """Ratings of a planted model of rank 2, each pair once."""
    rng = np.random.default_rng(seed)
    pairs = rng.permutation(users * items)[:n]
    u, i = (pairs // items).astype(np.uint32), (pairs % items).astype(np.uint32)
    values = 3 + (rng.standard_normal((users, 2))[u] * rng.standard_normal((items, 2))[i]).sum(1) + rng.standard_normal(n) / 9
    return Ratings(u, i, values.astype(np.float32), users, items)


SQUARED, PLAIN = Squared(), SGD()  # false, as all tuples without fields


def made(ratings, loss=SQUARED, rule=PLAIN, decay=0.05, clip=None, workers=1, mode="wild", side=4, **fitted):
    return MatrixFactorization(ratings, Factorization(loss, RANK, **fitted),
                               Steps(rule, Decay(l2=decay) if decay else None, clip), Sharing(workers, mode, "none"),
                               side=side)


def model(problem):
    """A copy of (user factors, item factors, user biases, item biases) in float64."""
    return [np.array(x, np.float64) for x in (problem.user_factors, problem.item_factors, problem.user_biases,
                                              problem.item_biases)]


def twin(problem, ratings, rule, lr, epochs, l2, per_row):
    """SGD as Niu et al. 2011 write it, or AdaGrad, one rating after another on users and items as they are given."""
    p, q, b, c = model(problem)
    mean, spread = float(ratings.values.mean()), float(ratings.values.std())
    users, items = np.argsort(problem.grid.user_rows), np.argsort(problem.grid.item_rows)
    squares = [np.ones(x.shape[:1] if isinstance(rule, RowAdaGrad) else x.shape) for x in (p, q, b, c)]
    degree = [np.bincount(x, minlength=n) for x, n in ((ratings.users, len(p)), (ratings.items, len(q)))]
    value, t, total = dict(zip(zip(ratings.users.tolist(), ratings.items.tolist()), ratings.values)), 0, 0.0
    for epoch in range(1, epochs + 1):
        total = 0.0
        for n in problem.order(np.random.default_rng((0, epoch))):
            u, i = users[problem.grid.users[n]], items[problem.grid.items[n] - len(p)]
            error = mean + b[u] + c[i] + p[u] @ q[i] - value[u, i]
            total += error**2 / 2
            decay = [l2 / degree[0][u], l2 / degree[1][i]] if per_row else [l2, l2]
            # lr counts in ratings of unit deviation, factors in its root, biases in itself
            gradients = [error * q[i] + decay[0] * p[u], error * p[u] + decay[1] * q[i],
                         error + decay[0] / spread * b[u], error + decay[1] / spread * c[i]]
            rate = lr / (1 + 0.01 * (t - t % HOLD))
            for k, (x, row, g) in enumerate(zip((p, q, b, c), (u, i, u, i), gradients)):
                unit = spread**1.5 if k < 2 else spread
                if isinstance(rule, SGD):
                    x[row] -= rate * g / (spread if k < 2 else 1.0)
                elif isinstance(rule, AdaGrad):
                    squares[k][row] += (g / unit)**2
                    x[row] -= rate * g / unit / np.sqrt(squares[k][row]) * (spread**0.5 if k < 2 else spread)
                else:
                    root = np.sqrt(squares[k][row])
                    squares[k][row] += np.sum((g / unit)**2) / (RANK if k < 2 else 1)
                    x[row] -= rate * g / unit / root * (spread**0.5 if k < 2 else spread)
            t += 1
    return (p, q, b, c), total / len(ratings.values)


@pytest.mark.parametrize(("rule", "per_row", "lr"), [(SGD(), False, 0.05), (SGD(), True, 0.05), (AdaGrad(G0=1.0), False, 0.2),
                                                     (RowAdaGrad(), False, 0.2)])
def test_the_sequential_twin_in_float64(rule, per_row, lr):
    ratings = some()
    problem = made(ratings, rule=rule, per_row=per_row)
    want, loss = twin(problem, ratings, rule, lr, 3, 0.05, per_row)
    history = train(problem, rule, InverseTime(lr, 0.01), epochs=3)
    for got, expected in zip(model(problem), want):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-4)
    assert history[-1].loss == pytest.approx(loss, rel=1e-4)
    assert np.square(problem.shared[:, RANK:8]).max() == 0  # the padding stays 0


def objective(loss, x, y, l2):
    """Of one rating: x = (p, q, b, c) side by side; of a pair: (p, q, r, c, d), whose score is that of q less that of r."""
    p, q, r = x[:RANK], x[RANK:2 * RANK], x[2 * RANK:3 * RANK]
    if isinstance(loss, (BPR, WARP)):
        z = p @ (q - r) + x[-2] - x[-1]
        value = np.log1p(np.exp(-z)) if isinstance(loss, BPR) else max(0, 1 - z)
    else:
        z = p @ q + x[-2] + x[-1]
        e = abs(z - y)
        value = {"Squared": e * e / 2, "EpsilonInsensitive": e, "Logistic": np.log1p(np.exp(-y * z)),
                 "Huber": e * e / 2 if e < 1.35 else 1.35 * (e - 0.675)}[type(loss).__name__]
    return value + l2 / 2 * x @ x


@pytest.mark.parametrize(("name", "clip"), [("squared", Clip(norm=0.5))] + [
    (name, None) for name in ("squared", "absolute", "huber", "logistic", "bpr", "warp")])
def test_a_step_is_the_gradient_by_finite_differences(name, clip):
    """Two users rate item 0; an implicit one has it, and its negative is another."""
    loss, rng, l2 = LOSSES[name](), np.random.default_rng(3), 0.0 if clip else 0.3
    users, items = (1, 30) if name in ("bpr", "warp") else (2, 1)
    values = np.array([-1.0, 1.0][:users], np.float32)  # mean 0, deviation 1
    ratings = Ratings(np.arange(users, dtype=np.uint32), np.zeros(users, np.uint32), values, users, items)
    problem, tally = made(ratings, loss, decay=l2, clip=clip, side=1), np.zeros(8)
    problem.begin_at(0.5 * rng.standard_normal((users, RANK)), 0.5 * rng.standard_normal((items, RANK)),
                     0.3 * rng.standard_normal(users) * (users > 1), 0.3 * rng.standard_normal(items))
    before = model(problem)
    problem.run(SGD(), Constant(1.0), problem.private(0), np.zeros(1, np.uint32), 0, 1, tally)
    after = model(problem)
    u, others = int((after[0] != before[0]).any(1).argmax()), np.flatnonzero((after[1] != before[1]).any(1))

    def parts(model):
        p, q, b, c = model
        return np.concatenate([p[u], *q[others], b[u:u + 1] if users > 1 else [], c[others]])
    x, y, moved = parts(before), float(values[u]), parts(before) - parts(after)
    assert len(others) == (1 if users > 1 else 2) and others[0] == 0
    h = 1e-5 * np.eye(len(x))
    gradient = np.array([(objective(loss, x + d, y, l2) - objective(loss, x - d, y, l2)) / 2e-5 for d in h])
    if clip:
        assert np.linalg.norm(gradient) > 0.6
        gradient *= 0.5 / np.linalg.norm(gradient)
    weight = tally[0] / objective(loss, x, y, 0.0)  # of WARP: by the number of draws
    assert weight == pytest.approx(1, rel=1e-5) if name != "warp" else np.any(np.isclose(
        weight, np.log(np.maximum(29 // np.arange(1, 11), 1)) / np.log(29), rtol=1e-5))
    np.testing.assert_allclose(moved, weight * (gradient - l2 * x) + l2 * x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", [Squared(), BPR(), WARP()])
def test_deterministic_gives_the_same_bits_for_any_number_of_workers(loss):
    ratings, results = some(n=900), []
    for workers in 1, 2, 3:
        problem = made(ratings, loss, mode="deterministic", workers=workers)
        history = within(120, lambda: train(problem, SGD(), Constant(0.1), epochs=4, workers=workers, seed=2))  # noqa: B023
        results.append((problem.shared.tobytes(), [epoch.loss for epoch in history]))
    assert results[0] == results[1] == results[2]
    assert results[0][1][-1] < results[0][1][0]


@pytest.mark.parametrize("mode", ["atomic", "locked", "round-robin"])
def test_no_change_is_lost(mode):
    """Under a tiny rate each rating moves its two biases by ± that, exactly; factors that are 0 stay so."""
    ratings, lr = some(12, 8, 96), 2.0**-20
    ratings.values[:] = np.where(np.arange(96) % 2, 1.0, -1.0)
    problem = made(ratings, LOSSES["absolute"](), decay=0, workers=3, mode=mode, side=1)
    problem.begin_at(np.zeros((12, RANK)), np.zeros((8, RANK)))
    within(120, lambda: train(problem, SGD(), Constant(lr), epochs=40, workers=3))
    for got, numbers in ((problem.user_biases, ratings.users), (problem.item_biases, ratings.items)):
        assert np.array_equal(got, 40 * lr * np.bincount(numbers, ratings.values))
    assert not problem.user_factors.any()


def test_round_robin_is_the_sequential_run():
    ratings, ends = some(), []
    for workers, mode in ((1, "wild"), (2, "round-robin")):
        problem = made(ratings, workers=workers, mode=mode)
        within(120, lambda: train(problem, SGD(), Constant(0.05), epochs=2, workers=workers))  # noqa: B023
        ends.append(model(problem))
    for a, b in zip(*ends):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # added up in another order in vectors


@numba.njit
def _draws(model, flat, u, v, count, out):
    for t in range(count):
        out[t] = draw(model, flat, np.uint64(u), np.uint64(v), t)[0]


@pytest.mark.parametrize("power", [0.0, 0.75])
def test_negatives_are_verified_and_drawn_by_popularity(power):
    ratings = some(users=60, items=24, n=700)
    for mode in "wild", "deterministic":
        problem, out = made(ratings, BPR(), popularity=power, mode=mode), np.zeros(20_000, np.int64)
        user_rows, item_rows = problem.grid.user_rows, problem.grid.item_rows
        popularity = np.bincount(ratings.items, minlength=24)
        u = int(ratings.users[0])
        have = ratings.items[ratings.users == u]
        _draws(problem.model, problem.flat, int(user_rows[u]), int(item_rows[have[0]]), len(out), out)
        free = ~np.isin(np.arange(24), have)
        if mode == "deterministic":
            ends = problem.grid.item_ends + 60
            band = np.searchsorted(ends, item_rows[have[0]], "right")
            free &= (item_rows >= ends[band - 1]) & (item_rows < ends[band])
        share = np.bincount(out - 60, minlength=24)[item_rows - 60] / len(out)
        want = np.where(free, popularity**power, 0) / np.sum(popularity**power, where=free)
        assert np.abs(share - want).max() < 0.015 and not share[~free].any()
    part = tuple(x[::2] for x in ratings[:3])  # going on with some: what the user has of the others is no negative either
    problem = made(Ratings(*part, 60, 24, ratings[:2]), BPR(), popularity=power)
    _draws(problem.model, problem.flat, int(problem.grid.user_rows[u]), int(problem.grid.item_rows[have[0]]), len(out), out)
    assert set(out) == set(problem.grid.item_rows[np.setdiff1d(np.arange(24), have)])


def test_a_user_who_has_all_items_learns_nothing():
    ratings = Ratings(*(np.array(x, np.uint32) for x in ([0, 0, 1], [0, 1, 0])), np.ones(3, np.float32), 2, 2)
    problem = made(ratings, BPR(), decay=0, side=1)
    before = model(problem)
    train(problem, SGD(), Constant(0.1), epochs=3)
    assert np.array_equal(problem.user_factors[0], before[0][0]) and not np.array_equal(problem.user_factors[1], before[0][1])


def test_ratings_lie_in_their_blocks_and_an_epoch_has_each_once():
    ratings = some(users=50, items=40, n=1500)
    grid = mf_blocks.grid(ratings, 5, 3)
    users, items = np.argsort(grid.user_rows)[grid.users], np.argsort(grid.item_rows)[grid.items - 50]
    assert sorted(zip(users, items, grid.values)) == sorted(zip(*ratings[:3]))
    order = mf_blocks.order(grid, np.random.default_rng(0))
    assert np.array_equal(np.sort(order), np.arange(1500))
    blocks = np.searchsorted(grid.starts, order, "right") - 1
    runs = blocks[np.flatnonzero(np.diff(blocks, prepend=-1))]
    assert len(runs) == 25
    for stratum in runs.reshape(5, 5):  # no two blocks of it share users, or items
        assert len(set(stratum // 5)) == len(set(stratum % 5)) == 5
    for b in range(25):
        rows = slice(grid.starts[b], grid.starts[b + 1])
        assert grid.starts[b + 1] - grid.starts[b] < 2.5 * 1500 / 25
        assert np.ptp(grid.users[rows]) < 25 and np.ptp(grid.items[rows]) < 25


@pytest.mark.parametrize(("wrong", "words"), [
    (lambda: made(some()._replace(users=np.zeros(0, np.uint32))), "no ratings"),
    (lambda: MatrixFactorization(some(), Factorization(rank=257), Steps(SGD()), Sharing()), "from 1 to 256"),
    (lambda: MatrixFactorization(some(), Factorization(), Steps(SGD(), l1=0.1), Sharing()), "--l1"),
    (lambda: MatrixFactorization(some(), Factorization(), Steps(SGD()), Sharing(2, "wild", "all")), "replicas 'all'"),
    (lambda: made(some()._replace(values=np.full(600, np.inf, np.float32))), "finite")])
def test_what_cannot_be_trained_is_said(wrong, words):
    with pytest.raises(UserError, match=words):
        wrong()


def test_every_rule_learns():
    ratings = some()
    for name in ("momentum", "adam"):
        rule = MF_RULES[name]()
        problem = made(ratings, Huber(), rule)
        history = train(problem, rule, Constant(0.01), epochs=12)
        assert history[-1].loss < 0.7 * history[0].loss


def test_logistic_takes_positive_values_as_one():
    ratings = some()
    ratings.values[:] = ratings.values > 3
    problem = made(ratings, Logistic())
    train(problem, SGD(), Constant(0.1), epochs=30)
    z = problem.user_biases[ratings.users] + problem.item_biases[ratings.items] + (
        problem.user_factors[ratings.users] * problem.item_factors[ratings.items]).sum(1)
    assert np.mean((z > 0) == (ratings.values > 0)) > 0.8
