"""What scripts do between `backward` and `step`, on each rank: `python script_ranks.py [CHECK …]`. Rank 0 prints "passed".

The oracle is torch in one process: on the whole batch, or with the mean of what each rank's script has made of its gradient.
"""

import copy
import sys
import threading
import warnings

import checks
import numpy as np
import torch
from optimizer_ranks import COMM, RANK, SIZE, close, flat, loss, make, model, raises, same_everywhere, train, unsent
from torch import nn, optim

import sparsecomm
from hogwild.kernels.optim.rules import Adam, Momentum
from hogwild.kernels.optim.steps import Decay
from sparsecomm import Config

ONE, SEVERAL, AHEAD = {"bucket_mb": 4.0}, {}, {"overlap": True}  # buckets; the last are sent while backward goes on
PLACES = {"one": ONE, "several": SEVERAL, "ahead": AHEAD}


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


def check_skipped_batches():
    """A batch whose gradient no step uses has never been, however the gradient is thrown away."""
    def by_optimizer(net, optimizer):
        optimizer.zero_grad()

    def by_model(net, optimizer):
        net.zero_grad()

    def to_zero(net, optimizer):
        optimizer.zero_grad(set_to_none=False)
    for place in PLACES.values():
        for throw in by_optimizer, by_model, to_zero:
            for accumulate in (1, 2) if place is AHEAD else (1,):
                net, other = model(), model()
                options = {"rule": "adam", "schedule": 0.01, "keep": 0.1, "value_code": "int8", **place}
                skipping, plainly = make(net, accumulate=accumulate, **options), make(other, **options)
                for step in range(6):
                    backward(net, step)
                    if step % 2:  # with accumulate=2, the second pass of two is that of a skipped step as well
                        skipping.step()
                        train(other, plainly, [step])
                    throw(net, skipping)
                assert np.array_equal(flat(net), flat(other)), (place, throw.__name__, accumulate)
                same_everywhere(net)


def check_edits():
    """What is done to the gradient counts, to the rank's own; where it was sent, it is refused on all ranks."""
    def clamp(net, ps):
        for p in ps:
            p.grad.data.clamp_(-1e-3, 1e-3)

    def scale(net, ps):
        with torch.no_grad():
            ps[0].grad.mul_(3)

    def replaced(net, ps):
        ps[2].grad = ps[2].grad * 0.5

    def one_number(net, ps):
        ps[1].grad.numpy()[3] += 1e-3

    def clipped(net, ps):
        nn.utils.clip_grad_norm_(ps, 0.1)
    for change in clamp, scale, replaced, one_number, clipped:
        for name, place in PLACES.items():
            net, alone = model(), model()
            optimizer = make(net, "momentum", 0.1, **place)
            for step in range(3):
                optimizer.zero_grad()
                backward(net, step)
                change(net, list(net.parameters()))
                if name == "ahead" and SIZE > 1:
                    raises(["the gradient of", "was changed after", "overlap=False"], optimizer.step)
                    optimizer.zero_grad()
                    continue
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    optimizer.step()
                seen = step == 0 and RANK == 0 and SIZE > 1 and change in (scale, clipped)  # .data and NumPy tell nobody
                assert [w for w in caught if "each rank's own" in str(w.message)] == caught and len(caught) == seen, name
            if name == "ahead" and SIZE > 1:
                continue
            theirs = optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
            assert close(flat(net), twin(alone, theirs, range(3), change, own=True)), (change.__name__, name)
            same_everywhere(net)
    if SIZE > 1:  # on one rank alone
        net = model()
        optimizer = make(net, **AHEAD)
        backward(net, 0)
        if RANK == 1:
            net[0].weight.grad.data[0, 0] += 1
        raises(["0.weight", "was changed after", "rank 1"] if RANK != 1 else ["0.weight"], optimizer.step)
        optimizer.zero_grad()
        train(net, optimizer, [1])
        same_everywhere(net)


def check_clip_grad_norm():
    """Of the mean gradient: what torch does with the whole batch."""
    for place in PLACES.values():
        for theirs, ours in (optim.SGD, "sgd"), (optim.Adam, "adam"):
            net, alone = model(), model()
            optimizer, other, norms = make(net, ours, 0.1, **place), theirs(alone.parameters(), lr=0.1), []
            for step in range(5):
                optimizer.zero_grad()
                backward(net, step)
                norms.append(float(optimizer.clip_grad_norm_(0.05 * (1 + step))))
                optimizer.step()
                twin(alone, other, [step], lambda net, ps, step=step, norms=norms: norms.append(
                    float(nn.utils.clip_grad_norm_(ps, 0.05 * (1 + step)))))
                assert abs(norms[-2] - norms[-1]) < 1e-5 * norms[-1] and norms[-1] > 0.3
            assert close(flat(net), flat(alone), 1e-5), (place, ours)
            same_everywhere(net)
    backward(net, 0)
    optimizer.clip_grad_norm_(1.0)
    net[0].weight.grad.data *= 2
    raises(["0.weight", "was changed after"], optimizer.step)
    optimizer.zero_grad()
    raises(["norm_type 2"], lambda: optimizer.clip_grad_norm_(1.0, norm_type=1))


def check_grad_scaler():
    """Unscaled by the script or by step; an overflow on one rank skips the step on all."""
    for place in ONE, SEVERAL:
        for clip in None, 0.2:
            net, alone = model(), model()
            optimizer, other = make(net, "momentum", 0.1, **place), optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
            scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
            for step in range(6):
                optimizer.zero_grad()
                value = loss(net, step, SIZE, RANK)
                scaler.scale(value * float("inf") if step == 3 and RANK == SIZE - 1 else value).backward()
                if step % 2 or clip:
                    scaler.unscale_(optimizer)
                if clip:
                    optimizer.clip_grad_norm_(clip)
                scaler.step(optimizer)
                scaler.update()
            twin(alone, other, [0, 1, 2, 4, 5], lambda net, ps: clip and nn.utils.clip_grad_norm_(ps, clip))  # noqa: B023
            assert close(flat(net), flat(alone), 5e-6), (place, clip)
            same_everywhere(net)


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
    raises(["halves.weight", "float16"], optimizer.step)


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


def check_buffers():
    """Running means of BatchNorm: rank 0's, the mean of all, or each rank's own."""
    def normed():
        return nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))
    for how in None, "broadcast", "average", "own":
        net, ranks = model(normed, seed=RANK if how != "own" else 0), [model(normed) for _ in range(SIZE)]
        optimizer = make(net, parameters=net if how else net.named_parameters(), **({"buffers": how} if how else {}))
        for step in range(4):
            for part, each in enumerate(ranks):  # what each rank's forward pass makes of the buffers that it has
                each.load_state_dict({**each.state_dict(), **dict(net.named_parameters())})
                loss(each, step, SIZE, part)
            train(net, optimizer, [step])
            means = [each[1].running_mean.clone() for each in ranks]
            expected = {"own": means[RANK], "average": sum(means) / SIZE}.get(how, means[0])
            assert torch.allclose(net[1].running_mean, expected, atol=1e-6), how
            for each in ranks if how != "own" else ():
                each[1].running_mean.copy_(expected)
        every = COMM.allgather(net[1].running_mean.numpy().tobytes())
        assert all(x == every[0] for x in every) == (how != "own" or SIZE == 1), how
        assert int(net[1].num_batches_tracked) == 4
    net = model(normed)
    optimizer = make(net, parameters=net, buffers="average", schedule=0.0)
    with torch.no_grad():
        net[1].running_mean.fill_(RANK + 1.0)
    backward(net, 0)
    expected = COMM.allreduce(net[1].running_mean.double().numpy()) / SIZE
    optimizer.step()
    assert np.abs(net[1].running_mean.numpy() - expected).max() < 1e-6
    raises(["buffers must be one of"], lambda: make(net, parameters=net, buffers="mean"))
    raises(["needs the model"], lambda: make(net, parameters=list(net.named_parameters()), buffers="average"))


def check_same_data_is_noticed():
    for own in True, False:
        net = model()
        optimizer = make(net)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(net, optimizer, range(2), own=own)
        assert [str(w.message) for w in caught if "read the same data" in str(w.message)] == [] or (not own and RANK == 0)
        assert own or RANK or SIZE == 1 or len(caught) == 1


def check_keep_is_sparse():
    """Who asks for 1% gets it, also where a measurement would send everything."""
    said = []
    net = model()
    optimizer = sparsecomm.DistributedOptimizer(net, "sgd", 0.1, config=Config(keep=0.01), say=said.append)
    train(net, optimizer, range(3))
    assert optimizer.synchronizer.counts["kept"] < 3 * 0.05 * flat(net).size
    assert optimizer.synchronizer.config.exchange != "dense"
    assert RANK or said == [f"exchange allgather between {SIZE} ranks"]


def check_state_of_other_steps():
    """A state is of one step of all ranks, or refused on all of them; buckets may be of another size."""
    options = {"rule": "adam", "schedule": 0.01, "keep": 0.1, "momentum": 0.5}
    net = model()
    optimizer = make(net, **options)
    train(net, optimizer, range(2))
    early = copy.deepcopy(optimizer.state_dict())
    train(net, optimizer, [2])
    late = copy.deepcopy(optimizer.state_dict())
    weights = copy.deepcopy(net.state_dict())
    if SIZE > 1:
        raises(["number of steps", "rank"], lambda: optimizer.load_state_dict(early if RANK == 1 else late))
        wrong = {**late, "own": {**late["own"], "2.bias.residual": torch.zeros(3)}} if RANK == 1 else late
        raises(["2.bias.residual"], lambda: optimizer.load_state_dict(wrong))
        states = COMM.allgather(late)
        raises([f"each of {SIZE} ranks"], lambda: optimizer.load_state_dict(states[:-1]))
        raises(["one step"], lambda: optimizer.load_state_dict([*states[:-1], COMM.allgather(early)[-1]]))
        backward(net, 0)
        ahead = make(net, **{**options, **AHEAD})
        backward(net, 0)
        raises(["between backward and step"], ahead.state_dict)
        ahead.zero_grad()
    other = model(seed=3)
    again = make(other, **{**options, "bucket_mb": 4.0})
    other.load_state_dict(weights)
    again.load_state_dict(late)
    assert np.array_equal(unsent(late), unsent(again.state_dict())) and again.synchronizer.t == 3
    if SIZE > 1:  # parameters that differ are noticed at the next step
        with torch.no_grad():
            other[0].weight += RANK
        raises(["differ"], lambda: train(other, again, [3]))


def check_between_backward_and_step():
    """Comparisons and averages in the main thread do not meet the exchange of gradients that are on their way."""
    net, other = model(), model()
    optimizer, plainly = make(net, "adam", 0.01, **AHEAD), make(other, "adam", 0.01, **AHEAD)
    for step in range(3):
        optimizer.zero_grad()
        backward(net, step)
        optimizer.synchronizer.check_equal()
        optimizer.synchronizer.average_parameters()
        optimizer.step()
    train(other, plainly, range(3))
    assert close(flat(net), flat(other), 1e-5)


def check_overlap():
    """With overlap the exchange of the last layer begins while backward is still at the first; without, not before step."""
    for place in SEVERAL, AHEAD:
        net, begun = model(), threading.Event()
        optimizer = make(net, **place)
        last = optimizer.synchronizer.buckets[0].pipeline
        plainly = last.reduce

        def reduce(step, gradients, plainly=plainly, begun=begun):
            begun.set()
            return plainly(step, gradients)
        last.reduce = reduce
        seen = []
        net[0].bias.register_hook(lambda g, seen=seen, begun=begun, place=place: seen.append(
            begun.wait(20 if place is AHEAD and SIZE > 1 else 0)) and None)
        backward(net, 0)
        assert seen == [place is AHEAD and SIZE > 1] and begun.is_set() == seen[0]
        optimizer.step()
        assert begun.is_set()


def check_many():
    """Optimizers one after another, of which MPI would have room for some 2,000; and one of many tensors."""
    tiny = nn.Linear(2, 2)
    for _ in range(2100):
        optimizer = make(tiny, bucket_mb=1e-6, **AHEAD)
        optimizer.close()
    tensors = [(str(k), nn.Parameter(torch.zeros(3))) for k in range(4000)]
    optimizer = make(None, "adam", 0.01, parameters=tensors, bucket_mb=4.0)
    for _, p in tensors:
        p.grad = torch.full_like(p, 1.0 + RANK)
    optimizer.step()
    assert all(bool((p < 0).all()) for _, p in tensors)


if __name__ == "__main__":
    torch.set_num_threads(1)
    checks.run(globals(), checks.mpi(COMM), RANK, sys.argv[1:])
