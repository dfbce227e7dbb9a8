"""Rules and schedules as a caller may give them: an object, its text, or a number for a constant learning rate."""

from numbers import Real

from hogwild.errors import UserError
from hogwild.kernels.optim.hyperparameters import HyperParameterError, checked
from hogwild.kernels.optim.rules import RULES
from hogwild.kernels.optim.schedules import SCHEDULES, Constant
from hogwild.kernels.optim.steps import Decay
from hogwild.training.registry import build


def valid(hp):
    """`hp`, checked; a UserError where a number is out of range."""
    try:
        return checked(hp)
    except HyperParameterError as error:
        raise UserError(str(error)) from None


def rule_of(rule):
    """A rule from its text, or as it is."""
    if rule is None:
        raise UserError('needed a rule, as in DistributedOptimizer(model, "adam", lr=1e-3), or a torch optimizer instead of '
                        "the model, got neither")
    if isinstance(rule, str):
        return build(rule, RULES, "rule")
    if not hasattr(rule, "start"):
        raise UserError(f"rule must be one of hogwild.kernels.optim.rules, or its text, such as 'adam:b1=0.95', got {rule!r}")
    return valid(rule)


def decay_of(decay, rule):
    """None: the rule's own."""
    wd = getattr(rule, "default_wd", 0.0)
    if decay is not None and not isinstance(decay, Decay):
        raise UserError(f"decay must be a Decay, such as Decay(l2=0.1) or Decay(wd=0.1), got {decay!r}")
    return Decay(wd=wd) if decay is None and wd else valid(decay)


def schedule_of(schedule, rule):
    """A schedule from its text, a constant rate, or as it is; None: the rule's own constant rate."""
    lr = getattr(rule, "default_lr", 0.01)
    if schedule is None or isinstance(schedule, Real):
        return valid(Constant(lr if schedule is None else float(schedule)))
    return valid(build(schedule, SCHEDULES, "schedule", lr=lr) if isinstance(schedule, str) else schedule)
