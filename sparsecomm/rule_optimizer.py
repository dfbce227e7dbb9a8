"""DistributedOptimizer with a rule of ours: what it does between construction, steps and states."""

import zlib
from dataclasses import replace

import numpy as np
import torch

from hogwild.errors import UserError
from sparsecomm.config import Config
from sparsecomm.replica import param_groups
from sparsecomm.replica.buffers import Buffers, broadcast_tensors
from sparsecomm.replica.gradient_exchange import GradientExchange
from sparsecomm.replica.master_weights import MasterWeights, steppable
from sparsecomm.replica.replica import Group
from sparsecomm.replica.state import reshared, rewaited
from sparsecomm.replica.synchronizer import Synchronizer
from sparsecomm.wire.agreement import all_fine
from sparsecomm.wire.handshake import handshake


class DistributedOptimizer(GradientExchange, torch.optim.Optimizer):
    """Steps with the mean over the ranks of `comm` of what each has in `.grad`, sent as `config` says.

    On construction all parameters become rank 0's. Nothing is sent before `step`: until then a script may do to `.grad`
    what it likes, and it does so to the rank's own gradient; `clip_grad_norm_` of the optimizer acts on the mean, which
    `.grad` is after `synchronize`. With Config(overlap=True) gradients are sent while backward runs, after `accumulate`
    passes, and a change of one that was sent is an error at `step`. A parameter without a gradient on any rank is left
    alone, as torch leaves it. A group's `lr`, `rule` (of the same class), `decay` and `momentum` (in place of the rule's mu
    or b1, for schedulers that cycle it) may be changed between steps, on all ranks alike.

    A GradScaler's scale is divided out at `step`, in float32, so float16 parameters work with it; its unscale_ refuses these,
    so clip them by `clip`. It needs Config(overlap=False), the default.

    With `combine="local"` ranks differ until their parameters are averaged: save them after `average_parameters()`.
    `synchronizer` knows `rank`, `size`, steps, skipped steps, phases and bytes. Raises UserError.

    Parameters
    ----------
    params
        The model; or its named_parameters(), or a list of dicts {"params": either, "lr": …, "rule": …, "decay": …} as
        torch's optimizers have; dense, on one device. float32 is stepped in place; float16, bfloat16 and parameters that
        are not contiguous have float32 master weights and slots here, and are the rounded masters. Or a torch optimizer,
        which then steps: see `sparsecomm.wrapped.WrappedOptimizer`.
    rule
        A rule of `hogwild.kernels.optim.rules` or its text, such as "adam:b1=0.95".
    schedule
        In place of `lr`: one of `hogwild.kernels.optim.schedules`, its text, or a number; the rate is then the schedule's
        times the group's `lr`, 1.
    lr
        The learning rate, which torch's schedulers can drive; None: the rule's own.
    comm
        mpi4py's communicator; None: all ranks.
    config
        `sparsecomm.Config`: what is sent; None: its defaults.
    decay
        `Decay`; None: the rule's own.
    clip
        `Clip` of the mean gradient, or a number for its norm.
    accumulate
        Backward passes of a step, where gradients are sent while backward runs.
    buffers
        "broadcast" rank 0's after each step, which is what DistributedDataParallel does before the next forward pass (the
        default, where the model is known), "average" them, or leave each rank its "own".
    seed
        Of the samples by which thresholds are found; the same on all ranks.
    say
        Called with each line for the user, on rank 0.
    """

    wrapper = None  # WrappedOptimizer, which inherits from this class; set by sparsecomm/optimizer.py
    _kind = Synchronizer
    _step_supports_amp_scaling = True  # a GradScaler then leaves it to us to skip a step, on all ranks

    def __new__(cls, params=None, *args, **options):
        if cls is DistributedOptimizer and isinstance(params, torch.optim.Optimizer):
            cls = cls.wrapper
        return super().__new__(cls)

    def __init__(self, params, rule=None, schedule=None, *, lr=None, comm=None, config=None, decay=None, clip=None,
                 accumulate=1, buffers=None, seed=0, say=print):
        rule = param_groups.rule_of(rule)
        lr, self.schedule = param_groups.schedule_of(schedule, rule, lr)
        modules, groups = param_groups.modules_of(params), param_groups.groups_of(params)
        self._configure(config, accumulate)
        super().__init__(groups, {"lr": lr, "rule": rule, "decay": decay, **param_groups.cycled_default(rule)})
        self._connect(rule, comm, modules, buffers, clip=param_groups.clip_of(clip), seed=seed, say=say)

    def _configure(self, config, accumulate):
        if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
            raise UserError(f"accumulate must be a whole number of backward passes, at least 1, got {accumulate!r}")
        config = config or Config()
        self.config, self.accumulate = replace(config, overlap=bool(config.overlap)), accumulate
        self.named, self.settings, self.masters, self.synchronizer = {}, [], MasterWeights(), None

    def _connect(self, rule, comm, modules, buffers, **options):
        """Make the synchronizer of the parameters in `param_groups`, and equalize what the ranks have."""
        tensors, groups, rest = self._adopted(self.param_groups)
        self.synchronizer = self._synchronizer(tensors, rule, self.schedule, comm, groups=groups, **options)
        comm = self.synchronizer.comm
        self.buffers = Buffers(modules, buffers, comm)
        dtypes = [str(p.dtype) for p in self.named.values()]
        handshake(comm, {"the size of all buffers": self.buffers.size(), "the dtypes": zlib.crc32(repr(dtypes).encode())})
        broadcast_tensors(comm, rest)
        self.masters.push()
        self.buffers.equalize()
        self._begin_exchange()

    def _adopted(self, groups):
        """(flat tensors by name, their groups, parameters that are only broadcast) of torch's groups that are new."""
        pairs = [list(self._pairs(group)) for group in groups]
        named = dict(pair for part in pairs for pair in part)
        needed = [p for p in (*self.named.values(), *named.values()) if p.requires_grad]
        devices = {str(p.device) for p in needed}
        if len(devices) > 1:
            raise UserError(f"the parameters lie on {' and '.join(sorted(devices))}; make an optimizer for each device")
        self.device = needed[0].device if needed else torch.device("cpu")
        first, found, tensors = len(self.settings), [], {}
        self.settings += self._settings(groups)
        for setting, part in zip(self.settings[first:], pairs):
            mine = {name: self.masters.flat(name, p) for name, p in part if p.requires_grad or self._in_place(p)}
            asleep = frozenset(name for name in mine if not named[name].requires_grad)
            found.append(self._group(tuple(mine), setting, asleep))
            tensors |= mine
        self.named |= named
        return tensors, found, [p.detach() for name, p in named.items() if name not in tensors]

    def _in_place(self, p):
        return steppable(p) and p.device == self.device

    def _pairs(self, group):
        """(name, parameter) of a group."""
        return zip(group["param_names"], group["params"])

    def _settings(self, groups):
        return param_groups.settings(groups)

    def _group(self, names, setting, asleep=frozenset()):
        return Group(names, setting.rule, self.schedule, setting.decay, asleep)

    def _options(self) -> list[dict]:
        """What must be alike on all ranks, of each group, by name."""
        return [{name: x if name == "lr" else repr(x) for name, x in setting._asdict().items()} for setting in self.settings]

    def _rates(self) -> dict:
        return {name: setting.lr for group, setting in zip(self.param_groups, self.settings)
                for name, _ in self._pairs(group)}

    def _synchronizer(self, tensors, rule, schedule, comm, **options):
        tensors = {name: self._numbers(w) for name, w in tensors.items()}
        return self._kind(tensors, rule, schedule, comm, self.config, shapes=self._shapes(tensors), **options)

    def _on_host(self):
        return self.device.type == "cpu"

    def _shapes(self, tensors):
        return {name: tuple(self.named[name].shape) for name in tensors}

    def _numbers(self, tensor):
        """As the synchronizer has it."""
        return tensor.numpy() if self._on_host() else tensor

    def _tensor(self, numbers):
        """As torch has it."""
        return torch.from_numpy(numbers) if isinstance(numbers, np.ndarray) else numbers

    def add_param_group(self, param_group):
        """As of torch's optimizers, between two steps, on all ranks."""
        if self.synchronizer is None:
            super().add_param_group(param_group)
            return
        self._discard()
        count = len(self.param_groups)
        self._append(param_group)
        tensors, groups, rest = self._adopted(self.param_groups[count:])
        self._add(tensors, groups)
        broadcast_tensors(self.synchronizer.comm, rest)

    def _append(self, param_group):
        for group in param_groups.groups_of([param_group], self.param_groups):
            super().add_param_group(group)

    def _add(self, tensors, groups):
        self.synchronizer.add({name: self._numbers(w) for name, w in tensors.items()}, groups, self._shapes(tensors))
        self.masters.push(tensors.keys())
        self.addresses = {name: p.data_ptr() for name, p in self.named.items()} | self.addresses
        self._listen()

    def _wake(self, names):
        """Step those of the tensors that were frozen; masters are made now."""
        new = [name for name in names if name not in self.synchronizer.tensors]
        if new:
            pairs = zip(self.param_groups, self.settings)
            of = {name: setting for group, setting in pairs for name, _ in self._pairs(group)}
            self._add({name: self.masters.flat(name, self.named[name]) for name in new},
                      [self._group((name,), of[name]) for name in new])
        self.synchronizer.wake(names)

    def average_parameters(self):
        """Replace the parameters by their means over the ranks, which all then have to the bit. On all ranks."""
        self.masters.pull()
        self.synchronizer.average_parameters()
        self.masters.push()

    def _follow_settings(self):
        """Use what the script has put into `param_groups` from this step on."""
        now = self._settings(self.param_groups)
        for k, (group, old, new) in enumerate(zip(self.param_groups, self.settings, now)):
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
        self.settings = now

    def state_dict(self) -> dict:
        """All that this rank's next step depends on beside the parameters; each rank has its own. For torch.save."""
        if self.passes or self.sent or self.averaged is not None:
            raise UserError("state_dict between backward and step: gradients are on their way; call it after step")
        common, own = ({name: torch.from_numpy(np.array(x)) for name, x in part.items()}
                       for part in (self.synchronizer.common(), self.synchronizer.own()))
        self.masters.pull()
        return {"rank": self.synchronizer.rank, "size": self.synchronizer.size, "common": common, "own": own,
                "masters": self.masters.state(), **self._group_state()}

    def _group_state(self) -> dict:
        return {"param_groups": [param_groups.saved(group) for group in self.param_groups]}

    def load_state_dict(self, state):
        """Continue from this rank's `state_dict`; or from a list of all ranks', where their number was another.

        Residuals then keep their sum. On all ranks; raises UserError on all of them, before anything is changed, where a
        state does not fit, is wanting, or is of another step.
        """
        wrong, sync = "", self.synchronizer
        try:
            state = self._mine(state)
        except UserError as error:
            wrong = str(error)
        all_fine(sync.comm, wrong)
        self._discard()
        self._wake([name for name in self.named if name in state["masters"] and name not in sync.tensors])
        sync.load(*({name: x.numpy() for name, x in state[part].items()} for part in ("common", "own")))
        self.masters.load(state["masters"])
        self._load_groups(state)
        self._listen()

    def _load_groups(self, state):
        for group, numbers in zip(self.param_groups, state["param_groups"]):
            param_groups.load(group, numbers)

    def _mine(self, state) -> dict:
        """This rank's state, of what `load_state_dict` was given. Raises UserError."""
        rank, size = self.synchronizer.rank, self.synchronizer.size
        if not isinstance(state, dict):
            state = _of_all(state, rank, size, self.synchronizer.tensors)
        if (state.get("rank"), state.get("size")) != (rank, size):
            raise UserError(f"rank {rank} of {size} got the state of rank {state.get('rank')} of {state.get('size')}; give "
                            "each rank its own, or every rank the list of all")
        if len(state["param_groups"]) != len(self.param_groups):
            raise UserError(f"needed a state of {len(self.param_groups)} parameter groups, got {len(state['param_groups'])}")
        state = {"masters": {}, **state}
        self.masters.demand(state["masters"], self.named)
        return state


def _of_all(states, rank, size, names) -> dict:
    """The state of `rank` of `size`, from the states of all ranks of a run of another size. Raises UserError.

    names: of the tensors, in their order.
    """
    states = sorted(states, key=lambda each: each["rank"])
    if not states or [each["rank"] for each in states] != list(range(states[0]["size"])):
        needed, got = states[0]["size"] if states else size, ", ".join(str(each["rank"]) for each in states)
        raise UserError(f"needed the state of each of {needed} ranks, got those of rank {got or 'none'}")
    clocks = {str(each["common"]["clock"].tolist()) for each in states}
    if len(clocks) > 1 or len({each["size"] for each in states}) > 1:
        raise UserError("the states are not of one step of one run")
    owns = [{name: x.numpy() for name, x in each["own"].items()} for each in states]
    own = {name: torch.from_numpy(np.array(x)) for name, x in reshared(owns, size)[rank].items()}
    # The mean is of another number of ranks: that of what is unsent is kept where waits are as much longer or shorter.
    common = {name: x.numpy() for name, x in states[0]["common"].items()}
    steps = {name: (t, t) for name, t in zip(names, common["clock"][0] - common["missed"])}
    waits = {name: torch.from_numpy(x) for name, x in rewaited(common, steps, states[0]["size"], size).items()}
    return {**states[0], "rank": rank, "size": size, "own": own, "common": {**states[0]["common"], **waits}}
