"""The α-β model against numbers worked out by hand, and on links that do not exist."""

import pytest

from sparsecomm.config import Config
from sparsecomm.exchange.alpha_beta import Link, Work, predict, rehearse

SLOW, FAST = Link(1e-3, 1e-7), Link(0.0, 0.0)  # 1 ms and 10 MB/s; nothing
WORK = Work(select=1e-9, encode=4e-9, decode=8e-9, add=0.2e-9, entry=3.0, message=2e-6)
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
    def fastest(*arguments):
        seconds = predict(*arguments)
        return min(seconds, key=seconds.get)
    assert fastest(SLOW, WORK, 4, 10**6, 10**4) == "allgather" and fastest(FAST, WORK, 4, 10**6, 10**4) == "dense"
    assert fastest(SLOW, WORK, 32, 10**7, 10**5) == "balanced"
    free, dear = WORK._replace(select=0.0), WORK._replace(select=1e-6)  # selection alone can decide
    assert fastest(SLOW, free, 2, 10**6, 10**4) != "dense" and fastest(SLOW, dear, 2, 10**6, 10**4) == "dense"


def test_what_a_rank_computes_is_measured():
    from mpi4py import MPI
    work = rehearse(MPI.COMM_SELF, Config(value_code="float16"), 200_000)
    assert min(work.select, work.encode, work.decode, work.add, work.code, work.message) >= 0 < work.select < 1e-6
    assert 2.5 < work.entry < 3.5  # float16, and a Rice code of 1%: 8.1 bits
