"""Functions whose minimum is known, and a rule's descent on them in the rules' NumPy form."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hogwild.kernels.optim.schedules import cycled, rate
from hogwild.kernels.optim.steps import array_step


class Function(NamedTuple):
    """A function of w [d], float64, whose least value is 0. start: where a descent begins."""

    start: np.ndarray
    value: Callable
    gradient: Callable


class Setting(NamedTuple):
    """A rule's constants on a quadratic, and the factor by which a step shrinks the distance to the minimum, in the limit."""

    lr: float
    mu: float
    factor: float


def best_setting(rule, condition) -> Setting:
    """The constants that make the slowest direction of a quadratic with curvatures in [1, condition] fall fastest.

    sgd: gradient descent. momentum: Polyak 1964. nesterov: Nesterov 2004, scheme 2.2.22, whose lr is 1/L. slow-momentum:
    that momentum at gradient descent's learning rate.
    """
    root = condition**0.5
    slow, descent_lr = (root - 1) / (root + 1), 2 / (condition + 1)
    trace = 1 + slow**2 - descent_lr  # of the step's matrix in the flattest direction, whose determinant is slow²
    return {"sgd": Setting(descent_lr, 0.0, (condition - 1) / (condition + 1)),
            "slow-momentum": Setting(descent_lr, slow**2, (trace + (trace**2 - 4 * slow**2) ** 0.5) / 2),
            "momentum": Setting(4 / (root + 1) ** 2, slow**2, slow),
            "nesterov": Setting(1 / condition, slow, 1 - 1 / root)}[rule]


def quadratic(curvatures, start) -> Function:
    """1/2 sum c w²."""
    return Function(start, lambda w: 0.5 * float(curvatures @ (w * w)), lambda w: curvatures * w)


def separable_logistic(seed, rows=100, features=20) -> Function:
    """Mean logistic loss on two separable classes: smooth and convex, and its infimum 0 lies at infinity."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features))
    x *= np.sign(x @ rng.standard_normal(features))[:, None]  # all labels are +1
    x *= 2 / np.linalg.norm(x, 2) * rows**0.5  # smoothness |x|²/(4 rows) = 1
    return Function(np.zeros(features), lambda w: float(np.logaddexp(0, -x @ w).mean()),
                    lambda w: -(x / (1 + np.exp(x @ w))[:, None]).mean(0))


def absolute(d=20) -> Function:
    """sum |w|: convex, not smooth."""
    return Function(np.ones(d), lambda w: float(abs(w).sum()), np.sign)


def saturating(d=20) -> Function:
    """sum w²/(1 + w²): smooth, not convex."""
    return Function(np.ones(d), lambda w: float((w * w / (1 + w * w)).sum()), lambda w: 2 * w / (1 + w * w) ** 2)


class Constructed(NamedTuple):
    """Examples of Wilson et al. 2017, section 3.3: x [n, d] and labels y of ±1."""

    x: np.ndarray
    y: np.ndarray


def constructed(seed, train, test, positive) -> tuple[Constructed, Constructed]:
    """Training and test data. Feature 0 is the label, 1 and 2 are always 1; of five more, which no other example has, a
    positive example has one and a negative one has all.

    train, test: numbers of examples; positive: the share of positive ones, above one half, exactly.
    """
    y = np.ones(train + test)
    for part in y[:train], y[train:]:
        part[round(positive * len(part)):] = -1
        np.random.default_rng(seed).shuffle(part)
    x = np.zeros((len(y), 3 + 5 * len(y)))
    x[:, 0], x[:, 1:3] = y, 1
    for row, label in enumerate(y):
        x[row, 3 + 5 * row:4 + 5 * row + (4 if label < 0 else 0)] = 1
    return Constructed(x[:train], y[:train]), Constructed(x[train:], y[train:])


def squared_loss(data) -> Function:
    """1/2 mean (x w - y)², from w = 0."""
    x, y = data
    return Function(np.zeros(x.shape[1]), lambda w: 0.5 * float(((x @ w - y) ** 2).mean()),
                    lambda w: (x @ w - y) @ x / len(y))


class Digits(NamedTuple):
    """A network of one layer of tanh units on scikit-learn's digits. function: its value is the held-out loss in nats, its
    gradient that of the next batch; accuracy(w): of held-out images."""

    function: Function
    accuracy: Callable
    batches: int  # of an epoch


def digits(seed, units=32, batch=16, held=0.3) -> Digits:
    """Batches follow a new permutation in each epoch; the split, the permutations and the first weights are of the seed."""
    from sklearn.datasets import load_digits
    rng, (x, y) = np.random.default_rng(seed), load_digits(return_X_y=True)
    order = rng.permutation(len(y))
    test, train = np.split(order, [round(held * len(y))])
    x, classes = np.c_[x / 16, np.ones(len(y))], np.eye(10)[y]
    cut = x.shape[1] * units

    def scores(w, rows):
        hidden = np.c_[np.tanh(x[rows] @ w[:cut].reshape(-1, units)), np.ones(len(rows))]
        out = hidden @ w[cut:].reshape(-1, 10)
        return hidden, out - np.logaddexp.reduce(out, 1, keepdims=True)

    def batches():
        while True:
            yield from np.split(rng.permutation(train), range(batch, len(train), batch))
    following = batches()

    def gradient(w):
        rows = next(following)
        hidden, out = scores(w, rows)
        error = (np.exp(out) - classes[rows]) / len(rows)
        below = (error @ w[cut:].reshape(-1, 10).T * (1 - hidden**2))[:, :-1]
        return np.r_[(x[rows].T @ below).ravel(), (hidden.T @ error).ravel()]

    start = np.r_[rng.standard_normal(cut) / x.shape[1] ** 0.5, rng.standard_normal((units + 1) * 10) / units**0.5]
    function = Function(start, lambda w: -float((scores(w, test)[1] * classes[test]).sum(1).mean()), gradient)
    return Digits(function, lambda w: float((scores(w, test)[1].argmax(1) == y[test]).mean()), -(-len(train) // batch))


def descent(rule, schedule, function, steps, noise=None, offset=0, decay=None):
    """Yield (step from 1, w) after each step of `rule`; w is overwritten by the next.

    rule, schedule: or functions of the step from 0 that give them. noise(t): added to the gradient. offset: added to the
    rule's step number alone, whose bias corrections then differ.
    """
    w = function.start.astype(np.float64)
    now = schedule if callable(schedule) else lambda t: schedule
    at = rule if callable(rule) else lambda t: cycled(rule, now(t), t)
    slots = [np.full_like(w, value) for value in at(0).start()]
    for t in range(steps):
        g = function.gradient(w)
        g = g if noise is None else g + noise(t)
        array_step(at(t), w, g, slots, rate(now(t), t), t + offset, decay)
        yield t + 1, w
