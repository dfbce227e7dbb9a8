"""torch's optimizers, wrapped, on each rank, against the same in one process; see torch_ranks.py."""

import functools
import io
import warnings

import numpy as np
import torch
from rank_helpers import raises
from torch import nn, optim
from torch_twins import (
    AHEAD,
    COMM,
    ONE,
    PLACES,
    RANK,
    SEVERAL,
    SIZE,
    Model,
    WrappedOnDevice,
    backward,
    close,
    flat,
    loss,
    model,
    same_everywhere,
    train,
    twin,
    unsent,
    wrap,
)

import sparsecomm
from hogwild.kernels.optim.steps import Clip
from sparsecomm import Config
from sparsecomm.wrapped import WrappedOptimizer

momentum = functools.partial(optim.SGD, momentum=0.9)


def check_trajectory():
    """Nothing dropped: a single process with the same optimizer and the global batch, however it is implemented."""
    for k, theirs in enumerate((functools.partial(momentum, nesterov=True), functools.partial(optim.Adam, foreach=True),
                                functools.partial(optim.AdamW, fused=True), functools.partial(optim.Adam, amsgrad=True),
                                optim.Adagrad, optim.RMSprop, optim.NAdam,
                                optim.RAdam, optim.Adamax, optim.Adadelta, optim.ASGD, optim.Adafactor)):
        net, alone = model(seed=RANK), model()  # rank 0's parameters are broadcast
        optimizer = wrap(net, theirs, 0.01, **{**list(PLACES.values())[k % 3], **({"exchange": "dense"} if k % 2 else {})},
                         cls=WrappedOnDevice if k % 3 == 0 else sparsecomm.DistributedOptimizer)
        assert isinstance(optimizer, WrappedOptimizer)
        ours = train(net, optimizer, range(6))
        assert close(ours, train(alone, theirs(alone.parameters(), lr=0.01), range(6), own=False), 3e-5), theirs
        same_everywhere(net)
        assert all(p.grad.is_contiguous() for p in net.parameters())


def check_sparse_gradients():
    """Tied, unused and frozen parameters; what is not touched sees a gradient of 0, as in torch with dense embeddings."""
    for place in ONE, AHEAD:
        net, alone = model(Model), model(Model)
        alone.words.sparse = False
        ours = train(net, wrap(net, optim.Adam, 0.01, **place), range(6), words=True)
        assert close(ours, train(alone, optim.Adam(alone.parameters(), lr=0.01), range(6), own=False, words=True), 1e-5)
        assert net.unused.weight.grad is None and not net.words.weight.grad.is_sparse
        same_everywhere(net)


def check_what_is_not_sent():
    """sent + new residual = gradient + old residual, over all steps, also with a skipped one."""
    net = model()
    optimizer, given = wrap(net, optim.SGD, 1.0, keep=0.05), 0.0
    before = flat(net).astype(float)
    for step in range(8):
        optimizer.zero_grad()
        backward(net, step)
        bad = step == 4
        if bad and RANK == SIZE - 1:
            net[0].bias.grad[0] = float("inf")
        own = np.concatenate([p.grad.double().numpy().ravel() for p in net.parameters()])
        optimizer.step()
        given = given + (0 if bad else own)
    state = optimizer.state_dict()["own"]
    kept = np.concatenate([state[f"{name}.residual"].double().numpy() for name, _ in net.named_parameters()])
    lost = SIZE * (before - flat(net)) + COMM.allreduce(kept - given)
    assert np.abs(lost).max() < 1e-4 * np.abs(given).max() and np.abs(kept).max() > 0
    assert optimizer.synchronizer.skipped == 0 and optimizer.synchronizer.round == 8
    same_everywhere(net)


def check_scripts():
    """Closures, gradients thrown away, clipping, a GradScaler, freezing."""
    net, other = model(), model()
    optimizer, plainly = wrap(net, momentum, 0.1, keep=0.1), wrap(other, momentum, 0.1, keep=0.1)

    def closure():
        optimizer.zero_grad()
        value = loss(net, step, SIZE, RANK)  # noqa: B023
        value.backward()
        return value
    for step in range(3):  # noqa: B007
        with torch.no_grad():
            assert optimizer.step(closure) > 0
    assert np.array_equal(flat(net), train(other, plainly, range(3)))
    for place in SEVERAL, AHEAD:
        for clip in None, 0.05, Clip(value=1e-3):
            net, alone = model(), model()
            by_scaler = place is SEVERAL and clip
            optimizer = wrap(net, optim.Adam, 0.01, **place, **({"clip": clip} if clip != 0.05 else {}))
            other, scaler = optim.Adam(alone.parameters(), lr=0.01), torch.amp.GradScaler("cpu", enabled=bool(by_scaler))
            for step in range(6):
                value = loss(net, step, SIZE, RANK)
                scaler.scale(value * float("inf") if step == 3 and by_scaler and RANK == 0 else value).backward()
                if step == 1:  # no step uses it
                    optimizer.zero_grad()
                    continue
                scaler.unscale_(optimizer) if clip == 0.05 else None
                optimizer.clip_grad_norm_(0.05) if clip == 0.05 else None
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            change = {None: lambda net, ps: None, 0.05: lambda net, ps: nn.utils.clip_grad_norm_(ps, 0.05)}.get(
                clip, lambda net, ps: nn.utils.clip_grad_value_(ps, 1e-3))
            twin(alone, other, [step for step in range(6) if step != 1 and not (step == 3 and by_scaler)], change)
            assert close(flat(net), flat(alone), 1e-5), (place, clip)
            same_everywhere(net)
    net, alone = model(), model()
    optimizer, other = wrap(net, momentum, 0.05), momentum(alone.parameters(), lr=0.05)
    for step in range(6):
        for each in net, alone:
            each[2].requires_grad_(step >= 3)
            each[0].weight.requires_grad_(step < 4)
        train(net, optimizer, [step])
        train(alone, other, [step], own=False)
    assert close(flat(net), flat(alone), 1e-5)
    same_everywhere(net)


def check_groups():
    """The groups are the optimizer's own: a scheduler, changes and additions act on it; ranks that differ are told."""
    net, alone = model(), model()
    ours, theirs = ([{"params": each[0].parameters(), "lr": 0.05}, {"params": each[2].parameters()}] for each in (net, alone))
    optimizer, other = wrap(net, optim.AdamW, 0.01, ours), optim.AdamW(theirs, lr=0.01)
    halve = [optim.lr_scheduler.StepLR(each, 2, 0.5) for each in (optimizer, other)]
    assert optimizer.param_groups is optimizer.inner.param_groups and optimizer.defaults["lr"] == 0.01
    for step in range(6):
        if step == 2:
            optimizer.param_groups[1]["weight_decay"] = other.param_groups[1]["weight_decay"] = 0.2
        if step == 3:
            with torch.no_grad():
                net[4].weight += RANK
            for each, which in (optimizer, net), (other, alone):
                each.add_param_group({"params": which[4].parameters(), "betas": (0.5, 0.9)})
        train(net, optimizer, [step])
        train(alone, other, [step], own=False)
        for scheduler in halve:
            scheduler.step()
    assert close(flat(net), flat(alone), 1e-5) and optimizer.param_groups[0]["lr"] == 0.05 / 8
    same_everywhere(net)
    assert "AdamW" in type(optimizer.inner).__name__ and optimizer.state[net[0].weight]["step"] == 6
    if SIZE > 1:
        optimizer.param_groups[1]["betas"] = (0.9, 0.9 + 0.01 * RANK)
        raises(["betas of parameter group 1"], lambda: train(net, optimizer, [6]))
    net = model()
    optimizer = wrap(net, optim.Adam, 0.1)
    optimizer.param_groups[0]["params"] = []
    raises(["params was changed"], lambda: train(net, optimizer, [0]))


def check_names():
    """Of named_parameters, else of the optimizer, else numbers; buffers of the model."""
    net = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))
    for named, inner, expected in ((net.named_parameters(), optim.SGD(net.parameters(), 0.1), "2.weight"),
                                   (None, optim.SGD(net.named_parameters(), 0.1), "2.weight"),
                                   (None, optim.SGD(net.parameters(), 0.1), "0.4")):
        optimizer = sparsecomm.DistributedOptimizer(inner, named_parameters=named, say=id)
        assert list(optimizer.named)[4] == expected and bool(optimizer.buffers.modules) == (named is not None)
    other = wrap(net, optim.SGD, 0.1, buffers="average")
    with torch.no_grad():
        net[1].running_mean.fill_(RANK + 1.0)
    backward(net, 0)
    expected = COMM.allreduce(net[1].running_mean.double().numpy()) / SIZE
    other.step()
    assert np.abs(net[1].running_mean.numpy() - expected).max() < 1e-6


def check_state():
    """Saved and loaded, through torch.save, a run continues to the same bits; plain torch reads its part."""
    options = {"keep": 0.1, "momentum": 0.5, "exchange": "balanced", "value_code": "bfloat16"}
    net = model()
    optimizer = wrap(net, optim.Adam, 0.01, **options)
    train(net, optimizer, range(3))
    optimizer.param_groups[0]["lr"] = 0.02
    file = io.BytesIO()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    after = train(net, optimizer, range(3, 6))
    other = model(seed=9)
    other.load_state_dict(saved["model"])
    again = wrap(other, optim.Adam, 0.01, **options)
    again.load_state_dict(saved["optimizer"])
    assert np.array_equal(train(other, again, range(3, 6)), after) and np.array_equal(
        unsent(optimizer.state_dict()), unsent(again.state_dict()))
    alone = optim.Adam(model().parameters(), lr=0.01)
    alone.load_state_dict(saved["optimizer"])
    assert alone.param_groups[0]["lr"] == 0.02 and len(alone.state) == len(optimizer.named)
    again.load_state_dict([{**state, "size": SIZE + 1} for state in COMM.allgather(saved["optimizer"])] + [
        {**saved["optimizer"], "rank": SIZE, "size": SIZE + 1}])
    raises(["rank"], lambda: again.load_state_dict(alone.state_dict()))
    if SIZE > 1:
        saved["optimizer"]["state"][0]["exp_avg"][0, 0] += RANK
        raises(["the optimizer's state"], lambda: again.load_state_dict(saved["optimizer"]))


def check_low_precision():
    """As torch steps parameters of these dtypes itself, with the mean, rounded."""
    for dtype in torch.bfloat16, torch.float16:
        for place in ONE, AHEAD:
            net, alone = model().to(dtype), model().to(dtype)
            optimizer, other = wrap(net, momentum, 0.1, **place), momentum(alone.parameters(), lr=0.1)
            for step in range(4):
                optimizer.zero_grad()
                x, y = (torch.randn(24, 12, generator=torch.Generator().manual_seed(step)).to(dtype)[RANK::SIZE],
                        torch.arange(24)[RANK::SIZE] % 5)
                nn.functional.cross_entropy(net(x).float(), y).backward()
                own = [p.grad.float() for p in net.parameters()]
                optimizer.step()
                for p, g in zip(alone.parameters(), own):
                    total = sum(torch.from_numpy(part) for part in COMM.allgather(g.numpy()))
                    p.grad = (total * (1 / SIZE)).to(dtype)
                other.step()
            assert all(torch.equal(p, q) for p, q in zip(net.parameters(), alone.parameters())), (dtype, place)
            optimizer.synchronizer.check_equal()


def check_not_contiguous():
    """Parameters in another order of memory, such as channels_last."""
    for form in 0, 1:
        nets = [nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(96, 5)) for _ in range(2)]
        nets[1].load_state_dict(nets[0].state_dict())
        nets[0].to(memory_format=torch.channels_last)
        COMM.Barrier()
        weights = COMM.bcast({name: x.numpy() for name, x in nets[0].state_dict().items()})
        nets[1].load_state_dict({name: torch.from_numpy(x) for name, x in weights.items()})
        config = Config(keep=1.0, exchange="allgather")
        optimizer = sparsecomm.DistributedOptimizer(nets[0], "adam", lr=0.01, config=config, say=id) if form else wrap(
            nets[0], optim.Adam, 0.01)
        other = optim.Adam(nets[1].parameters(), lr=0.01)
        for step in range(4):
            x = torch.randn(SIZE, 3, 6, 6, generator=torch.Generator().manual_seed(step))
            for net, each, part in (nets[0], optimizer, slice(RANK, RANK + 1)), (nets[1], other, slice(None)):
                each.zero_grad()
                net(x[part]).square().mean().backward()
                each.step()
        assert not nets[0][0].weight.is_contiguous() and close(flat(nets[0]), flat(nets[1]), 1e-5), form
        optimizer.synchronizer.check_equal()


def check_refused():
    net = model()
    ps = list(net.parameters())
    make = functools.partial(sparsecomm.DistributedOptimizer, say=id)
    raises(["LBFGS", "closure"], lambda: make(optim.LBFGS(ps)))
    raises(["SparseAdam", "stepping"], lambda: make(optim.SparseAdam(ps)))
    raises(["lr", "Adam"], lambda: make(optim.Adam(ps), lr=0.1))
    raises(["rule", "Adam"], lambda: make(optim.Adam(ps), "adam"))
    for stepping in "touched", "catch-up":
        raises([f"stepping {stepping}"], lambda: make(optim.Adam(ps), config=Config(stepping=stepping)))  # noqa: B023
    raises(["named_parameters", "0.2"], lambda: make(
        optim.Adam(ps), named_parameters=net[0].named_parameters(prefix="0")))
    raises(["sparsecomm has made"], lambda: make(make(optim.Adam(ps))))
    raises(["float64"], lambda: make(optim.Adam(nn.Linear(2, 2).double().parameters())))
    if SIZE > 1:
        clipped = wrap(net, optim.SGD, 0.1)
        backward(net, 0)
        nn.utils.clip_grad_norm_(ps, 0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clipped.step()
        assert ["synchronize()" in str(w.message) for w in caught] == [True] * (RANK == 0)
