"""The parameters of a replica: flat NumPy arrays in this process, or flat torch tensors on one device."""

import numpy as np

from hogwild.errors import UserError
from hogwild.kernels.optim.catch_up import CAP, LONGEST, array_catch_up, cap_of, catch_up, low16, shorten_waits
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.steps import array_step, dense_step, new_slots, step


class Host:
    """NumPy arrays, stepped by compiled kernels. `device` is None."""

    device = None
    slots = staticmethod(lambda rule, w: new_slots(rule, w.size))
    never_stepped = staticmethod(lambda w: np.full(w.size, -1, np.int16))

    @staticmethod
    def validate(tensors, rank):
        """Raise UserError unless every tensor is what can be stepped in place."""
        for name, w in tensors.items():
            if not isinstance(w, np.ndarray) or w.dtype != np.float32 or w.ndim != 1 or not w.flags.c_contiguous \
                    or not w.flags.writeable or not w.size:
                raise UserError(f"rank {rank}: parameter {name} must be a flat, contiguous, writable float32 array that is "
                                f"not empty, got {getattr(w, 'dtype', type(w).__name__)} of shape "
                                f"{getattr(w, 'shape', '?')}")

    @staticmethod
    def host(x) -> np.ndarray:
        """The values of a tensor, of all its slots (float32[S, n]) or its last steps (int16[n]), in this memory."""
        return x

    @staticmethod
    def put(x, values):
        """The inverse of `host`."""
        if values is not x:
            x[...] = values

    @staticmethod
    def move(rule, state, g, touched, now, decay, clip):
        """Step with gradient `scale * g`, or only at the indices `touched` (uint32).

        state: the tensor, its slots, and its last steps where it catches up, or None; now: scale, learning rate, t.
        """
        (w, slots, last), (scale, lr, t) = state, now
        if touched is None:
            dense_step(rule, w, g, slots, lr, t, decay, clip, scale)
            if last is not None:
                last.fill(low16(t))
        elif last is None:
            step(checked(rule), w, tuple(slots), touched, g[touched], 0, touched.size, scale, lr, t, decay, clip, None)
        else:
            catch_up(rule, (w, tuple(slots), last), touched, g, now, decay, clip)


class Device:
    """Torch tensors, stepped there by the same rules."""

    def __init__(self, device):
        self.device = device

    @staticmethod
    def validate(tensors, rank):
        from sparsecomm.compress.device import flat
        for name, w in tensors.items():
            flat(name, w)

    @staticmethod
    def slots(rule, w):
        return w.new_tensor(rule.start())[:, None].repeat(1, w.numel())

    @staticmethod
    def never_stepped(w):
        import torch
        return torch.full_like(w, -1, dtype=torch.int16)

    @staticmethod
    def host(x):
        return x.cpu().numpy()

    @staticmethod
    def put(x, values):
        import torch
        x.copy_(torch.from_numpy(values))

    def move(self, rule, state, g, touched, now, decay, clip):
        (w, slots, last), (scale, lr, t) = state, now
        if touched is None:
            array_step(rule, w, g, slots, lr, t, decay, clip, scale)
            if last is not None:
                last.fill_(low16(t))
            return
        import torch
        at = torch.from_numpy(touched.astype(np.int64)).to(self.device)
        part, few = w[at], [slot[at] for slot in slots]
        if last is not None and t % LONGEST == 0:
            shorten_waits(last, t)
        if last is None:
            array_step(rule, part, g[at], few, lr, t, decay, clip, scale)
        elif at.numel():
            n = ((low16(t) - last[at]).int() & 0xFFFF).clamp(min=1).double()
            counts = torch.bincount(n.clamp(max=CAP).long(), minlength=CAP + 1).cpu().numpy()
            array_catch_up(rule, part, g[at], few, n, (*now, cap_of(counts, w.numel())), decay, clip)
            last[at] = low16(t)
        for x, new in zip((w, *slots), (part, *few)):
            x[at] = new


def arrays_of(tensors, rank):
    """Host or Device, by what the tensors are. Raises UserError where there are none."""
    if not tensors:
        raise UserError(f"rank {rank}: there are no parameters to train")
    device = getattr(next(iter(tensors.values())), "device", "cpu")  # NumPy's arrays say "cpu"
    return Host if isinstance(device, str) else Device(device)
