"""The communication hook under torchrun, over gloo; see gloo_ranks.py."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest
from mpi import QUIET, ROOT, SUPPORT

# As in docs/torch.md, in one piece.
EXAMPLE = """
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from sparsecomm import Config
from sparsecomm.hook import GradientDropping, gradient_dropping

dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))
state = GradientDropping(model.named_parameters(), Config(keep=0.05))
ddp = DistributedDataParallel(model)
ddp.register_comm_hook(state, gradient_dropping)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
torch.manual_seed(dist.get_rank())  # every rank has data of its own
for step in range(100):
    x = torch.randn(32, 64)
    loss = torch.nn.functional.cross_entropy(ddp(x), x[:, :10].argmax(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
if dist.get_rank() == 0:
    print(f"loss {loss.item():.3f}", state.counts)
dist.destroy_process_group()
"""


def torchrun(n, *program, timeout=300):
    """(exit code, standard output, standard error) of `program` in n processes, on the loopback interface only."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node",
               str(n), *map(str, program)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = os.environ | QUIET | {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # on which torchrun ends what it has started
            process.wait(60)
            code = None
        text = [(stream.seek(0), stream.read().decode(errors="replace"))[1] for stream in (out, err)]
    if code is None:
        pytest.fail(f"no end after {timeout} s: {' '.join(command)}\n{text[0][-4000:]}\n{text[1][-4000:]}")
    return code, *text


@pytest.mark.parametrize("n, modules", [(1, "hook"), (3, "ddp hook")])
def test_on_processes(n, modules):
    code, out, err = torchrun(n, SUPPORT / "gloo_ranks.py", *modules.split(), timeout=600)  # to start takes the longest
    assert code == 0 and out.endswith("passed\n"), out + err[-6000:]


def test_a_process_that_fails_ends_the_job(tmp_path):
    program = tmp_path / "example.py"
    program.write_text(EXAMPLE.replace("loss.backward()", "1 / (step != 5 or dist.get_rank() != 1); loss.backward()"))
    code, out, err = torchrun(2, program, timeout=120)
    assert code != 0 and "ZeroDivisionError" in err and "loss" not in out
