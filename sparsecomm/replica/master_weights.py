"""Float32 master weights of parameters that the kernels cannot step in place (Micikevicius et al. 2018, section 3.1).

A float16 or bfloat16 parameter loses every step smaller than half its last digit. Its master collects them; the parameter
is the master, rounded, after each step.
"""

import torch

from hogwild.errors import UserError

LOW = torch.float16, torch.bfloat16


class MasterWeights:
    """The masters, flat float32 tensors by name, on the devices of their parameters."""

    def __init__(self):
        self.parameters, self.masters = {}, {}

    def flat(self, name, p):
        """Flat float32 tensor in place of p: a view of its memory where the kernels can step that, else its master.

        Raises UserError for dtypes and layouts that have neither.
        """
        if steppable(p):
            return p.detach().view(-1)
        if not fits(p):
            raise UserError(f"parameter {name} must be dense and float32, float16 or bfloat16, got {p.dtype} of shape "
                            f"{tuple(p.shape)} and layout {p.layout}; convert the model before")
        self.parameters[name] = p
        self.masters[name] = p.detach().float().reshape(-1).clone()
        return self.masters[name]

    @torch.no_grad()
    def pull(self):
        """Copy parameters that the script has changed, as by model.load_state_dict, into their masters."""
        for name, master in self.masters.items():
            p = self.parameters[name].detach().reshape(-1)
            changed = p != master.to(p.dtype)
            if changed.any():
                master[changed] = p[changed].float()

    @torch.no_grad()
    def push(self, names=None):
        """Set the parameters to their masters, rounded; those of `names`, of None: all."""
        for name in self.masters if names is None else self.masters.keys() & names:
            p = self.parameters[name]
            p.copy_(self.masters[name].view(p.shape))

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of each master, float32[n], on the host."""
        return {name: x.to("cpu", copy=True) for name, x in self.masters.items()}

    def load(self, state):
        """Set masters and parameters to a `state`, checked by `demand`."""
        for name, master in self.masters.items():
            master.copy_(state[name])
        self.push()

    def demand(self, state, parameters):
        """Raise UserError unless `state` has all masters, and others only of those of `parameters` that may have one."""
        for name in sorted(self.masters.keys() | state.keys()):
            p = parameters.get(name)
            needed = p.numel() if p is not None and fits(p) and not steppable(p) else "no"
            got = state[name].numel() if name in state else "no"
            if needed != got:
                raise UserError(f"the state does not fit: needed {needed} master weights of {name}, got {got}; convert the "
                                "model to the dtype that it was saved with")


def steppable(p) -> bool:
    """Whether the kernels can step p in place."""
    return p.dtype == torch.float32 and p.layout == torch.strided and p.is_contiguous()


def fits(p) -> bool:
    """Whether p can be stepped, perhaps by way of a master."""
    return p.dtype in (torch.float32, *LOW) and p.layout == torch.strided
