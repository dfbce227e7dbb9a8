"""The step for a script that drops gradient by the communication hook of DistributedDataParallel.

    ddp.register_comm_hook(GradientDropping(model.named_parameters(), Config(keep=0.01)), gradient_dropping)
    optimizer = sparsecomm.CatchUpOptimizer(model, "adam", lr=1e-3)
"""

import torch

from hogwild.errors import UserError
from hogwild.kernels.optim.catch_up import catches_up
from sparsecomm.compress.device import flat
from sparsecomm.replica import param_groups
from sparsecomm.replica.arrays import Device, Host


class CatchUpOptimizer(torch.optim.Optimizer):
    """Steps the elements of `.grad` that are not 0; one that was 0 for n - 1 steps takes n steps with the nth part of it.

    For a gradient of which a part arrives at each step and the rest later, as of `sparsecomm.hook`: Adam and its relatives
    then move at dense training's rate, see hogwild/kernels/optim/catch_up.py. It exchanges nothing itself. Without dropping
    (keep=1, DistributedDataParallel alone, one process) it is the dense step but where an element of the gradient is exactly
    0, as behind a ReLU: that element waits too, and does not decay meanwhile. Give embeddings, most of whose gradient is 0
    and does not wait, to a torch optimizer of their own.

    Rules that do not catch up (sgd, apollo, centred rmsprop) step every element. Raises UserError.

    Parameters
    ----------
    params
        The model; or its named_parameters() or parameters(), or a list of dicts {"params": one of these, "lr": …, "rule": …,
        "decay": …}; float32, contiguous.
    rule
        A rule of `hogwild.kernels.optim.rules` or its text, such as "adam:b1=0.95".
    lr
        The learning rate, which torch's schedulers can drive; None: the rule's own.
    decay
        `Decay`; None: the rule's own.
    """

    def __init__(self, params, rule="adam", lr=None, decay=None):
        rule = param_groups.rule_of(rule)
        lr = getattr(rule, "default_lr", 0.01) if lr is None else lr
        defaults = {"lr": lr, "rule": rule, "decay": decay, **param_groups.cycled_default(rule)}
        super().__init__(param_groups.groups_of(params), defaults)

    def add_param_group(self, param_group):
        """As of torch's optimizers."""
        named = "param_names" in param_group  # by `groups_of`
        for group in [param_group] if named else param_groups.groups_of([param_group], self.param_groups):
            super().add_param_group(group)
            for name, p in zip(group["param_names"], group["params"]):
                if p.requires_grad:
                    flat(name, p)
        param_groups.settings(self.param_groups)

    @torch.no_grad()
    def step(self, closure=None):
        """Step with the gradients as they are; a parameter without one is left alone, its elements do not wait."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, setting in zip(self.param_groups, param_groups.settings(self.param_groups)):
            for name, p in zip(group["param_names"], group["params"]):
                if p.grad is not None:
                    self._move(flat(name, p), p, setting)
                    torch.autograd.graph.increment_version(p)
        return loss

    def _arrays(self, device):
        return Host if device.type == "cpu" else Device(device)

    def _move(self, w, p, setting):
        """Step one parameter, whose memory w is a flat view of."""
        g, rule = (p.grad.to_dense() if p.grad.is_sparse else p.grad).reshape(-1).contiguous(), setting.rule
        arrays, held = self._arrays(w.device), self.state[p]
        of = torch.Tensor.numpy if arrays is Host else torch.Tensor.detach
        if not held:
            held.update(step=0, slots=w.new_tensor(rule.start())[:, None].repeat(1, w.numel()))
            if catches_up(rule):
                held["last"] = torch.full_like(w, -1, dtype=torch.int16)
        if len(held["slots"]) != len(rule.start()):
            raise UserError(f"a rule of {len(held['slots'])} slots was replaced by {type(rule).__name__} with "
                            f"{len(rule.start())}; make a new CatchUpOptimizer")
        last = held.get("last")
        arrived = None if last is None else g.nonzero().reshape(-1).cpu().numpy().astype("uint32")
        state = of(w), of(held["slots"]), None if last is None else of(last)
        arrays.move(rule, state, of(g), arrived, (1.0, setting.lr, held["step"]), setting.decay, None)
        held["step"] += 1

    def state_dict(self) -> dict:
        """As of torch's optimizers: numbers and tensors, for torch.save and torch.load(…, weights_only=True)."""
        state = super().state_dict()
        groups = [{**param_groups.saved(group), "params": packed["params"], "param_names": list(group["param_names"])}
                  for group, packed in zip(self.param_groups, state["param_groups"])]
        return {**state, "param_groups": groups}

    def load_state_dict(self, state_dict):
        """Continue from a `state_dict`. Raises UserError, before anything is changed, where it does not fit."""
        given = state_dict["param_groups"]
        if [len(group["params"]) for group in given] != [len(group["params"]) for group in self.param_groups]:
            raise UserError("the state does not fit: its parameter groups are others in number or size")
        if any("rule" not in group for group in given) or any("slots" not in held for held in state_dict["state"].values()):
            raise UserError("the state does not fit: needed one of a CatchUpOptimizer, got another optimizer's")
        groups = []
        for own, saved in zip(self.param_groups, given):
            groups.append(dict(own))
            param_groups.load(groups[-1], {key: x for key, x in saved.items() if key not in ("params", "param_names")})
            groups[-1]["params"] = saved["params"]
            for name, p, i in zip(own["param_names"], own["params"], saved["params"]):
                held = state_dict["state"].get(i)
                if held and held["slots"].shape[1:] != (p.numel(),):
                    raise UserError(f"the state does not fit: needed {p.numel()} elements of {name}, got "
                                    f"{held['slots'].shape[1]}")
        super().load_state_dict({**state_dict, "param_groups": groups})
        for held in self.state.values():
            if "last" in held:
                held["last"] = held["last"].to(torch.int16)  # torch has cast it to the parameter's dtype
