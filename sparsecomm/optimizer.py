"""Gradient dropping in a torch script of one's own: an optimizer that steps with the gradients of all ranks.

    optimizer = sparsecomm.DistributedOptimizer(model, "adam", 1e-3, config=Config(keep=0.01))
    …
    loss.backward()
    optimizer.step()
"""

import math
import warnings
import weakref
import zlib
from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from hogwild.errors import UserError
from sparsecomm import guard
from sparsecomm.compress.device import flat
from sparsecomm.config import Config
from sparsecomm.replica import param_groups
from sparsecomm.replica.buffers import Buffers, broadcast
from sparsecomm.replica.gradient_edits import LINE, Edits
from sparsecomm.replica.join import Join
from sparsecomm.replica.replica import Group
from sparsecomm.replica.state import reshared
from sparsecomm.replica.synchronizer import Synchronizer
from sparsecomm.wire.agreement import agree, all_fine
from sparsecomm.wire.handshake import handshake

FIXES = ("clip with clip=… or optimizer.clip_grad_norm_(…), give accumulate=… for several backward passes, or use "
         "Config(overlap=False)")


class DistributedOptimizer(torch.optim.Optimizer):
    """Steps with the mean over the ranks of `comm` of what each has in `.grad`, sent as `config` says.

    params: the model; or its named_parameters(), or a list of dicts {"params": either, "lr": …, "rule": …, "decay": …} as
    torch's optimizers take; float32, contiguous, on one device. rule: a rule of `hogwild.kernels.optim.rules` or its
    text, such as "adam:b1=0.95". schedule: one of `hogwild.kernels.optim.schedules`, its text, or a number; None: the
    rule's own. The learning rate is the schedule's times the group's `lr`: 1 under a schedule; under a number that
    number, so that torch's schedulers can drive it. decay: `Decay`; None: the rule's own. clip: `Clip` of the mean
    gradient, or a number for its norm. A group's `lr`, `rule` (of the same class) and `decay` may be changed between
    steps, on all ranks alike.

    On construction all parameters become rank 0's. Nothing is sent before `step`: until then a script may do to `.grad`
    what it likes, and it does so to the rank's own gradient; `clip_grad_norm_` of the optimizer acts on the mean. With
    Config(overlap=True) gradients are sent while backward goes on, after `accumulate` passes, and a change of one that was
    sent is an error at `step`. A parameter without a gradient on any rank is left alone, as torch leaves it. buffers:
    "broadcast" rank 0's after each step, which is what DistributedDataParallel does before the next forward pass (the
    default, where the model is known), "average" them, or leave each rank its "own".

    With `combine="local"` ranks differ until their parameters are averaged: save them after
    `synchronizer.average_parameters()`. `synchronizer` knows steps, skipped steps, phases and bytes. Raises UserError.
    """

    _step_supports_amp_scaling = True  # a GradScaler then leaves it to us to skip a step, on all ranks

    def __init__(self, params, rule, schedule=None, *, comm=None, config=None, decay=None, clip=None, accumulate=1,
                 buffers=None, seed=0, say=print):
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
            raise UserError(f"accumulate must be a whole number of backward passes, at least 1, got {accumulate!r}")
        config, rule, self.accumulate = config or Config(), param_groups.rule_of(rule), accumulate
        self.config = replace(config, overlap=bool(config.overlap))
        lr, self.schedule = param_groups.schedule_of(schedule, rule)
        modules, groups, self.synchronizer = param_groups.modules_of(params), param_groups.groups_of(params), None
        super().__init__(groups, {"lr": lr, "rule": rule, "decay": decay})
        self.named, self.places, self.given = {}, {}, []
        tensors, settings = self._taken(self.param_groups)
        self.synchronizer = self._synchronizer(tensors, rule, self.schedule, comm, clip=param_groups.clip_of(clip),
                                               groups=settings, seed=seed, say=say)
        broadcast(self.synchronizer.comm, self._unfit(self.param_groups))
        self.buffers = Buffers(modules, buffers, self.synchronizer.comm)
        handshake(self.synchronizer.comm, {"the size of all buffers": self.buffers.size()})
        self.buffers.equalize()
        self.passes, self.kept, self.hooks, self.bound, self.joined = Counter(), {}, {}, math.inf, None
        self._listen()
        self.edits = Edits([] if self.synchronizer.thread or self.synchronizer.size == 1 else self.named.values())

    def _taken(self, groups):
        """(flat tensors by name, their settings) of torch's groups that are new."""
        named = {name: p for group in groups for name, p in zip(group["param_names"], group["params"])}
        needed = [p for p in (*self.named.values(), *named.values()) if p.requires_grad]
        devices = {str(p.device) for p in needed}
        if len(devices) > 1:
            raise UserError(f"the parameters lie on {' and '.join(sorted(devices))}; make an optimizer for each device")
        self.device = needed[0].device if needed else torch.device("cpu")
        tensors = {name: flat(name, p) for name, p in named.items() if p.requires_grad or self._fits(p)}
        found = []
        for group, setting in zip(groups, param_groups.settings(groups)):
            names = tuple(name for name in group["param_names"] if name in tensors)
            asleep = frozenset(name for name in names if not named[name].requires_grad)
            found.append(Group(names, setting.rule, self.schedule, setting.decay, asleep))
            self.given.append(setting)
        self.named |= named
        self.places |= {name: p.data_ptr() for name, p in named.items()}
        return tensors, found

    def _fits(self, p):
        return p.dtype == torch.float32 and p.layout == torch.strided and p.is_contiguous() and p.device == self.device

    def _unfit(self, groups):
        """Frozen parameters that could not be stepped, such as those of another dtype."""
        return [p.detach() for group in groups for p in group["params"] if not p.requires_grad and not self._fits(p)]

    def _synchronizer(self, tensors, rule, schedule, comm, **options):
        if self._on_host():
            tensors = {name: w.numpy() for name, w in tensors.items()}
        return Synchronizer(tensors, rule, schedule, comm, self.config, shapes=self._shapes(tensors), **options)

    def _on_host(self):
        return self.device.type == "cpu"

    def _shapes(self, tensors):
        return {name: tuple(self.named[name].shape) for name in tensors}

    def _numbers(self, tensor):
        """As the synchronizer takes it."""
        return tensor.numpy() if self._on_host() else tensor

    def add_param_group(self, param_group):
        """As of torch's optimizers, between two steps, on all ranks."""
        if self.synchronizer is None:
            super().add_param_group(param_group)
            return
        self._begin_anew()
        for group in param_groups.groups_of([param_group], self.param_groups):
            super().add_param_group(group)
        tensors, settings = self._taken(self.param_groups[-1:])
        self.synchronizer.add({name: self._numbers(w) for name, w in tensors.items()}, settings, self._shapes(tensors))
        broadcast(self.synchronizer.comm, self._unfit(self.param_groups[-1:]))
        self._listen()

    def _listen(self):
        """Let parameters whose gradient is complete be sent at once."""
        me = weakref.ref(self)  # a hook must not outlive an optimizer that was thrown away
        for name, p in self.named.items() if self.synchronizer.thread else ():
            if name not in self.hooks and p.requires_grad:
                self.hooks[name] = p.register_post_accumulate_grad_hook(_hook(me, name))

    def _arrived(self, name):
        """A backward pass has added to the gradient of `name`."""
        if name in self.kept:  # what was sent was no step's, and the gradient has changed
            self._begin_anew()
        self.passes[name] += 1
        if self.passes[name] == self.accumulate and name in self.synchronizer.place:
            self._keep(name)
            self.synchronizer.ready(name, self._numbers(self.kept[name]))

    def _gradient(self, name):
        """The gradient of `name` as a flat tensor, or None."""
        grad = self.named[name].grad
        return None if grad is None else (grad.to_dense() if grad.is_sparse else grad).detach().reshape(-1)

    def _keep(self, name):
        """Keep what is sent, to see at `step` that the script has not changed it since."""
        g = self._gradient(name)
        self.kept[name] = None if g is None else g.clone()

    def _begin_anew(self):
        """Take back what was sent of gradients that no step has used. On all ranks."""
        if self.passes or self.kept:
            self.kept.clear()
            self._take_back("another backward pass, or zero_grad, without a step")

    def _take_back(self, call):
        with guard.together(self.synchronizer.names, call):
            agreed = self._agree(call)
            self._complete(agreed)
            self.synchronizer.cancel(agreed.most)
        self._done()

    def join(self):
        """A context for ranks with different numbers of batches, entered by all of them before their first step:

            with optimizer.join():
                for x, y in loader:
                    …
                    optimizer.step()

        Ranks that leave it take part in the steps of the others with gradients of zero, until all have left: then all have
        the same parameters. The mean is over all ranks, those that have ended among them. Within it call nothing that needs
        all ranks but step, zero_grad and clip_grad_norm_.
        """
        return Join(self)

    def zero_grad(self, set_to_none=True):
        """As of torch's optimizers; gradients that were sent ahead, and not used by a step, are taken back on all ranks."""
        self._begin_anew()
        super().zero_grad(set_to_none)

    def clip_grad_norm_(self, max_norm, norm_type=2.0):
        """Bound the norm of the mean gradient of all ranks, over all parameters, at the next `step`. On all ranks alike.

        The norm before that, as torch.nn.utils.clip_grad_norm_ returns it. It ends the exchange: `.grad`, which stays the
        rank's own, may not be changed from here to `step`.
        """
        if norm_type != 2 or not max_norm >= 0:
            raise UserError(f"clip_grad_norm_ takes a norm, not negative, and norm_type 2, got {max_norm} and {norm_type}")
        with guard.together(self.synchronizer.names, "clip_grad_norm_"):
            self._reduce("clip_grad_norm_")
        for name in self.named:
            self._keep(name)
        norm = self.synchronizer.norm()
        total, self.bound = min(norm, self.bound), min(self.bound, float(max_norm))
        return torch.tensor(total if norm == norm else norm)

    def step(self, closure=None):
        """Wait for the gradients of all ranks and step; on all ranks alike. The closure's value, or None.

        A gradient with NaN or infinity on any rank changes nothing on any: `synchronizer.skipped` then counts up. Raises
        UserError.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        if self.edits.found(self.named.values()) and self.synchronizer.rank == 0:
            warnings.warn(LINE, stacklevel=3)
        if getattr(self, "grad_scale", None) is not None:
            self._unscale()
        with guard.together(self.synchronizer.names, f"step {self.synchronizer.round + 1}"):
            idle = self._reduce("step")
            pairs = zip(self.param_groups, self.given)
            rates = {name: setting.lr for group, setting in pairs for name in group["param_names"]}
            self.synchronizer.step(rates, idle, self.bound)
            self.buffers.equalize()
        # The kernels write behind autograd's back.
        torch.autograd.graph.increment_version([p for name, p in self.named.items() if name not in idle])
        self._done()
        return value

    def _done(self):
        self.passes.clear()
        self.kept.clear()
        self.bound = math.inf

    def _unscale(self):
        if self.passes or self.kept:
            raise UserError("a GradScaler changes gradients that were already sent: use Config(overlap=False), and call "
                            "scaler.unscale_(optimizer) before optimizer.clip_grad_norm_")
        for p in self.named.values():
            if p.grad is not None:
                p.grad.div_(self.grad_scale)

    def _reduce(self, call) -> set:
        """Finish the exchange of all gradients. The names of those that no rank has."""
        agreed = self._agree(call)
        present = {name for name, some in zip(self.named, agreed.present) if some}
        self.synchronizer.wake([name for name in self.named if name in present])
        self._listen()
        self._complete(agreed)
        for name in present:
            self._offer(name)
        idle = self.named.keys() - present  # of a bucket that was sent ahead the rank that sent it has all
        self.synchronizer.reduce(idle)
        return idle

    def _complete(self, agreed):
        """Give what is wanting in buckets that another rank has already sent."""
        for bucket in self.synchronizer.buckets[:agreed.most]:
            for name in bucket.names:
                self._offer(name)

    def _offer(self, name):
        """Give the gradient of `name`, zeros where there is none, unless it was given."""
        b, k = self.synchronizer.place[name]
        if self.synchronizer.gradients[b][k] is None:
            g = self._gradient(name)
            p = self.named[name]
            self.synchronizer.ready(name, self._numbers(torch.zeros(p.numel(), device=p.device) if g is None else g))

    def _agree(self, call):
        """What all ranks have; raises on all of them where one does something else than the others."""
        if self.joined:
            self.joined.roll(call)
        wrong, sync = "", self.synchronizer
        try:
            for name, p in self.named.items():
                self._check(name, p)
            self._follow()
        except UserError as error:
            wrong = str(error)
        facts = {"the call": call, "the step": sync.round, "its tensors": len(self.named), "the error": wrong or "none",
                 "the size of all buffers": self.buffers.size()}
        for k, setting in enumerate(self.given):
            facts |= {f"{option} of parameter group {k}": x if option == "lr" else repr(x)
                      for option, x in setting._asdict().items()}
        first = sync.size > 1 and not sync.round and not self.bound < math.inf
        own = self._fingerprint() if first else 0
        present = np.array([p.grad is not None or name in self.kept for name, p in self.named.items()], bool)
        agreed = agree(sync.comm, facts, present, len(sync.going), len(sync.buckets), own)
        if wrong:
            raise UserError(wrong)
        if first and own and agreed.same and sync.rank == 0:
            warnings.warn("the first gradients of all ranks are identical: do they read the same data? Give each its own "
                          "part, by optimizer.synchronizer.rank and size", stacklevel=4)
        return agreed

    def _fingerprint(self) -> int:
        """A number for this rank's gradient; 0 where all of it is 0."""
        own = 0
        for name in self.named:
            g = self._gradient(name)
            if g is not None and g.any():
                own = zlib.crc32(g.cpu().numpy(), own)
        return own

    def _follow(self):
        """Let what the script has put into `param_groups` count from this step on."""
        now = param_groups.settings(self.param_groups)
        for k, (group, old, new) in enumerate(zip(self.param_groups, self.given, now)):
            if type(new.rule) is not type(old.rule):
                raise UserError(f"parameter group {k}: rule may change its numbers, not from {type(old.rule).__name__} to "
                                f"{type(new.rule).__name__}; make a new DistributedOptimizer")
            if len(group["params"]) != len(group["param_names"]):
                raise UserError(f"parameter group {k}: params was changed; use add_param_group, or make a new optimizer")
            if new[1:] != old[1:]:
                for name in group["param_names"]:
                    had = self.synchronizer.groups.get(name)
                    if had:
                        self.synchronizer.groups[name] = had._replace(rule=new.rule, decay=new.decay)
        self.given = now

    def _check(self, name, p):
        """Raise UserError where the parameter or a gradient that was sent is no longer what it was."""
        if p.data_ptr() != self.places[name]:
            raise UserError(f"parameter {name} was moved after the optimizer was made; call model.to(…) first")
        if p.grad is not None and name not in self.synchronizer.tensors:
            flat(name, p)
            raise UserError(f"parameter {name} lies on {p.device}, the others on {self.device}")
        if name in self.kept and not _same(self.kept[name], self._gradient(name)):
            raise UserError(f"the gradient of {name} was changed after it was complete and sent: {FIXES}")

    def state_dict(self) -> dict:
        """All that this rank's next step depends on beside the parameters; each rank has its own. For torch.save."""
        if self.passes or self.kept:
            raise UserError("state_dict between backward and step: gradients are on their way; call it after step")
        common, own = ({name: torch.from_numpy(np.array(x)) for name, x in part.items()}
                       for part in (self.synchronizer.common(), self.synchronizer.own()))
        return {"rank": self.synchronizer.rank, "size": self.synchronizer.size, "common": common, "own": own,
                "param_groups": [param_groups.saved(group) for group in self.param_groups]}

    def load_state_dict(self, state):
        """Go on from this rank's `state_dict`; or from a list of all ranks', where their number was another.

        Residuals then keep their sum. On all ranks; raises UserError on all of them, before anything is changed, where a
        state does not fit, is wanting, or is of another step.
        """
        wrong, sync = "", self.synchronizer
        try:
            state = self._mine(state)
        except UserError as error:
            wrong = str(error)
        all_fine(sync.comm, wrong)
        self._begin_anew()
        sync.load(*({name: x.numpy() for name, x in state[part].items()} for part in ("common", "own")))
        for group, numbers in zip(self.param_groups, state["param_groups"]):
            param_groups.load(group, numbers)
        self._listen()

    def _mine(self, state) -> dict:
        """This rank's state, of what `load_state_dict` was given. Raises UserError."""
        rank, size = self.synchronizer.rank, self.synchronizer.size
        if not isinstance(state, dict):
            states = sorted(state, key=lambda each: each["rank"])
            if not states or [each["rank"] for each in states] != list(range(states[0]["size"])):
                needed, got = states[0]["size"] if states else size, ", ".join(str(each["rank"]) for each in states)
                raise UserError(f"needed the state of each of {needed} ranks, got those of rank {got or 'none'}")
            clocks = {str(each["common"]["clock"].tolist()) for each in states}
            if len(clocks) > 1 or len({each["size"] for each in states}) > 1:
                raise UserError("the states are not of one step of one run")
            owns = [{name: x.numpy() for name, x in each["own"].items()} for each in states]
            own = {name: torch.from_numpy(np.array(x)) for name, x in reshared(owns, size)[rank].items()}
            state = {**states[0], "rank": rank, "size": size, "own": own}
        if (state["rank"], state["size"]) != (rank, size):
            raise UserError(f"rank {rank} of {size} got the state of rank {state['rank']} of {state['size']}; give each rank "
                            "its own, or every rank the list of all")
        if len(state["param_groups"]) != len(self.param_groups):
            raise UserError(f"needed a state of {len(self.param_groups)} parameter groups, got {len(state['param_groups'])}")
        return state

    def close(self):
        """Let go of the parameters: no gradient is sent any more. On all ranks."""
        self.edits.end()
        for hook in self.hooks.values():
            hook.remove()
        self.synchronizer.close()


def _hook(reference, name):
    def arrived(p):
        optimizer = reference()
        if optimizer is not None:
            optimizer._arrived(name)
    return arrived


def _same(kept, now) -> bool:
    """Whether two flat gradients, or None, have the same bits."""
    if kept is None or now is None:
        return kept is now
    return torch.equal(kept.view(torch.int32), now.view(torch.int32))
