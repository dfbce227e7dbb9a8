"""What the tests of the exchange run on each rank: `python exchange_ranks.py CHECK,CHECK…`; see checks.py."""

import os
import sys
import time

import checks
import numpy as np
from mpi4py import MPI

from sparsecomm.config import Config
from sparsecomm.exchange.protocol import Payload
from sparsecomm.exchange.sparse import EXCHANGES
from sparsecomm.wire.message import HEADER
from sparsecomm.wire.mpi import Wire

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.rank, COMM.size
EXACT = "float32", "bfloat16", "float16"


def make(name, limit=2**31 - 1, **config):
    return EXCHANGES[name](COMM.Dup(), Config(exchange=name, **config), limit).bucket()


def on_all_ranks(check, strategy, examples):
    """Run check(**case) on all ranks for each case that hypothesis finds on rank 0, and shrink what fails on any."""
    def tried(case):
        try:
            check(**case)
        except AssertionError as error:
            return f"rank {RANK}: {error!r}"

    if RANK:
        while (case := COMM.bcast(None)) is not None:
            COMM.gather(tried(case))
        return
    from hypothesis import given, settings

    @settings(max_examples=examples, deadline=None, database=None)
    @given(strategy())
    def run(case):
        failed = [what for what in COMM.gather(tried(COMM.bcast(case))) if what]
        assert not failed, "; ".join(failed)

    run()
    COMM.bcast(None)


def selection(seed, n, share, kind, rank=RANK):
    """(indices, values) of a rank: about share * n of them, none on some ranks, or crowded, or far from each other."""
    rng = np.random.default_rng([seed, rank])
    k = int(round(share * n)) if kind != "some" or rng.random() < 0.5 else 0
    places = {"skew": lambda: (n * rng.random(k) ** 8).astype(np.int64), "end": lambda: n - 1 - np.arange(k),
              "apart": lambda: rank + SIZE * np.arange(k)}.get(kind, lambda: rng.choice(n, k, replace=False))()
    indices = np.unique(places[places < n]).astype(np.uint32)
    values = rng.standard_normal(indices.size) * 10.0 ** rng.integers(-4, 5, indices.size)
    return indices, values.astype(np.float32)


def dense(n, indices, values, dtype=np.float64):
    out = np.zeros(n, dtype)
    out[indices] = values
    return out


def assert_same_on_all_ranks(*arrays):
    texts = COMM.allgather(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
    assert all(text == texts[0] for text in texts), "the ranks differ"


def assert_ascending(indices, values, n):
    assert indices.dtype == np.uint32 and values.dtype == np.float32 and indices.size == values.size
    assert np.all(np.diff(indices.astype(np.int64)) > 0) and (not indices.size or indices[-1] < n)


def assert_law(n, inputs, total, back, code):
    """Input == total + what returned, over all ranks; exactly where one rank alone has a value and the code allows it."""
    given, returned = sum(inputs), COMM.allreduce(back)
    alone = sum(x != 0 for x in inputs) <= 1
    if code in EXACT:
        assert np.array_equal(given[alone], (total + returned)[alone]), "not exact"
    most = COMM.allreduce(max(np.abs(back).max(initial=0), np.abs(total).max(initial=0)), MPI.MAX)
    room = sum(np.abs(x) for x in inputs) + (most if code not in EXACT else 0)
    assert np.all(np.abs(given - total - returned) <= room * SIZE * 2.0**-22), "lost"


def sparse_case(name, index_code, value_code, n, share, kind, seed, limit, step):
    """One reduce of a fresh exchange, against the law, a NumPy twin and what the ranks say to each other."""
    exchange = make(name, limit, index_code=index_code, value_code=value_code)
    indices, values = selection(seed, n, share, kind)
    reduced = exchange.sum(step, n, Payload(indices.copy(), values.copy()), RANK)
    everyone = COMM.allgather((indices, values))
    assert_same_on_all_ranks(reduced.indices, reduced.values)
    assert_ascending(reduced.indices, reduced.values, n)
    unsent = reduced.unsent or Payload(indices[:0], values[:0])
    assert_ascending(*unsent[:2], n)
    assert reduced.bad == SIZE * (SIZE - 1) // 2
    assert COMM.allreduce(reduced.sent) == COMM.allreduce(reduced.received)
    assert (reduced.sent > 0) == (SIZE > 1)
    inputs = [dense(n, *pair) for pair in everyone]
    total = dense(n, reduced.indices, reduced.values)
    assert_law(n, inputs, total, dense(n, *unsent[:2]), value_code)
    union = np.unique(np.concatenate([pair[0] for pair in everyone]))
    sums = np.zeros(n, np.float32)
    for pair in everyone:
        sums[pair[0]] += pair[1]
    if name == "allgather":
        assert np.array_equal(reduced.indices, union)
    else:
        assert_largest(exchange.bounds, everyone, union, reduced, sums if value_code == "float32" else None)
    if value_code == "float32":
        assert np.array_equal(reduced.values, sums[reduced.indices]), "not the sums in rank order"


def assert_largest(bounds, everyone, union, reduced, sums):
    """Each range keeps its share, and of the exact sums the largest."""
    assert bounds[0] == 0 and len(bounds) == SIZE + 1 and np.all(np.diff(bounds) >= 0)
    for low, high in zip(bounds, bounds[1:]):
        sent = sum(np.count_nonzero((pair[0] >= low) & (pair[0] < high)) for pair in everyone)
        own, kept = (x[(x >= low) & (x < high)] for x in (union, reduced.indices))
        assert kept.size == min(own.size, -(-sent // SIZE)) and np.isin(kept, own).all()
        if sums is not None and kept.size < own.size:
            assert np.abs(sums[np.setdiff1d(own, kept)]).max() <= np.abs(sums[kept]).min()


def check_sparse():
    def cases():
        from hypothesis import strategies as st
        return st.fixed_dictionaries(dict(
            name=st.sampled_from(["allgather", "balanced"]), index_code=st.sampled_from(["auto", "raw", "bitmap", "rice"]),
            value_code=st.sampled_from([*EXACT, "int8", "1bit"]), n=st.integers(1, 8) | st.integers(1, 40000),
            share=st.floats(0, 1) | st.floats(0, 0.02), kind=st.sampled_from(["even", "skew", "end", "apart", "some"]),
            seed=st.integers(0, 2**32), limit=st.sampled_from([2**31 - 1, 4096, 61]), step=st.integers(0, 2**40)))
    on_all_ranks(sparse_case, cases, 100)


def check_dense():
    for value_code in (*EXACT, "int8", "1bit"):
        for n in (1, 2, 3, 7, 1000, 33333):
            exchange = make("dense" if n % 2 else "balanced", 4000, value_code=value_code)
            gradients = [np.random.default_rng([n, r]).standard_normal(n).astype(np.float32) for r in range(SIZE)]
            reduced = exchange.sum(3, 9, Payload(None, gradients[RANK].copy()))
            assert reduced.indices is None and reduced.bad == 0
            assert_same_on_all_ranks(reduced.values)
            back = np.zeros(n) if value_code == "float32" else reduced.unsent.values.astype(np.float64)
            assert_law(n, [g.astype(np.float64) for g in gradients], reduced.values.astype(np.float64), back, value_code)
            assert COMM.allreduce(reduced.sent) == COMM.allreduce(reduced.received)
            if value_code == "float32":  # in a ring each part goes from rank to rank, first to be added up, then to all
                ring = sum(4 * part.size * 2 * (SIZE - 1) for part in np.array_split(np.arange(n), SIZE))
                assert 0 <= ring - COMM.allreduce(reduced.sent) < SIZE
            if value_code == "bfloat16" and n == 33333:
                assert reduced.sent < 0.51 * 2 * 4 * n * (SIZE - 1) / SIZE + 1000


def check_dense_twin():
    """A dense exchange sums payloads with indices, too: the sums of the others, and the law where codes round."""
    for value_code in (*EXACT, "int8"):
        n, pairs = 5000, [selection(3, 5000, 0.05, "even", rank) for rank in range(SIZE)]
        sparse, whole = (make(name, value_code=value_code).sum(3, n, Payload(*(x.copy() for x in pairs[RANK])))
                         for name in ("allgather", "dense"))
        if value_code == "float32":
            assert np.allclose(dense(n, *sparse[:2]), dense(n, *whole[:2]), rtol=1e-6) and whole.unsent is None
        else:
            inputs = [dense(n, *pair) for pair in pairs]
            assert_law(n, inputs, dense(n, *whole[:2]), whole.unsent.values.astype(np.float64), value_code)


def check_not_finite():
    """Non-finite gradients, and finite ones whose sum overflows, are counted alike on all ranks and leave nothing behind."""
    for value_code in (*EXACT, "int8", "1bit"):
        exchange = make("dense", value_code=value_code)
        gradient = np.ones(100, np.float32)
        gradient[7 + RANK] = np.nan if RANK == 0 else np.inf if RANK == 1 else 1
        reduced = exchange.sum(0, 100, Payload(None, gradient))
        assert reduced.bad >= min(SIZE, 2) and COMM.allreduce(reduced.bad, MPI.MAX) == reduced.bad
        assert value_code == "float32" or np.isfinite(reduced.unsent.values).all()
    for name in "allgather", "balanced":
        for value_code in "float32", "bfloat16":
            exchange = make(name, value_code=value_code)
            indices = np.array([3, 50, 90], np.uint32)
            reduced = exchange.sum(0, 100, Payload(indices, np.array([3.3e38, 1, 2], np.float32)))
            assert (reduced.bad > 0) == (SIZE > 1) and COMM.allreduce(reduced.bad, MPI.MAX) == reduced.bad
            assert reduced.unsent is None or np.isfinite(reduced.unsent.values).all()


def check_words():
    """At most 6 k (P - 1) / P words a rank, headers aside, however the indices lie; with equal ranges it would be more.

    Agreeing on ranges, at steps 0 and 64, is one more message, whose content is among these words.
    """
    n, k = 200_000, 4000
    for kind in "even", "power 4", "power 40", "narrow", "own part":
        exchange = make("balanced", index_code="raw")
        for step in 0, 2, 63, 64, 66, 127:
            rng = np.random.default_rng([step, RANK])
            u = rng.random(5 * k)
            if kind.startswith("power"):
                u **= int(kind.split()[1])
            elif kind == "narrow":
                u = 0.7 + u * 0.1
            elif kind == "own part":
                u = (RANK + u) / SIZE
            indices = np.sort(rng.permutation(np.unique((n * u).astype(np.uint32)))[:k])
            values = rng.standard_normal(indices.size).astype(np.float32)
            moved = exchange.sum(step, n, Payload(indices, values.copy()))[-2:]
            most = 4 * 6 * k * (SIZE - 1) / SIZE + (2 + (step % 64 == 0)) * (SIZE - 1) * (8 + HEADER.size)
            assert max(moved) <= most, (kind, step, moved, most)
            largest = np.diff(np.searchsorted(indices, exchange.bounds)).max()
            assert kind == "own part" or SIZE * largest < 1.3 * indices.size, (kind, step, largest)
        equal = make("balanced", index_code="raw")
        equal.bounds = np.arange(SIZE + 1) * n // SIZE
        received = COMM.allreduce(equal.sum(1, n, Payload(indices, values.copy())).received, MPI.MAX)
        assert kind != "narrow" or SIZE < 4 or received > most


def check_resumed():
    """The ranges are state: with them an exchange goes on to the same bits; those of another number of ranks are dropped."""
    def run(exchange, steps):
        for step in steps:
            reduced = exchange.sum(step, 5000, Payload(*selection(step, 5000, 0.02, "skew" if step < 5 else "even")))
        return reduced
    whole, first, second, other = (make("balanced") for _ in range(4))
    expected = run(whole, range(7))
    run(first, range(5))
    second.load({name: array.copy() for name, array in first.state().items()})
    got = run(second, range(5, 7))
    assert np.array_equal(got.indices, expected.indices) and np.array_equal(got.values, expected.values)
    fresh = run(other, range(5, 7))
    assert SIZE == 1 or not np.array_equal(fresh.indices, expected.indices), "the ranges make no difference here"
    other.load({"bounds": np.arange(SIZE + 4)})
    assert other.bounds is None
    assert make("allgather").state() == {} and make("dense").state() == {}


def check_buckets():
    """Buckets of one exchange keep ranges of their own."""
    exchange = EXCHANGES["balanced"](COMM.Dup(), Config(exchange="balanced"))
    a, b = exchange.bucket(), exchange.bucket()
    a.sum(1, 100, Payload(*selection(0, 100, 0.2, "even")))
    b.sum(1, 3000, Payload(*selection(1, 3000, 0.2, "even")))
    assert a.bounds[-1] == 100 and b.bounds[-1] == 3000 and exchange.bounds is None
    assert set(exchange.seconds) == {"encode", "exchange", "decode"} and min(exchange.seconds.values()) > 0


class Bounded:
    """A communicator none of whose calls may move more than `limit` bytes."""

    def __init__(self, limit):
        self.limit, self.calls = limit, 0

    def __getattr__(self, name):
        def call(*args):
            for part in args:
                if isinstance(part, list) and name in ("Bcast", "Isend", "Irecv", "Allgatherv"):
                    assert part[0].size <= self.limit, (name, part[0].size)
                    self.calls += 1
            return getattr(COMM, name)(*args)
        return call


def check_wire():
    """Bytes of any length arrive, in calls of a bounded size."""
    for limit in 1, 7, 1000, 10**6:
        for seed in range(20):
            sizes = np.random.default_rng(seed).integers(0, 40, (SIZE, SIZE)) * (seed % 4)
            text = [[bytes([(seed + 7 * a + b) % 256]) * int(sizes[a, b]) for b in range(SIZE)] for a in range(SIZE)]
            as_array = lambda part: np.frombuffer(part, np.uint8)  # noqa: E731
            comm = Bounded(limit)
            wire = Wire(comm, limit)
            assert [part.tobytes() for part in wire.gather(as_array(text[RANK][0]), 999)] == [row[0] for row in text]
            lengths = 8 * (SIZE - 1)
            assert wire.traffic() == (lengths + sizes[RANK, 0] * (SIZE - 1), lengths + sizes[:, 0].sum() - sizes[RANK, 0])
            came = wire.exchange([as_array(part) for part in text[RANK]], [999] * SIZE)
            assert [part.tobytes() for part in came] == [row[RANK] for row in text]
            own = lengths - sizes[RANK, RANK]
            assert wire.traffic() == (own + sizes[RANK].sum(), own + sizes[:, RANK].sum())
            assert limit > 1 or SIZE == 1 or comm.calls >= sizes.sum() / SIZE
    assert Wire(COMM).numbers([RANK, -1]).tolist() == [[r, -1] for r in range(SIZE)]


def check_garbage():
    """Rank 1 flips one bit of what it sends; whoever receives it says so and ends the job."""
    from sparsecomm.wire.message import MessageError
    name = sys.argv[2]
    exchange = make(name, value_code="bfloat16" if name == "dense" else "float32")
    if RANK == 1:
        packed = exchange._pack

        def flipped(*args):
            raw = packed(*args)
            raw[raw.size // 2] ^= 4
            return raw
        exchange._pack = flipped
    try:
        ones = Payload(None, np.ones(1000, np.float32))
        exchange.sum(0, 1000, ones if name == "dense" else Payload(*selection(0, 1000, 0.1, "even")))
    except MessageError as error:
        print(error, flush=True)
        time.sleep(0.5)  # MPICH's mpiexec loses what is still on its way when a rank aborts
        COMM.Abort(2)
        os._exit(2)  # MPICH's Abort may return where several ranks call it
    COMM.Barrier()  # who received nothing from rank 1 goes on until the job ends


if __name__ == "__main__":
    checks.run(globals(), checks.mpi(COMM), RANK, sys.argv[1].split(","))
