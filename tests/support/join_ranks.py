"""What the test of optimizer.join() runs on each rank; see torch_ranks.py."""

import numpy as np
import torch
from torch import nn, optim
from torch_twins import COMM, RANK, SIZE, close, loss, make, model, raises, same_everywhere

LENGTHS = [3 + 2 * ((rank + 1) % SIZE) for rank in range(SIZE)]  # batches of each rank; the last has the fewest


def alone(rule, clip, lr):
    """One process: the mean over all ranks, of which those that have ended give zeros."""
    net = model()
    optimizer = rule(net.parameters(), lr=lr)
    halve = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for step in range(max(LENGTHS)):
        optimizer.zero_grad()
        for rank in range(SIZE):
            if step < LENGTHS[rank]:
                (loss(net, step, SIZE, rank) / SIZE).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        halve.step()
    return net


def check_uneven():
    for theirs, rule, clip, options in ((optim.SGD, "sgd", None, {}), (optim.Adam, "adam", 0.05, {}),
                                        (optim.Adam, "adam", None, {"overlap": True, "exchange": "dense"})):
        net = model()
        optimizer = make(net, rule, 0.01, **options)
        halve = optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        with optimizer.join():
            for step in range(LENGTHS[RANK]):
                optimizer.zero_grad()
                loss(net, step, SIZE, RANK).backward()
                if clip:
                    optimizer.clip_grad_norm_(clip)
                optimizer.step()
                halve.step()
        same_everywhere(net)
        assert optimizer.synchronizer.round == max(LENGTHS)
        expected = alone(theirs, clip, 0.01)
        assert close(np.concatenate([p.detach().numpy().ravel() for p in net.parameters()]),
                     np.concatenate([p.detach().numpy().ravel() for p in expected.parameters()]), 2e-5), rule
        optimizer.close()


def check_residuals_go_on():
    """What a rank that has ended had not sent is sent by the steps of the others: all that was given arrives."""
    net = model()
    before = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    optimizer = make(net, "sgd", 1.0, keep=0.05)
    given = torch.zeros_like(before)
    with optimizer.join():
        for step in range(LENGTHS[RANK]):
            optimizer.zero_grad()
            loss(net, step, SIZE, RANK).backward()
            given += torch.cat([p.grad.reshape(-1) for p in net.parameters()])
            optimizer.step()
    same_everywhere(net)
    rest = sum(float(x.double().sum()) for name, x in optimizer.state_dict()["own"].items() if name.endswith("residual"))
    moved = (before - torch.cat([p.detach().reshape(-1) for p in net.parameters()])).double()
    total = COMM.allreduce(float(given.double().sum()) - rest) / SIZE
    assert abs(float(moved.sum()) - total) < 1e-4 * max(1, abs(total))
    optimizer.close()


def check_misuse():
    net = model()
    optimizer = make(net)
    with optimizer.join():
        raises(["already entered"], lambda: optimizer.join().__enter__())
    if SIZE > 1:
        call = (lambda: optimizer.join().__enter__()) if RANK else optimizer.step
        loss(net, 0, SIZE, RANK).backward()
        raises(["the call is", "join", "step"], call)
    optimizer.close()
