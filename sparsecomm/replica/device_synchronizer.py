"""Parameters on a torch device that many ranks keep equal."""

import numpy as np
import torch

from hogwild.kernels.optim.steps import array_step
from sparsecomm.compress.device import DeviceDense, DeviceSparse, flat
from sparsecomm.replica.synchronizer import Synchronizer


class DeviceSynchronizer(Synchronizer):
    """The same for torch tensors on one device, which select and step there. The exchange does not overlap with backward:
    all its work is in the caller's stream.
    """

    def _ahead(self, count):
        return False

    def _validate(self, tensors):
        for name, w in tensors.items():
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

    def _move(self, rule, w, slots, g, touched, lr, t, decay, clip, scale):
        if touched is None:
            array_step(rule, w, g, slots, lr, t, decay, clip, scale)
            return
        at = torch.from_numpy(touched.astype(np.int64)).to(w.device)
        part, few = w[at], [slot[at] for slot in slots]
        array_step(rule, part, g[at], few, lr, t, decay, clip, scale)
        for x, new in zip((w, *slots), (part, *few)):
            x[at] = new
