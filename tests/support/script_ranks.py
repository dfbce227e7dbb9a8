"""What scripts do between `backward` and `step`, on each rank; see torch_ranks.py."""

import threading
import warnings

import numpy as np
import torch
from rank_helpers import raises
from torch import nn, optim
from torch_twins import (
    AHEAD,
    ONE,
    PLACES,
    RANK,
    SEVERAL,
    SIZE,
    backward,
    close,
    flat,
    loss,
    make,
    model,
    same_everywhere,
    train,
    twin,
)


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
