"""The helper that starts ranks: what it passes, what it returns, and that it ends what does not end."""

import time

import pytest
from mpi import mpirun, ranks, started

pytestmark = pytest.mark.waits
HELLO = """
import os
from mpi4py import MPI
print(MPI.COMM_WORLD.allreduce(1), os.environ["OMP_NUM_THREADS"], flush=True)
"""


@ranks
def test_every_rank_runs_with_one_thread(n):
    ended = mpirun(n, "-c", HELLO)
    assert ended.code == 0, ended.err
    assert ended.out.split() == [str(n), "1"] * n and ended.left == ()


def test_arguments_environment_and_failure_come_through(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import os, sys; print(sys.argv[1], os.environ['X']); sys.exit(3)")
    ended = mpirun(1, program, 5, env={"X": "y"})
    assert ended.code == 3 and ended.out == "5 y\n"


def test_an_exception_on_one_rank_ends_the_others():
    ended = mpirun(3, "-c", "from mpi4py import MPI; w = MPI.COMM_WORLD; 1 / (w.rank != 1); w.Barrier()", timeout=30)
    assert ended.code != 0 and "ZeroDivisionError" in ended.err and ended.left == ()


def test_a_run_that_hangs_is_killed_with_all_its_ranks():
    seen = {}

    def look(processes):
        while sum("time.sleep" in line and "-n" not in line.split() for line in processes().values()) < 2:
            time.sleep(0.02)
        seen.update(processes())
    began = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match="no end after 2 s"):
        mpirun(2, "-c", "import time; time.sleep(60)", timeout=2, during=look)
    assert len(seen) >= 3 and time.monotonic() - began < 20
    assert not [pid for pid in seen if pid in started("")]
