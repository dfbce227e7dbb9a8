"""Gradient dropping in a torch script of one's own: an optimizer that steps with the gradients of all ranks.

    optimizer = sparsecomm.DistributedOptimizer(model.named_parameters(), "adam", 1e-3, config=Config(keep=0.01))
    …
    loss.backward()
    optimizer.step()
"""

import math
import weakref
from collections import Counter
from numbers import Real

import numpy as np
import torch

from hogwild.errors import UserError
from hogwild.spec import build
from kernels.rules import RULES
from kernels.schedules import SCHEDULES, Constant
from kernels.steps import Clip, Decay, array_step
from sparsecomm.config import Config
from sparsecomm.device import DeviceDense, DeviceSparse, flat
from sparsecomm.synchronizer import Group, Synchronizer, reshared

OPTIONS = "params", "param_names", "lr", "rule", "decay"  # what a parameter group may set


class DeviceSynchronizer(Synchronizer):
    """The same for torch tensors on one device, which select and step there. The exchange does not overlap with backward:
    all its work is in the caller's stream.
    """

    def _ahead(self):
        return False

    def _validate(self):
        for name, w in self.tensors.items():
            flat(name, w)

    def _slots(self, rule, w):
        return [torch.full_like(w, value) for value in rule.start()]

    def _reducer(self, sizes, seed):
        device = next(iter(self.tensors.values())).device
        if self.exchange.dense:
            return DeviceDense(sizes, self.exchange, self.config, device)
        return DeviceSparse(sizes, self.exchange.bucket(), self.config, device, seed)

    def _host(self, x):
        if isinstance(x, list):
            return np.stack([self._host(slot) for slot in x]) if x else np.zeros((0, 0), np.float32)
        return x.cpu().numpy()

    def _put(self, x, values):
        for slot, array in zip(x, values) if isinstance(x, list) else [(x, values)]:
            slot.copy_(torch.from_numpy(array))

    def _move(self, rule, w, slots, g, touched, lr, decay, clip, scale):
        if touched is None:
            array_step(rule, w, g, slots, lr, self.t, decay, clip, scale)
            return
        at = torch.from_numpy(touched.astype(np.int64)).to(w.device)
        part, few = w[at], [slot[at] for slot in slots]
        array_step(rule, part, g[at], few, lr, self.t, decay, clip, scale)
        for x, new in zip((w, *slots), (part, *few)):
            x[at] = new


class DistributedOptimizer(torch.optim.Optimizer):
    """Steps with the mean over the ranks of `comm` of what each has in `.grad`, sent as `config` says.

    named_parameters: pairs of name and parameter, or a list of dicts {"params": pairs, "lr": …, "rule": …, "decay": …} as
    torch's optimizers take; float32, contiguous, on one device. Those that need no gradient are left alone. rule: a rule
    of `kernels.rules` or its text, such as "adam:b1=0.95". schedule: one of `kernels.schedules`, its text, or a number;
    None: the rule's own. The learning rate is the schedule's times the group's `lr`: 1 under a schedule; under a number
    that number, so that torch's schedulers can drive it (alike on all ranks). decay: `Decay`; None: the rule's own.
    clip: `Clip` of the mean gradient, or a number for its norm. accumulate: how many backward passes add up to a
    gradient before `step`; as in torch the sum of them counts, so divide the loss.

    On construction all parameters become rank 0's; buffers are not touched. While backward goes on, gradients that are
    complete are sent (`config.overlap`), so that none may be changed before `step`: clip with `clip` and
    `config.clip_local`, or set overlap=False for clipping of your own or a GradScaler. A parameter without a gradient
    counts as zeros. With `combine="local"` ranks differ until their parameters are averaged: save them after
    `synchronizer.average_parameters()`. `synchronizer` knows steps, skipped steps, phases and bytes. Raises UserError.
    """

    _step_supports_amp_scaling = True  # a GradScaler then leaves it to us to skip a step, on all ranks

    def __init__(self, named_parameters, rule, schedule=None, *, comm=None, config=None, decay=None, clip=None,
                 accumulate=1, seed=0, say=print):
        rule, self.config, self.accumulate = _rule(rule), config or Config(), accumulate
        if not isinstance(accumulate, int) or accumulate < 1:
            raise UserError(f"accumulate must be a whole number of backward passes, at least 1, got {accumulate!r}")
        lr, schedule = _schedule(schedule, rule)
        groups, self.synchronizer = _groups(named_parameters), None
        super().__init__(groups, {"lr": lr})
        self._rates()
        self.named = {name: p for group in groups for name, p in zip(group["param_names"], group["params"])}
        settings = [Group(tuple(group["param_names"]), _rule(group.get("rule", rule)), schedule,
                          _decay(group.get("decay", decay), _rule(group.get("rule", rule)))) for group in groups]
        tensors = {name: flat(name, p) for name, p in self.named.items()}
        self.synchronizer = self._synchronizer(tensors, rule, schedule, comm, clip=_clip(clip), groups=settings, seed=seed,
                                               say=say)
        self.places = {name: p.data_ptr() for name, p in self.named.items()}
        self.passes, self.given, self.hooks = Counter(), {}, []
        if self.synchronizer.thread:
            me = weakref.ref(self)  # a hook must not outlive an optimizer that was thrown away
            self.hooks = [p.register_post_accumulate_grad_hook(_hook(me, name)) for name, p in self.named.items()]

    def _synchronizer(self, tensors, rule, schedule, comm, **options):
        devices = {str(p.device) for p in self.named.values()}
        if len(devices) > 1:
            raise UserError(f"the parameters lie on {' and '.join(sorted(devices))}; make an optimizer for each device")
        if devices <= {"cpu"}:
            arrays = {name: w.numpy() for name, w in tensors.items()}
            return Synchronizer(arrays, rule, schedule, comm, self.config, **options)
        return DeviceSynchronizer(tensors, rule, schedule, comm, self.config, **options)

    def add_param_group(self, param_group):
        """Only on construction: ranks agree on the parameters once, at the start."""
        if getattr(self, "synchronizer", None):
            raise UserError("a group of parameters cannot be added later; make a new DistributedOptimizer of all of them")
        super().add_param_group(param_group)

    def _arrived(self, name):
        """A backward pass has added to the gradient of `name`."""
        self.passes[name] += 1
        if self.passes[name] == self.accumulate:
            self._give(name)

    def _give(self, name):
        p = self.named[name]
        if p.grad is None:
            g = torch.zeros(p.numel(), device=p.device)
        else:
            g = (p.grad.to_dense() if p.grad.is_sparse else p.grad).detach().reshape(-1)
        self.given[name] = p.grad, _version(p.grad)
        self.synchronizer.ready(name, g if isinstance(self.synchronizer, DeviceSynchronizer) else g.numpy())

    def step(self, closure=None):
        """Wait for the gradients of all ranks and step; on all ranks alike. The closure's value, or None.

        A gradient with NaN or infinity on any rank changes nothing on any: `synchronizer.skipped` then counts up. Raises
        UserError.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        if getattr(self, "grad_scale", None) is not None:
            self._unscale()
        for name, p in self.named.items():
            self._check(name, p)
            if name not in self.given:
                self._give(name)
        self.synchronizer.step(self._rates())
        torch.autograd.graph.increment_version(list(self.named.values()))  # the kernels write behind autograd's back
        self.passes.clear()
        self.given.clear()
        return value

    def _rates(self) -> dict[str, float]:
        """`lr` of the group of every parameter."""
        rates = {name: float(group["lr"]) for group in self.param_groups for name in group["param_names"]}
        for name, lr in rates.items():
            if not 0 <= lr < math.inf:
                raise UserError(f"lr must be a finite number, not negative, got {lr} for {name}")
        return rates

    def _unscale(self):
        if self.config.overlap:
            raise UserError("a GradScaler needs Config(overlap=False): else gradients are sent before they are unscaled")
        for p in self.named.values():
            if p.grad is not None:
                p.grad.div_(self.grad_scale)

    def _check(self, name, p):
        """Raise UserError where the parameter or a gradient that was sent is no longer what it was."""
        if p.data_ptr() != self.places[name]:
            raise UserError(f"parameter {name} was moved after the optimizer was made; call model.to(…) first")
        grad, version = self.given.get(name, (p.grad, _version(p.grad)))
        if grad is not p.grad or version != _version(p.grad):
            raise UserError(f"the gradient of {name} was changed after it was complete and sent: give accumulate=… for "
                            "several backward passes, clip=… for clipping, or Config(overlap=False)")

    def state_dict(self) -> dict:
        """All that this rank's next step depends on beside the parameters; each rank has its own. For torch.save."""
        common, own = ({name: torch.from_numpy(np.array(x)) for name, x in part.items()}
                       for part in (self.synchronizer.common(), self.synchronizer.own()))
        numbers = [{k: x for k, x in group.items() if isinstance(x, Real)} for group in self.param_groups]
        return {"rank": self.synchronizer.rank, "size": self.synchronizer.size, "common": common, "own": own,
                "param_groups": numbers}

    def load_state_dict(self, state):
        """Go on from this rank's `state_dict`; or from a list of all ranks', where their number was another.

        Residuals then keep their sum. Raises UserError where the state does not fit.
        """
        rank, size = self.synchronizer.rank, self.synchronizer.size
        if not isinstance(state, dict):
            states = sorted(state, key=lambda each: each["rank"])
            owns = [{name: x.numpy() for name, x in each["own"].items()} for each in states]
            state = {**states[0], "rank": rank, "size": size, "own": reshared(owns, size)[rank]}
        if (state["rank"], state["size"]) != (rank, size):
            raise UserError(f"rank {rank} of {size} got the state of rank {state['rank']} of {state['size']}; give each rank "
                            "its own, or every rank the list of all")
        if len(state["param_groups"]) != len(self.param_groups):
            raise UserError(f"needed a state of {len(self.param_groups)} parameter groups, got {len(state['param_groups'])}")
        self.synchronizer.load(*({name: np.asarray(x) for name, x in state[part].items()} for part in ("common", "own")))
        for group, numbers in zip(self.param_groups, state["param_groups"]):
            group.update(numbers)

    def close(self):
        """Let go of the parameters: no gradient is sent any more."""
        for hook in self.hooks:
            hook.remove()
        self.synchronizer.close()


def _hook(reference, name):
    def arrived(p):
        optimizer = reference()
        if optimizer is not None:
            optimizer._arrived(name)
    return arrived


def _version(grad):
    return None if grad is None else grad._version


def _rule(rule):
    return build(rule, RULES, "rule") if isinstance(rule, str) else rule


def _schedule(schedule, rule):
    """(a group's default `lr`, schedule)."""
    if schedule is None or isinstance(schedule, Real):
        return float(getattr(rule, "default_lr", 0.01) if schedule is None else schedule), Constant(1.0)
    if isinstance(schedule, str):
        schedule = build(schedule, SCHEDULES, "schedule", lr=getattr(rule, "default_lr", 0.01))
    return 1.0, schedule


def _decay(decay, rule):
    wd = getattr(rule, "default_wd", 0.0)
    return Decay(wd=wd) if decay is None and wd else decay


def _clip(clip):
    return Clip(norm=float(clip)) if isinstance(clip, Real) else clip


def _groups(parameters) -> list[dict]:
    """Groups of unique parameters that need a gradient, all with a name."""
    if isinstance(parameters, torch.nn.Module):
        raise UserError("needed model.named_parameters(), got the model")
    parameters = list(parameters)
    groups, place = [], {}
    for k, group in enumerate(parameters if parameters and isinstance(parameters[0], dict) else [{"params": parameters}]):
        odd = set(group) - set(OPTIONS)
        if odd:
            raise UserError(f"parameter group {k}: {sorted(odd)[0]} is none of {', '.join(OPTIONS)}")
        pairs = {}
        for i, item in enumerate(group["params"]):
            name, p = item if isinstance(item, tuple) else (f"{k}.{i}", item)
            if not p.requires_grad or not p.numel() or place.get(p) == k:
                continue
            if p in place or name in pairs or any(name in other["param_names"] for other in groups):
                raise UserError(f"parameter {name} is in two groups, or its name is that of another")
            pairs[name], place[p] = p, k
        groups.append({**group, "params": list(pairs.values()), "param_names": list(pairs)})
    return groups

