"""The pipeline of one bucket, with an exchange that has one rank: laws and NumPy twins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomm.compress.memory import NoMemory, Residual, Velocity, memory
from sparsecomm.compress.pipeline import Pipeline
from sparsecomm.compress.protocol import Bucket
from sparsecomm.config import Config
from sparsecomm.exchange.sparse import EXCHANGES

CODES = "float32", "bfloat16", "float16", "int8", "1bit"
SIZES = (300, 1, 70, 900)
NAMES = "a", "b", "c", "d"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BOTH = pytest.mark.parametrize("device", [None, DEVICE], ids=["host", "device"])


class Alone:
    """A wire that ends where it starts; three times as many ranks where it says so, all of which send the same."""

    def __init__(self, size=1):
        self.rank, self.size = 0, size

    def numbers(self, row):
        return np.tile(np.asarray(row, np.int64), (self.size, 1))

    def gather(self, mine, most):
        assert len(mine) <= np.max(most)
        return [mine] * self.size

    def exchange(self, pieces, most):
        return pieces

    def traffic(self):
        return 7, 9

    def add(self, x):
        x *= self.size


def gradients(seed, sizes=SIZES):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(n) * np.exp(rng.standard_normal(n))).astype(np.float32) for n in sizes]


def bucket(sizes=SIZES, device=None, **options):
    config = Config(**{"keep": 0.1, "exchange": "allgather", **options})
    return Bucket(NAMES[:len(sizes)], tuple((n,) for n in sizes), config, 0, device)


def pipeline(size=1, device=None, sizes=SIZES, **options):
    of = bucket(sizes, device, **options)
    return Pipeline(of, EXCHANGES[of.config.exchange](Alone(size), of.config))


def kinds(reducer, kind):
    """The arrays of one kind, end to end."""
    return np.concatenate([reducer.state()[f"{name}.{kind}"] for name in reducer.bucket.names])


def residual(reducer):
    return kinds(reducer, "residual").astype(np.float64)


def total(reducer):
    return torch.as_tensor(reducer.total).cpu().numpy().astype(np.float64)


def test_each_configuration_has_its_memory():
    assert type(memory(bucket())) is Residual and type(memory(bucket(residual=False))) is NoMemory
    assert type(memory(bucket(), 0.0)) is NoMemory and type(memory(bucket(momentum=0.5))) is Velocity


@BOTH
def test_a_residual_that_decays(device):
    """What is left of a gradient after k steps in which nothing is sent is decay ** k of it."""
    kept, expected = memory(bucket(device=device), 0.5), np.zeros(sum(SIZES), np.float32)
    for step in range(4):
        given_now = gradients(step)
        compensated, bad = kept.compensate(_for(device, given_now))
        expected = np.float32(0.5) * expected + np.concatenate(given_now)
        assert bad == 0 and [g.shape for g in compensated.tensors] == [(n,) for n in SIZES]
        assert np.allclose(torch.as_tensor(compensated.flat).cpu(), expected, rtol=1e-6, atol=1e-6)


@given(st.integers(0, 2**32), st.floats(0, 0.99), st.booleans())
@settings(max_examples=20)
def test_velocity_is_a_running_sum_and_is_taken_back(seed, m, masking):
    kept, u = memory(bucket(momentum=max(m, 1e-9), masking=masking, residual=False)), np.zeros(sum(SIZES))
    for step in range(4):
        given_now = gradients([seed, step])
        added, bad = kept.compensate(given_now)
        added = added.tensors
        u = np.float32(m) * u + np.concatenate(given_now)
        assert bad == 0 and np.allclose(np.concatenate(added), u, rtol=1e-5, atol=1e-5)
        sent = np.flatnonzero(np.random.default_rng([seed, step]).random(u.size) < 0.2).astype(np.uint32)
        kept.sent(sent)
        u[sent] *= not masking
        assert np.allclose(kept.velocity, u, rtol=1e-5, atol=1e-5)
    spoilt = gradients([seed, 9])
    spoilt[0][4], spoilt[3][5] = np.nan, -np.inf
    before = kept.velocity.copy()
    assert kept.compensate(spoilt)[1] == 2 and np.isfinite(kept.velocity).all()
    kept.undo()
    assert np.array_equal(kept.velocity, before)


@BOTH
@pytest.mark.parametrize("value_code", CODES)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_sent_and_kept_is_all_there_was(device, value_code, scope):
    """Residual before + gradient = total + residual after: exactly but for the codes that round twice."""
    reducer = pipeline(device=device, value_code=value_code, scope=scope)
    before = np.zeros(sum(SIZES))
    for step in range(6):
        given_now = gradients(step)
        assert reducer.reduce(step, _for(device, given_now)) == 0
        reducer.commit()
        there_was = (before.astype(np.float32) + np.concatenate(given_now)).astype(np.float64)
        now = total(reducer) + residual(reducer)
        if value_code == "1bit":
            assert np.abs(now - there_was).max() <= 1e-6 * np.abs(there_was).max()
        else:
            assert np.array_equal(now, there_was)
        before = residual(reducer)
        zero = np.setdiff1d(np.arange(sum(SIZES)), reducer.touched)
        assert not total(reducer)[zero].any() and 0 < reducer.touched.size < 0.3 * sum(SIZES)
    assert reducer.counts["kept"] > 6 * len(SIZES) and reducer.counts["sent"] == 6 * 7


def _for(device, arrays):
    return arrays if device is None else [torch.from_numpy(x).to(DEVICE) for x in arrays]


@BOTH
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("options", [{}, {"momentum": 1e-4}, {"combine": "local", "average_every": 9}, {"residual": False},
                                     {"exchange": "dense"}])
def test_a_skipped_step_leaves_no_trace(device, options, late):
    """One of two equal runs also meets a gradient that is skipped; both go on alike. late: it was settled before."""
    one, other = (pipeline(device=device, threshold="exact", value_code="int8", **options) for _ in range(2))
    for step in range(4):
        if step == 2:
            spoilt = gradients(99)
            spoilt[0][7], spoilt[2][0], spoilt[3][:9] = (1e6, 1e6, 1e6) if late else (np.inf, np.nan, 1e30)
            assert (one.reduce(step, _for(device, spoilt)) == 0) == late
            if late:
                one.commit()
            one.undo()
        for reducer in one, other:
            assert reducer.reduce(step, _for(device, gradients(step))) == 0
            reducer.commit()
        assert np.array_equal(total(one), total(other))
        assert one.state().keys() == other.state().keys()
        for name in one.state():
            assert np.array_equal(one.state()[name], other.state()[name]), name


@BOTH
@pytest.mark.parametrize("options", [{"keep": 0.1}, {"keep": 0.1, "momentum": 0.5, "scope": "global"}, {"exchange": "dense"},
                                     {"combine": "local", "average_every": 9}])
def test_a_tensor_without_a_gradient_is_left_alone(device, options):
    """Nothing of it is sent, and what was not sent before stays."""
    reducer, k = pipeline(device=device, threshold="exact", value_code="float16", **options), sum(SIZES[:3])
    reducer.reduce(0, _for(device, gradients(0)))
    reducer.commit()
    before = {kind: kinds(reducer, kind) for kind in ("residual", "velocity") if f"a.{kind}" in reducer.state()}
    assert reducer.reduce(1, [*_for(device, gradients(1)[:3]), None]) == 0
    reducer.commit()
    assert total(reducer)[:k].any() and not total(reducer)[k:].any()
    for name, x in before.items():
        now = kinds(reducer, name)
        assert np.array_equal(now[k:], x[k:]) and not np.array_equal(now[:k], x[:k])
    assert before["residual"][k:].any()


@BOTH
@pytest.mark.parametrize("options", [{"momentum": 0.5}, {"exchange": "dense", "value_code": "int8"}])
def test_without_residual_nothing_is_carried_on(device, options):
    """Dense: each step as the first one. Momentum: what is sent is the largest of the velocity alone."""
    reducer, u = pipeline(device=device, residual=False, threshold="exact", masking=False, **options), 0.0
    for step in range(4):
        reducer.reduce(step, _for(device, gradients(step)))
        reducer.commit()
        fresh = pipeline(device=device, residual=False, threshold="exact", **{**options, "momentum": 0.0})
        u = np.concatenate(gradients(step)) + np.float32(options.get("momentum", 0.0)) * u
        fresh.reduce(step, _for(device, np.split(u.astype(np.float32), np.cumsum(SIZES)[:-1])))
        fresh.commit()
        assert np.allclose(total(reducer), total(fresh), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [
    {}, {"scope": "global"}, {"residual": False}, {"momentum": 0.5}, {"momentum": 0.5, "masking": False}, {"drop_warmup": 3},
    {"threshold": "histogram"}, {"combine": "local", "average_every": 9, "value_code": "bfloat16"}, {"keep": 1.0},
    {"value_code": "int8"}])
def test_on_a_device_the_same_is_selected(options):
    """The operations of torch against the kernels, where both find the same threshold."""
    options = {"threshold": "exact", **options}
    host, other = (pipeline(3, device, **options) for device in (None, DEVICE))
    for step in range(6):
        given_now = gradients(step)
        for device, reducer in (None, host), (DEVICE, other):
            reducer.reduce(step, _for(device, given_now))
            reducer.commit()
        assert host.touched is other.touched is None or np.array_equal(host.touched, other.touched)
        if options.get("momentum") or options.get("combine"):  # the kernels round a product and a sum at once
            assert np.allclose(total(host), total(other), rtol=1e-5, atol=1e-4)
        else:
            assert np.array_equal(total(host), total(other))
            assert all(np.array_equal(x, other.state()[name]) for name, x in host.state().items())
    assert host.counts == other.counts


def test_on_a_device_a_sample_keeps_about_the_share():
    sizes = (200_000, 100, 50_000)
    for scope in "local", "global":
        reducer = pipeline(device=DEVICE, sizes=sizes, keep=0.02, scope=scope)
        kept = []
        for step in range(12):
            before = reducer.counts["kept"]
            reducer.reduce(step, _for(DEVICE, gradients(step, sizes)))
            reducer.commit()
            kept.append((reducer.counts["kept"] - before) / sum(sizes))
        assert 0.018 < np.mean(kept) < 0.022 and len(set(kept)) > 6


def test_on_a_device_all_zeros_select_nothing():
    reducer = pipeline(device=DEVICE)
    assert reducer.reduce(0, [torch.zeros(n, device=DEVICE) for n in SIZES]) == 0
    reducer.commit()
    assert reducer.touched.size == 0 and not reducer.total.any()


@BOTH
def test_state_and_load(device):
    one, other = (pipeline(device=device, momentum=0.9) for _ in range(2))
    for step in range(3):
        one.reduce(step, _for(device, gradients(step)))
        one.commit()
    other.load({name: x.copy() for name, x in one.state().items()})
    for reducer in one, other:
        reducer.reduce(3, _for(device, gradients(3)))
        reducer.commit()
    assert np.array_equal(total(one), total(other)) and np.abs(total(one)).max() > 0
    for name, x in one.state().items():
        assert np.array_equal(x, other.state()[name])


@BOTH
def test_dense_sums_everything(device):
    reducer = pipeline(3, device, exchange="dense")
    for step in range(2):
        assert reducer.reduce(step, _for(device, gradients(step))) == 0
        reducer.commit()
        assert np.array_equal(total(reducer), np.float32(3) * np.concatenate(gradients(step)))
    spoilt = gradients(0)
    spoilt[1][0] = np.nan
    assert reducer.reduce(2, _for(device, spoilt)) > 0
    reducer.undo()
    assert reducer.state() == {} and reducer.touched is None
