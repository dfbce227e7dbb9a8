"""Workers and servers over MPI: what each consistency promises with a slow worker; see server_ranks.py."""

import pytest
from mpi import SUPPORT, mpirun

FOREIGN = """
import numpy as np, sparsecomm
w = {"w": np.zeros(100, np.float32)}
if sparsecomm.is_server():
    sparsecomm.Server(w, "sgd", consistency="async").serve()
else:
    client = sparsecomm.Client(w)
    client.link.run += client.rank == 1
    client.push({"w": np.ones(100, np.float32)})
    client.flush()
    client.close()
"""


@pytest.mark.parametrize("n, servers", [(3, 1), (5, 2)])
def test_server(n, servers):
    ended = mpirun(n, SUPPORT / "server_ranks.py", servers, timeout=150)
    assert ended.code == 0 and ended.out == "passed\n", ended.err[-6000:]


def test_a_worker_of_another_run_ends_the_job_with_one_line(tmp_path):
    program = tmp_path / "foreign.py"
    program.write_text(FOREIGN)
    ended = mpirun(3, "-m", "sparsecomm.guard", program, bare=True, timeout=60)
    assert ended.code == 2 and ended.left == () and "Traceback" not in ended.err
    assert "rank 1 sent a request that cannot be used: needed a request of run" in ended.err, ended.err
