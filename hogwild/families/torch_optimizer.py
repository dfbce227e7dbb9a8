"""A torch optimizer whose state all processes share, for scripts that start their own, such as A3C's."""

import torch

from hogwild.errors import UserError
from hogwild.families.torch_tensors import Stepper, start_slots, state_shapes
from hogwild.kernels.optim.hyperparameters import HyperParameterError, checked
from hogwild.kernels.optim.rules import RULES, Adam, RMSProp
from hogwild.kernels.optim.steps import Clip, Decay
from hogwild.training.arena import Arena
from hogwild.training.registry import build

MODES = "wild", "atomic"  # a lock would stay with a process that dies, and who starts these is not ours


class SharedOptimizer(torch.optim.Optimizer):
    """Steps parameters in shared memory; its state, and the counts of its steps, are shared too.

    Make it before the processes are started, and give it to them (torch.multiprocessing, forked or spawned), as A3C's scripts
    do with SharedAdam. Parameters are those of a model after `share_memory()`. Sparse gradients step the rows that they name.
    A parameter without a gradient is left alone. A group's `lr` and `decay` may be changed, in each process for itself.
    Raises UserError.

    Parameters
    ----------
    params
        As of torch's optimizers: float32 or float64, on the CPU.
    rule
        A rule of `hogwild.kernels.optim.rules` or its text, such as "adam:b1=0.95".
    lr
        The learning rate; None: the rule's own.
    decay
        `hogwild.kernels.optim.steps.Decay`; None: the rule's own.
    clip
        `hogwild.kernels.optim.steps.Clip` of each gradient.
    mode
        wild: plain loads and stores, of which one may be lost; atomic: additions of which none is lost, which take longer.
    """

    def __init__(self, params, rule="adam", lr=None, *, decay=None, clip=None, mode="wild"):
        if mode not in MODES:
            raise UserError(f"mode must be {' or '.join(MODES)}, got {mode!r}")
        self.rule = build(rule, RULES, "rule") if isinstance(rule, str) else _valid(rule)
        self.clip, self.mode = _valid(clip), mode
        wd = getattr(self.rule, "default_wd", 0.0)
        lr = getattr(self.rule, "default_lr", 0.01) if lr is None else lr
        super().__init__(params, {"lr": lr, "decay": Decay(wd=wd) if decay is None and wd else decay})
        parameters = self._named()
        for name, p in parameters.items():
            if p.dtype not in (torch.float32, torch.float64) or p.device.type != "cpu":
                raise UserError(f"parameter {name} must be float32 or float64 on the CPU, got {p.dtype} on {p.device}")
        self.arena = Arena(state_shapes(parameters, self.rule))
        start_slots(self.arena.arrays, parameters, self.rule)
        self._connect()

    def _named(self):
        """{group.number: parameter}."""
        return {f"{k}.{i}": p for k, group in enumerate(self.param_groups) for i, p in enumerate(group["params"])}

    def _connect(self):
        """Look at where the parameters are: share_memory() moves them."""
        parameters = self._named()
        self.at = [p.data_ptr() for p in parameters.values()]
        for name, p in parameters.items():
            if not p.is_contiguous():
                raise UserError(f"parameter {name} must be contiguous")
        weights = {name: p.detach().view(-1).numpy() for name, p in parameters.items()}
        self.stepper = Stepper(self.arena.arrays, parameters, weights, self.rule, self.mode)

    def share_memory(self):
        """Raise UserError unless the parameters are in shared memory; the optimizer's own state always is."""
        if any(p.numel() and not p.is_shared() for p in self._named().values()):
            raise UserError("the parameters are not in shared memory: call model.share_memory() first")
        return self

    def add_param_group(self, param_group):
        """As of torch's optimizers, but only while the optimizer is made."""
        if hasattr(self, "arena"):
            raise UserError("the state of a SharedOptimizer cannot grow: give all parameters when it is made")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure=None):
        """One step with the gradients that the parameters have in this process; what closure() returns, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.at != [p.data_ptr() for group in self.param_groups for p in group["params"]]:
            self._connect()
        for k, group in enumerate(self.param_groups):
            gradients = {f"{k}.{i}": p.grad for i, p in enumerate(group["params"]) if p.grad is not None}
            if gradients:
                self.stepper.step(gradients, self.rule, group["lr"], _valid(group["decay"]), self.clip)
        return loss

    def state_dict(self):
        """The groups, and the shared state: slots and counts of steps."""
        state = {name: torch.from_numpy(x.copy()) for name, x in self._state().items()}
        groups = [{key: list(x) if isinstance(x, Decay) else x for key, x in group.items() if key != "params"}
                  for group in self.param_groups]
        return {"shared": state, "param_groups": groups}

    def load_state_dict(self, state_dict):
        """Continue from a `state_dict`, in all processes at once."""
        shared, mine = state_dict["shared"], self._state()
        if {name: x.shape for name, x in mine.items()} != {name: tuple(x.shape) for name, x in shared.items()}:
            raise UserError("the state does not fit: it is of other parameters, or of another rule")
        for name, x in mine.items():
            x[...] = shared[name].numpy()
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved, decay=None if saved["decay"] is None else Decay(*saved["decay"]))

    def _state(self):
        return {name: x for name, x in self.arena.arrays.items() if name.startswith(("slots.", "updates"))}

    def __getstate__(self):
        return {**super().__getstate__(), **{name: getattr(self, name) for name in ("rule", "clip", "mode", "arena")}}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._connect()


def SharedAdam(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False) -> SharedOptimizer:
    """torch.optim.Adam's arguments, for a SharedOptimizer: the SharedAdam of A3C scripts."""
    return SharedOptimizer(params, Adam(*betas, eps=eps, amsgrad=amsgrad), lr, decay=_coupled(weight_decay))


def SharedRMSprop(params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False) -> SharedOptimizer:
    """torch.optim.RMSprop's arguments, for a SharedOptimizer."""
    return SharedOptimizer(params, RMSProp(alpha=alpha, eps=eps, mu=momentum, centred=centered), lr,
                           decay=_coupled(weight_decay))


def _coupled(weight_decay):
    return Decay(l2=weight_decay) if weight_decay else None


def _valid(hp):
    try:
        return checked(Clip(norm=float(hp)) if isinstance(hp, (int, float)) else hp)
    except HyperParameterError as error:
        raise UserError(str(error)) from None
