"""optimizer.synchronize(), of rules and of wrapped optimizers, on each rank; see torch_ranks.py."""

import numpy as np
import torch
from rank_helpers import raises
from torch import nn, optim
from torch_twins import (
    PLACES,
    RANK,
    SEVERAL,
    SIZE,
    OnDevice,
    WrappedOnDevice,
    backward,
    close,
    flat,
    loss,
    make,
    model,
    same_everywhere,
    train,
    twin,
    unsent,
    wrap,
)


def both(net, rate, **options):
    """An optimizer of a rule, and a wrapped one."""
    return (lambda: make(net, "adam", rate, **options)), (lambda: wrap(net, optim.Adam, rate, **options))


def each_form(rate=0.01, **options):
    for form in 0, 1:
        net = model()
        yield net, both(net, rate, **options)[form]()


def check_clipped():
    """torch's clip_grad_norm_ then acts on the mean: as with the whole batch in one process."""
    for place in PLACES.values():
        for net, optimizer in each_form(**place):
            alone = model()
            other = optim.Adam(alone.parameters(), lr=0.01)
            for step in range(5):
                optimizer.zero_grad()
                backward(net, step)
                optimizer.synchronize()
                norm = nn.utils.clip_grad_norm_(net.parameters(), 0.05)
                with optimizer.skip_synchronize():
                    optimizer.step()
                norms = []
                twin(alone, other, [step], lambda net, ps, norms=norms: norms.append(nn.utils.clip_grad_norm_(ps, 0.05)))
                assert abs(norm - norms[0]) < 1e-5 * norm and norm > 0.3
            assert close(flat(net), flat(alone), 1e-5), place
            same_everywhere(net)


def check_unchanged():
    """Read only, the same bits as without; `.grad` is the mean, and is sent once."""
    for given in {"keep": 0.1, "value_code": "int8"}, {"exchange": "dense"}, {"keep": 0.1, "device": True}, \
            {"keep": 0.1, "stepping": "touched"}, {"keep": 0.1, "combine": "local", "average_every": 3}:
        for form in 0, 1:
            if form and given.get("stepping"):
                continue
            options = dict(given)
            if options.pop("device", False):
                options["cls"] = WrappedOnDevice if form else OnDevice
            nets = model(), model()
            ours = [wrap(net, optim.Adam, 0.01, **options) if form else make(net, "adam", 0.01, **options) for net in nets]
            for step in range(3):
                train(nets[0], ours[0], [step])
                ours[1].zero_grad()
                backward(nets[1], step)
                ours[1].synchronize()
                ours[1].synchronize()  # again: nothing
                ours[1].step()
                assert np.array_equal(flat(nets[0]), flat(nets[1])), (options, form)
            assert np.array_equal(unsent(ours[0].state_dict()), unsent(ours[1].state_dict()))
            assert ours[0].synchronizer.counts["kept"] == ours[1].synchronizer.counts["kept"]
    net, alone = model(), model()
    optimizer = make(net)
    backward(net, 0)
    optimizer.synchronize()
    loss(alone, 0).backward()
    for p, q in zip(net.parameters(), alone.parameters()):
        assert torch.allclose(p.grad, q.grad, atol=1e-6)


def check_changed():
    """What the script makes of the mean counts, on all coordinates; where the ranks do not do the same, it is refused."""
    for options in {"keep": 0.05}, {"keep": 0.05, "stepping": "touched"}:
        net, alone = model(), model()
        optimizer = make(net, "sgd", 1.0, **options)
        other = optim.SGD(alone.parameters(), lr=1.0)
        backward(net, 0)
        optimizer.synchronize()
        for p, q in zip(net.parameters(), alone.parameters()):
            p.grad += 0.01 * p.detach()
            q.grad = p.grad.clone()
        net[4].bias.grad = alone[4].bias.grad = None  # left alone
        optimizer.step()
        other.step()
        assert close(flat(net), flat(alone), 1e-6), options
        same_everywhere(net)
    for net, optimizer in each_form(keep=0.1):
        before, kept = flat(net), unsent(optimizer.state_dict())
        for change in (lambda net: net[0].weight.grad.mul_(1 + (RANK == SIZE - 1)), lambda net: backward(net, 1),
                       lambda net: net.zero_grad() if RANK == SIZE - 1 else None) if SIZE > 1 else ():
            backward(net, 0)
            optimizer.synchronize()
            raises(["between backward and step"], optimizer.state_dict)
            change(net)
            raises(["differ since synchronize()"], optimizer.step)
            optimizer.zero_grad()  # as if it had never been
            assert np.array_equal(before, flat(net)) and np.array_equal(kept, unsent(optimizer.state_dict()))
        backward(net, 0)
        optimizer.synchronize()
        net[2].weight.grad[0, 0] = float("inf")  # on all ranks
        optimizer.step()
        assert np.array_equal(before, flat(net)) and np.array_equal(kept, unsent(optimizer.state_dict()))
        assert optimizer.synchronizer.skipped == 1
        raises(["skip_synchronize", "synchronize() before"], optimizer.skip_synchronize().__enter__)


def check_not_finite():
    """NaN on one rank is NaN on all, and nobody steps."""
    for net, optimizer in each_form(keep=0.1):
        before = flat(net)
        backward(net, 0)
        if RANK == SIZE - 1:
            net[2].bias.grad[1] = float("nan")
        optimizer.synchronize()
        assert all(torch.isnan(p.grad).all() for p in net.parameters())
        optimizer.step()
        assert np.array_equal(before, flat(net)) and optimizer.synchronizer.skipped == 1 and not unsent(
            optimizer.state_dict()).any()


def check_with_a_scaler():
    """unscale_, synchronize, clip, step: as one process with the whole batch; scaled gradients are refused."""
    for net, optimizer in each_form(**SEVERAL):
        alone, scaler = model(), torch.amp.GradScaler("cpu", init_scale=65536.0)
        other = optim.Adam(alone.parameters(), lr=0.01)
        for step in range(4):
            optimizer.zero_grad()
            value = loss(net, step, SIZE, RANK)
            scaler.scale(value * float("inf") if step == 2 and RANK == SIZE - 1 else value).backward()
            scaler.unscale_(optimizer)
            optimizer.synchronize()
            nn.utils.clip_grad_norm_(net.parameters(), 0.2)
            scaler.step(optimizer)
            scaler.update()
        twin(alone, other, [0, 1, 3], lambda net, ps: nn.utils.clip_grad_norm_(ps, 0.2))
        assert close(flat(net), flat(alone), 1e-5)
        optimizer.zero_grad()
        scaler.scale(loss(net, 0, SIZE, RANK)).backward()
        optimizer.synchronize()
        raises(["GradScaler", "unscale_(optimizer) before"], lambda: scaler.step(optimizer))  # noqa: B023
        optimizer.zero_grad()


def check_frozen_residual():
    """A residual of a parameter that has no gradient now is not changed by a discarded exchange."""
    for call in "synchronize", "clip_grad_norm_":
        net = model()
        optimizer = make(net, keep=0.1, bucket_mb=1e-6)  # a bucket for each parameter
        train(net, optimizer, range(3))
        optimizer.zero_grad()
        kept = unsent(optimizer.state_dict())
        net[0].requires_grad_(False)
        backward(net, 3)
        getattr(optimizer, call)(*[1.0][:call != "synchronize"])
        optimizer.zero_grad()
        assert np.array_equal(kept, unsent(optimizer.state_dict())) and kept.any(), call


def check_refused_in_join():
    net = model()
    optimizer = make(net)
    with optimizer.join():
        backward(net, 0)
        raises(["join()", "clip_grad_norm_"], optimizer.synchronize)
        optimizer.step()
