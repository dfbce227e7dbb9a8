"""The torch optimizer on many ranks, against torch's own on one process; see torch_ranks.py."""

import subprocess
import sys

import pytest
from mpi import SUPPORT, mpirun

import sparsecomm
from sparsecomm.config import Config

# What runs on how many ranks, see torch_ranks.py.
RANKS = {1: "optimizer wrapped masters synchronize schedulers", 2: "script group around join wrapped masters synchronize",
         3: "optimizer script group around.buffers around.state_of_other_steps join wrapped masters synchronize"}

# As in docs/torch.md, in one piece.
SCRIPT = """
import torch
import sparsecomm

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
optimizer = sparsecomm.DistributedOptimizer(model.named_parameters(), "adam", 3e-3, config=sparsecomm.Config(keep=0.05))
torch.manual_seed(optimizer.synchronizer.rank)  # every rank has data of its own
for step in range(100):
    x = torch.randn(32, 64)
    loss = torch.nn.functional.cross_entropy(model(x), x[:, :10].argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
if optimizer.synchronizer.rank == 0:
    print(f"loss {loss.item():.3f}", optimizer.synchronizer.counts)
"""


@pytest.mark.parametrize("n", RANKS)
def test_on_ranks(n):
    ended = mpirun(n, SUPPORT / "torch_ranks.py", *RANKS[n].split(), timeout=600)
    assert ended.code == 0 and ended.out.endswith("passed\n") and not ended.left, ended.err[-6000:]


def test_a_rank_that_fails_while_others_exchange_ends_the_job():
    late = SCRIPT.replace("optimizer.step()", "1 / (step != 5 or optimizer.synchronizer.rank != 1); optimizer.step()")
    late = late.replace("keep=0.05", "exchange='allgather', bucket_mb=0.01")
    ended = mpirun(3, "-c", late, timeout=100)
    assert ended.code != 0 and "ZeroDivisionError" in ended.err and not ended.left


def test_the_package_loads_late():
    check = "import sys, sparsecomm; sparsecomm.Config; assert not {'torch', 'mpi4py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
    check = ("import sys, sparsecomm; sparsecomm.hook.gradient_dropping; sparsecomm.CatchUpOptimizer; "
             "assert 'mpi4py' not in sys.modules")
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)
    assert sparsecomm.Config is Config and sparsecomm.hook.__name__ == "sparsecomm.hook" and sparsecomm.__version__
    with pytest.raises(AttributeError, match="nothing"):
        sparsecomm.nothing  # noqa: B018
