"""What a rank remembers, and the reducers around it, with an exchange that has one rank: laws and NumPy twins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsecomm.compress.device import DeviceDense, DeviceSparse
from sparsecomm.compress.reducer import Dense, Sparse
from sparsecomm.compress.residual import Nothing, Residual, Velocity, memory
from sparsecomm.config import Config
from sparsecomm.exchange.sparse import EXCHANGES

CODES = "float32", "bfloat16", "float16", "int8", "1bit"
SIZES = (300, 1, 70, 900)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


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

    def taken(self):
        return 7, 9

    def add(self, x):
        x *= self.size


def gradients(seed, sizes=SIZES):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(n) * np.exp(rng.standard_normal(n))).astype(np.float32) for n in sizes]


def sparse(size=1, kind=Sparse, sizes=SIZES, **options):
    config = Config(**{"keep": 0.1, "exchange": "allgather", **options})
    exchange = EXCHANGES[config.exchange](Alone(size), config)
    if exchange.dense:
        return Dense(sizes, exchange, config) if kind is Sparse else DeviceDense(sizes, exchange, config, DEVICE)
    return kind(sizes, exchange, config) if kind is Sparse else kind(sizes, exchange, config, DEVICE)


def residual(reducer):
    return reducer.state()["residual"].astype(np.float64)


def total(reducer):
    return torch.as_tensor(reducer.total).cpu().numpy().astype(np.float64)


def test_each_configuration_has_its_memory():
    assert type(memory((3,), Config())) is Residual and type(memory((3,), Config(residual=False))) is Nothing
    assert type(memory((3,), Config(momentum=0.5))) is Velocity


def test_parts_are_views_of_one_array():
    kept = Residual((2, 0, 3))
    kept.residual[:] = range(5)
    assert [part.tolist() for part in kept.residuals] == [[0, 1], [], [2, 3, 4]]
    kept.residuals[2][0] = 9
    assert kept.residual[2] == 9 and kept.residual.ctypes.data % 64 == 0


@given(st.integers(0, 2**32), st.floats(0, 0.99), st.booleans())
@settings(max_examples=20)
def test_velocity_is_a_running_sum_and_is_taken_back(seed, m, masking):
    kept, u = Velocity(Residual(SIZES), m, masking), np.zeros(sum(SIZES))
    for step in range(4):
        given_now = gradients([seed, step])
        added, bad = kept.compensate(given_now)
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


@pytest.mark.parametrize("kind", [Sparse, DeviceSparse])
@pytest.mark.parametrize("value_code", CODES)
@pytest.mark.parametrize("scope", ["local", "global"])
def test_sent_and_kept_is_all_there_was(kind, value_code, scope):
    """Residual before + gradient = total + residual after: exactly but for the codes that round twice."""
    reducer = sparse(kind=kind, value_code=value_code, scope=scope)
    before = np.zeros(sum(SIZES))
    for step in range(6):
        given_now = gradients(step)
        assert reducer.reduce(step, _for(kind, given_now)) == 0
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


def _for(kind, arrays):
    return [torch.from_numpy(x).to(DEVICE) for x in arrays] if kind is DeviceSparse else arrays


@pytest.mark.parametrize("kind", [Sparse, DeviceSparse])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("options", [{}, {"momentum": 1e-4}, {"combine": "local", "average_every": 9}, {"residual": False},
                                     {"exchange": "dense"}])
def test_a_skipped_step_leaves_no_trace(kind, options, late):
    """One of two equal runs also meets a gradient that is skipped; both go on alike. late: it was settled before."""
    one, other = (sparse(kind=kind, threshold="exact", value_code="int8", **options) for _ in range(2))
    for step in range(4):
        if step == 2:
            spoilt = gradients(99)
            spoilt[0][7], spoilt[2][0], spoilt[3][:9] = (1e6, 1e6, 1e6) if late else (np.inf, np.nan, 1e30)
            assert (one.reduce(step, _for(kind, spoilt)) == 0) == late
            if late:
                one.commit()
            one.undo()
        for reducer in one, other:
            assert reducer.reduce(step, _for(kind, gradients(step))) == 0
            reducer.commit()
        assert np.array_equal(total(one), total(other))
        for name in {"residual", "velocity"} & one.state().keys():
            assert np.array_equal(one.state()[name], other.state()[name]), name


@pytest.mark.parametrize("kind", [Sparse, DeviceSparse])
@pytest.mark.parametrize("options", [{"keep": 0.1}, {"keep": 0.1, "momentum": 0.5, "scope": "global"}, {"exchange": "dense"},
                                     {"combine": "local", "average_every": 9}])
def test_a_tensor_without_a_gradient_is_left_alone(kind, options):
    """Nothing of it is sent, and what was not sent before stays."""
    reducer, k = sparse(kind=kind, threshold="exact", value_code="float16", **options), sum(SIZES[:3])
    reducer.reduce(0, _for(kind, gradients(0)))
    reducer.commit()
    before = {name: x.copy() for name, x in reducer.state().items() if name in ("residual", "velocity")}
    assert reducer.reduce(1, [*_for(kind, gradients(1)[:3]), None]) == 0
    reducer.commit()
    assert total(reducer)[:k].any() and not total(reducer)[k:].any()
    for name, x in before.items():
        assert np.array_equal(reducer.state()[name][k:], x[k:]) and not np.array_equal(reducer.state()[name][:k], x[:k])
    assert before["residual"][k:].any()


@pytest.mark.parametrize("kind", [Sparse, DeviceSparse])
@pytest.mark.parametrize("options", [{"momentum": 0.5}, {"exchange": "dense", "value_code": "int8"}])
def test_without_residual_nothing_is_carried_on(kind, options):
    """Dense: each step as the first one. Momentum: what is sent is the largest of the velocity alone."""
    reducer, u = sparse(kind=kind, residual=False, threshold="exact", masking=False, **options), 0.0
    for step in range(4):
        reducer.reduce(step, _for(kind, gradients(step)))
        reducer.commit()
        fresh = sparse(kind=kind, residual=False, threshold="exact", **{**options, "momentum": 0.0})
        u = np.concatenate(gradients(step)) + np.float32(options.get("momentum", 0.0)) * u
        fresh.reduce(step, _for(kind, np.split(u.astype(np.float32), np.cumsum(SIZES)[:-1])))
        fresh.commit()
        assert np.allclose(total(reducer), total(fresh), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [
    {}, {"scope": "global"}, {"residual": False}, {"momentum": 0.5}, {"momentum": 0.5, "masking": False}, {"warmup": 3},
    {"threshold": "histogram"}, {"combine": "local", "average_every": 9, "value_code": "bfloat16"}, {"keep": 1.0},
    {"value_code": "int8"}])
def test_on_a_device_the_same_is_selected(options):
    """The operations of torch against the kernels, where both find the same threshold."""
    options = {"threshold": "exact", **options}
    host, device = (sparse(3, kind, **options) for kind in (Sparse, DeviceSparse))
    for step in range(6):
        given_now = gradients(step)
        for kind, reducer in (Sparse, host), (DeviceSparse, device):
            reducer.reduce(step, _for(kind, given_now))
            reducer.commit()
        assert host.touched is device.touched is None or np.array_equal(host.touched, device.touched)
        if options.get("momentum") or options.get("combine"):  # the kernels round a product and a sum at once
            assert np.allclose(total(host), total(device), rtol=1e-5, atol=1e-4)
        else:
            assert np.array_equal(total(host), total(device)) and np.array_equal(residual(host), residual(device))
    assert host.counts == device.counts


def test_on_a_device_a_sample_keeps_about_the_share():
    sizes = (200_000, 100, 50_000)
    for scope in "local", "global":
        reducer = sparse(kind=DeviceSparse, sizes=sizes, keep=0.02, scope=scope)
        kept = []
        for step in range(12):
            before = reducer.counts["kept"]
            reducer.reduce(step, _for(DeviceSparse, gradients(step, sizes)))
            reducer.commit()
            kept.append((reducer.counts["kept"] - before) / sum(sizes))
        assert 0.018 < np.mean(kept) < 0.022 and len(set(kept)) > 6


def test_on_a_device_all_zeros_select_nothing():
    reducer = sparse(kind=DeviceSparse)
    assert reducer.reduce(0, [torch.zeros(n, device=DEVICE) for n in SIZES]) == 0
    reducer.commit()
    assert reducer.touched.size == 0 and not reducer.total.any()


@pytest.mark.parametrize("kind", [Sparse, DeviceSparse])
def test_state_and_load(kind):
    one, other = (sparse(kind=kind, momentum=0.9) for _ in range(2))
    for step in range(3):
        one.reduce(step, _for(kind, gradients(step)))
        one.commit()
    other.load({name: x.copy() for name, x in one.state().items()})
    for reducer in one, other:
        reducer.reduce(3, _for(kind, gradients(3)))
        reducer.commit()
    assert np.array_equal(total(one), total(other)) and np.abs(total(one)).max() > 0
    for name, x in one.state().items():
        assert np.array_equal(x, other.state()[name])


def test_dense_sums_everything():
    config = Config(exchange="dense")
    for reducer in Dense(SIZES, EXCHANGES["dense"](Alone(3), config), config), \
            DeviceDense(SIZES, EXCHANGES["dense"](Alone(3), config), config, DEVICE):
        kind = DeviceSparse if isinstance(reducer, DeviceDense) else Sparse
        for step in range(2):
            assert reducer.reduce(step, _for(kind, gradients(step))) == 0
            reducer.commit()
            assert np.array_equal(total(reducer), np.float32(3) * np.concatenate(gradients(step)))
        spoilt = gradients(0)
        spoilt[1][0] = np.nan
        assert reducer.reduce(2, _for(kind, spoilt)) > 0
        reducer.undo()
        assert reducer.state() == {} and reducer.touched is None
