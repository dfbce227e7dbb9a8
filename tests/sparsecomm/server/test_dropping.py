"""Dropping on push and on pull, the filters between: what is sent and what stays add up, without MPI."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hogwild.errors import UserError
from sparsecomm.compress.pipeline import Pipeline
from sparsecomm.compress.protocol import Bucket
from sparsecomm.config import Config
from sparsecomm.exchange.protocol import Payload
from sparsecomm.server.changes import Changes
from sparsecomm.server.filters import KKT, RandomSkip, Significant
from sparsecomm.server.push_exchange import PushExchange, demand_pushable
from sparsecomm.wire.message import pack, unpack

CODES = "float32", "bfloat16", "float16", "int8", "1bit"
NAMES, SIZES = ("a", "b", "c"), (300, 1, 900)
N = sum(SIZES)
CONFIG = dict(exchange="allgather", threshold="exact")


def tensors(rng):
    return {name: (rng.standard_normal(n) * np.exp(rng.standard_normal(n))).astype(np.float32)
            for name, n in zip(NAMES, SIZES)}


PARTS = {name: slice(end - n, end) for name, n, end in zip(NAMES, SIZES, np.cumsum(SIZES).tolist())}


def flat(tensors):
    return np.concatenate(list(tensors.values()))


class Client:
    """A client of two servers, which add up what they get."""

    rank, workers, sent_bytes = 0, 3, 0

    def __init__(self):
        self.got, self.bad = np.zeros(N), 0

    def push(self, payload):
        if not np.isfinite(payload.values).all():
            self.bad += 1
            return None
        lost = payload.values.copy()
        for first, end in (0, 500), (500, N):
            whole = payload.indices is None
            part = slice(first, end) if whole else slice(*np.searchsorted(payload.indices, (first, end)))
            local, piece = None if whole else payload.indices[part] - np.uint32(first), lost[part].copy()
            raw = pack(0, end - first, local, piece, payload.index_code, payload.value_code)
            lost[part] = piece
            message = unpack(raw, 0, end - first, 0, dense=whole)
            self.got[first:end][slice(None) if whole else message.indices] += message.values
            self.sent_bytes += raw.size
        return None if payload.value_code == "float32" else Payload(payload.indices, lost)


def pipeline(client, filters=(), current=None, **options):
    current = current or dict(zip(NAMES, np.split(np.zeros(N, np.float32), np.cumsum(SIZES)[:-1])))
    config = Config(**{**CONFIG, "keep": 0.1, **options})
    return Pipeline(Bucket(NAMES, tuple((n,) for n in SIZES), config), PushExchange(client, config, filters, current))


def residual(pushing):
    state = pushing.state()
    return np.concatenate([state[f"{name}.residual"] for name in NAMES]).astype(np.float64)


@settings(deadline=None, max_examples=40)
@given(code=st.sampled_from(CODES), compressor=st.sampled_from(["threshold", "chunk-top-k:k=41", "none"]),
       skip=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 9))
def test_push_sent_plus_residual_is_gradient_plus_residual_before(code, compressor, skip, seed):
    client, rng, skip = Client(), np.random.default_rng(seed), skip * (compressor != "none")
    pushing = pipeline(client, [RandomSkip(skip, seed, 1)] if skip else (), compressor=compressor, value_code=code)
    exact, given_ = code == "float32", np.zeros(N)
    for step in range(4):
        g = list(tensors(rng).values())
        given_ += np.concatenate(g)
        assert pushing.reduce(step, g) == 0
        pushing.commit()
        left = residual(pushing) if not (exact and compressor == "none") else 0
        np.testing.assert_allclose(client.got + left, given_, rtol=1e-5, atol=1e-4)
        if step == 0 and code != "1bit":  # no addition has rounded yet
            np.testing.assert_array_equal((client.got + left).astype(np.float32), np.concatenate(g))
    assert not exact or compressor != "none" or pushing.counts["kept"] == 4 * N
    if skip:
        filters = pushing.exchange.filters
        assert 0.4 < filters.held["random-skip"] / filters.seen["random-skip"] < 0.6


def test_a_gradient_that_is_not_finite_is_pushed_empty_and_undone():
    client, rng = Client(), np.random.default_rng(0)
    pushing = pipeline(client, momentum=0.9)
    pushing.reduce(0, list(tensors(rng).values()))
    before, got = {name: x.copy() for name, x in pushing.state().items()}, client.got.copy()
    g = list(tensors(rng).values())
    g[2][5] = np.nan
    assert pushing.reduce(1, g) == 1
    pushing.undo()
    assert client.bad > 0 and np.array_equal(client.got, got)
    assert all(np.array_equal(x, before[name]) for name, x in pushing.state().items())


@settings(deadline=None, max_examples=40)
@given(code=st.sampled_from(CODES), scope=st.sampled_from(["local", "global"]), share=st.sampled_from([0.0, 0.1]),
       seed=st.integers(0, 9))
def test_pull_view_equals_the_workers_copy_to_the_bit_and_with_the_residual_the_parameters(code, scope, share, seed):
    rng, now = np.random.default_rng(seed), flat(tensors(np.random.default_rng(seed)))
    views = Changes(PARTS, Config(**CONFIG, keep=0.05, scope=scope, value_code=code), [Significant(share)] if share else ())
    copies = {}
    for worker in (1, 4, 1, 1, 4, 1):
        now += rng.standard_normal(N).astype(np.float32)
        before = views.views[worker].copy() if worker in copies else None
        payload, n, changes = views.answer(worker, now, None)
        assert n == N and changes == (worker in copies)
        raw = pack(0, n, payload.indices, payload.values, payload.index_code or "auto", payload.value_code)
        message = unpack(raw, 0, n, 0, dense=not changes)
        views.sent(worker, None, message, changes)
        if not changes:
            copies[worker] = message.values.copy()
            np.testing.assert_array_equal(copies[worker], now)
            continue
        copies[worker][message.indices] += message.values
        view, rest = views.state()[f"view.{worker}"], now - before
        np.testing.assert_array_equal(view, copies[worker])
        kept = np.delete(np.arange(N), message.indices)  # what is not sent stays in the residual as it is
        np.testing.assert_array_equal((now - view)[kept], rest[kept])
        if share:
            assert (np.abs(rest[message.indices]) > share * np.abs(before[message.indices])).all()
            continue
        assert 0.04 * N < message.indices.size < 0.06 * N + 3
        if code == "float32":
            np.testing.assert_allclose((now - view)[message.indices], 0, atol=1e-5)
        if scope == "global":  # nothing that stays is larger than anything sent
            assert np.abs(rest[kept]).max() <= np.abs(rest[message.indices]).min()
    other = Changes(PARTS, views.config, views.filters.filters)
    other.load({name: x.copy() for name, x in views.state().items()})
    for each, again in zip(views.answer(1, now + 1)[0][:2], other.answer(1, now + 1)[0][:2]):
        np.testing.assert_array_equal(each, again)
    rows, n, changes = views.answer(1, now, np.array([3, 7], np.uint32))
    assert n == 2 and not changes and rows.indices is None and np.array_equal(rows.values, now[[3, 7]])
    assert not views.answer(1, now, whole=True)[2]


def test_kkt_discards_what_a_proximal_step_would_undo():
    """SGD and a proximal step of L1, with the filter and without: the same parameters to the bit."""
    l1, lr, runs = {"a": 0.8, "c": 0.8}, np.float32(0.25), []
    for share in (0.0, 1.0):
        now, rng = {name: np.zeros(n, np.float32) for name, n in zip(NAMES, SIZES)}, np.random.default_rng(2)
        client = Client()
        pushing = pipeline(client, [KKT(share, dict(zip(NAMES, SIZES)), l1)], now, keep=1.0)
        for step in range(5):
            client.got[:] = 0
            pushing.reduce(step, list(tensors(rng).values()))
            for name, part in PARTS.items():
                w = now[name] - lr * client.got[part].astype(np.float32)
                now[name][:] = np.sign(w) * np.maximum(np.abs(w) - lr * np.float32(l1.get(name, 0)), 0)
        runs.append(flat(now))
        assert not residual(pushing).any()  # what it holds back is discarded, not kept
        assert (pushing.exchange.filters.held["kkt"] > N) if share else not pushing.exchange.filters.held["kkt"]
    np.testing.assert_array_equal(*runs)
    assert 0.1 * N < np.count_nonzero(runs[0]) < 0.9 * N


def test_what_is_not_defined_is_refused_in_a_line():
    for options in (dict(compressor="sign"), dict(compressor="low-rank:rank=2"), dict(combine="local", average_every=9)):
        with pytest.raises(UserError, match="not defined for exchange server"):
            demand_pushable(Config(**CONFIG, **options))
    with pytest.raises(UserError, match="filters need"):
        demand_pushable(Config(**CONFIG, compressor="none"), True)
