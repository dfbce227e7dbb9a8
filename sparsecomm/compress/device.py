"""The array operations of the pipeline on a torch device: only payloads are copied to the host.

Twins of those in operations.py, made of torch operations that every device has.
"""

import math

import numpy as np
import torch

from hogwild.errors import UserError
from hogwild.kernels.compression.selection import Selection
from hogwild.kernels.compression.thresholds import HITS, SHARE, SHIFT, TINY


def flat(name, p):
    """The parameter as a flat view of its memory. Raises UserError where it is not contiguous float32."""
    if p.dtype != torch.float32 or p.layout != torch.strided or not p.is_contiguous():
        strides = p.stride() if p.layout == torch.strided else p.layout
        raise UserError(f"parameter {name} must be contiguous and float32, got {p.dtype} of shape {tuple(p.shape)} and "
                        f"strides {strides}; convert the model before")
    return p.detach().view(-1)


class Device:
    """As `operations.Host`."""

    def __init__(self, device):
        self.device = device

    def zeros(self, shape):
        return torch.zeros(shape, device=self.device)

    def accumulate(self, old, g, m, out) -> int:
        new = g + (old if m == 1 else m * old)
        finite = abs(new) < math.inf
        torch.where(finite, new, old, out=out)
        return int((~finite).sum())

    def copy_finite(self, g, out) -> int:
        finite = abs(g) < math.inf
        torch.where(finite, g, torch.zeros((), device=self.device), out=out)
        return int((~finite).sum())

    def clear(self, x, indices):
        x[indices] = 0

    def concatenate(self, tensors):
        return torch.cat(tensors)

    def selector(self, bucket):
        return DeviceSelector(bucket)

    def host(self, x):
        return x.cpu().numpy() if isinstance(x, torch.Tensor) else x

    def here(self, x):
        return torch.as_tensor(x, device=self.device)

    def outgoing(self, payload):
        indices = None if payload.indices is None else self.host(payload.indices).astype(np.uint32)
        return payload._replace(indices=indices, values=self.host(payload.values))

    def incoming(self, total):
        unsent = total.unsent and total.unsent._replace(**self._arrays(total.unsent))
        return total._replace(**self._arrays(total), unsent=unsent)

    def _arrays(self, payload):
        indices = None if payload.indices is None else self.here(payload.indices.astype(np.int64))
        return {"indices": indices, "values": self.here(payload.values)}

    def scatter(self, total, touched, indices, values):
        total.zero_()
        total[indices] = values

    def orthonormal(self, x):
        return torch.linalg.qr(x.double())[0].float()

    def largest_in_rows(self, x, k):
        return abs(x).topk(k, dim=1, sorted=False).indices.sort(dim=1).values


class DeviceSelector:
    """As `selection.Selector`, from another sample."""

    def __init__(self, bucket):
        self.method, self.seed, self.random = bucket.config.threshold, bucket.seed, torch.Generator(bucket.device)
        self.parts = bucket.parts
        self.groups = self.parts if bucket.config.scope == "local" else [slice(None)]

    def select(self, gradients, step, keep) -> Selection:
        """As of `operations.HostSelector`."""
        x = gradients.flat
        if any(g is None for g in gradients.tensors):
            x = torch.cat([torch.zeros_like(x[part]) if g is None else x[part]
                           for part, g in zip(self.parts, gradients.tensors)])
        large = torch.cat([abs(x[group]) >= self._threshold(x[group], keep, step, k) for k, group in enumerate(self.groups)])
        indices = large.nonzero()[:, 0]
        values = x[indices]
        gradients.flat[indices] = 0
        return Selection(indices, values, 0)

    def _threshold(self, x, keep, step, group) -> float:
        """The magnitude that a share `keep` of x reaches; as `hogwild.kernels.compression.thresholds.threshold`."""
        if keep == 1.0 or not len(x):
            return float(TINY)
        rate = max(SHARE, HITS / (keep * len(x)))
        if self.method == "sample" and rate <= 0.5:
            seed = np.random.SeedSequence([self.seed, step, group]).generate_state(1, np.uint64)[0] >> np.uint64(1)
            self.random.manual_seed(int(seed))
            x = x[torch.randint(len(x), (int(rate * len(x)),), device=x.device, generator=self.random)]
        rank = max(1, round(keep * len(x)))
        if self.method == "histogram":
            bins = torch.bincount(abs(x).view(torch.int32) >> SHIFT)
            above = int((bins.flip(0).cumsum(0) < rank).sum())
            found = np.int32((len(bins) - 1 - above) << SHIFT).view(np.float32)
        else:
            found = abs(x).topk(rank, sorted=False).values.min()  # on a GPU 100 times faster than kthvalue
        return max(float(found), float(TINY))
