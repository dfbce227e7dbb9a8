"""The α-β model against numbers worked out by hand, the choice on links that do not exist, and agreement of the ranks."""

import json

import pytest
from mpi import mpirun, ranks

from sparsecomm.exchange.alpha_beta import Link, Work, choose, predict

SLOW, FAST = Link(1e-3, 1e-7), Link(0.0, 0.0)  # 1 ms and 10 MB/s; nothing
WORK = Work(select=1e-9, encode=4e-9, decode=8e-9, add=0.2e-9, entry=3.0, message=2e-6)
PROGRAM = """
import json
from mpi4py import MPI
from sparsecomm.exchange import alpha_beta as link
from sparsecomm.config import Config
world, seconds = MPI.COMM_WORLD, link._seconds
said = [link.automatic(world, Config(), 300_000), link.automatic(world, Config(combine="local", average_every=9), 300_000)]
link._seconds = lambda *args: seconds(*args) + 0.01 * (1 + world.rank) # every rank measures something else
measured = link.measure(world) if world.size > 1 else (0, 0)
work = link.rehearse(world, Config(value_code="float16"), 20_000)
said.append(link.automatic(world, Config(exchange="auto", keep=0.001), 10_000_000))
every = world.gather([said, measured, work])
if world.rank == 0:
    print(json.dumps(every), flush=True)
"""


HEAD = 48e-7  # seconds of a message's header on the slow link
SAMPLES = 64 * 12e-7  # of a rank's samples and their counts


@pytest.mark.parametrize("ranks_, n, k, buckets, code, expected", [
    # dense: 2 rounds of 2 messages, 6 MB, 2.5 n additions; allgather: as many, 90 kB; balanced: 6 + 3 messages, 45 kB,
    # and at every 64th step 8 messages of samples and counts
    (4, 10**6, 10**4, 1, "float32", (0.604 + 0.5e-3, 0.013 + 3 * HEAD + 1.04e-3 + 0.32e-3 + 5e-6,
                                     0.0135 + 6 * HEAD + 1.05e-3 + 0.16e-3 + 11e-6 + (8e-3 + 3 * (HEAD + SAMPLES)) / 64)),
    # five ranks, 3 rounds, half the bytes a value, sent in parts: 2 buckets of 9 + 4 messages, 3.2 MB
    (5, 10**6, 10**4, 2, "bfloat16", (0.026 + 0.32 + 16 * HEAD + 0.52e-3 + 28e-6, 0.024 + 8 * HEAD + 1.04e-3 + 0.4e-3 + 12e-6,
                                      0.026 + 0.0048 + 16 * HEAD + 1.048e-3 + 0.16e-3 + 28e-6
                                      + 2 * (12e-3 + 4 * (HEAD + SAMPLES)) / 64)),
    (1, 1000, 10, 1, "float32", (0.2e-6, 1e-6 + 0.12e-6 + 2e-6, 1e-6 + 0.24e-6 + 2e-6))])
def test_predictions(ranks_, n, k, buckets, code, expected):
    seconds = predict(SLOW, WORK, ranks_, n, k, buckets, code)
    assert list(seconds) == ["dense", "allgather", "balanced"]
    assert list(seconds.values()) == pytest.approx(expected, rel=1e-9)


def test_a_slow_link_makes_sparse_worth_it_and_many_ranks_balanced():
    name, line = choose(SLOW, WORK, 4, 10**6, 10**4)
    assert name == "allgather" and "will not help" not in line
    assert "1e+03 us a message, 10 MB/s" in line and "dense 604 ms" in line and "balanced 14.9 ms" in line
    assert choose(SLOW, WORK, 32, 10**7, 10**5)[0] == "balanced"
    assert choose(SLOW, WORK, 32, 10**7, 10**5, among=("dense", "allgather"))[0] == "allgather"


def test_on_a_fast_link_compression_will_not_help():
    name, line = choose(FAST, WORK, 4, 10**6, 10**4)
    assert name == "dense" and line.startswith("exchange dense; compression will not help here (") and "no limit" in line
    name, line = choose(FAST, WORK, 4, 10**6, 10**4, among=("allgather", "balanced"))
    assert name == "balanced" and "compression will not help here" in line


def test_rounding_is_weighed_against_dense_float32():
    coded = WORK._replace(code=3e-9)
    name, line = choose(FAST, coded, 4, 10**6, 10**4, value_code="float16")
    assert name == "balanced" and line.startswith("exchange balanced; compression will not help here (")
    assert "dense 5.01 ms, allgather 1.37 ms, dense float32 0.5 ms" in line
    name, line = choose(SLOW, coded, 4, 10**6, 10**5, value_code="float16", among=("dense",))
    assert name == "dense" and "will not help" not in line


def test_selection_time_alone_can_decide():
    free, dear = WORK._replace(select=0.0), WORK._replace(select=1e-6)
    assert choose(SLOW, free, 2, 10**6, 10**4)[0] != "dense" and choose(SLOW, dear, 2, 10**6, 10**4)[0] == "dense"


@ranks
def test_all_ranks_measure_differently_and_choose_alike(n):
    ended = mpirun(n, "-c", PROGRAM)
    assert ended.code == 0, ended.err
    every = json.loads(ended.out)
    assert all(each == every[0] for each in every) and len(every) == n
    (plain, local, late), link, work = every[0]
    assert local[0] != "dense" and plain[1].startswith(f"exchange {plain[0]}")
    if n == 1:
        assert plain == ["dense", "exchange dense; compression will not help here (one rank, which exchanges nothing)"]
        assert local[0] == "allgather"
        return
    assert 0.01 * n <= link[0] < 0.01 * n + 1 and link[1] >= 0 and f"measured between {n} ranks" in late[1]
    work = Work(*work)
    assert work.select >= 0.01 * n / 20_000 and work.encode >= 0 and work.decode >= 0
    assert work.add > 0 and work.code > 0 and work.message > 0
    assert 2.5 < work.entry < 3.5  # float16, and a Rice code of 1%: 8.1 bits
