"""Small torch tasks, at the top level of a module as worker processes need them; and workers without processes."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hogwild.families import torch_problem
from hogwild.families.torch_worker import Settings, Task

ROWS, WIDTH, WORDS = 600, 6, 50


def examples(rows=ROWS):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, WIDTH)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy((x[:, :3] + 0.1 * rng.standard_normal((rows, 3))).argmax(1))


def data():
    x, y = examples()
    return (x[:500], y[:500]), (x[500:], y[500:])


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 3))


def entropy(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def accuracy(model, batch):
    x, y = batch
    return {"accuracy": (model(x).argmax(1) == y).float().mean()}


def task():
    return Task(mlp, data, entropy, accuracy, batch=50)


class Odd(nn.Module):
    """Tied and frozen weights, a scalar and an empty parameter, buffers that are changed and replaced, a batch norm."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.second.weight = self.first.weight
        self.norm, self.out = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 3)
        self.out.bias.requires_grad_(False)
        self.scale, self.nothing = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.zeros(3, 0))
        self.unused = nn.Parameter(torch.ones(4))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.seen = self.seen + len(x)
        return self.out(self.norm(self.second(torch.relu(self.first(x)))) * self.scale + self.nothing.sum())


class Bag(nn.Module):
    """A mean of sparse embeddings."""

    def __init__(self, sparse=True):
        super().__init__()
        self.words, self.out = nn.EmbeddingBag(WORDS, 4, mode="mean", sparse=sparse), nn.Linear(4, 2)

    def forward(self, words):
        return self.out(self.words(words))


def texts():
    rng = np.random.default_rng(1)
    words = torch.from_numpy(rng.integers(0, WORDS, (400, 5)))
    return words, (words.float().mean(1) > WORDS / 2).long()


# One parameter, whose gradient is -1 for every batch: under SGD with rate 1 it counts them.


def counter():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def ones():
    return (torch.ones(800, 1),)


def count(model, batch):
    time.sleep(float(os.environ.get("TOY_SECONDS", "0.002")))
    return -model(batch[0]).mean()


def count_and_die(model, batch):
    """The first process to reach its fifth batch is killed, before the gradient."""
    count_and_die.calls = getattr(count_and_die, "calls", 0) + 1
    if count_and_die.calls == 5:
        try:
            Path(os.environ["TOY_FOLDER"], "died").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return count(model, batch)


def fail(model, batch):
    raise ValueError("no such thing")


def not_a_number(model, batch):
    return entropy(model, batch) * float("nan")


def settings(rule, **more):
    return Settings(**{"rule": rule, "decay": None, "clip": None, "mode": "wild", "view": "shared", "seed": 3, **more})


class InProcess:
    """In place of hogwild.training.processes.Process: the worker is in this process."""

    def __init__(self, k, make, *arguments):
        import threading
        self.k, self.dead, self.lock, self.answer = k, False, threading.Lock(), make(*arguments)

    def ready(self, halt):
        pass

    def ask(self, message, halt):
        self.answer(message)

    def close(self):
        pass


def in_process(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch_problem.processes, "Process", InProcess)
    monkeypatch.setattr(torch_problem.processes, "demand_guard", lambda: None)
    torch.set_num_threads(1)
    return threads
