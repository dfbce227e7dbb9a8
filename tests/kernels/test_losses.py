"""Losses against torch's functionals with autograd, scikit-learn's and closed forms; kernels against Python."""

import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics import hinge_loss

from hogwild.kernels.compiler.jit import kernel
from hogwild.kernels.losses import LOSSES, Huber, SoftmaxCrossEntropy, derivative, evaluate, value
from hogwild.kernels.optim.hyperparameters import HyperParameterError, checked

HALF = torch.tensor(0.5, dtype=torch.float64)
TORCH = {
    "logistic": lambda z, y: -F.logsigmoid(y * z),
    "hinge": lambda z, y: F.relu(1 - y * z),
    "squared-hinge": lambda z, y: F.relu(1 - y * z) ** 2,
    "squared": lambda z, y: HALF * F.mse_loss(z, y),
    "huber": lambda z, y: F.huber_loss(z, y, delta=1.35),
    "modified-huber": lambda z, y: torch.where(y * z >= -1, F.relu(1 - y * z) ** 2, -4 * y * z),
    "perceptron": lambda z, y: F.relu(-y * z),
    "epsilon-insensitive": lambda z, y: F.relu(abs(z - y) - 0.1),
    "squared-epsilon-insensitive": lambda z, y: F.relu(abs(z - y) - 0.1) ** 2,
}
SCALAR = sorted(TORCH)
EXTREME = [0.0, 1.0, -1.0, 1e-9, 40.0, -40.0, 1e3, -1e3, 1e300, -1e300]
finite = st.floats(-1e4, 1e4)


@kernel
def each(loss, z, y, out):
    for i in range(len(z)):
        out[i, 0], out[i, 1] = evaluate(loss, z[i], y[i])


@kernel
def softmax_rows(loss, scores, y, gradient, out):
    for i in range(len(y)):
        out[i] = evaluate(loss, scores[i], y[i], gradient[i])


def loss_of(name):
    return checked(LOSSES[name]())


def labels(name, y):
    return np.where(y < 0, -1.0, 1.0) if LOSSES[name].task == "classification" else y


def in_kernel(loss, z, y):
    out = np.empty((len(z), 2))
    each(loss, z, y, out)
    return out


def torch_pair(name, z, y):
    z = torch.tensor(float(z), dtype=torch.float64, requires_grad=True)
    result = TORCH[name](z, torch.tensor(float(y), dtype=torch.float64))
    result.backward()
    return result.item(), z.grad.item()


@pytest.mark.parametrize("name", SCALAR)
@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(finite, finite), min_size=1, max_size=8))
def test_value_and_derivative_are_torchs(name, pairs):
    z, y = np.array(pairs).T.copy()
    y = labels(name, y)
    z = np.where(z == 0, 1e-9, z) if name == "perceptron" else z  # at 0 ours is -y, or no weight would ever leave 0
    loss, want = loss_of(name), np.array([torch_pair(name, *pair) for pair in zip(z, y)])
    np.testing.assert_allclose(in_kernel(loss, z, y), want, rtol=1e-12, atol=1e-300)
    mine = [(value(loss, *pair), derivative(loss, *pair)) for pair in zip(z, y)]
    np.testing.assert_allclose(mine, want, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("y", [1.0, -1.0])
def test_extreme_margins(name, y):
    z = np.array(EXTREME)
    kinks = z[z * y != 1.0] if "hinge" in name else z  # torch's and our subgradients at the kink are both 0
    kinks = kinks[kinks != 0] if name == "perceptron" else kinks
    assert name != "perceptron" or derivative(loss_of(name), 0.0, y) == -y
    assert name != "hinge" or derivative(loss_of(name), y, y) == 0.0
    want = np.array([torch_pair(name, item, y) for item in kinks])
    got = in_kernel(loss_of(name), kinks, np.full(len(kinks), y))
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-320)
    mine = [evaluate(loss_of(name), float(item), y) for item in kinks]
    np.testing.assert_allclose(mine, want, rtol=1e-12, atol=1e-320)


@pytest.mark.parametrize("y", [1.0, -1.0])
def test_logistic_tails_by_asymptotics(y):
    """-> exp(-m) on the right side and -> -m on the wrong one, where the textbook formula gives 0 or inf."""
    loss = loss_of("logistic")
    got = in_kernel(loss, np.array([50.0 * y, 700.0 * y, -700.0 * y, -1e300 * y]), np.full(4, y))
    tail = [math.exp(-50.0), math.exp(-700.0)]
    np.testing.assert_allclose(got[:, 0], [*tail, 700.0, 1e300], rtol=1e-14)
    np.testing.assert_allclose(got[:, 1] * -y, [*tail, 1.0, 1.0], rtol=1e-14)


@pytest.mark.parametrize("name, reference", [
    ("logistic", lambda z, y: -special.log_expit(y * z)),
    ("hinge", lambda z, y: hinge_loss(y, z)),
    ("huber", lambda z, y: special.huber(1.35, z - y)),
], ids=lambda item: item if isinstance(item, str) else "")
def test_agree_with_scipy_and_scikit_learn(name, reference):
    rng = np.random.default_rng(5)
    for _ in range(20):
        z, y = rng.normal(0, 3, 9), labels(name, rng.normal(0, 2, 9))
        mine = [value(loss_of(name), *pair) for pair in zip(z, y)]
        assert np.mean(mine) == pytest.approx(np.mean(reference(z, y)), rel=1e-12)


@pytest.mark.parametrize("delta", [0.1, 3.0])
def test_huber_delta(delta):
    z = np.linspace(-5, 5, 41)
    want = F.huber_loss(torch.tensor(z), torch.full((41,), 0.3, dtype=torch.float64), reduction="none", delta=delta)
    np.testing.assert_allclose(in_kernel(checked(Huber(delta)), z, np.full(41, 0.3))[:, 0], want, rtol=1e-13)
    with pytest.raises(HyperParameterError, match="delta"):
        checked(Huber(-delta))


@pytest.mark.parametrize("name", [name for name in SCALAR if hasattr(LOSSES[name], "degree")])
def test_losses_in_another_unit(name):
    """L(s z, s y), its lengths s times as long, is s^degree L(z, y)."""
    loss, s = loss_of(name), 7.0
    longer = loss._replace(**{field: s * getattr(loss, field) for field in getattr(loss, "lengths", ())})
    for z in (-3.0, 0.3, 0.55, 4.0):
        assert value(longer, s * z, s * 0.5) == pytest.approx(s**loss.degree * value(loss, z, 0.5), abs=1e-12)


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_non_finite_scores_show(name, bad, dtype):
    for y in (1.0, -1.0):
        got = in_kernel(loss_of(name), np.array([bad], dtype), np.array([y]))[0]
        assert not np.isfinite(got).any()
        assert not np.isfinite(evaluate(loss_of(name), bad, y)).any()


@pytest.mark.parametrize("name", SCALAR)
def test_float32_scores_are_evaluated_in_float64(name):
    z = np.linspace(-9, 9, 50).astype(np.float32)
    y = labels(name, np.cos(z)).astype(np.float32)
    got = in_kernel(loss_of(name), z, y)
    np.testing.assert_array_equal(got, in_kernel(loss_of(name), z.astype(float), y.astype(float)))


def softmax(scores, y, dtype=float):
    scores = np.atleast_2d(np.asarray(scores, dtype))
    gradient, out = np.full(scores.shape, 9.0, dtype), np.empty(len(scores))
    softmax_rows(SoftmaxCrossEntropy(), scores, np.atleast_1d(y), gradient, out)
    mine = np.full(scores.shape, 9.0, dtype)
    values = [evaluate(SoftmaxCrossEntropy(), *row) for row in zip(scores, np.atleast_1d(y), mine)]
    np.testing.assert_allclose(out, values, rtol=1e-14)
    np.testing.assert_allclose(gradient, mine, rtol=1e-14 if dtype is float else 1e-6)
    return out, gradient


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 7).flatmap(lambda K: st.lists(
    st.tuples(st.lists(st.floats(-200, 200), min_size=K, max_size=K), st.integers(0, K - 1)), min_size=1, max_size=5)))
def test_softmax_is_torchs(rows):
    scores, y = torch.tensor([r[0] for r in rows], dtype=torch.float64, requires_grad=True), [r[1] for r in rows]
    want = F.cross_entropy(scores, torch.tensor(y), reduction="none")
    want.sum().backward()
    got, gradient = softmax(scores.detach().numpy(), y)
    np.testing.assert_allclose(got, want.detach(), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(gradient, scores.grad, rtol=1e-12, atol=1e-15)


def test_softmax_is_exact_where_the_class_is_certain():
    """Two classes are the logistic loss: exp(-50) is lost in 1 - p, and with float32 gradients exp(-20) is."""
    for gap, dtype, rtol in ((50.0, float, 1e-14), (20.0, np.float32, 1e-7)):
        loss, gradient = softmax([1.0, 1.0 + gap], 1, dtype)
        assert loss[0] == pytest.approx(math.exp(-gap), rel=1e-8)
        np.testing.assert_allclose(gradient[0], [math.exp(-gap), -math.exp(-gap)], rtol=max(rtol, 1e-8))


@pytest.mark.parametrize("scale", [1e3, 1e300])
def test_softmax_of_extreme_scores(scale):
    loss, gradient = softmax([[scale, -scale, 0.0], [scale, scale, -scale]], [1, 1])
    np.testing.assert_allclose(loss, [2 * scale, math.log(2)], rtol=1e-15)
    np.testing.assert_array_equal(gradient, [[1, -1, 0], [0.5, -0.5, 0]])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_softmax_shows_non_finite_scores(bad, place):
    for y in range(3):
        scores = np.array([0.5, -2.0, 1.0])
        scores[place] = bad
        with np.errstate(invalid="ignore"):
            loss, gradient = softmax(scores, y)
        assert not np.isfinite(loss).any()
        assert not np.isfinite(gradient).any()


@pytest.mark.parametrize("name", LOSSES)
def test_registry_names_the_task(name):
    regression = name in ("squared", "huber", "epsilon-insensitive", "squared-epsilon-insensitive")
    assert LOSSES[name].task == ("regression" if regression else "classification")
    assert inspect.getdoc(LOSSES[name])


def test_other_hyper_parameters_compile_nothing():
    arrays = np.zeros(3), np.ones(3)
    in_kernel(checked(Huber()), *arrays)
    before = len(each.signatures)
    first, second = (in_kernel(checked(Huber(delta)), *arrays)[0, 0] for delta in (0.5, 2))
    assert (first, second) == (0.5 * 0.75, 0.5)
    assert len(each.signatures) == before
