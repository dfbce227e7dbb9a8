"""Parameters that many ranks keep equal: torch's steps, conservation, closed forms, resuming; see synchronizer_ranks.py."""


import pytest
from mpi import SUPPORT, mpirun

PROGRAM = SUPPORT / "synchronizer_ranks.py"


@pytest.mark.parametrize("n", [1, 3])
def test_synchronizer(n):
    ended = mpirun(n, PROGRAM, timeout=600)  # all checks in one run: to start a rank takes longer than most of them
    assert ended.code == 0 and ended.out.endswith("passed\n") and not ended.left, ended.err[-6000:]


def test_catching_up():
    """Among another number of ranks; the checks are among those above, too."""
    ended = mpirun(2, PROGRAM, "caught_up", "caught_up_around_gaps", "caught_up_on_other_ranks", timeout=300)
    assert ended.code == 0 and ended.out.endswith("passed\n") and not ended.left, ended.err[-6000:]
