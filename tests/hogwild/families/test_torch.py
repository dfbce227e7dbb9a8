"""Torch models in shared memory, by one worker in this process: against torch's own optimizers."""

import copy
import random

import numpy as np
import pytest
import torch
import torch_toys as toys
from command import fails, own_cache, run  # noqa: F401
from torch import nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler, random_split

import hogwild
import hogwild.torch
from hogwild.errors import UserError
from hogwild.families import torch_data, torch_worker
from hogwild.families.torch_problem import TorchProblem
from hogwild.kernels.optim.rules import SGD, AdaGrad, Adam, Apollo
from hogwild.kernels.optim.schedules import Constant
from hogwild.kernels.optim.steps import Clip, Decay
from hogwild.training.loop import train


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    threads = toys.in_process(monkeypatch)
    yield
    torch.set_num_threads(threads)


def trained(task, rule=None, lr=0.01, epochs=2, **options):
    """(problem, its epochs)."""
    problem = TorchProblem(task, toys.settings(rule or SGD(), **options))
    return problem, train(problem, rule or SGD(), Constant(lr), epochs=epochs, seed=3)


def twin(task, optimizer, epochs=2, clip=None, seed=3):
    """The model after torch's own loop over the same batches in the same order."""
    model, (source, _) = torch_worker.made_model(task, seed), torch_data.sources(task.make_data(), task.batch)
    optimizer = optimizer(model)
    for epoch in range(epochs):
        order, numbers = torch_worker.shuffled(seed, epoch, source.examples), np.arange(source.batches)
        np.random.default_rng((seed, epoch + 1)).shuffle(numbers)
        for batch in torch_data.Batches(source).of([source.rows(order, number) for number in numbers]):
            model.zero_grad()
            task.loss(model, batch).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    return model


def close(problem, model, atol=1e-6):
    mine, want = problem.result().state_dict(), model.state_dict()
    assert list(mine) == list(want)
    for name, x in want.items():
        np.testing.assert_allclose(mine[name].numpy(), x.numpy(), rtol=1e-4, atol=atol, err_msg=name)


def test_one_worker_is_torchs_adam():
    """With decay and clipping by the norm of all tensors; and the epochs' losses and metrics are what they say."""
    task = toys.task()
    decay, clip = Decay(l2=0.01), Clip(norm=0.5)
    problem, history = trained(task, Adam(), epochs=3, decay=decay, clip=clip)
    model = twin(task, lambda model: torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.01), 3, clip=0.5)
    test = toys.data()[1]
    with torch.no_grad():
        assert history[-1].metrics["accuracy"] == pytest.approx(float(toys.accuracy(model, test)["accuracy"]), abs=0.011)
        assert history[-1].metrics["loss"] == pytest.approx(float(toys.entropy(model, test)), rel=1e-3)
    assert [(e.steps, e.examples) for e in history] == [(10, 500)] * 3 and history[0].loss > history[2].loss
    close(problem, model)


@pytest.mark.parametrize(("view", "mode"), [("shared", "locked"), ("copy", "atomic")])
def test_tied_frozen_empty_and_unused_parameters_and_buffers(view, mode):
    task = toys.Task(toys.Odd, lambda: toys.examples(), toys.entropy, batch=64)
    task = task._replace(make_data=toys.examples)
    problem, _ = trained(task, Adam(), view=view, mode=mode)
    model = twin(task, lambda model: torch.optim.Adam(model.parameters(), 0.01))
    close(problem, model)
    mine = problem.model
    assert mine.second.weight is mine.first.weight and mine.seen == 2 * toys.ROWS and mine.norm.num_batches_tracked == 20
    assert torch.equal(mine.unused, torch.ones(4)) and problem.arena.arrays["updates"].max() == 20
    assert mine.norm.running_mean.abs().max() > 0


def test_sparse_gradients_are_torchs_sparse_adam():
    """And Adam on the rest, with an eps too small to matter, which SparseAdam adds elsewhere; AdaGrad's sparse steps too."""
    task = toys.Task(toys.Bag, toys.texts, toys.entropy, batch=50)

    class Both:
        def __init__(self, model):
            self.parts = (torch.optim.SparseAdam(model.words.parameters(), 0.01, eps=1e-14),
                          torch.optim.Adam(model.out.parameters(), 0.01, eps=1e-14))

        def step(self):
            for part in self.parts:
                part.step()
    close(trained(task, Adam(eps=1e-14))[0], twin(task, Both))
    problem, _ = trained(task, AdaGrad(), mode="locked")
    close(problem, twin(task, lambda model: torch.optim.Adagrad(model.parameters(), 0.01)))
    with pytest.raises(UserError, match="gradient of words.weight is sparse, and Apollo needs whole tensors"):
        trained(task, Apollo())


class Items(Dataset):
    """Examples one by one."""

    def __init__(self):
        self.x, self.y = toys.examples()

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def loader(workers=0):
    return DataLoader(Items(), batch_size=70, num_workers=workers, shuffle=True, drop_last=True)


def loader_with_workers():
    return loader(2)


def test_data_sets_and_loaders_give_what_tensors_give():
    """An item at a time, from the processes of a DataLoader, and from tensors that are shared."""
    base = toys.Task(toys.mlp, toys.examples, toys.entropy, batch=70)
    want = [e.loss for e in trained(base)[1]]
    assert [e.loss for e in trained(base._replace(make_data=Items))[1]] == want
    short = [trained(base._replace(make_data=make, batch=1))[1] for make in (loader, loader_with_workers)]
    assert [(e.steps, e.examples) for e in short[0]] == [(8, 560)] * 2
    assert [e.loss for e in short[0]] == [e.loss for e in short[1]] != want


@pytest.mark.parametrize(("made", "told"), [
    ([], "got 0 items"), (lambda: (Items(), Items(), Items()), "got 3 items"), (iter([1]), "got list_iterator"),
    ((torch.zeros(3), torch.zeros(4)), "tensors of one length"), ((torch.zeros(0, 2),), "there are no training examples"),
    ((np.array(["a"]),), "dtype that both NumPy and torch have, got an array of <U1"),
    ((torch.zeros(3, dtype=torch.bfloat16),), "on cpu, of torch.bfloat16"),
    (lambda: DataLoader(Items(), sampler=WeightedRandomSampler(torch.ones(600), 5)), "no sampler of its own, got Weighted")])
def test_data_that_cannot_be_used(made, told):
    with pytest.raises(UserError, match=told):
        torch_data.sources(made() if callable(made) else made, 10)


SPLITS = []


def split_at_random():
    parts = random_split(Items(), [500, 100])
    SPLITS.append((parts[1].indices, np.random.permutation(9).tolist(), random.random()))  # noqa: NPY002
    return parts


def test_a_split_at_random_is_the_same_in_every_process():
    """Else workers would train on what others hold out. What the caller draws next is what it was."""
    torch.manual_seed(1)
    want = torch.rand(1)
    torch.manual_seed(1)
    TorchProblem(toys.task()._replace(make_data=split_at_random), toys.settings(SGD()))
    assert torch.rand(1) == want
    trained(toys.task()._replace(make_data=split_at_random), epochs=1)
    assert len(SPLITS) == 3 and SPLITS[0] == SPLITS[1] == SPLITS[2]


def no_gradient(model, batch):
    return torch.zeros(())


def a_vector(model, batch):
    return model(batch[0])


def a_number(model, batch):
    return 3.0


def double_memory():
    model = toys.Bag()
    model.again = nn.Parameter(torch.zeros(0))
    model.again.data = model.out.weight.data
    return model


def not_a_dict(model, batch):
    return 0.5


def lazy():
    return nn.LazyLinear(3)


def frozen():
    return toys.mlp().requires_grad_(False)


def half():
    return toys.mlp().half()


@pytest.mark.parametrize(("change", "told"), [
    ({"loss": no_gradient}, "depends on the model's parameters"), ({"loss": a_vector}, r"got a tensor of shape \(50, 3\)"),
    ({"loss": a_number}, "got float"), ({"make_model": Items}, "torch.nn.Module, got Items"),
    ({"make_model": double_memory}, "again and out.weight are two over the same memory"),
    ({"make_model": frozen}, "no parameter to train"), ({"make_model": half}, "or float64 to be trained, got torch.float16"),
    ({"loss": lambda model, batch: 0}, "at the top level of a module, got .*<lambda>"), ({"batch": 0}, "batch must be a"),
    ({"metrics": not_a_dict}, "metrics must return .* got float"),
    ({"metrics": toys.fail}, "data: ValueError: no such thing"),
    ({"make_model": lazy}, "make_model: "), ({"loss": None}, "loss must be a function, got NoneType"),
    ({"loss": toys.not_a_number}, r"no longer finite at batch \d+ of the epoch .*halved 5 times")])
def test_what_cannot_be_trained_is_one_line(change, told):
    with pytest.raises(UserError, match=told) as error:
        trained(toys.task()._replace(**change))
    assert "\n" not in str(error.value)


def test_too_little_memory(monkeypatch):
    from hogwild.training import machine
    monkeypatch.setattr(machine, "memory", lambda: 1000)
    with pytest.raises(UserError, match="model, its optimizer's state and the workers' gradients would take"):
        trained(toys.task())


def test_the_command_trains_saves_and_resumes(capsys, tmp_path):
    """And a resumed run ends with the bits of one that was never stopped."""
    common = "train", "torch", "torch_toys:task", "--workers", 1, "--lr", 0.01, "--schedule", "cosine", "--seed", 3
    assert run(*common, "--epochs", 4, "--model", "whole", "--record", "r") == 0
    out = capsys.readouterr().out
    assert "torch_toys:task, Adam(" in out and "epoch 4/4" in out and "accuracy" in out and "steps/s" in out
    assert run(*common, "--epochs", 4, "--checkpoint", "c", "--max-steps", 17) == 0
    assert run(*common, "--epochs", 4, "--checkpoint", "c", "--resume", "--model", "parts") == 0
    assert "resumed from c: epoch 2, step 17" in capsys.readouterr().out
    whole, parts = hogwild.load("whole"), hogwild.load("parts")
    assert all(torch.equal(x, parts[name]) for name, x in whole.items())
    model = toys.mlp()
    model.load_state_dict(whole)
    assert float(toys.accuracy(model, toys.data()[1])["accuracy"]) > 0.7
    assert "whole: is a torch model" in fails(capsys, "evaluate", "whole", "whole")
    for words, told in {"toys": "MODULE:FUNCTION, such as my_task:task, got 'toys'", "torch_toys:nothing": "AttributeError",
                        "torch_toys:mlp": "must return a hogwild.torch.Task, got Sequential", "": "needed MODULE:FUNCTION",
                        "torch_toys:task --mode round-robin": "mode must be one of wild, locked, atomic",
                        "torch_toys:task --early-stopping bleu": "no metric 'bleu'",
                        "torch_toys:task --lr auto": "lr auto"}.items():
        assert told in fails(capsys, "train", "torch", *words.split())


def test_from_python_with_early_stopping(tmp_path):
    model, history = hogwild.torch.train(toys.mlp, toys.data, toys.entropy, Adam(), 0.03, metrics=toys.accuracy, batch=50,
                                         workers=1, epochs=30, early_stopping="accuracy", patience=3, quiet=True)
    best = max(epoch.metrics["accuracy"] for epoch in history)
    with torch.no_grad():
        assert float(toys.accuracy(model.eval(), toys.data()[1])["accuracy"]) == pytest.approx(best) and len(history) < 30
    copy.deepcopy(model)
    with pytest.raises(UserError, match="unknown option speed; there are"):
        hogwild.torch.train(toys.mlp, toys.data, toys.entropy, speed=3)
