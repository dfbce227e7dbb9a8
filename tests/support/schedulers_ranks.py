"""Every scheduler of torch on our optimizers, against the same script with torch's; see torch_ranks.py."""

import functools

from torch import optim
from torch.optim import lr_scheduler as of
from torch_twins import SIZE, close, flat, make, model, train, wrap

SCHEDULERS = {
    "LambdaLR": {"lr_lambda": lambda t: 1 / (1 + t)}, "MultiplicativeLR": {"lr_lambda": lambda t: 0.9},
    "StepLR": {"step_size": 2}, "MultiStepLR": {"milestones": [1, 3]}, "ConstantLR": {"total_iters": 2},
    "LinearLR": {"total_iters": 3}, "ExponentialLR": {"gamma": 0.8}, "PolynomialLR": {"total_iters": 4},
    "CosineAnnealingLR": {"T_max": 4}, "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.02, "step_size_up": 2}, "OneCycleLR": {"max_lr": 0.02, "total_steps": 6},
    "ReduceLROnPlateau": {"patience": 0},
}
COMPOSED = {
    "SequentialLR": lambda o: of.SequentialLR(o, [of.LinearLR(o, 0.1, total_iters=2), of.StepLR(o, 1)], milestones=[2]),
    "ChainedScheduler": lambda o: of.ChainedScheduler([of.ConstantLR(o, 0.1, 2), of.ExponentialLR(o, 0.9)]),
    "SWALR": lambda o: optim.swa_utils.SWALR(o, swa_lr=0.001, anneal_epochs=3),
}


def all_of_torch():
    given = {getattr(of, name) for name in of.__all__} - {of.LRScheduler}
    assert {cls.__name__ for cls in given} == {*SCHEDULERS, *COMPOSED} - {"SWALR"}, "torch has another scheduler"
    plain = {name: functools.partial(lambda cls, options, o: cls(o, **options), getattr(of, name), options)
             for name, options in SCHEDULERS.items()}
    return (plain | COMPOSED).items()


def run(net, optimizer, scheduler, own):
    for step in range(5):
        train(net, optimizer, [step], own)
        scheduler.step(*[1.0][:isinstance(scheduler, of.ReduceLROnPlateau)])
    group = optimizer.param_groups[0]
    return flat(net), float(group["lr"]), group.get("momentum")


def check_against_torch():
    momentum = functools.partial(optim.SGD, momentum=0.9)
    for name, scheduler in all_of_torch():
        for rule, theirs in (("momentum", momentum), ("adam", optim.Adam)) if "ycl" in name else (("momentum", momentum),):
            alone = model()
            other = theirs(alone.parameters(), lr=0.01)
            expected, lr, cycled = run(alone, other, scheduler(other), own=False)
            for form in make, wrap:
                net = model()
                optimizer = form(net, rule if form is make else theirs, 0.01)
                ours = run(net, optimizer, scheduler(optimizer), own=True)
                assert close(ours[0], expected, 1e-5) and ours[1] == lr, (name, rule, form)
                assert cycled is None or name not in ("OneCycleLR", "CyclicLR") or ours[2] == cycled


def check_resumed():
    """A state holds what a scheduler has made of a group; both continue from it."""
    nets = model(), model()
    scheduled = []
    for net in nets:
        optimizer = make(net, "adam", 0.01)
        scheduled.append((optimizer, of.OneCycleLR(optimizer, 0.02, total_steps=8)))
    first, (optimizer, scheduler) = nets[0], scheduled[0]
    for step in range(3):
        train(first, optimizer, [step])
        scheduler.step()
    nets[1].load_state_dict(first.state_dict())
    scheduled[1][0].load_state_dict(optimizer.state_dict())
    scheduled[1][1].load_state_dict(scheduler.state_dict())
    for net, (optimizer, scheduler) in zip(nets, scheduled):
        for step in range(3, 7):
            train(net, optimizer, [step])
            scheduler.step()
    assert (flat(nets[0]) == flat(nets[1])).all() and scheduled[1][0].param_groups[0]["momentum"] != 0.9


def check_without_momentum():
    try:
        of.OneCycleLR(make(model(), "sgd", 0.1), 0.1, total_steps=3)
    except ValueError as error:
        assert "momentum" in str(error) and "\n" not in str(error)
    else:
        raise AssertionError("sgd has no momentum to cycle")
    assert of.OneCycleLR(make(model(), "sgd", 0.1), 0.1, total_steps=3, cycle_momentum=False) and SIZE
