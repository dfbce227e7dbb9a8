"""torch's parameter groups: what a script may put into them, and what it may change between two steps."""

import math
from numbers import Real
from typing import NamedTuple

import torch

from hogwild.errors import UserError
from hogwild.kernels.optim.schedules import Constant, momentum_field
from hogwild.kernels.optim.steps import Clip, Decay
from hogwild.training.loop import plain, rebuilt
from sparsecomm.replica import rules
from sparsecomm.replica.rules import decay_of, rule_of, valid

OPTIONS = "lr", "rule", "decay", "momentum"  # what a script may set
OF_SCHEDULERS = "initial_lr", "max_lr", "min_lr", "swa_lr", "max_momentum", "base_momentum"
KEYS = {"params", "param_names", *OPTIONS, *OF_SCHEDULERS}


class Setting(NamedTuple):
    """A group's, at one step."""

    lr: float
    rule: tuple
    decay: tuple | None


def settings(groups) -> list[Setting]:
    """What each of torch's groups says now. Raises UserError for what cannot be followed."""
    found = []
    for k, group in enumerate(groups):
        known(k, group)
        try:
            lr = float(group["lr"])
        except (TypeError, ValueError):
            lr = math.nan
        if not 0 <= lr < math.inf:
            raise UserError(f"lr must be a finite number, not negative, got {group['lr']} for {group['param_names'][0]}"
                            if group["param_names"] else f"lr must be a finite number, got {group['lr']}")
        rule = _cycled(k, rule_of(group["rule"]), group.get("momentum"))
        found.append(Setting(lr, rule, decay_of(group["decay"], rule)))
    return found


def cycled_default(rule) -> dict:
    """The default by which torch's OneCycleLR and CyclicLR see that they can cycle a momentum: None, the rule's own."""
    return {"momentum": None} if momentum_field(rule._fields) else {}


def _cycled(k, rule, momentum):
    """The rule of group k with `momentum` in place of its mu, b1 or b; None: its own."""
    if momentum is None:
        return rule
    field = momentum_field(rule._fields)
    if field is None:
        raise UserError(f"parameter group {k}: {type(rule).__name__} has no momentum, got momentum {momentum}; use the rule "
                        "momentum, or a scheduler with cycle_momentum=False")
    return valid(rule._replace(**{field: momentum}))


def known(k, group):
    """Raise UserError where group k has a setting that nothing here follows."""
    odd = sorted(set(group) - KEYS)
    if odd:
        raise UserError(f"parameter group {k}: {odd[0]} is none of {', '.join(OPTIONS)}; hyper-parameters are the rule's: "
                        'group["rule"] = "adam:b1=0.95", group["decay"] = Decay(l2=0.1)')


def schedule_of(schedule, rule, lr=None):
    """(a group's default `lr`, schedule)."""
    if lr is not None and schedule is not None:
        raise UserError(f"needed lr or schedule, got both, {lr} and {schedule}; a schedule has its own: "
                        '"cosine:lr=0.001,steps=1000"')
    if isinstance(lr, torch.Tensor):
        return lr, Constant(1.0)
    schedule = schedule if lr is None else lr
    if schedule is None or isinstance(schedule, Real):
        return float(getattr(rule, "default_lr", 0.01) if schedule is None else schedule), Constant(1.0)
    return 1.0, rules.schedule_of(schedule, rule)


def clip_of(clip):
    """A number is a norm."""
    return valid(Clip(norm=float(clip)) if isinstance(clip, Real) else clip)


def groups_of(parameters, taken=()) -> list[dict]:
    """Groups of unique parameters, all with a name. taken: groups that there are already."""
    if isinstance(parameters, torch.optim.Optimizer):
        raise UserError("a torch optimizer is wrapped by sparsecomm.DistributedOptimizer itself, not by a class made from it")
    parameters = [parameters] if isinstance(parameters, torch.nn.Module) else list(parameters)
    if parameters and not isinstance(parameters[0], dict):
        parameters = [{"params": parameters[0] if isinstance(parameters[0], torch.nn.Module) else parameters}]
    if not parameters:
        raise UserError("there are no parameters to train")
    groups = []
    place = {p: k for k, group in enumerate(taken) for p in group["params"]}
    names = {name for group in taken for name in group["param_names"]}
    for k, group in enumerate(parameters, len(taken)):
        known(k, group)
        pairs, items = {}, group["params"]
        items = [items] if isinstance(items, torch.Tensor) else items
        for i, item in enumerate(items.named_parameters() if isinstance(items, torch.nn.Module) else items):
            name, p = item if isinstance(item, tuple) else (f"{k}.{i}", item)
            if not p.numel() or place.get(p) == k:
                continue
            if p in place or name in names:
                raise UserError(f"parameter {name} is in two groups, or its name is that of another")
            pairs[name], place[p] = p, k
            names.add(name)
        groups.append({**group, "params": list(pairs.values()), "param_names": list(pairs)})
    return groups


def modules_of(parameters) -> list[torch.nn.Module]:
    """The modules whose parameters these are, as far as can be told: of themselves, or of their named_parameters()."""
    if isinstance(parameters, torch.nn.Module):
        return [parameters]
    if isinstance(parameters, dict):
        return modules_of(parameters["params"])
    if isinstance(parameters, list | tuple):
        parts = [part for part in parameters if isinstance(part, dict | torch.nn.Module)]
        return [module for part in parts for module in modules_of(part)]
    own = torch.nn.Module.named_parameters.__code__, torch.nn.Module.parameters.__code__
    begun = getattr(parameters, "gi_code", None) in own and parameters.gi_frame
    return [parameters.gi_frame.f_locals["self"]] if begun else []


def saved(group) -> dict:
    """What of a group goes into a state: numbers, tensors, and rule and decay as lists of numbers."""
    kept = {key: x.clone() if isinstance(x, torch.Tensor) else x for key, x in group.items()
            if isinstance(x, Real | torch.Tensor)}
    rule = rule_of(group["rule"])
    decay = decay_of(group["decay"], rule)
    return {**kept, "rule": [type(rule).__name__, *plain(rule)], "decay": None if decay is None else list(decay)}


def load(group, state):
    """Put what was `saved` into a group. Raises UserError where its rule is another."""
    rule, (name, *values) = rule_of(group["rule"]), state["rule"]
    if type(rule).__name__ != name:
        raise UserError(f"the state does not fit: needed the rule {type(rule).__name__}, got {name}")
    numbers = {key: x.clone() if isinstance(x, torch.Tensor) else x for key, x in state.items()}
    group.update({"momentum": None, **numbers} if "momentum" in group else numbers)
    group["rule"] = valid(rebuilt(rule, values))
    group["decay"] = None if state["decay"] is None else Decay(*state["decay"])
