"""A torch optimizer that steps with the mean gradient of all ranks, which the exchange puts into `.grad`."""

import inspect
import zlib
from numbers import Number

import torch

from hogwild.errors import UserError
from hogwild.kernels.optim.rules import SGD
from hogwild.kernels.optim.schedules import Constant
from sparsecomm.replica import param_groups
from sparsecomm.replica.gradient_exchange import deliver
from sparsecomm.replica.replica import Group
from sparsecomm.replica.torch_stepped import TorchStepped
from sparsecomm.rule_optimizer import DistributedOptimizer
from sparsecomm.wire.handshake import handshake


class WrappedOptimizer(DistributedOptimizer):
    """What `DistributedOptimizer(torch.optim.Adam(…), …)` makes: the torch optimizer steps, with the mean over the ranks.

    inner: any optimizer of torch's interface whose step needs no closure and no sparse gradients (so not LBFGS, SparseAdam);
    its parameters dense, float32, float16 or bfloat16, on one device. named_parameters: the model, or its
    named_parameters(), for names in messages and states and, where it is the model, for the buffers; None: the names that
    the optimizer knows, else "group.index". Everything else is as of `DistributedOptimizer`.

    `param_groups`, `state` and `defaults` are the optimizer's own, and so is what a step does in them; its parameters have no
    master weights here. After `step`, `.grad` is the mean that was used, dense in the parameter's dtype: coordinates that
    nothing was sent of see a gradient of 0 (their moments decay), embeddings with sparse=True too. A parameter without a
    gradient on any rank keeps None. Raises UserError.
    """

    _kind = TorchStepped

    def __init__(self, inner, rule=None, schedule=None, *, named_parameters=None, lr=None, decay=None, comm=None, config=None,
                 clip=None, accumulate=1, buffers=None, seed=0, say=print):
        demand(inner)
        for name, value in {"rule": rule, "schedule": schedule, "lr": lr, "decay": decay}.items():
            if value is not None:
                raise UserError(f"{name} is for parameters, not for a torch optimizer, which has its own, got {value!r}; "
                                f"give it to {type(inner).__name__}, or make DistributedOptimizer(model, …)")
        self.inner, self.schedule = inner, Constant(1.0)
        self.__setstate__({})  # what torch's Optimizer needs beside groups, state and defaults
        if config is not None and config.stepping not in ("auto", "dense"):
            raise UserError(f"stepping {config.stepping} needs a rule of hogwild.kernels.optim.rules: a torch optimizer "
                            "steps every coordinate at every step, where nothing was sent with gradient 0")
        modules = [] if named_parameters is None else param_groups.modules_of(named_parameters)
        self.names = _names(inner.param_groups, named_parameters)
        self._configure(config, accumulate)
        self._connect(SGD(), comm, modules, buffers, clip=param_groups.clip_of(clip), seed=seed, say=say)

    @property
    def param_groups(self):
        return self.inner.param_groups

    @property
    def state(self):
        return self.inner.state

    @property
    def defaults(self):
        return self.inner.defaults

    def __getattr__(self, name):
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _synchronizer(self, tensors, rule, schedule, comm, **options):
        synchronizer = super()._synchronizer(tensors, rule, schedule, comm, **options)
        synchronizer.optimizer = self
        return synchronizer

    def _pairs(self, group):
        return [(self.names[p], p) for p in group["params"] if p.numel()]

    def _settings(self, groups):
        """Of each group its numbers, texts and tuples of them, and how many parameters it has."""
        return [{"parameters": len(group["params"]), **{key: _plain(x) for key, x in group.items() if key != "params"}}
                for group in groups]

    def _options(self):
        return self.settings

    def _rates(self):
        return {}

    def _group(self, names, setting, asleep=frozenset()):
        return Group(names, SGD(), self.schedule, None, asleep)

    def _follow_settings(self):
        now = self._settings(self.param_groups)
        for k, (old, new) in enumerate(zip(self.settings, now)):
            if old["parameters"] != new["parameters"]:
                raise UserError(f"parameter group {k}: params was changed; use add_param_group, or make a new optimizer")
        self.settings = now

    def _step_inner(self, means):
        """Step with `means`, flat float32 gradients by name."""
        for name, mean in means.items():
            deliver(self.named[name], mean)
        self.inner.step()
        self.masters.pull()

    def _append(self, param_group):
        self.inner.add_param_group(param_group)
        first = len(self.param_groups) - 1
        new = _names(self.param_groups[first:], None, first)
        twice = sorted(set(new.values()) & set(self.names.values()))
        if twice:
            raise UserError(f"parameter {twice[0]} is in two groups, or its name is that of another")
        self.names |= new

    def _group_state(self):
        return self.inner.state_dict()

    def _load_groups(self, state):
        self.inner.load_state_dict({key: state[key] for key in ("state", "param_groups")})
        if self.config.combine == "global":
            handshake(self.synchronizer.comm, {"the optimizer's state": _checksum(self.inner.state_dict()["state"])},
                      "Load on every rank what the ranks have saved at one step")


def demand(inner):
    """Raise UserError where the mean gradient is not enough for `inner` to step."""
    kind, closure = type(inner).__name__, inspect.signature(inner.step).parameters.get("closure")
    if isinstance(inner, DistributedOptimizer):
        raise UserError("needed a torch optimizer of one process, got one that sparsecomm has made")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UserError(f"{kind} evaluates a closure several times a step, each time on the gradients of all ranks; "
                        "use an optimizer that steps once for each gradient")
    if isinstance(inner, torch.optim.SparseAdam):
        raise UserError('SparseAdam steps only sparse gradients, the mean of all ranks is dense; use the rule "adam" with '
                        'Config(stepping="touched"), which steps what arrived, or torch.optim.Adam')


def _names(groups, named_parameters, first=0) -> dict:
    """A name for each parameter that is not empty. first: the number of the first of the groups."""
    if isinstance(named_parameters, torch.nn.Module):
        named_parameters = named_parameters.named_parameters()
    known = None if named_parameters is None else {p: name for name, p in named_parameters}
    names = {}
    for k, group in enumerate(groups, first):
        for i, p in enumerate(group["params"]):
            own = group["param_names"][i] if "param_names" in group else f"{k}.{i}"
            if known is not None and p not in known:
                raise UserError(f"parameter {own} of shape {tuple(p.shape)} is not in named_parameters; give all that the "
                                "optimizer has")
            if p.numel():
                names[p] = own if known is None else known[p]
    if len(set(names.values())) < len(names):
        raise UserError("two parameters have one name; give named_parameters=model")
    return names


def _plain(x):
    """A group's setting as text that is the same where the setting is."""
    return repr(float(x)) if isinstance(x, torch.Tensor) and x.numel() == 1 else repr(x) if isinstance(
        x, Number | str | tuple | list | None) else type(x).__name__


def _checksum(state) -> int:
    """A number for all that a torch optimizer has of its parameters."""
    own = 0
    for index in sorted(state):
        for name, x in sorted(state[index].items()):
            raw = x.detach().cpu().reshape(-1).view(torch.uint8).numpy() if isinstance(x, torch.Tensor) else repr(x).encode()
            own = zlib.crc32(raw, zlib.crc32(name.encode(), own))
    return own
