"""Sums over ranks: conservation, the same bits everywhere, words a rank, corrupt messages; see exchange_ranks.py."""

from pathlib import Path

import pytest
from mpi import mpirun, ranks

PROGRAM = Path(__file__).with_name("exchange_ranks.py")


@ranks
@pytest.mark.parametrize("checks", ["sparse", "words", "wire,dense,not_finite,resumed,buckets"])
def test_exchange(n, checks):
    ended = mpirun(n, PROGRAM, checks, timeout=300)
    assert ended.code == 0 and ended.out.endswith("passed\n"), ended.err[-6000:]


@pytest.mark.parametrize("name", ["allgather", "balanced", "dense"])
def test_a_corrupt_message_ends_the_job_with_the_name_of_its_sender(name):
    ended = mpirun(3, PROGRAM, "garbage", name, timeout=60)
    assert ended.code != 0 and ended.left == ()
    assert ended.out and all(line.startswith("step 0: rank 1 sent a message") for line in ended.out.splitlines()), ended
    assert "checksum" in ended.out
