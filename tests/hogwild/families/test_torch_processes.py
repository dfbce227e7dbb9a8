"""Torch models trained by spawned processes: nothing lost, a worker or the parent killed, scripts of one's own."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_toys as toys
from command import ROOT

import hogwild.torch
from hogwild.errors import UserError
from hogwild.families.torch_problem import TorchProblem
from hogwild.kernels.optim.rules import SGD, Adam
from hogwild.kernels.optim.schedules import Constant
from hogwild.training import checkpoint
from hogwild.training.loop import train
from hogwild.training.record import Report

COUNT = toys.Task(toys.counter, toys.ones, toys.count, batch=1)  # 800 batches
SUPPORT = ROOT / "tests" / "support"


def children(parent=None) -> set[int]:
    """Worker processes of `parent`, this process by default, without multiprocessing's resource tracker."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            owner = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if owner == (parent or os.getpid()) and b"spawn_main" in (path / "cmdline").read_bytes():
                found.add(int(path.name))
        except (OSError, IndexError):
            pass
    return found


def alive(pids):
    return {pid for pid in pids if Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text()}


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def shared_files() -> set:
    """Names of shared memory but those of MPI and browsers, which other tests start meanwhile."""
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return {name for name in names if not name.startswith(("mpich", ".org.chromium", "vader", "sm_segment"))}


def run(mode, workers=2, epochs=2, **options):
    task, on_failure = options.pop("task", COUNT), options.pop("on_failure", "stop")
    problem = TorchProblem(task, toys.settings(SGD(), mode=mode), workers, on_failure)
    return problem, train(problem, SGD(), Constant(1.0), epochs=epochs, workers=workers, **options)


def test_no_batch_is_lost_when_a_worker_is_killed_and_the_others_go_on(tmp_path, monkeypatch, capfd):
    """Each batch adds exactly 1, in mode atomic; the killed one's are done by the other."""
    monkeypatch.setenv("TOY_FOLDER", str(tmp_path))
    monkeypatch.setenv("TOY_SECONDS", "0.0005")
    before = shared_files()
    problem, history = run("atomic", task=COUNT._replace(loss=toys.count_and_die), on_failure="shrink")
    assert [(e.steps, e.examples) for e in history] == [(800, 800)] * 2 and problem.result().weight.item() == 1600
    assert problem.arena.arrays["updates"][0] == 1600 and [e.exchange for e in history] == [{"workers": 1}] * 2
    warning = capfd.readouterr().err
    assert re.search(r"warning: worker \d \(process \d+\) was killed by SIGKILL .*; the run goes on with 1 worker", warning)
    assert not children() and shared_files() == before and (tmp_path / "died").exists()


class Killer(Report):
    """Kills a worker when so many steps are done."""

    def __init__(self, after):
        super().__init__(quiet=True)
        self.after, self.killed = after, None

    def progress(self, done, *rest):
        if done > self.after and not self.killed:
            self.killed = time.monotonic()
            os.kill(min(children()), signal.SIGKILL)


def test_a_killed_or_failing_worker_ends_the_run_at_once(monkeypatch):
    monkeypatch.setenv("TOY_SECONDS", "0.01")
    report = Killer(20)
    with pytest.raises(UserError, match=r"worker \d \(process \d+\) was killed by SIGKILL"):
        run("locked", epochs=50, report=report)
    assert time.monotonic() - report.killed < 5 and not children()
    with pytest.raises(UserError, match=r"worker \d: ValueError: no such thing \(.*torch_toys.py, line \d+\)") as error:
        run("wild", 1, task=COUNT._replace(loss=toys.fail))
    assert "in fail\n" in str(error.value.__cause__) and not children()


SCRIPT = """
import os, sys
import hogwild.torch, torch_toys as toys
from hogwild.kernels.optim.rules import Adam
if __name__ == "__main__":
    model, history = hogwild.torch.train(toys.mlp, toys.data, toys.entropy, Adam(), 0.01, metrics=toys.accuracy, batch=50,
                                         workers=1, epochs=int(sys.argv[1]), checkpoint="c", checkpoint_seconds=0,
                                         resume=True, model=sys.argv[2], seed=3)
"""


def script(folder, text, *arguments):
    (folder / "script.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)])}
    return subprocess.Popen([sys.executable, "script.py", *map(str, arguments)], cwd=folder, text=True, env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_workers_end_with_a_killed_parent_whose_run_resumes(tmp_path):
    """To the bits of a run that was never killed."""
    process = script(tmp_path, SCRIPT, 4000, "lost")
    until(lambda: (tmp_path / "c").exists() or process.poll() is not None)
    workers = children(process.pid)
    assert len(workers) == 1
    process.kill()
    process.wait()
    until(lambda: not alive(workers), 5)
    state = checkpoint.load(tmp_path / "c")[1]
    epochs = state["epoch"] + 2
    resumed = script(tmp_path, SCRIPT, epochs, "resumed").communicate(timeout=100)[0]
    assert "resumed from c" in resumed and f"epoch {epochs}/{epochs}" in resumed
    mine = hogwild.load(tmp_path / "resumed")
    task, settings = toys.task(), toys.settings(Adam())
    with pytest.MonkeyPatch.context() as patch:
        threads = toys.in_process(patch)
        problem = TorchProblem(task, settings)
        train(problem, settings.rule, Constant(0.01), epochs=epochs, seed=3)
        torch.set_num_threads(threads)
    for name, x in problem.result().state_dict().items():
        assert torch.equal(mine[name], x)


UNGUARDED = """
import hogwild.torch, torch_toys as toys
hogwild.torch.train(toys.mlp, toys.data, toys.entropy, workers=1)
"""

A3C = """
import sys, torch, torch.multiprocessing as mp, torch_toys as toys
from torch import nn
from hogwild.torch import SharedAdam, SharedOptimizer

def work(shared, optimizer, counter, counts):
    torch.set_num_threads(1)
    model = toys.mlp()
    for step in range(40):
        model.load_state_dict(shared.state_dict())
        model.zero_grad()
        toys.entropy(model, toys.data()[0]).backward()
        for p, s in zip(model.parameters(), shared.parameters()):
            s._grad = p.grad
        optimizer.step()
        counter.weight._grad = torch.full((1, 1), -1.0)
        counts.step()

if __name__ == "__main__":
    mp.set_start_method(sys.argv[1])
    torch.manual_seed(0)
    shared, counter = toys.mlp(), toys.counter()
    shared.share_memory(), counter.share_memory()
    optimizer = SharedAdam(shared.parameters(), lr=0.02)
    optimizer.share_memory()
    counts = SharedOptimizer(counter.parameters(), "sgd", 1.0, mode="atomic")
    processes = [mp.Process(target=work, args=(shared, optimizer, counter, counts)) for _ in range(2)]
    [p.start() for p in processes], [p.join() for p in processes]
    updates = optimizer.state_dict()["shared"]["updates"].tolist()
    print(counter.weight.item(), updates, float(toys.entropy(shared, toys.data()[1])))
"""


def test_a3c_scripts_share_the_optimizer(tmp_path):
    out, error = script(tmp_path, A3C, "spawn").communicate(timeout=120)
    count, updates, loss = re.fullmatch(r"(\S+) (\[.*\]) (\S+)\n", out).groups() if out else pytest.fail(error)
    assert float(count) == 80 and updates == "[80, 80, 80, 80]" and float(loss) < 0.6


def test_a_script_without_a_guard_is_told_so(tmp_path):
    out, error = script(tmp_path, UNGUARDED).communicate(timeout=100)
    assert error.strip().endswith('put what it does under if __name__ == "__main__":') and error.count("Traceback") <= 1


def test_a_shared_optimizer_is_torchs_and_saves_its_state():
    x, y = toys.data()[0]
    for make, theirs in ((hogwild.torch.SharedAdam, torch.optim.Adam), (hogwild.torch.SharedRMSprop, torch.optim.RMSprop)):
        torch.manual_seed(0)
        mine, other = toys.mlp(), toys.mlp()
        other.load_state_dict(mine.state_dict())
        with pytest.raises(UserError, match="model.share_memory"):
            make(mine.parameters()).share_memory()
        mine.share_memory()
        options = {"lr": 0.01, "weight_decay": 0.1} | ({"momentum": 0.5} if theirs is torch.optim.RMSprop else {})
        pair = (mine, make(mine.parameters(), **options)), (other, theirs(other.parameters(), **options))
        for _ in range(5):
            for model, optimizer in pair:
                optimizer.zero_grad()
                toys.entropy(model, (x, y)).backward()
                optimizer.step()
        for a, b in zip(mine.parameters(), other.parameters()):
            np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-4, atol=1e-6)
        state, fresh = pair[0][1].state_dict(), make(mine.parameters(), **options | {"lr": 0.5})
        fresh.load_state_dict(state)
        assert fresh.param_groups[0]["lr"] == 0.01 and fresh.state_dict()["shared"].keys() == state["shared"].keys()
        assert all(torch.equal(fresh.state_dict()["shared"][name], x) for name, x in state["shared"].items())
