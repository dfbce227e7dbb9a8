"""CatchUpOptimizer in one process; with the hook, against DistributedOptimizer: tests/support/optimizer_ranks.py."""

import io

import numpy as np
import pytest
import torch
from torch import nn

import sparsecomm
from hogwild.errors import UserError
from hogwild.kernels.optim.catch_up import LONGEST, array_catch_up
from hogwild.kernels.optim.rules import RULES, Adam, Momentum
from hogwild.kernels.optim.steps import Decay
from sparsecomm.catch_up_optimizer import CatchUpOptimizer
from sparsecomm.replica.arrays import Device, Host


class OnDevice(CatchUpOptimizer):
    """The way that a GPU takes, on the CPU too."""

    def _arrays(self, device):
        return Device(device)


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))


def arrive(net, step):
    """Put into `.grad` what arrives at a step: a tenth of the elements; of the last bias nothing before step 4."""
    for k, (name, p) in enumerate(net.named_parameters()):
        rng = np.random.default_rng([step, k])
        g = rng.standard_normal(p.numel()) * (rng.random(p.numel()) < 0.1)
        p.grad = None if name == "2.bias" and step < 4 else torch.tensor(g.reshape(p.shape), dtype=torch.float32)


def train(net, optimizer, steps, scheduler=None):
    for step in steps:
        arrive(net, step)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()]).numpy()


@pytest.mark.parametrize("cls", [CatchUpOptimizer, OnDevice])
def test_steps_what_has_arrived_as_often_as_it_has_waited(cls):
    """With groups of their own rules, rates and decays, and one of torch's schedulers."""
    net = model()
    pairs = list(net.named_parameters())
    optimizer = cls([{"params": pairs[:2], "rule": "momentum", "lr": 0.1, "decay": Decay(0.1, 0.2)},
                     {"params": pairs[2:]}], "adam", 0.01)
    settings = [(Momentum(), 0.1, Decay(0.1, 0.2))] * 2 + [(Adam(), 0.01, None)] * 2
    twins = [(p.detach().double().numpy().ravel(), np.zeros((len(rule.start()), p.numel())))
             for p, (rule, *_) in zip(net.parameters(), settings)]
    waited, clocks = [np.zeros(w.size) for w, _ in twins], [0, 0, 0, 0]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for step in range(30):
        before = [p.detach().clone() for p in net.parameters()]
        train(net, optimizer, [step], scheduler)
        for k, (p, (rule, lr, decay), (w, slots)) in enumerate(zip(net.parameters(), settings, twins)):
            if p.grad is None:
                assert torch.equal(p, before[k])
                continue
            waited[k] += 1
            at = np.flatnonzero(p.grad)
            part, few = w[at], slots[:, at]
            if at.size:
                cap = max(c for c in range(3, 31) if c == 3 or (np.minimum(waited[k][at], c) ** 2).sum() <= w.size)
                array_catch_up(rule, part, p.grad.numpy().ravel()[at].astype(float), few, waited[k][at],
                               (1.0, lr * 0.9**step, clocks[k], cap), decay)
            w[at], slots[:, at], waited[k][at] = part, few, 0
            clocks[k] += 1
            np.testing.assert_allclose(p.detach().numpy().ravel(), w, rtol=1e-4, atol=1e-5)
            assert not torch.equal(p, before[k]) or not at.size
    assert clocks == [30, 30, 30, 26] and max(x.max() for x in waited) > 5


@pytest.mark.parametrize("rule", ["sgd", "apollo", "rmsprop:centred=1"])
def test_rules_that_do_not_catch_up_step_every_element(rule):
    net, other = model(), model()
    ours = CatchUpOptimizer(net.parameters(), rule, 0.01)
    train(net, ours, range(3))
    assert all("last" not in held for held in ours.state.values())
    if rule == "apollo":
        return
    kind = torch.optim.SGD if rule == "sgd" else lambda ps, lr: torch.optim.RMSprop(ps, lr, centered=True)
    np.testing.assert_allclose(train(net, ours, range(3, 9)),
                               (train(other, kind(other.parameters(), 0.01), range(9))), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cls", [CatchUpOptimizer, OnDevice])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_resumes_to_the_same_bits(cls, rule):
    net = model()
    optimizer = cls(net, rule, 0.01)
    train(net, optimizer, range(6))
    optimizer.param_groups[0]["lr"] = 0.02
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    after = train(net, optimizer, range(6, 12))
    other = model(seed=1)
    again = cls(other, rule, 0.01)
    train(other, again, range(2))
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert train(other, again, range(6, 12)).tobytes() == after.tobytes()


BOTH = [(Host, np.asarray), (Device(torch.device("cpu")), torch.tensor)]


@pytest.mark.parametrize("arrays, of", BOTH, ids=["host", "device"])
def test_a_wait_beyond_16_bits_is_long_also_where_nothing_arrived_as_they_came_round(arrays, of):
    w, slots, last = of(np.zeros(3, np.float32)), of(np.zeros((1, 3), np.float32)), of(np.full(3, -1, np.int16))
    for t, touched in (LONGEST, []), (2 * LONGEST, [1]), (2 * LONGEST + 10, [0]):
        g = of(np.full(3, 1e6, np.float32))
        arrays.move(Momentum(0.0), (w, slots, last), g, np.array(touched, np.uint32), (1.0, 1.0, t), None, None)
    waits = 1e6 / np.asarray(slots)[0][:2]  # the velocity is what has arrived over the wait
    assert (waits > LONGEST - 2).all() and (waits < 2 * LONGEST + 12).all() and np.asarray(slots)[0, 2] == 0


def test_loss_of_a_closure_and_a_parameter_without_gradient():
    net = model()
    before = net[0].weight.detach().clone()
    optimizer = CatchUpOptimizer(net, "adam")

    def closure():
        loss = net[2](torch.ones(2, 20)).sum()
        loss.backward()
        return loss
    assert optimizer.param_groups[0]["lr"] == 1e-3 and optimizer.step(closure).item() != 0
    assert torch.equal(net[0].weight, before) and not optimizer.state.get(net[0].weight)
    value = net(torch.ones(2, 6)).square().sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # autograd notices the step
        value.backward()


def test_mistakes():
    net = model()
    for words, make in (
            (["rule", "adagrid"], lambda: CatchUpOptimizer(net, "adagrid")),
            (["lr", "nan"], lambda: CatchUpOptimizer(net, lr=float("nan"))),
            (["Decay"], lambda: CatchUpOptimizer(net, decay=0.1)),
            (["0.weight", "two groups"], lambda: CatchUpOptimizer([{"params": net.named_parameters()}] * 1 + [
                {"params": list(net.named_parameters())[:1]}])),
            (["weight", "float64"], lambda: CatchUpOptimizer(nn.Linear(2, 2).double())),
            (["weight", "contiguous"], lambda: CatchUpOptimizer([("weight", nn.Parameter(torch.zeros(3, 2).t()))])),
            (["no parameters"], lambda: CatchUpOptimizer([]))):
        with pytest.raises(UserError) as error:
            make()
        assert all(word in str(error.value) for word in words) and "\n" not in str(error.value), error.value
    one, two = CatchUpOptimizer(net, "adam"), CatchUpOptimizer(net[0], "adam")
    with pytest.raises(UserError, match="does not fit"):
        one.load_state_dict(two.state_dict())
    with pytest.raises(UserError, match="needed the rule Adam, got Momentum"):
        one.load_state_dict(CatchUpOptimizer(net, "momentum").state_dict())
    wide = nn.Sequential(nn.Linear(6, 21), nn.Tanh(), nn.Linear(21, 3))
    other = CatchUpOptimizer(wide)
    train(wide, other, range(1))
    with pytest.raises(UserError, match="0.weight"):
        one.load_state_dict(other.state_dict())
    train(net, one, range(1))
    one.param_groups[0]["rule"] = Momentum()
    with pytest.raises(UserError, match="slots"):
        train(net, one, range(1))
    assert sparsecomm.CatchUpOptimizer is CatchUpOptimizer
