"""A shard without MPI: what requests do to it, in any order, repeated, damaged, and of others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hogwild.errors import UserError
from hogwild.kernels.optim.rules import SGD, Adam, Momentum
from hogwild.kernels.optim.schedules import Constant
from sparsecomm.exchange.protocol import Payload
from sparsecomm.server import requests as r
from sparsecomm.server.options import ServerOptions
from sparsecomm.server.ranges import Layout
from sparsecomm.server.shard import Shard

RUN, N = 7, 130


def started(workers=3, rule=None, lr=1.0, values=None, **options):
    shard = Shard(Layout({"a": 100, "b": 30}, 1), 0, workers, RUN, rule or SGD(), Constant(lr), ServerOptions(**options))
    values = np.zeros(N, np.float32) if values is None else values
    send(shard, 0, r.START, 1, r.pack_values(Payload(None, values.copy()), N, "float32"))
    return shard


def send(shard, worker, kind, sequence, body=r.NOTHING, **fields):
    return shard.receive(worker, r.packed(r.Request(kind, worker, RUN, sequence, **fields), body))


def push(shard, worker, sequence, clock, values, indices=None):
    indices = None if indices is None else np.array(indices, np.uint32)
    body = r.pack_values(Payload(indices, np.array(values, np.float32)), N, "float32")
    return send(shard, worker, r.PUSH, sequence, body, clock=clock)


def test_a_repeated_push_is_acknowledged_and_applied_once():
    shard = started(consistency="async")
    for sequence in (2, 2, 3, 3, 2):
        (to, raw), = push(shard, 1, sequence, sequence - 2, np.ones(N))
        assert to == 1 and r.unpacked(raw, RUN, 3)[0].sequence == sequence
    assert (shard.values == -2).all() and (shard.pushes, shard.repeated, shard.clocks) == (2, 3, [0, 2, 0])


def test_bsp_has_the_same_bits_in_any_order_of_arrival():
    g = np.random.default_rng(1).normal(size=(4, 3, N)).astype(np.float32)
    seen = set()
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        shard = started(rule=Momentum(), lr=0.1)
        for t in range(4):
            for worker in order:
                assert shard.replica.t == t
                push(shard, worker, t + 2, t, g[t, worker])
        seen.add(shard.values.tobytes())
    assert len(seen) == 1 and shard.replica.t == 4


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([("bsp", 0), ("ssp", 0), ("ssp", 1), ("ssp", 3)]), st.lists(st.integers(0, 2), max_size=60))
def test_no_worker_is_further_ahead_than_the_bound_and_no_push_is_lost(kind, turns):
    """Each turn a worker goes as far as it can: it pulls, or pushes if it has been answered."""
    consistency, bound = kind
    shard = started(consistency=consistency, staleness=bound)
    waits, answered, sequences, done = [False] * 3, [False] * 3, [1] * 3, [0] * 3
    for worker in [*turns, *[0, 1, 2] * 100]:
        sequences[worker] += 1
        if answered[worker]:
            replies, answered[worker] = push(shard, worker, sequences[worker], done[worker], np.ones(N)), False
            done[worker] += 1
            assert max(done) - min(done) <= bound + 1  # while the slowest still computes the push that the others have made
        elif not waits[worker] and done[worker] < 20:
            waits[worker] = True
            replies = send(shard, worker, r.PULL, sequences[worker], clock=done[worker])
        else:
            replies = []
        for to, raw in replies:
            request, _ = r.unpacked(raw, RUN, 3)
            if request.kind == r.VALUES:
                waits[to], answered[to] = False, True
                assert done[to] - min(done) <= bound
    assert done == [20] * 3 and shard.pushes == 60 and shard.ahead <= bound
    assert (shard.values == (-60 if bound else -20)).all() and sum(shard.staleness.values()) == 60


def test_who_leaves_is_waited_for_no_more():
    shard = started()
    push(shard, 0, 2, 0, np.ones(N))
    push(shard, 2, 2, 0, np.full(N, 3))
    assert send(shard, 0, r.PULL, 3, clock=1) == [] and shard.replica.t == 0
    replies = send(shard, 1, r.BYE, 1)
    assert [to for to, _ in replies] == [1, 0] and (shard.values == -2).all()


def test_every_damage_and_every_stranger_is_refused_with_its_rank():
    shard = started(consistency="async")
    whole = r.packed(r.Request(r.PUSH, 2, RUN, 2), r.pack_values(Payload(None, np.ones(N, np.float32)), N, "float32"))
    for at in [*range(140), whole.size - 1]:
        bad = whole.copy()
        bad[at] ^= 4
        with pytest.raises(UserError, match="rank 2 sent a"):
            shard.receive(2, bad)
    for bad in (whole[:50], whole[:-1], np.append(whole, whole[:1]), whole[:0]):
        with pytest.raises(UserError, match="rank 2 sent a"):
            shard.receive(2, bad)
    with pytest.raises(UserError, match="rank 2 .* of run 0000000000000007, got one of run 0000000000000008"):
        shard.receive(2, r.packed(r.Request(r.PUSH, 2, RUN + 1, 2)))
    with pytest.raises(UserError, match="rank 1 sent .* got PUSH of worker 2"):
        shard.receive(1, whole)
    with pytest.raises(UserError, match=f"rank 0 .* needed dimension {N}, got 5"):
        send(shard, 0, r.PUSH, 2, r.pack_values(Payload(None, np.ones(5, np.float32)), 5, "float32"))
    with pytest.raises(UserError, match="rank 0 .* needed push 0 on version 0"):
        push(shard, 0, 2, 5, np.ones(N))
    assert not shard.values.any() and shard.pushes == 0
    shard.receive(2, whole)
    assert (shard.values == -1).all()


def test_lists_of_keys_are_named_by_their_checksum():
    shard = started(values=np.arange(N, dtype=np.float32), consistency="async")
    keys = np.array([3, 70, 129], np.uint32)
    named = {"keys": r.checksum_of(keys), "count": 3}
    (_, raw), = send(shard, 1, r.PULL, 1, **named)
    assert r.unpacked(raw, RUN, 3)[0].kind == r.UNKNOWN
    for body in (r.pack_keys(keys, N), r.NOTHING):
        (_, raw), = send(shard, 1, r.PULL, 2, body, **named)
        request, body = r.unpacked(raw, RUN, 3)
        assert request.kind == r.VALUES and r.unpack_body(body, 3, 3).values.tolist() == [3, 70, 129]
    send(shard, 1, r.PUSH, 3, r.pack_values(Payload(None, np.full(3, 2, np.float32)), 3, "float32"), **named)
    assert shard.values[keys].tolist() == [1, 68, 127] and shard.values.sum() == sum(range(N)) - 6
    with pytest.raises(UserError, match=f"rank 1 .* needed dimension {N}, got 200"):
        send(shard, 1, r.PULL, 4, r.pack_keys(np.array([199], np.uint32), 200), keys=5, count=1)


def soft(w, by):
    return np.sign(w) * np.maximum(np.abs(w) - by, 0)


@pytest.mark.parametrize("sparse", [False, True])
def test_l1_is_the_proximal_step_also_of_elements_that_no_push_touches(sparse):
    rng, lr, l1 = np.random.default_rng(2), 0.25, 0.125
    start = (rng.integers(-40, 40, N) / 16).astype(np.float32)
    shard, w = started(1, lr=lr, values=start, consistency="async", l1={"a": l1}), start.astype(np.float64)
    penalized = np.arange(N) < 100
    for t in range(9):
        at = np.sort(rng.choice(N, 20, replace=False)) if sparse else np.arange(N)
        g = rng.integers(-8, 8, at.size) / 8
        push(shard, 0, t + 2, t, g, at if sparse else None)
        w[at] -= lr * g
        # An element that is not touched for k steps shrinks by k at once, as it does one by one.
        w[penalized] = soft(w, lr * l1)[penalized]
    (_, raw), = send(shard, 0, r.PULL, 20)
    got = r.unpack_body(r.unpacked(raw, RUN, 1)[1], N, 1).values
    assert np.array_equal(got, w) and (w == 0).any()  # numbers that float32 has exactly


@pytest.mark.parametrize("options", [{"consistency": "async"}, {}, {"consistency": "ssp", "staleness": 2, "l1": 0.01}])
def test_a_loaded_state_goes_on_with_the_same_bits(options):
    g = np.random.default_rng(3).normal(size=(6, 3, N)).astype(np.float32)

    def go_on(shard, turns):
        for t, worker in turns:
            push(shard, worker, t + 2, t, *((g[t, worker],) if t % 2 else (g[t, worker, worker::3], np.arange(worker, N, 3))))
        return shard

    turns = [(t, worker) for t in range(6) for worker in range(3)]
    one = go_on(started(rule=Adam(), lr=0.1, **options), turns[:10])
    two = started(rule=Adam(), lr=0.1, **options)
    two.load({name: x.copy() for name, x in one.state().items()})
    for shard in one, two:
        go_on(shard, turns[10:])
        send(shard, 1, r.PULL, 50)
    assert np.array_equal(one.values, two.values) and one.values.any()
    assert one.state().keys() == two.state().keys() and two.clocks == [6] * 3
    assert all(np.array_equal(x, two.state()[name]) for name, x in one.state().items())


def test_a_step_of_a_gradient_that_is_not_finite_is_not_made():
    shard = started(2)
    push(shard, 0, 2, 0, np.ones(N))
    body = r.pack_values(Payload(None, np.ones(N, np.float32)), N, "float32", bad=1)
    send(shard, 1, r.PUSH, 2, body)
    assert not shard.values.any() and (shard.skipped, shard.replica.t, shard.clocks) == (1, 0, [1, 1])


@pytest.mark.parametrize("options, word", [({"staleness": -1, "consistency": "ssp"}, "staleness"), ({"staleness": 2}, "bsp"),
                                           ({"consistency": "eventual"}, "eventual"), ({"l1": -1.0}, "l1")])
def test_options_that_cannot_be(options, word):
    with pytest.raises(UserError, match=word):
        ServerOptions(**options)
