"""float16 and bfloat16 parameters with float32 masters, on each rank; see torch_ranks.py.

The oracle is torch in float32 in one process, its parameters rounded before each forward pass.
"""

import io

import numpy as np
import torch
from rank_helpers import raises
from torch import nn, optim
from torch_twins import AHEAD, COMM, ONE, RANK, SEVERAL, SIZE, OnDevice, batch, close, make, model

DTYPES = torch.bfloat16, torch.float16


class Mixed(nn.Module):
    """A layer of float32, two of `dtype`."""

    def __init__(self, dtype):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 30), nn.Linear(30, 20, dtype=dtype), nn.Linear(20, 5, dtype=dtype)

    def forward(self, x):
        x = torch.tanh(self.first(x)).to(self.second.weight.dtype)
        return self.third(torch.tanh(self.second(x))).float()


def mixed(dtype):
    return model(lambda: Mixed(dtype))


def loss(net, step, parts=1, part=0):
    x, y = batch(step, parts, part)
    return nn.functional.cross_entropy(net(x), y)


class Oracle:
    """Mean of all ranks' gradients, computed in one process, stepped in float32 by torch's optimizer `theirs`."""

    def __init__(self, net, theirs):
        self.net = net
        self.masters = [nn.Parameter(p.detach().float()) for p in net.parameters()]
        self.optimizer = theirs(self.masters)

    def step(self, step, scale=1.0):
        parts = []
        for part in range(SIZE):
            self.net.zero_grad()
            (loss(self.net, step, SIZE, part) * scale).backward()
            parts.append([p.grad.float() / scale for p in self.net.parameters()])
        for master, *grads in zip(self.masters, *parts):
            master.grad = sum(grads) * (1 / SIZE)
        self.optimizer.step()
        with torch.no_grad():
            for p, master in zip(self.net.parameters(), self.masters):
                p.copy_(master)

    def matches(self, optimizer, net):
        """Masters to rounding; of the parameters all but a few that were halfway between two values of their dtype."""
        for (name, p), master in zip(net.named_parameters(), self.masters):
            ours = optimizer.masters.masters.get(name, p.detach().reshape(-1))
            assert ours.dtype == torch.float32 and close(ours.numpy(), master.detach().numpy().ravel(), 2e-4), name
            assert torch.equal(p, ours.view(p.shape).to(p.dtype)), name
        assert len(optimizer.masters.masters) == 4


def check_trajectory():
    for dtype in DTYPES:
        for rule, theirs in (("momentum", lambda ps: optim.SGD(ps, lr=0.01, momentum=0.9)),
                             ("adam", lambda ps: optim.Adam(ps, lr=0.01))):
            for options in ONE, AHEAD, {"exchange": "dense", "cls": OnDevice}:
                net = mixed(dtype)
                optimizer, oracle = make(net, rule, 0.01, **options), Oracle(mixed(dtype), theirs)
                for step in range(5):
                    optimizer.zero_grad()
                    loss(net, step, SIZE, RANK).backward()
                    optimizer.step()
                    oracle.step(step)
                oracle.matches(optimizer, net)
                optimizer.synchronizer.check_equal()


def check_small_steps_add_up():
    """Steps that a bfloat16 parameter would lose one by one."""
    net = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    for use in "step", "synchronize":
        nn.init.ones_(net.weight)
        optimizer = make(net, "sgd", 1e-3)
        for step in range(8):
            net.weight.grad = torch.ones_like(net.weight)
            if use == "synchronize":
                optimizer.synchronize()
                net.weight.grad *= 1.0
            optimizer.step()
            assert (net.weight.item() == 1.0) == (step < 1), step  # the spacing below 1 is 2**-8
        assert net.weight.item() == float(torch.tensor(0.992).bfloat16())


def check_state():
    """A state holds the masters: continued to the same bits, whatever rounding the model's own state has lost."""
    for dtype in DTYPES:
        options = {"keep": 0.1, "momentum": 0.5}
        net = mixed(dtype)
        optimizer = make(net, "adam", 0.01, **options)

        def run(net, optimizer, steps):
            for step in steps:
                optimizer.zero_grad()
                loss(net, step, SIZE, RANK).backward()
                optimizer.step()
            return np.concatenate([p.detach().float().numpy().ravel() for p in net.parameters()])
        run(net, optimizer, range(3))
        file = io.BytesIO()
        torch.save([net.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        weights, saved = torch.load(file, weights_only=True)
        after = run(net, optimizer, range(3, 6))
        for order in 0, 1:
            other = mixed(dtype)
            again = make(other, "adam", 0.01, **options)
            other.load_state_dict(weights) if order else None
            again.load_state_dict(saved)
            other.load_state_dict(weights)
            assert np.array_equal(run(other, again, range(3, 6)), after)
            assert all(torch.equal(x, again.masters.masters[name]) for name, x in optimizer.masters.masters.items())
        raises(["master weights of second.bias", "dtype"], lambda: make(  # noqa: B023
            mixed(torch.float32), "adam", 0.01, **options).load_state_dict(saved))  # noqa: B023


def check_changed_parameters():
    """What a script does to its parameters, their masters follow; frozen ones have none until they move."""
    net = mixed(torch.bfloat16)
    net.third.requires_grad_(False)
    optimizer = make(net, "sgd", 1e-4)
    assert list(optimizer.masters.masters) == ["second.weight", "second.bias"]
    for step in range(4):
        optimizer.zero_grad()
        loss(net, step, SIZE, RANK).backward()
        optimizer.step()
        if step == 1:
            before = {name: x.clone() for name, x in optimizer.masters.masters.items()}
            net.second.weight.data.clamp_(-0.1, 0.1)
            net.third.requires_grad_(True)
        if step == 2:
            clamped = before["second.weight"].abs() > 0.11
            moved = optimizer.masters.masters["second.weight"]
            assert close(moved[clamped].abs().numpy(), float(torch.tensor(0.1).bfloat16()), 1e-3) and clamped.any()
            assert close(moved[~clamped].numpy(), before["second.weight"].clamp(-0.11, 0.11)[~clamped].numpy(), 1e-2)
    assert len(optimizer.masters.masters) == 4
    optimizer.synchronizer.check_equal()
    texts = COMM.allgather(b"".join(p.detach().view(torch.uint8).numpy().tobytes() for p in net.parameters()))
    assert all(text == texts[0] for text in texts)
    mean = [net.second.bias.detach().float() + RANK, net.first.bias.detach() + RANK]
    with torch.no_grad():
        net.second.bias.copy_(mean[0])
        net.first.bias.copy_(mean[1])
    rounded = net.second.bias.detach().float().numpy()
    optimizer.average_parameters()
    for ours, each in (net.second.bias, rounded), (net.first.bias, mean[1].numpy()):
        assert np.abs(ours.detach().float().numpy() - COMM.allreduce(each) / SIZE).max() < 0.01


def check_grad_scaler():
    """Unscaled in float32, where a float16 would be 0; an overflow on one rank skips the step on all."""
    for options in ONE, SEVERAL:
        net, scaler = mixed(torch.float16), torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer, oracle = make(net, "momentum", 0.1, **options), Oracle(
            mixed(torch.float16), lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9))
        for step in range(6):
            optimizer.zero_grad()
            value = loss(net, step, SIZE, RANK)
            scaler.scale(value * float("inf") if step == 5 and RANK == SIZE - 1 else value).backward()
            scaler.step(optimizer)
            scaler.update()
            if step != 5:
                oracle.step(step, 1024.0)
        oracle.matches(optimizer, net)
        assert optimizer.synchronizer.t == 5 and optimizer.synchronizer.skipped == 1
    net = nn.Linear(1, 1, bias=False, dtype=torch.float16)
    nn.init.zeros_(net.weight)
    optimizer, scaler = make(net, "sgd", 1e6), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(net(torch.ones(1, 1, dtype=torch.float16)).float().sum() * 2.0**-30).backward()
    scaler.step(optimizer)
    assert abs(float(optimizer.masters.masters["weight"]) + 1e6 * 2.0**-30) < 1e-6  # half a step of float16 is 2**-25


def check_autocast():
    """bfloat16 in the forward pass alone: gradients, steps and states are those of float32."""
    for scaled in False, True:
        net, alone = mixed(torch.float32), mixed(torch.float32)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=256.0)
        optimizer, other = make(net, "sgd", 0.1), optim.SGD(alone.parameters(), lr=0.1)
        before = [p.detach().clone() for p in net.parameters()]
        for step in range(4):
            optimizer.zero_grad()
            other.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                value = loss(net, step, SIZE, RANK)
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
            for part in range(SIZE):
                with torch.autocast("cpu", torch.bfloat16):
                    value = loss(alone, step, SIZE, part)
                (value * 256.0 / SIZE).backward()
            for p in alone.parameters():
                p.grad /= 256.0
            other.step()
        assert not optimizer.masters.masters
        for p, q, old in zip(net.parameters(), alone.parameters(), before):  # of 8 bits a sum in another order may change one
            assert (p - q).abs().max() < 0.02 * (q - old).abs().max(), scaled
