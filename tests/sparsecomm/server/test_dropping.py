"""Dropping on push and on pull, the filters between: what is sent and what stays add up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi import SUPPORT, mpirun

from hogwild.errors import UserError
from sparsecomm.compress.pipeline import Pipeline
from sparsecomm.compress.protocol import Bucket
from sparsecomm.config import Config
from sparsecomm.server.filters import KKT, RandomSkip
from sparsecomm.server.flat import Flat
from sparsecomm.server.push_exchange import PushExchange, demand_pushable
from sparsecomm.server.views import Views
from sparsecomm.wire.message import pack, unpack

CODES = "float32", "bfloat16", "float16", "int8", "1bit"
NAMES, SIZES = ("a", "b", "c"), (300, 1, 900)
N = sum(SIZES)
CONFIG = dict(exchange="allgather", threshold="exact")


def tensors(rng):
    return {name: (rng.standard_normal(n) * np.exp(rng.standard_normal(n))).astype(np.float32)
            for name, n in zip(NAMES, SIZES)}


class Servers:
    """As many servers as there are cuts, which add up what they are sent."""

    def __init__(self, cuts=(0, 500, N)):
        self.got, self.bad, self.cuts = np.zeros(N), 0, cuts

    def send(self, step, indices, values, index_code, value_code, bad):
        self.bad += bad
        total = 0
        for first, end in zip(self.cuts, self.cuts[1:]):
            part = slice(first, end) if indices is None else slice(*np.searchsorted(indices, (first, end)))
            local = None if indices is None else indices[part] - np.uint32(first)
            if bad and indices.size == 0:
                local = indices
            piece = values[part].copy()
            raw = pack(step, end - first, local, piece, index_code, value_code, bad)
            values[part] = piece
            message = unpack(raw, step, end - first, 0, dense=local is None)
            at = slice(None) if local is None else message.indices
            self.got[first:end][at] += message.values
            total += raw.size
        return total


def pipeline(servers, filters=(), **options):
    config = Config(**{**CONFIG, "keep": 0.1, **options})
    return Pipeline(Bucket(NAMES, tuple((n,) for n in SIZES), config), PushExchange(servers.send, config, 0, 3, filters))


def residual(pushing):
    state = pushing.state()
    return np.concatenate([state[f"{name}.residual"] for name in NAMES]).astype(np.float64)


@settings(deadline=None, max_examples=40)
@given(code=st.sampled_from(CODES), compressor=st.sampled_from(["threshold", "chunk-top-k:k=41", "none"]),
       skip=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 9))
def test_push_sent_plus_residual_is_gradient_plus_residual_before(code, compressor, skip, seed):
    servers, rng, skip = Servers(), np.random.default_rng(seed), skip * (compressor != "none")
    pushing = pipeline(servers, [RandomSkip(skip, seed, 1)] if skip else (), compressor=compressor, value_code=code)
    exact, given_ = code == "float32", np.zeros(N)
    for step in range(4):
        g = list(tensors(rng).values())
        given_ += np.concatenate(g)
        assert pushing.reduce(step, g) == 0
        pushing.commit()
        left = residual(pushing) if not (exact and compressor == "none") else 0
        np.testing.assert_allclose(servers.got + left, given_, rtol=1e-5, atol=1e-4)
        if step == 0 and code != "1bit":  # no addition has rounded yet
            np.testing.assert_array_equal((servers.got + left).astype(np.float32), np.concatenate(g))
    assert not exact or compressor != "none" or pushing.counts["kept"] == 4 * N
    if skip:
        filters = pushing.exchange.filters
        assert 0.4 < filters.held["random-skip"] / filters.seen["random-skip"] < 0.6


def test_a_gradient_that_is_not_finite_is_pushed_empty_and_undone():
    servers, rng = Servers(), np.random.default_rng(0)
    pushing = pipeline(servers, momentum=0.9)
    pushing.reduce(0, list(tensors(rng).values()))
    before, got = {name: x.copy() for name, x in pushing.state().items()}, servers.got.copy()
    g = list(tensors(rng).values())
    g[2][5] = np.nan
    assert pushing.reduce(1, g) == 1
    pushing.undo()
    assert servers.bad > 0 and np.array_equal(servers.got, got)
    assert all(np.array_equal(x, before[name]) for name, x in pushing.state().items())


@settings(deadline=None, max_examples=40)
@given(code=st.sampled_from(CODES), scope=st.sampled_from(["local", "global"]), share=st.sampled_from([0.0, 0.1]),
       seed=st.integers(0, 9))
def test_pull_view_equals_the_workers_copy_to_the_bit_and_with_the_residual_the_parameters(code, scope, share, seed):
    rng = np.random.default_rng(seed)
    now = tensors(rng)
    views = Views(now, Config(**CONFIG, keep=0.05, scope=scope, value_code=code), share)
    copies = {}
    for worker in (1, 4):
        views.whole(worker)
        copies[worker] = Flat({name: w.copy() for name, w in now.items()})
    for step in range(5):
        for w in now.values():
            w += rng.standard_normal(w.size).astype(np.float32)
        worker = (1, 4, 1, 1, 4)[step]
        before = {name: v.copy() for name, v in views.views[worker].tensors.items()}
        message = unpack(views.answer(worker, step), step, N, 0)
        copies[worker].add(message.indices, message.values)
        for name, w in now.items():
            view = views.state()[f"{name}.view.{worker}"]
            np.testing.assert_array_equal(view, copies[worker].tensors[name])
            untouched = view == before[name]  # what is not sent stays in the residual as it is
            np.testing.assert_array_equal((w - view)[untouched], (w - before[name])[untouched])
        if not share:
            assert 0.04 * N < message.indices.size < 0.06 * N + 3
            if code == "float32" and scope == "global":  # nothing that stays is larger than anything sent
                rest = np.concatenate([w - v for w, v in zip(now.values(), before.values())])
                sent = np.abs(rest[message.indices]).min()
                assert np.abs(np.delete(rest, message.indices)).max() <= sent
        else:  # what was held back was a small share of its value
            old = np.concatenate(list(before.values()))[message.indices]
            exact = np.concatenate(list(now.values()))[message.indices] - old
            assert (np.abs(exact) > share * np.abs(np.concatenate(list(now.values()))[message.indices])).all()
    other = Views(now, views.config)
    other.load(views.state())
    assert np.array_equal(other.answer(1, 7), views.answer(1, 7)) or share


def test_a_pull_of_everything_left_brings_the_copy_to_the_parameters():
    rng = np.random.default_rng(1)
    now = tensors(rng)
    views = Views(now, Config(**CONFIG, keep=0.3))
    views.whole(0)
    for w in now.values():
        w += 1
    for step in range(30):
        views.answer(0, step)
    for name, w in now.items():  # two roundings of w + 1 - w
        np.testing.assert_allclose(views.state()[f"{name}.view.0"], w, atol=1e-6)


def test_kkt_discards_what_a_proximal_step_would_undo():
    """SGD and a proximal step of L1, with the filter and without: the same parameters to the bit."""
    l1, lr = 0.8, np.float32(0.25)
    runs = []
    for share in (0.0, 1.0):
        now, rng = {name: np.zeros(n, np.float32) for name, n in zip(NAMES, SIZES)}, np.random.default_rng(2)
        flat, servers = Flat(now), Servers()
        kkt = KKT(share, {"a": l1, "c": l1}, flat)
        pushing, saved = pipeline(servers, [kkt], keep=1.0), []
        for step in range(5):
            servers.got[:] = 0
            pushing.reduce(step, list(tensors(rng).values()))
            for name, part in zip(NAMES, pushing.bucket.parts):
                w = now[name] - lr * servers.got[part].astype(np.float32)
                bound = lr * np.float32(l1 if name != "b" else 0)
                now[name][:] = np.sign(w) * np.maximum(np.abs(w) - bound, 0)
            saved.append(pushing.exchange.filters.held["kkt"])
        runs.append(np.concatenate(list(now.values())))
        assert not residual(pushing).any()  # what it holds back is discarded, not kept
        assert (saved[-1] > N) if share else not saved[-1]
    np.testing.assert_array_equal(*runs)
    assert np.count_nonzero(runs[0]) < 0.9 * N


def test_what_is_not_defined_is_refused_in_a_line():
    for options in (dict(compressor="sign"), dict(compressor="low-rank:rank=2"), dict(combine="local", average_every=9)):
        with pytest.raises(UserError, match="not defined for exchange server"):
            demand_pushable(Config(**CONFIG, **options))
    with pytest.raises(UserError, match="filters need"):
        demand_pushable(Config(**CONFIG, compressor="none"), True)


@pytest.mark.parametrize("n", [3, 5])
def test_dropping_both_ways_on_two_servers(n):
    ended = mpirun(n, SUPPORT / "server_dropping_ranks.py", timeout=120)
    assert ended.code == 0, ended.err
    assert ended.out.count("fine") == 4
