"""The gradient of a batch of sparse rows, against torch's autograd of the dense twin."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from hogwild.data.dataset import from_arrays
from hogwild.families.linear import alone
from hogwild.kernels.families.linear import Model
from hogwild.kernels.families.linear_gradient import add_gradient
from hogwild.kernels.losses import Hinge, Huber, Logistic, SoftmaxCrossEntropy, Squared, SquaredHinge
from hogwild.kernels.optim.hyperparameters import checked

pytestmark = pytest.mark.usefixtures("one_thread")
# Loss of one score z and label y each, in torch's words.
BINARY = {Logistic: lambda z, y: F.softplus(-y * z), Hinge: lambda z, y: F.relu(1 - y * z),
          SquaredHinge: lambda z, y: F.relu(1 - y * z) ** 2, Squared: lambda z, y: F.mse_loss(z, y, reduction="none") / 2,
          Huber: lambda z, y: F.huber_loss(z, y, reduction="none", delta=0.7)}


def one_against_rest(loss):
    return lambda z, y: loss(z, 2.0 * F.one_hot(y.long(), z.shape[1]) - 1).sum(1)


CASES = [(Huber(0.7) if loss is Huber else loss(), 1, oracle) for loss, oracle in BINARY.items()] + [
    (SoftmaxCrossEntropy(), 4, lambda z, y: F.cross_entropy(z, y.long(), reduction="none")),
    (SoftmaxCrossEntropy(), 2, lambda z, y: F.cross_entropy(z, y.long(), reduction="none"))] + [
    (loss(), 3, one_against_rest(BINARY[loss])) for loss in (Logistic, Hinge, SquaredHinge)]


def made(rng, n, d, outs, loss):
    """(x [n, d] with zeros and an empty row, labels [n], weights [d + 1, K])."""
    x = (rng.standard_normal((n, d)) * (rng.random((n, d)) < 0.5)).astype(np.float32)
    x[0] = 0
    y = rng.integers(outs, size=n) if outs > 1 else (
        rng.choice([-1, 1], n) if loss.task == "classification" else rng.normal(size=n))
    return x, y.astype(np.float32), rng.standard_normal((d + 1, outs)).astype(np.float32)


def ours(loss, outs, x, y, w, order, factor, weights=None, intercept=1.0, out=None):
    """(loss sum, gradient [d + 1, K])."""
    flat, d = w.ravel().copy(), x.shape[1]
    out = np.zeros_like(flat) if out is None else out
    model = Model(checked(loss), from_arrays(x, y).csr, y, weights, None, intercept)
    total = add_gradient(model, alone(flat.reshape(d + 1, outs), outs), np.asarray(order, np.int64), factor, out)
    return total, out.reshape(d + 1, outs)


def theirs(loss, x, y, w, order, factor, weights=None, intercept=1.0):
    w = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    z = torch.tensor(x[order], dtype=torch.float64) @ w[:-1] + intercept * w[-1]
    y = torch.tensor(y[order], dtype=torch.float64)
    each = loss(z, y) if z.shape[1] > 1 else loss(z[:, 0], y)
    total = (each * (1.0 if weights is None else torch.tensor(weights[order], dtype=torch.float64))).sum()
    (factor * total).backward()
    return total.item(), w.grad.numpy()


@pytest.mark.parametrize("loss, outs, oracle", CASES, ids=[f"{type(loss).__name__}-{outs}" for loss, outs, _ in CASES])
@given(seed=st.integers(0, 2**32), n=st.integers(1, 40), d=st.integers(1, 30), weighted=st.booleans())
def test_is_autograds(loss, outs, oracle, seed, n, d, weighted):
    weighted |= not isinstance(loss, Logistic | SoftmaxCrossEntropy)  # with and without weights are two kernels
    rng = np.random.default_rng(seed)
    x, y, w = made(rng, n, d, outs, loss)
    order, factor = rng.integers(n, size=rng.integers(1, 2 * n + 1)), float(rng.choice([0.01, 1.0, 3.0]))
    weights = rng.random(n).astype(np.float32) if weighted else None
    for intercept in (1.0, 0.0):
        total, gradient = ours(loss, outs, x, y, w, order, factor, weights, intercept)
        want, wanted = theirs(oracle, x, y, w, order, factor, weights, intercept)
        assert np.isclose(total, want, rtol=1e-5, atol=1e-6)
        assert np.allclose(gradient, wanted, rtol=1e-4, atol=1e-5 * factor * len(order))


def test_adds_to_what_is_there():
    x, y, w = made(np.random.default_rng(0), 10, 5, 1, Logistic())
    _, first = ours(Logistic(), 1, x, y, w, [0, 1, 2], 1.0)
    both = first.ravel().copy()
    ours(Logistic(), 1, x, y, w, [3, 4], 1.0, out=both)
    _, alone = ours(Logistic(), 1, x, y, w, [3, 4], 1.0)
    assert np.allclose(both, (first + alone).ravel(), atol=1e-6) and np.abs(alone).max() > 0.01


def test_no_rows_change_nothing():
    x, y, w = made(np.random.default_rng(0), 10, 5, 3, SoftmaxCrossEntropy())
    total, gradient = ours(SoftmaxCrossEntropy(), 3, x, y, w, [], 1.0)
    assert total == 0 and not gradient.any()


def test_nan_is_not_hidden():
    """A diverged model must show: nothing of it may be mistaken for a small gradient."""
    x, y, w = made(np.random.default_rng(0), 10, 5, 1, Hinge())
    w[:] = np.nan
    total, gradient = ours(Hinge(), 1, x, y, w, range(10), 1.0)
    assert np.isnan(total) and np.isnan(gradient[-1, 0])
