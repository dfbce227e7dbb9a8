"""What the tests of the torch optimizer run on each rank; see torch_ranks.py."""

import copy
import gc
import io
import tempfile

import numpy as np
import torch
import torch.distributed as dist
from rank_helpers import raises
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch_twins import (
    COMM,
    DEVICE,
    RANK,
    SIZE,
    Model,
    OnDevice,
    close,
    flat,
    loss,
    make,
    model,
    same_everywhere,
    train,
    unsent,
)

import sparsecomm
from hogwild.kernels.optim.rules import SGD, Adam, Momentum
from hogwild.kernels.optim.schedules import Step
from hogwild.kernels.optim.steps import Clip, Decay
from sparsecomm.hook import GradientDropping, gradient_dropping


def check_trajectory():
    """Nothing dropped: a single process with torch's optimizer and the global batch."""
    for rule, theirs in ("sgd", optim.SGD), (Adam(b1=0.8), lambda ps, lr: optim.Adam(ps, lr=lr, betas=(0.8, 0.999))):
        for exchange in "allgather", "dense":
            net, alone = model(seed=RANK), model()  # rank 0's parameters are broadcast
            ours = train(net, make(net, rule, 0.01, exchange=exchange), range(20))
            assert close(ours, train(alone, theirs(alone.parameters(), lr=0.01), range(20), own=False)), rule
            same_everywhere(net)


def check_odd_parameters():
    """Tied ones count once, unused and frozen ones stay; gradients may be sparse."""
    net, alone = model(Model), model(Model)
    rest, words = [p for name, p in alone.named_parameters() if name != "words.weight"], [alone.words.weight]
    frozen = net.frozen.weight.clone()
    optimizer = make(net, "sgd", 0.1)
    assert "again.weight" not in optimizer.named
    ours = train(net, optimizer, range(10), words=True)
    assert close(ours, train(alone, optim.SGD(rest + words, lr=0.1), range(10), own=False, words=True))
    assert torch.equal(net.frozen.weight, frozen) and net.unused.weight.grad is None
    same_everywhere(net)


def check_accumulation():
    """Several backward passes before a step: the gradient is their sum, sent once."""
    for overlap in True, False:
        net, other = model(), model()
        optimizer, whole = make(net, "adam", 0.01, accumulate=3, overlap=overlap), make(other, "adam", 0.01)
        for step in range(5):
            optimizer.zero_grad()
            for part in range(3):
                (loss(net, step, 3 * SIZE, 3 * RANK + part) / 3).backward()
            optimizer.step()
            whole.zero_grad()
            sum(loss(other, step, 3 * SIZE, 3 * RANK + part) / 3 for part in range(3)).backward()
            whole.step()
        assert close(flat(net), flat(other)) and not close(flat(net), flat(model()), 1e-3)
        assert optimizer.synchronizer.counts["kept"] == whole.synchronizer.counts["kept"]


def check_closure():
    net, other = model(), model()
    optimizer, plainly = make(net, "momentum", keep=0.1), make(other, "momentum", keep=0.1)

    def closure():
        optimizer.zero_grad()
        value = loss(net, step, SIZE, RANK)  # noqa: B023
        value.backward()
        return value
    for step in range(3):  # noqa: B007
        with torch.no_grad():
            assert optimizer.step(closure) > 0
    train(other, plainly, range(3))
    assert np.array_equal(flat(net), flat(other)) and plainly.step() is None


def check_groups():
    """Settings of a group's own, and torch's schedulers on top."""
    def groups(net, pairs):
        pick = (lambda part: list(part.named_parameters())) if pairs else lambda part: list(part.parameters())
        return [{"params": pick(net[0]), "lr": 0.05}, {"params": pick(net[2])}, {"params": pick(net[4])}]
    for pairs in True, False:
        net, alone = model(), model()
        ours, theirs = groups(net, pairs), groups(alone, False)
        ours = [{**group, "params": [(f"{k}.{n[0]}", n[1]) for n in group["params"]] if pairs else group["params"]}
                for k, group in enumerate(ours)]
        ours[1]["rule"], ours[2]["decay"] = "adam", Decay(l2=0.1)
        optimizer = make(net, "sgd", 0.02, parameters=ours)
        sgd = optim.SGD([theirs[0], {**theirs[2], "weight_decay": 0.1}], lr=0.02)
        adam = optim.Adam(theirs[1]["params"], lr=0.02)
        schedulers = [optim.lr_scheduler.CosineAnnealingLR(o, 6, eta_min=1e-3) for o in (optimizer, sgd, adam)]
        for step in range(6):
            train(net, optimizer, [step])
            train(alone, sgd, [step], own=False)
            adam.step()
            adam.zero_grad()
            for scheduler in schedulers:
                scheduler.step()
        assert optimizer.param_groups[0]["lr"] == sgd.param_groups[0]["lr"] != 0.05
        assert close(flat(net), flat(alone))
    net, other = model(), model()
    group = [{"params": net.named_parameters(), "lr": 0.5}]
    halved = train(net, make(net, "sgd", Step(0.2, 0.1, 2), parameters=group), range(4))
    assert close(halved, train(other, make(other, "sgd", "step:lr=0.1,gamma=0.1,every=2"), range(4)))


def check_settings():
    """Defaults of the rules, clipping, and what is refused."""
    net, alone = model(), model()
    clip = torch.nn.utils.clip_grad_norm_
    optimizer, theirs = make(net, "adamw", clip=0.01), optim.AdamW(alone.parameters(), lr=0.1)
    for step in range(5):
        train(net, optimizer, [step])
        theirs.zero_grad()
        loss(alone, step).backward()
        clip(alone.parameters(), 0.01)
        theirs.step()
    assert close(flat(net), flat(alone), 2e-5)
    assert make(model(), "adam", None).param_groups[0]["lr"] == 1e-3
    assert make(model(), Momentum(), 0.1, clip=Clip(value=1.0)).synchronizer.clip == Clip(1.0)
    net = model()
    pairs = list(net.named_parameters())
    raises(["wide.weight", "float32", "float64"], lambda: make(nn.ModuleDict({"wide": nn.Linear(2, 2).double()})))
    raises(["SGD has no momentum", "0.9"], lambda: make(net, parameters=[{"params": pairs, "momentum": 0.9}]))
    raises(["needed a rule"], lambda: sparsecomm.DistributedOptimizer(net))
    raises(["lr or schedule", "both"], lambda: make(net, "sgd", "constant:lr=0.1", lr=0.1))
    assert sparsecomm.DistributedOptimizer(net, "adam", lr=0.25, say=id).param_groups[0]["lr"] == 0.25
    raises(["0.weight", "two groups"], lambda: make(net, parameters=[{"params": pairs}, {"params": pairs[:1]}]))
    raises(["name"], lambda: make(net, parameters=[("x", pairs[0][1]), ("x", pairs[1][1])]))
    raises(["no parameters"], lambda: make(net, parameters=[]))
    raises(["accumulate"], lambda: make(net, accumulate=0))
    raises(["adagrad"], lambda: make(net, "adagrid"))
    raises(["lr"], lambda: make(net, "sgd", float("nan")))
    moved = make(net)
    net[2].bias.data = net[2].bias.data.clone()
    raises(["2.bias", "moved"], moved.step)


def check_grad_scaler():
    net, other = model(), model()
    optimizer, scaler = make(net, "sgd", 0.1, overlap=False), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        optimizer.zero_grad()
        value = loss(net, step, SIZE, RANK)
        scaler.scale(value * float("inf") if step == 2 and RANK == 0 else value).backward()
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.synchronizer.t == 3 and (scaler.get_scale() < 1024) == (RANK == 0)
    assert close(flat(net), train(other, make(other, "sgd", 0.1), [0, 1, 3]))
    same_everywhere(net)
    loss(net, 0, SIZE, RANK).backward()
    if SIZE > 1:
        with_overlap = make(net, overlap=True)
        scaler.scale(loss(net, 0, SIZE, RANK)).backward()
        raises(["GradScaler", "overlap=False"], lambda: scaler.step(with_overlap))
    for scaled, most in (True, 50), (False, 20):  # skipped steps in a row; a scale is halved by each, and so soon fits
        net, scaler = model(), torch.amp.GradScaler("cpu", enabled=scaled)
        optimizer = make(net, "sgd", 0.1, overlap=False)

        def skip():
            optimizer.zero_grad()  # noqa: B023
            scaler.scale(loss(net, 0, SIZE, RANK) * float("inf")).backward()  # noqa: B023
            scaler.step(optimizer)  # noqa: B023
            scaler.update()  # noqa: B023
        for _ in range(most - 1):
            skip()
        assert optimizer.synchronizer.t == 0
        raises(["not finite", "smaller learning rate"], skip)


def check_state():
    """Saved and loaded, through torch.save, a run goes on to the same bits."""
    for cls in sparsecomm.DistributedOptimizer, OnDevice:
        net = model()
        optimizer = make(net, "adam", 0.01, cls, keep=0.1, momentum=0.5, exchange="balanced", value_code="bfloat16")
        train(net, optimizer, range(4))
        optimizer.param_groups[0]["lr"] = 0.02
        file = io.BytesIO()
        torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        after = train(net, optimizer, range(4, 8))
        other = model(seed=9)
        other.load_state_dict(saved["model"])
        again = make(other, "adam", 0.01, cls, keep=0.1, momentum=0.5, exchange="balanced", value_code="bfloat16")
        again.load_state_dict(saved["optimizer"])
        assert np.array_equal(train(other, again, range(4, 8)), after)
        for name, x in optimizer.state_dict()["own"].items():
            assert torch.equal(x, again.state_dict()["own"][name])
        raises(["rank"], lambda: again.load_state_dict({**saved["optimizer"], "rank": SIZE + 1}))  # noqa: B023
        raises(["groups"], lambda: again.load_state_dict({**saved["optimizer"], "param_groups": []}))  # noqa: B023
        states = [{**state, "size": SIZE + 1} for state in COMM.allgather(saved["optimizer"])]
        states.append({**copy.deepcopy(states[0]), "rank": SIZE})
        again.load_state_dict(states)
        sums = sum(unsent(state) for state in states)
        assert np.abs(sums).max() > 0
        assert np.abs(sums - COMM.allreduce(unsent(again.state_dict()))).max() < 1e-5 * np.abs(sums).max()


def check_device():
    """What a GPU does, on the CPU where there is none: the steps of the kernels, to rounding."""
    for options in ({}, {"value_code": "float16", "clip": 0.5}, {"momentum": 0.7, "rule": "sgd"}, {"exchange": "dense"},
                    {"combine": "local", "average_every": 4}, {"stepping": "touched"},
                    {"stepping": "dense"}, {"rule": "apollo"}, {"clip_local": 0.1},
                    {"rule": "sgd", "exchange": "balanced", "scope": "global"}):
        options = {"rule": "adam", "keep": 0.2, "threshold": "exact", **options}
        nets = [model(seed=RANK), model(seed=RANK).to(DEVICE)]
        both = [make(net, schedule=0.01, cls=cls, **options)
                for net, cls in zip(nets, (sparsecomm.DistributedOptimizer, OnDevice))]
        for step in range(6):  # each from the same weights: else what is selected would soon differ
            ends = [train(net, optimizer, [step]) for net, optimizer in zip(nets, both)]
            assert close(*ends, room=2e-6), (options, step, np.abs(ends[0] - ends[1]).max())
            nets[1].load_state_dict(nets[0].state_dict())
        if options.get("combine") != "local":
            same_everywhere(nets[1])
    net = model().to(DEVICE)
    optimizer = make(net, cls=OnDevice, keep=0.05, check_every=1)
    before, given = flat(net).astype(np.float64), 0
    for step in range(8):
        train(net, optimizer, [step])
        given = given + np.concatenate([p.grad.cpu().numpy().ravel() for p in net.parameters()]).astype(np.float64)
    own = optimizer.synchronizer.own()
    kept = np.concatenate([own[f"{name}.residual"] for name, _ in net.named_parameters()]).astype(np.float64)
    lost = SIZE * (before - flat(net)) / 0.1 + COMM.allreduce(kept) - COMM.allreduce(given)
    assert np.abs(lost).max() < 1e-4 * SIZE * np.abs(given).max() and np.abs(kept).max() > 0
    for p in net.parameters():
        p.grad = torch.full_like(p, float("nan") if RANK == SIZE - 1 else 1.0)
    before = flat(net)
    optimizer.step()
    assert np.array_equal(before, flat(net)) and optimizer.synchronizer.skipped == 1


def check_catch_up_behind_the_hook():
    """CatchUpOptimizer steps with what the hook of DistributedDataParallel delivers as DistributedOptimizer does."""
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", f"file://{COMM.bcast(file.name)}", rank=RANK, world_size=SIZE)
        for rule, rate in ("adam", 0.01), ("nesterov", 0.3):
            options = {"keep": 0.05, "exchange": "allgather", "threshold": "exact"}
            nets, first = (model(), model()), flat(model())
            ours = make(nets[0], rule, rate, **options)
            state = GradientDropping(nets[1].named_parameters(), sparsecomm.Config(**options), say=id)
            ddp = DistributedDataParallel(nets[1])
            ddp.register_comm_hook(state, gradient_dropping)
            theirs = sparsecomm.CatchUpOptimizer(nets[1], rule, lr=rate)
            for step in range(6):
                ends = train(nets[0], ours, [step]), train(ddp, theirs, [step])
                assert close(*ends, room=1e-6), (rule, step, np.abs(ends[0] - ends[1]).max())
            waits = [theirs.state[p]["last"].numpy() for p in nets[1].parameters()]
            for name, last in zip(theirs.param_groups[0]["param_names"], waits):
                assert np.array_equal(last, ours.synchronizer.last[name])
                assert name.endswith("bias") or len(set(last)) > 5
            assert np.abs(ends[0] - first).max() > 0.01
        dist.destroy_process_group()
        COMM.Barrier()


def check_two_at_once():
    """Two models and optimizers in one process; one that was thrown away sends nothing."""
    first, second, alone = model(), model(seed=1), model(seed=1)
    gone = make(first, keep=0.1)
    del gone
    gc.collect()
    one, two, three = make(first, keep=0.1, overlap=True), *(make(net, "adam", 0.01, keep=0.1) for net in (second, alone))
    for step in range(4):
        for net in first, second:
            loss(net, step, SIZE, RANK).backward()
        two.step()
        one.step()
        one.zero_grad()
        two.zero_grad(set_to_none=step % 2 == 0)
        train(alone, three, [step])
    assert np.array_equal(flat(second), flat(alone)) and one.synchronizer.t == 4
    assert (SIZE > 1) == bool(one.hooks)
    one.close()
    loss(first, 0).backward()
    assert not one.sent


def check_autograd_notices():
    """As with torch's optimizers: a graph cannot be used after a step has changed the parameters that it needs."""
    net = nn.Sequential(nn.Linear(12, 4), nn.Linear(4, 5))
    optimizer = make(net, SGD())
    value = loss(net, 0)
    value.backward(retain_graph=True)
    optimizer.step()
    try:
        value.backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        raise AssertionError("the old graph still works")
