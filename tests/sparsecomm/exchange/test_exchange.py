"""Sums over ranks: conservation, the same bits everywhere, words a rank, corrupt messages; see exchange_ranks.py."""


import numpy as np
import pytest
from mpi import SUPPORT, mpirun, ranks

from sparsecomm.exchange.sparse import counted, divided, sampled
from sparsecomm.wire.message import HEADER, unpack_all

PROGRAM = SUPPORT / "exchange_ranks.py"


@ranks
def test_exchange(n):
    ended = mpirun(n, PROGRAM, "wire,dense,dense_twin,not_finite,resumed,buckets,words,sparse", timeout=300)
    assert ended.code == 0 and ended.out.endswith("passed\n"), ended.err[-6000:]


@pytest.mark.parametrize("name", ["allgather", "balanced", "dense"])
def test_a_corrupt_message_ends_the_job_with_the_name_of_its_sender(name):
    ended = mpirun(3, PROGRAM, "garbage", name, timeout=60)
    assert ended.code != 0 and ended.left == ()
    assert ended.out and all(line.startswith("step 0: rank 1 sent a message") for line in ended.out.splitlines()), ended
    assert "checksum" in ended.out


def sent(kind, rank, size, n, k):
    """About k indices below n of a rank."""
    u = np.random.default_rng([0 if kind == "alike" else rank, size]).random(k)
    u = {"power": u**20, "narrow": 0.7 + u / 50, "own part": (rank + u) / size}.get(kind, u)
    return np.unique((n * u).astype(np.uint32))


@pytest.mark.parametrize("size, k", [(2, 4096), (3, 4096), (16, 4096), (256, 4096), (512, 16384)])
@pytest.mark.parametrize("kind", ["even", "alike", "power", "narrow", "own part"])
def test_agreeing_on_ranges_is_within_the_bound_at_every_number_of_ranks(kind, size, k):
    """The step in which P ranks agree, worked out: no rank receives more than 6 k (P - 1) / P words, headers aside."""
    n = 10**7
    given = [sent(kind, rank, size, n, k) for rank in range(size)]
    k = max(map(len, given))
    raws = [sampled(0, n, indices, rank, size) for rank, indices in enumerate(given)]
    edges = np.unique(unpack_all(raws, 0, [n] * size)[0].indices)
    bounds = divided(edges, np.sum([counted(indices, edges, n) for indices in given], 0), n, size)
    assert bounds[0] == 0 and bounds[-1] == n and len(bounds) == size + 1 and np.all(np.diff(bounds) >= 0)
    agreeing = sum((raw.size - HEADER.size) / 4 for raw in raws[1:]) + 2 * (len(edges) + 1) * (size - 1) / size
    counts = np.array([np.diff(np.searchsorted(indices, bounds)) for indices in given])  # of each rank, in each range
    own, passed = counts.sum(0) - counts.diagonal(), -(-counts.sum(0) // size)
    received = 2 * own + 2 * (passed.sum() - passed) + agreeing
    assert received.max() <= 6 * k * (size - 1) / size, (received.max() / k, agreeing / k)
    assert agreeing <= 200 * size and counts.sum(0).max() <= 1.15 * k


def test_ranges_where_nothing_or_little_is_sent():
    for k, size in (0, 5), (1, 5), (3, 2):
        given = [np.arange(k, dtype=np.uint32) for _ in range(size)]
        raws = [sampled(0, 100, indices, rank, size) for rank, indices in enumerate(given)]
        edges = np.unique(unpack_all(raws, 0, [100] * size)[0].indices)
        bounds = divided(edges, sum(counted(indices, edges, 100) for indices in given), 100, size)
        assert bounds[0] == 0 and bounds[-1] == 100 and len(bounds) == size + 1 and np.all(np.diff(bounds) >= 0)
        assert k or bounds.tolist() == [0, 20, 40, 60, 80, 100]
