"""The linear kernel against a sequential twin in NumPy, and what many workers must still guarantee."""

import threading

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hogwild.data.dataset import from_arrays
from hogwild.errors import UserError
from hogwild.families import linear as family
from hogwild.families import predictions
from hogwild.kernels import losses
from hogwild.kernels.data.csr import CSR
from hogwild.kernels.families import linear as kernel
from hogwild.kernels.families.scores import Buffers
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import RULES, SGD, AdaGrad
from hogwild.kernels.optim.schedules import Constant, InverseSqrt, InverseTime, Warmup, cycled, rate
from hogwild.kernels.optim.steps import Clip, Decay, array_step
from hogwild.kernels.sharing.modes import Alone
from hogwild.kernels.sharing.parameters import View, new_scratch
from hogwild.kernels.sharing.worker import Chunks, Worker, work
from hogwild.kernels.sharing.workspace import Optimizer, Workspace
from hogwild.training.loop import train

D = 40
# Each type of a schedule would be compiled anew; how a kernel takes each is for tests/kernels/optim/test_schedules.py.
WARM = checked(Warmup(InverseSqrt(0.05, 0.01), 20.0))


def constant(lr):
    return checked(InverseSqrt(lr, 0.0))


def problem(n, seed, dtype=np.float64, density=0.2):
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((n, D)) * (rng.random((n, D)) < density)
    dense[n // 2] = 0  # a row without features
    rows, cols = np.nonzero(dense)
    indptr = np.searchsorted(rows, np.arange(n + 1)).astype(np.int64)
    labels = np.where(dense @ rng.standard_normal(D) + 0.3 > 0, 1, -1).astype(np.float32)
    return dense, CSR(indptr, cols.astype(np.uint32), dense[rows, cols].astype(dtype)), labels


def run_kernel(rule, schedule, loss, decay, clip, intercept, csr, labels, weight, order, t=0, stride=1, room=0):
    """The kernel on one worker, alone; theta [D + 1, 1 + S], with `room` numbers 7 on both sides."""
    size = 1 + len(rule.start())
    around = np.full((D + 1) * size + 2 * room, 7, csr.values.dtype)
    flat, tally = around[room:room + (D + 1) * size], np.zeros(8)
    theta = flat.reshape(D + 1, size)
    theta[:, 0], theta[:, 1:] = 0, rule.start()
    bare = size == 1 and clip is None
    scratch = None if bare else new_scratch(size, int(np.diff(csr.indptr).max()) + 1, flat.dtype)
    model = kernel.Model(loss, csr, labels, None, weight, float(intercept))
    worker = Worker(Workspace(View(Alone(), flat), scratch, None, Buffers(None, D)), None, np.zeros(8), 1)
    chunks = Chunks(order, t, stride, np.zeros(16, np.int64), max(len(order), 1), True)
    work(model, Optimizer(rule, schedule, decay, clip, None), worker, chunks, tally)
    assert np.all(around[:room] == 7) and np.all(around[len(around) - room:] == 7)
    return theta, tally


def twin(rule, schedule, loss, decay, clip, intercept, dense, labels, weight, order, t, stride):
    """The same, one example after the other, through the rules' source on NumPy arrays."""
    theta, total = np.zeros((D + 1, 1 + len(rule.start()))), 0.0
    theta[:, 1:] = rule.start()
    for i in order:
        rows = np.append(np.flatnonzero(dense[i]), [D] * intercept).astype(int)
        x = np.append(dense[i], 1.0)[rows]
        value, slope = losses.evaluate(loss, float(dense[i] @ theta[:D, 0] + theta[D, 0]), float(labels[i]))
        total += value
        now, lr, part = cycled(rule, schedule, t), rate(schedule, t), theta[rows].T.copy()
        if decay is None and len(rows):
            array_step(now, part[0], slope * x, part[1:], lr, t, None, clip)
        for c in range(len(rows) if decay else 0):  # the twin's decay is unweighted: weigh it coordinate by coordinate
            one, s = part[:, c:c + 1], np.append(weight, 0.0)[rows[c]]
            array_step(now, one[0], slope * x[c:c + 1], one[1:], lr, t, Decay(decay.l2 * s, decay.wd * s))
        theta[rows] = part.T
        t += stride
    return theta, total


# Of rules with as many slots one: tests/kernels/optim/test_rules.py compares their formulas. A rule sees of a loss only the
# slope.
@pytest.mark.parametrize("name, loss", [("sgd", losses.Huber()), *((name, losses.Logistic()) for name in (
    "sgd", "adagrad", "adam", "apollo"))])
def test_one_worker_is_the_sequential_twin(name, loss):
    dense, csr, labels = problem(700, 1)
    rule, schedule = checked(RULES[name]()), WARM
    # Apollo on single rows amplifies rounding: compare it before that shows
    order = np.random.default_rng(2).permutation(700)[:100 if name == "apollo" else 700]
    theta, tally = run_kernel(rule, schedule, loss, None, None, True, csr, labels, None, order, 3, 2)
    want, total = twin(rule, schedule, loss, None, None, True, dense, labels, None, order, 3, 2)
    assert np.allclose(theta, want, rtol=1e-9, atol=1e-11)
    assert tally[:3] == pytest.approx([total, len(order), np.diff(csr.indptr)[order].sum()])


@pytest.mark.parametrize("decay", [Decay(l2=0.01), Decay(wd=0.02)])
def test_decay_is_weighted_by_feature(decay):
    dense, csr, labels = problem(300, 3)
    weight = np.random.default_rng(4).random(D)
    rule, schedule, order = checked(AdaGrad()), checked(Constant(0.1)), np.arange(300)
    theta, _ = run_kernel(rule, schedule, losses.Logistic(), checked(decay), None, True, csr, labels, weight, order)
    want, _ = twin(rule, schedule, losses.Logistic(), decay, None, True, dense, labels, weight, order, 0, 1)
    assert np.allclose(theta, want, rtol=1e-9)


@pytest.mark.parametrize("clip", [Clip(value=0.3), Clip(norm=0.5)])
def test_clipping(clip):
    dense, csr, labels = problem(300, 5)
    rule, schedule, order = checked(SGD()), WARM._replace(after=WARM.after._replace(lr=0.5)), np.arange(300)
    arguments = (rule, schedule, losses.Logistic(), None, checked(clip), True)
    theta, _ = run_kernel(*arguments, csr, labels, None, order)
    want, _ = twin(*arguments, dense, labels, None, order, 0, 1)
    assert np.allclose(theta, want, rtol=1e-9)
    assert not np.allclose(theta, run_kernel(*arguments[:4], None, True, csr, labels, None, order)[0])


def test_without_intercept_its_row_stays():
    _, csr, labels = problem(100, 6)
    theta, _ = run_kernel(checked(SGD()), WARM, losses.Logistic(), None, None, False, csr, labels, None, np.arange(100))
    assert theta[D, 0] == 0 and np.any(theta[:D])


@pytest.mark.parametrize("rule", [SGD(), AdaGrad()])
def test_canaries_around_the_shared_arrays_stay(rule):
    dense, _, labels = problem(400, 7)
    csr = from_arrays(dense, labels).csr
    arguments = (checked(rule), constant(0.1), losses.Logistic(), None, None, True, csr, labels, None)
    theta, _ = run_kernel(*arguments, np.arange(400), room=32)
    out = np.full((400 + 32, 1), 7, np.float32)
    kernel.scores(np.ascontiguousarray(theta[:, :1]), csr, 0, 400, out[16:-16])
    assert np.any(theta) and np.all(out[:16] == 7) and np.all(out[-16:] == 7) and not np.any(out[16:-16] == 7)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_share_what_they_learn(workers):
    from sklearn.linear_model import LogisticRegression
    dense, _, labels = problem(4000, 8)
    data = from_arrays(dense[:3000], labels[:3000])
    held_out = from_arrays(dense[3000:], labels[3000:])
    rule, schedule = AdaGrad(), constant(0.1)
    linear = family.Linear(data, held_out, losses.Logistic(), rule, workers=workers)
    history = train(linear, rule, schedule, epochs=6, workers=workers)
    reference = LogisticRegression(C=100, max_iter=1000).fit(dense[:3000], labels[:3000])
    assert history[-1].metrics["accuracy"] > reference.score(dense[3000:], labels[3000:]) - 0.02
    assert np.corrcoef(linear.w[:D], reference.coef_[0])[0, 1] > 0.97
    assert sum(e.examples for e in history) == 6 * 3000


@pytest.mark.parametrize("workers", [1, 3])
def test_no_workers_intercept_is_lost(workers):
    """Rows without features train the intercept alone, the most contended coordinate there is."""
    data = from_arrays(np.zeros((20000, 1)), np.where(np.arange(20000) % 4 == 0, -1, 1))
    rule, schedule = SGD(), constant(0.005)
    linear = family.Linear(data, None, losses.Logistic(), rule, workers=workers)
    train(linear, rule, schedule, epochs=4, workers=workers)
    assert linear.w[-1] == pytest.approx(np.log(3), abs=0.25)


def test_l2_is_unbiased_for_rare_features():
    """SGD with the weighted penalty goes to the minimum of mean loss + l2/2 |w|², found in closed form."""
    dense, _, _ = problem(3000, 9, density=0.1)
    y = dense @ np.linspace(-1, 1, D) + 0.01 * np.random.default_rng(0).standard_normal(3000)
    dense[:, 0] *= np.arange(3000) % 10 == 0  # a feature ten times rarer
    rule, schedule, l2 = SGD(), InverseSqrt(0.1, 0.05), 0.05
    linear = family.Linear(from_arrays(dense, y), None, losses.Squared(), rule, Decay(l2=l2), intercept=False)
    train(linear, rule, schedule, epochs=60)
    want = np.linalg.solve(dense.T @ dense / 3000 + l2 * np.eye(D), dense.T @ y / 3000)
    assert np.allclose(linear.w[:D], want, atol=0.03)
    unweighted = np.linalg.solve(dense.T @ dense / 3000 + l2 * 0.1 * np.eye(D), dense.T @ y / 3000)
    assert not np.allclose(want, unweighted, atol=0.03)


@pytest.mark.parametrize("schedule", [Warmup(InverseTime(0.5, 0.0), steps) for steps in (0.0, 2000.0)])
def test_a_strong_penalty_on_a_rare_feature_does_not_explode(schedule):
    """Unbounded, the weight 5000 / 1 would multiply a weight by 1 - 0.5 * 0.01 * 5000 = -24 at each touch."""
    dense, rule = np.ones((5000, 2)), SGD()
    dense[:, 1] = np.arange(5000) == 17
    data = from_arrays(dense, np.where(np.arange(5000) % 2, 1, -1))
    linear = family.Linear(data, None, losses.Logistic(), rule, Decay(l2=0.01))
    train(linear, rule, schedule, epochs=30)
    assert np.abs(linear.w).max() < 2


def test_a_high_first_learning_rate_leaves_no_bias():
    """What the penalty of a rare feature is cut to while the rate is high must not hold when it has fallen."""
    rng = np.random.default_rng(0)
    columns = np.floor(600 * rng.random((2000, 6)) ** 2).astype(int)  # a few common features, many rare ones
    dense = np.zeros((2000, 600))
    np.put_along_axis(dense, columns, 0.4, axis=1)
    y = np.where(dense @ rng.standard_normal(600) + 0.3 * rng.standard_normal(2000) > 0, 1.0, -1.0)
    rule, schedule, l2 = SGD(), Warmup(InverseTime(20.0, 0.05), 0.0), 1 / 400
    linear = family.Linear(from_arrays(dense, y), None, losses.Logistic(), rule, Decay(l2=l2), intercept=False)
    train(linear, rule, schedule, epochs=20)
    best = LogisticRegression(C=0.2, fit_intercept=False, tol=1e-10).fit(dense, y).coef_[0]

    def objective(w):
        return np.logaddexp(0, -y * (dense @ w)).mean() + l2 / 2 * (w @ w)
    assert objective(linear.w[:600].astype(float)) < 1.001 * objective(best)


@pytest.mark.parametrize("outs", [1, 3])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_scores_in_short_calls_are_those_of_one(monkeypatch, workers, outs):
    """The same bits, in calls of so many products or one row: between them Ctrl-C is seen."""
    dense, csr, labels = problem(500, 10)
    dense[100:150], dense[0] = 0, 1
    data, w = from_arrays(dense, labels), np.random.default_rng(0).standard_normal((D + 1, outs)).astype(np.float32)
    want, calls, once = np.zeros((500, outs), np.float32), [], kernel.scores
    once(w, data.csr, 0, 500, want)

    def call(table, csr, start, stop, out):
        calls.append((start, stop))
        once(table, csr, start, stop, out)
    monkeypatch.setattr(kernel, "scores", call)
    for most in (1 << 20, 60):
        calls.clear()
        monkeypatch.setattr(predictions, "SCORED", most)
        assert np.array_equal(predictions.scores(w, data, workers), want)
        done = sorted(calls)
        assert [start for start, _ in done] == [0, *(stop for _, stop in done[:-1])] and done[-1][1] == 500
        products = outs * np.diff(data.indptr[np.array(done)])
        assert all((products[:, 0] <= most) | (np.diff(done)[:, 0] == 1))
    assert len(calls) > 50


def test_an_interrupt_ends_scoring_in_all_threads(monkeypatch):
    _, _, labels = problem(500, 10)
    caller, calls, over = threading.current_thread(), [], threading.Event()

    def call(*_):
        calls.append(threading.current_thread())
        if calls[-1] is caller:
            raise KeyboardInterrupt
        over.wait(10)
    monkeypatch.setattr(kernel, "scores", call)
    monkeypatch.setattr(predictions, "SCORED", 50)
    with pytest.raises(KeyboardInterrupt):
        predictions.scores(np.zeros((D + 1, 1), np.float32), from_arrays(problem(500, 10)[0], labels), 3)
    over.set()
    for thread in set(calls) - {caller}:
        thread.join(10)
    assert len(calls) == len(set(calls)) <= 3


def test_labels_are_checked():
    two = from_arrays(np.eye(3), np.array([0, 1, 1]))
    make = lambda data, test=None: family.Linear(data, test, losses.Logistic(), SGD())  # noqa: E731
    assert make(two).model.labels.tolist() == [-1, 1, 1]
    with pytest.raises(UserError, match="two classes, got 1"):
        make(from_arrays(np.eye(3), np.ones(3)))
    with pytest.raises(UserError, match="4 features, the model 3"):
        predictions.scores(make(two).w, from_arrays(np.eye(4), np.ones(4)))
