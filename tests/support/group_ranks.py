"""Frozen and unused parameters, parameter groups and schedulers on each rank; see torch_ranks.py."""

import numpy as np
import torch
from rank_helpers import raises
from torch import nn, optim
from torch_twins import COMM, PLACES, RANK, SIZE, backward, close, flat, loss, make, model, same_everywhere, train

from hogwild.kernels.optim.rules import Adam, Momentum
from hogwild.kernels.optim.steps import Decay


def check_freezing():
    """A parameter without a gradient on any rank is left alone; one that gets a gradient later starts then."""
    rules = ("momentum", lambda ps: optim.SGD(ps, lr=0.05, momentum=0.9)), ("adamw", lambda ps: optim.AdamW(ps, lr=0.05)), \
        (Adam(), lambda ps: optim.Adam(ps, lr=0.05))
    for rule, theirs in rules:
        for name, place in [*PLACES.items(), ("dense", {"exchange": "dense"})]:
            net, alone = model(), model()
            for each in net, alone:
                each[2].requires_grad_(False)
            optimizer, other = make(net, rule, 0.05, **place), theirs(alone.parameters())
            for step in range(9):
                for each in net, alone:
                    each[2].requires_grad_(step >= 3)
                    each[0].weight.requires_grad_(step < 5)
                    each[4].bias.requires_grad_(step % 2 == 0)
                before = flat(net[0]), flat(net[2])
                optimizer.zero_grad()
                backward(net, step)
                optimizer.step()
                other.zero_grad()
                loss(alone, step).backward()
                other.step()
                assert np.array_equal(before[1], flat(net[2])) == (step < 3)
                assert np.array_equal(before[0][:600], flat(net[0])[:600]) == (step >= 5)
            assert close(flat(net), flat(alone), 3e-5), (rule, name)
            same_everywhere(net)


def check_unused_on_some_ranks():
    """A gradient on one rank moves the parameter on all: as if the others had zeros. What was not sent waits."""
    for name, place in PLACES.items():
        for momentum in 0.0, 0.8:
            net, alone = model(), model()
            options = {"momentum": momentum, "masking": False} if momentum else {}
            optimizer = make(net, "sgd", 0.1, **options, **place)
            other = optim.SGD(alone.parameters(), lr=0.1, momentum=momentum)
            for step in range(6):
                for each in net, alone:
                    each[4].bias.requires_grad_(True)
                optimizer.zero_grad()
                net[4].bias.requires_grad_(RANK == step % SIZE)
                backward(net, step)
                assert (net[4].bias.grad is None) == (RANK != step % SIZE)
                optimizer.step()
                other.zero_grad()
                for part in range(SIZE):
                    alone[4].bias.requires_grad_(part == step % SIZE)
                    (loss(alone, step, SIZE, part) / SIZE).backward()
                other.step()
            assert close(flat(net), flat(alone), 1e-5), (name, momentum)
    net = model()
    optimizer, given = make(net, "sgd", 1.0, keep=0.05), 0.0
    before = flat(net).astype(float)
    for step in range(8):
        for k in 0, 2, 4:
            net[k].requires_grad_((step + k) % 3 > 0)
        train(net, optimizer, [step])
        parts = [np.zeros(p.numel()) if p.grad is None else p.grad.double().numpy().ravel() for p in net.parameters()]
        given = given + np.concatenate(parts)
    own = optimizer.state_dict()["own"]
    kept = np.concatenate([own[f"{name}.residual"].double().numpy() for name, _ in net.named_parameters()])
    lost = SIZE * (before - flat(net)) + COMM.allreduce(kept - given)
    assert np.abs(lost).max() < 1e-4 * np.abs(given).max() and np.abs(kept).max() > 0


def check_frozen_are_broadcast():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 7), nn.Linear(7, 5)
            self.halves = nn.Linear(4, 6).half()
    net = model(Net, seed=RANK)
    net.first.requires_grad_(False)
    net.halves.requires_grad_(False)
    optimizer = make(net)
    for p, q in zip(net.parameters(), model(Net).half().parameters()):
        assert torch.equal(p.half(), q)
    if SIZE > 1:
        if RANK == 1:
            net.first.weight.data += 1
        raises(["differ", "rank 1"], optimizer.synchronizer.check_equal)
    net.halves.requires_grad_(True)
    net.halves.weight.grad = torch.ones_like(net.halves.weight)
    before = net.halves.weight.clone()
    if SIZE > 1:
        net.first.weight.data -= int(RANK == 1)
    optimizer.step()  # the master is made now
    assert torch.equal(net.halves.weight, (before.float() - 0.1).half())
    assert list(optimizer.masters.masters) == ["halves.weight"]
    wide = nn.ModuleDict({"wide": nn.Linear(2, 2), "odd": nn.Linear(2, 2).double().requires_grad_(False)})
    optimizer = make(wide)
    wide.odd.weight.grad = torch.ones_like(wide.odd.weight)
    raises(["odd.weight", "float64"], optimizer.step)


def check_param_groups():
    """Numbers of the rule, decay and rate may change from step to step; everything else is refused."""
    net, alone = model(), model()
    optimizer = make(net, "adam", 0.01)
    other = optim.Adam(alone.parameters(), lr=0.01)
    for step in range(8):
        group, theirs = optimizer.param_groups[0], other.param_groups[0]
        if step == 2:
            group["rule"], theirs["betas"] = group["rule"]._replace(b1=0.5), (0.5, 0.999)
        if step == 4:
            group["decay"], theirs["weight_decay"] = Decay(l2=0.1), 0.1
        if step == 6:
            group["lr"], theirs["lr"] = torch.tensor(0.002), 0.002
        train(net, optimizer, [step])
        train(alone, other, [step], own=False)
    assert close(flat(net), flat(alone), 1e-5)
    saved = optimizer.state_dict()
    again = make(model(), "adam", 0.5)
    again.load_state_dict(saved)
    group = again.param_groups[0]
    assert torch.equal(group["lr"], torch.tensor(0.002)) and group["rule"].b1 == 0.5 and group["decay"] == Decay(l2=0.1)
    optimizer.param_groups[0]["lr"].fill_(0.3)
    assert group["lr"] < 0.01 and saved["param_groups"][0]["lr"] < 0.01
    for key, value, words in (("betas", (0.5, 0.9), ["betas is none of"]), ("weight_decay", 0.1, ["weight_decay is none of"]),
                              ("b1", 0.3, ["b1 is none of"]), ("rule", Momentum(), ["Adam", "Momentum"]),
                              ("rule", Adam()._replace(b1=2.0), ["b1"]), ("decay", 0.1, ["decay must be a Decay"]),
                              ("lr", -1.0, ["lr must be"]), ("lr", None, ["lr must be"]),
                              ("params", [], ["params was changed"])):
        net = model()
        optimizer = make(net, "adam", 0.01)
        optimizer.param_groups[0][key] = value
        raises(words, lambda: train(net, optimizer, [0]))  # noqa: B023
    if SIZE > 1:  # at once, not after a hundred steps
        for key, value in ("lr", 0.01 * (1 + (RANK == SIZE - 1))), ("decay", Decay(l2=0.1 * (RANK == SIZE - 1))):
            net = model()
            optimizer = make(net, "adam", 0.01, check_every=0)
            train(net, optimizer, [0])
            optimizer.param_groups[0][key] = value
            raises([f"{key} of parameter group 0", f"rank {SIZE - 1}"], lambda: train(net, optimizer, [1]))  # noqa: B023


def check_add_param_group():
    """As in torch: what is added later starts with its first step, on all ranks from rank 0's values."""
    for place in PLACES.values():
        net, alone = model(), model()
        parts = [(name, p) for name, p in net.named_parameters() if name[0] != "4"]
        optimizer, other = make(net, "adam", 0.01, parameters=parts, **place), optim.Adam(alone[:4].parameters(), lr=0.01)
        for step in range(6):
            if step == 3:
                with torch.no_grad():
                    net[4].weight += RANK
                settings = {"lr": 0.05, "decay": Decay(l2=0.01)}
                optimizer.add_param_group({"params": net[4].named_parameters(prefix="4"), **settings})
                other.add_param_group({"params": alone[4].parameters(), "lr": 0.05, "weight_decay": 0.01})
            train(net, optimizer, [step])
            train(alone, other, [step], own=False)
        assert close(flat(net), flat(alone), 1e-5), place
        same_everywhere(net)
    raises(["in two groups"], lambda: optimizer.add_param_group({"params": [("x", net[0].weight)]}))
