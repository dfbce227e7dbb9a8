"""What surrounds the steps of an optimizer, on each rank: buffers, data, states, many of them; see torch_ranks.py."""

import copy
import warnings

import numpy as np
import torch
from rank_helpers import raises
from torch import nn
from torch_twins import AHEAD, COMM, RANK, SIZE, OnDevice, backward, close, flat, loss, make, model, train, unsent

import sparsecomm
from sparsecomm import Config


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


def check_state_moves_between_devices():
    """A state saved on a device loads on the host and the other way; both continue alike, with and without slots."""
    kinds = sparsecomm.DistributedOptimizer, OnDevice
    for rule in "sgd", "adam":
        for saved, loaded in kinds, kinds[::-1]:
            nets = model(), model(seed=1)
            old, new = (make(net, rule, 0.01, cls=cls, keep=0.1) for net, cls in zip(nets, (saved, loaded)))
            train(nets[0], old, range(2))
            nets[1].load_state_dict(nets[0].state_dict())
            new.load_state_dict(copy.deepcopy(old.state_dict()))
            ends = [train(net, optimizer, [2]) for net, optimizer in zip(nets, (old, new))]
            assert close(*ends, room=2e-6), (rule, saved)


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
