"""What DistributedDataParallel allows with a hook, against it alone; see gloo_ranks.py."""

import contextlib
import copy
import functools
import threading
import warnings

import numpy as np
import torch
import torch.distributed as dist
from rank_helpers import raises
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparsecomm import Config
from sparsecomm.hook import GradientDropping, gradient_dropping

EARLY = nn.Linear(12, 5)
BEFORE = GradientDropping(EARLY.named_parameters(), Config(keep=0.1), say=id)  # there is no process group yet
dist.init_process_group("gloo")
RANK, SIZE = dist.get_rank(), dist.get_world_size()
functional = nn.functional


class Branches(nn.Module):
    """Two ways, of which a batch takes one, or neither."""

    def __init__(self):
        super().__init__()
        self.ways, self.last = nn.ModuleList(nn.Linear(12, 30) for _ in range(2)), nn.Linear(30, 5)

    def forward(self, x, way=0):
        x = torch.tanh(self.ways[way](x)) if way < 2 else x.repeat(1, 3)[:, :30]
        return self.last(x)


class WithoutElements(Branches):
    """Besides, two parameters without elements, of which one is used by no batch."""

    def __init__(self):
        super().__init__()
        self.none, self.unused = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(0))

    def forward(self, x, way=0):
        return super().forward(x, way) + self.none.sum()


def model(make=Branches, seed=0):
    torch.manual_seed(seed)
    return make()


def data(step, rank=RANK, n=8):
    random = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(n, 12, generator=random), torch.randint(5, (n,), generator=random)


def wrap(net, hook=True, ddp=None, **options):
    """(DDP of several buckets, the hook's state)."""
    state = None
    wrapped = DistributedDataParallel(net, bucket_cap_mb=0.001, **(ddp or {}))
    if hook:
        config = Config(**{"keep": 1.0, "exchange": "allgather", "threshold": "exact", **options})
        state = GradientDropping(net.named_parameters(), config, say=id)
        wrapped.register_comm_hook(state, gradient_dropping)
    return wrapped, state


def flat(net):
    return np.concatenate([p.detach().double().numpy().ravel() for p in net.parameters()])


def everyone(x):
    x = torch.from_numpy(np.array(x, np.float64))
    dist.all_reduce(x)
    return x.numpy()


def kept(state, kind="residual"):
    held = state.state_dict()["held"]
    return np.concatenate([held[name][kind].double().numpy() if kind in held[name] else np.zeros(state.sizes[name])
                           for name in state.sizes])


def result(run, hook, **options):
    """What run(net, ddp, state) gives, with the hook or without."""
    net = model()
    return run(net, *wrap(net, hook, **options))


def both(run, **options):
    """With the hook, and without."""
    return [result(run, hook, **options) for hook in (True, False)]


def check_what_ddp_allows():
    def trained(net, ddp, state, way, accumulate):
        optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), []
        for step in range(6):
            optimizer.zero_grad()
            x, y = data(step)
            if accumulate:
                with ddp.no_sync():
                    functional.cross_entropy(ddp(x[:4], way(step)), y[:4]).backward()
            functional.cross_entropy(ddp(x, way(step)), y).backward()
            seen.append([p.grad is None for p in net.parameters()])
            optimizer.step()
        return flat(net), seen
    unused = {"find_unused_parameters": True}
    for ddp, way, accumulate in (
            ({"gradient_as_bucket_view": True, **unused}, lambda step: 0, False), (unused, lambda step: step % 3, False),
            (unused, lambda step: (step + RANK) % 3, False), (unused, lambda step: RANK % 2, True),
            ({"static_graph": True}, lambda step: 1, False)):
        run = functools.partial(trained, way=way, accumulate=accumulate)
        theirs, expected = result(run, False, ddp=ddp)
        for options in {}, {"exchange": "dense"}, {"overlap": False}:
            ours, seen = result(run, True, ddp=ddp, **options)
            assert seen == expected and np.abs(ours - theirs).max() < 1e-5, (ddp, options)
            apart, usual = (np.abs(everyone(x) / SIZE - x).max() for x in (ours, theirs))
            assert apart < 1e-12 or usual > 1e-12, (ddp, options)


def check_join():
    """Ranks with fewer batches answer the others."""
    def trained(net, ddp, state):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with ddp.join():
            for step in range(3 + 2 * RANK):
                optimizer.zero_grad()
                x, y = data(step)
                functional.cross_entropy(ddp(x), y).backward()
                optimizer.step()
        return flat(net)
    ours, theirs = both(trained, ddp={"find_unused_parameters": True}, check_every=1)
    assert np.abs(ours - theirs).max() < 1e-6


def check_unused_lose_nothing():
    """Of what no rank has used nothing is sent: what was delivered and used, and residuals, is all there was."""
    for options in {}, {"momentum": 0.5, "masking": False}, {"exchange": "dense", "value_code": "int8"}:
        net = model()
        ddp, state = wrap(net, ddp={"find_unused_parameters": True}, **{"keep": 0.05, **options})
        optimizer, given, before = torch.optim.SGD(net.parameters(), lr=1.0), 0.0, flat(net)
        speed = np.zeros(before.size)
        for step in range(12):
            optimizer.zero_grad()
            x, y = data(step)
            plain = copy.deepcopy(net)
            functional.cross_entropy(plain(x, step % 3), y).backward()
            own = [np.zeros(p.numel()) if p.grad is None else p.grad.double().numpy().ravel() for p in plain.parameters()]
            mask = np.concatenate([np.full(p.numel(), p.grad is not None) for p in plain.parameters()])
            speed = np.where(mask, options.get("momentum", 0.0) * speed + np.concatenate(own), speed)
            given = given + speed * mask
            functional.cross_entropy(ddp(x, step % 3), y).backward()
            optimizer.step()
        lost = SIZE * (before - flat(net)) + everyone(kept(state)) - everyone(given)
        assert np.abs(lost).max() < 2e-5 * np.abs(everyone(np.abs(given))).max(), options
        assert np.abs(kept(state)).max() > 0


def check_parameters_without_elements():
    """The others go on as without them, with any compressor."""
    for compressor in "threshold", "chunk-top-k:k=20", "low-rank:rank=2", "sign:feedback=1", "none":
        nets = [model(), model(WithoutElements)]
        for net in nets:
            ddp, _ = wrap(net, ddp={"find_unused_parameters": True}, keep=0.2, compressor=compressor,
                          exchange="allgather" if compressor[0] in "tc" else "dense")
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
            for step in range(3):
                x, y = data(step)
                optimizer.zero_grad()
                functional.cross_entropy(ddp(x), y).backward()
                optimizer.step()
        if "rank" not in compressor:  # whose first factors are drawn for the names in a bucket
            assert np.array_equal(flat(nets[0]), flat(nets[1])), compressor
        assert np.allclose(SIZE * flat(nets[1]), everyone(flat(nets[1]))), compressor


def check_grad_scaler():
    """The scale falls as without the hook; a residual follows it, and what a skipped step has sent returns."""
    def trained(net, ddp, state):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
        if state:
            state.scaler = scaler
        optimizer, scales = torch.optim.SGD(net.parameters(), lr=0.01), []
        for step in range(14):
            optimizer.zero_grad()
            x, y = data(step)
            value = scaler.scale(functional.cross_entropy(ddp(x), y))
            spoil = net.ways[0].weight.register_hook(
                lambda g: g * float("inf") if scaler.get_scale() > 2**17 and RANK == SIZE - 1 else g)
            value.backward()
            spoil.remove()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return flat(net), scales
    (ours, scales), (theirs, expected) = both(trained, ddp={"find_unused_parameters": True})
    assert scales == expected and min(scales) < 2**18 < max(scales) and np.abs(ours - theirs).max() < 1e-6
    net, given, steps = model(), 0.0, 0
    ddp, state = wrap(net, ddp={"find_unused_parameters": True}, keep=0.05)
    state.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2)
    optimizer, before = torch.optim.SGD(net.parameters(), lr=0.01), flat(net)
    for step in range(12):
        optimizer.zero_grad()
        x, y = data(step)
        plain = copy.deepcopy(net)
        functional.cross_entropy(plain(x), y).backward()
        bad = scaler.get_scale() > 2**17
        spoil = net.ways[0].weight.register_hook(lambda g, bad=bad: g * float("nan") if bad and RANK == 0 else g)
        scaler.scale(functional.cross_entropy(ddp(x), y)).backward()
        spoil.remove()
        if not bad:
            own = [np.zeros(p.numel()) if p.grad is None else p.grad.double().numpy().ravel() for p in plain.parameters()]
            given, steps = given + np.concatenate(own), steps + 1
        scaler.step(optimizer)
        scaler.update()
    assert 3 < steps < 11 and state.skipped == 12 - steps
    lost = SIZE * (before - flat(net)) / 0.01 + everyone(kept(state) / state.scale) - everyone(given)
    assert np.abs(lost).max() < 1e-4 * np.abs(everyone(np.abs(given))).max() and np.abs(kept(state)).max() > 0


def check_thrown_away_gradients():
    """A GAN's discriminator in the generator's step: paused, nothing of it is left; else it is said."""
    found = {}
    for how in "paused", "no_sync", "neither":
        net = model()
        ddp, state = wrap(net, ddp={"find_unused_parameters": True}, keep=0.05)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(6):
                optimizer.zero_grad()
                x, y = data(step)
                functional.cross_entropy(ddp(x), y).backward()
                optimizer.step()
                net.zero_grad()
                way = {"paused": state.paused, "no_sync": ddp.no_sync, "neither": contextlib.nullcontext}[how]
                with way():
                    (-functional.cross_entropy(ddp(x), y)).backward()
        said = [w for w in caught if "state.paused()" in str(w.message)]
        assert len(said) == (how == "neither" and RANK == 0), how
        found[how] = flat(net)
    assert np.array_equal(found["paused"], found["no_sync"])


def check_errors():
    """UserError with its line, from the thread as without it."""
    class Sparse(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.last = nn.EmbeddingBag(20, 12, sparse=True, mode="sum"), nn.Linear(12, 5)

        def forward(self, x):
            return self.last(self.words(x))
    for overlap in True, False:
        net = model()
        ddp = DistributedDataParallel(net, find_unused_parameters=True)
        state = GradientDropping(list(net.named_parameters())[:-1], Config(overlap=overlap), say=id)
        ddp.register_comm_hook(state, gradient_dropping)
        raises(["not among"], lambda: ddp(data(0)[0]).sum().backward())  # noqa: B023
        ddp, _ = wrap(Sparse(), overlap=overlap)
        raises(["words.weight is sparse"], lambda: ddp(torch.randint(20, (4, 3))).sum().backward())  # noqa: B023
        net = model()
        ddp, _ = wrap(net, ddp={"find_unused_parameters": True}, overlap=overlap, nonfinite="stop")
        net.last.bias.register_hook(lambda g: g * float("nan"))
        raises(["step 0", "not finite"], lambda: ddp(data(0)[0]).sum().backward())  # noqa: B023


def check_before_the_process_group():
    ddp = DistributedDataParallel(EARLY)
    ddp.register_comm_hook(BEFORE, gradient_dropping)
    for step in range(2):
        x, y = data(step)
        EARLY.zero_grad()
        functional.cross_entropy(ddp(x), y).backward()
    assert BEFORE.wire.size == SIZE and BEFORE.steps == {"weight": 2, "bias": 2}
    texts = [None] * SIZE
    dist.all_gather_object(texts, EARLY.weight.grad.numpy().tobytes())
    assert all(text == texts[0] for text in texts) and np.abs(kept(BEFORE)).max() > 0


def check_overlap():
    """The first bucket is exchanged while backward is still at the first layer."""
    def deep():
        return nn.Sequential(nn.Linear(12, 60), nn.Tanh(), nn.Linear(60, 300), nn.Tanh(), nn.Linear(300, 5))
    net, begun, seen = model(deep), threading.Event(), []
    ddp, state = wrap(net)
    plainly = state.mean

    def mean(*args):
        begun.set()
        return plainly(*args)
    state.mean = mean
    for step in range(2):
        x, y = data(step)
        functional.cross_entropy(ddp(x), y).backward()
        if step == 0:  # after which torch builds its buckets anew
            begun.clear()
            net[0].weight.register_hook(lambda g: seen.append(begun.wait(20 * (SIZE > 1))) and None)
    assert seen == [SIZE > 1], list(state.buckets)


def check_same_data_is_noticed():
    for alike in True, False:
        net = model()
        ddp, state = wrap(net, ddp={"find_unused_parameters": True})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x, y = data(0, 0 if alike else RANK)
            functional.cross_entropy(ddp(x), y).backward()
        told = [w for w in caught if "the same data" in str(w.message)]
        assert len(told) == (alike and RANK == 0 and SIZE > 1)
