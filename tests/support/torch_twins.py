"""Small models, batches and twins for the tests of the torch optimizers on each rank.

The oracle is torch in one process: on the whole batch, or with the mean of what each rank's script has made of its gradient.
"""

import numpy as np
import torch
from mpi4py import MPI
from rank_helpers import configured, flat
from torch import nn

import sparsecomm
from sparsecomm.wrapped import WrappedOptimizer

COMM = MPI.COMM_WORLD
RANK, SIZE = COMM.rank, COMM.size
BATCH = 24  # of all ranks; a multiple of 2 and 3
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ONE, SEVERAL, AHEAD = {"bucket_mb": 4.0}, {}, {"overlap": True}  # buckets; the last are sent while backward runs
PLACES = {"one": ONE, "several": SEVERAL, "ahead": AHEAD}


class OnDevice(sparsecomm.DistributedOptimizer):
    """The way that a GPU takes, on the CPU too."""

    def _on_host(self):
        return False


class WrappedOnDevice(WrappedOptimizer):
    """The same of a wrapped optimizer."""

    def _on_host(self):
        return False


class Model(nn.Module):
    """Tied, frozen and unused parameters, and some whose gradient is sparse."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(30, 8, sparse=True)
        self.one, self.two = nn.Linear(8, 40), nn.Linear(40, 40)
        self.again = nn.Linear(40, 40)
        self.again.weight = self.two.weight
        self.unused, self.frozen = nn.Linear(3, 3), nn.Linear(40, 40).requires_grad_(False)
        self.last = nn.Linear(40, 30)

    def forward(self, x):
        x = torch.tanh(self.two(torch.tanh(self.one(self.words(x)))))
        return self.last(self.frozen(torch.tanh(self.again(x))))


def plain():
    return nn.Sequential(nn.Linear(12, 50), nn.Tanh(), nn.Linear(50, 60), nn.ReLU(), nn.Linear(60, 5))


def model(make=plain, seed=0):
    torch.manual_seed(seed)
    return make()


def batch(step, parts=1, part=0, words=False):
    """Part `part` of `parts` of the global batch of a step."""
    random = torch.Generator().manual_seed(step)
    x = torch.randint(30, (BATCH,), generator=random) if words else torch.randn(BATCH, 12, generator=random)
    y = torch.randint(5, (BATCH,), generator=random)
    return x[part::parts], y[part::parts]


def loss(net, step, parts=1, part=0, words=False):
    x, y = batch(step, parts, part, words)
    device = next(net.parameters()).device
    return nn.functional.cross_entropy(net(x.to(device)), y.to(device))


def make(net, rule="sgd", schedule=0.1, cls=sparsecomm.DistributedOptimizer, parameters=None, **options):
    config, options = configured(options, keep=1.0, exchange="allgather", bucket_mb=0.005)
    return cls(net.named_parameters() if parameters is None else parameters, rule, schedule, config=config, say=id, **options)


def wrap(net, theirs, lr, parameters=None, cls=sparsecomm.DistributedOptimizer, **options):
    """As `make`, of torch's optimizer `theirs`."""
    inner = theirs(net.parameters() if parameters is None else parameters, lr=lr)
    config, options = configured(options, keep=1.0, exchange="allgather", bucket_mb=0.005)
    return cls(inner, named_parameters=net, config=config, say=id, **options)


def train(net, optimizer, steps, own=True, words=False):
    for step in steps:
        optimizer.zero_grad()
        loss(net, step, *((SIZE, RANK) if own else (1, 0)), words).backward()
        optimizer.step()
    return flat(net)


def close(a, b, room=3e-6):
    return np.abs(a - b).max() < room


def unsent(state):
    """The residuals of a state, float64."""
    parts = [x.double().numpy() for name, x in sorted(state["own"].items()) if name.endswith("residual")]
    return np.concatenate([np.zeros(0), *parts])


def same_everywhere(net):
    texts = COMM.allgather(flat(net).tobytes())
    assert all(text == texts[0] for text in texts), "the ranks differ"


def twin(net, theirs, steps, change=lambda net, parameters: None, own=False):
    """Train `net` in one process with torch's optimizer `theirs`. own: `change` is what each rank does to its gradient."""
    for step in steps:
        means = [torch.zeros_like(p) for p in net.parameters()]
        for part in range(SIZE) if own else [None]:
            net.zero_grad()
            loss(net, step, *((SIZE, part) if own else (1, 0))).backward()
            change(net, list(net.parameters()))
            for mean, p in zip(means, net.parameters()):
                mean += p.grad / (SIZE if own else 1)
        for mean, p in zip(means, net.parameters()):
            p.grad = mean
        theirs.step()
    return flat(net)


def backward(net, step):
    loss(net, step, SIZE, RANK).backward()
