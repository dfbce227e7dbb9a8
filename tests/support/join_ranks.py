"""What the test of optimizer.join() runs on each rank; see torch_ranks.py."""

import numpy as np
from rank_helpers import raises
from torch import nn, optim
from torch_twins import COMM, RANK, SIZE, close, flat, loss, make, model, same_everywhere, unsent, wrap

LENGTHS = [3 + 2 * ((rank + 1) % SIZE) for rank in range(SIZE)]  # batches of each rank; the last has the fewest


def halve(optimizer):
    return optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def cycle(optimizer):
    """Changes rate and momentum, which ranks that have ended must follow."""
    return optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=max(LENGTHS) + 1)


def alone(rule, clip, lr, schedule):
    """One process: the mean over all ranks, of which those that have ended give zeros."""
    net = model()
    optimizer = rule(net.parameters(), lr=lr)
    scheduler = schedule(optimizer)
    for step in range(max(LENGTHS)):
        optimizer.zero_grad()
        for rank in range(SIZE):
            if step < LENGTHS[rank]:
                (loss(net, step, SIZE, rank) / SIZE).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        scheduler.step()
    return net


def check_uneven():
    for theirs, rule, clip, schedule, options in (
            (optim.SGD, "sgd", None, halve, {}), (optim.Adam, "adam", 0.05, cycle, {}),
            (optim.Adam, "adam", None, halve, {"overlap": True, "exchange": "dense"}),
            (optim.Adam, None, 0.05, cycle, {}), (optim.AdamW, None, None, cycle, {"overlap": True})):
        net = model()
        optimizer = make(net, rule, 0.01, **options) if rule else wrap(net, theirs, 0.01, **options)
        scheduler = schedule(optimizer)
        with optimizer.join():
            for step in range(LENGTHS[RANK]):
                optimizer.zero_grad()
                loss(net, step, SIZE, RANK).backward()
                if clip:
                    optimizer.clip_grad_norm_(clip)
                optimizer.step()
                scheduler.step()
        same_everywhere(net)
        assert optimizer.synchronizer.round == max(LENGTHS)
        assert close(flat(net), flat(alone(theirs, clip, 0.01, schedule)), 2e-5), (theirs, rule)
        optimizer.close()


def check_residuals_go_on():
    """The steps of the others send what an ended rank had not sent: elements of its residual become 0, the rest stays."""
    net = model()
    before = flat(net).astype(np.float64)
    optimizer = make(net, "sgd", 1.0, keep=0.05)
    given = np.zeros(before.size)
    with optimizer.join():
        for step in range(LENGTHS[RANK]):
            optimizer.zero_grad()
            loss(net, step, SIZE, RANK).backward()
            given += np.concatenate([p.grad.numpy().ravel() for p in net.parameters()])
            optimizer.step()
        at_end = unsent(optimizer.state_dict())
    same_everywhere(net)
    rest = unsent(optimizer.state_dict())
    assert np.array_equal(rest[rest != 0], at_end[rest != 0])
    further = max(LENGTHS) - LENGTHS[RANK]  # steps without a batch, each of which sends about 5%
    sent = (np.count_nonzero(at_end) - np.count_nonzero(rest)) / before.size
    assert 0.03 * further <= sent <= 0.07 * further
    moved, total = before - flat(net), COMM.allreduce(given.sum() - rest.sum()) / SIZE
    assert abs(moved.sum() - total) < 1e-4 * max(1, abs(total))
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
