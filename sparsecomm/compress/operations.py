"""The array operations of the pipeline on NumPy arrays; device.py has their twins on the tensors of a torch device.

`select` of a threshold is the largest of them: `hogwild.kernels.compression.selection` and sparsecomm/compress/device.py.
"""

import numpy as np

from hogwild.kernels.compression.momentum_correction import accumulate, copy_finite
from hogwild.kernels.compression.selection import Selection, Selector, mask
from hogwild.kernels.optim.steps import aligned


class Host:
    """On NumPy arrays, by compiled kernels."""

    zeros = staticmethod(aligned)
    accumulate = staticmethod(accumulate)
    copy_finite = staticmethod(copy_finite)
    clear = staticmethod(mask)
    concatenate = staticmethod(np.concatenate)

    @staticmethod
    def selector(bucket):
        """The selector of the largest elements, by the thresholds of the bucket's configuration."""
        return HostSelector(bucket)

    @staticmethod
    def host(x):
        """x as a NumPy array."""
        return x

    here = outgoing = incoming = host  # of arrays; of a Payload, for the exchange; of its Sum

    @staticmethod
    def scatter(total, touched, indices, values):
        """total, which is 0 but at `touched` (None: anywhere), becomes `values` at `indices` and 0 elsewhere."""
        total[slice(None) if touched is None else touched] = 0
        total[indices] = values

    @staticmethod
    def orthonormal(x):
        """float32[m, r]: an orthonormal basis whose first columns span those of x (m >= r), also where these are dependent.

        In double precision: of nearly parallel columns, too, it is orthogonal to float32's precision.
        """
        return np.linalg.qr(x.astype(np.float64))[0].astype(np.float32)

    @staticmethod
    def largest_in_rows(x, k):
        """int64[rows, k], ascending: places of the k largest magnitudes in each row of x (float32[rows, columns], finite).

        Of equal magnitudes these are the first ones; on a device any.
        """
        magnitudes, columns = np.abs(x), x.shape[1]
        least = np.partition(magnitudes, columns - k, axis=1)[:, columns - k, None]
        chosen = magnitudes >= least
        for row in np.flatnonzero(np.count_nonzero(chosen, axis=1) > k):
            equal = np.flatnonzero(magnitudes[row] == least[row])
            chosen[row, equal[equal.size - (np.count_nonzero(chosen[row]) - k):]] = False
        return np.nonzero(chosen)[1].reshape(-1, k)


class HostSelector:
    """`selection.Selector` on the gradients of one bucket."""

    def __init__(self, bucket):
        config = bucket.config
        self.selector = Selector(bucket.sizes, config.keep, config.threshold, config.scope, seed=bucket.seed)

    def select(self, gradients, step, keep) -> Selection:
        """The elements above the thresholds for the share `keep`; they become 0 in the gradients."""
        tensors = [np.zeros(size, np.float32) if g is None else g.reshape(-1)  # of zeros nothing is selected
                   for g, size in zip(gradients.tensors, self.selector.sizes)]
        return self.selector.select(tensors, [None] * len(tensors), step, keep)


def operations(device=None):
    """The operations for tensors on the torch device; None: for NumPy arrays."""
    if device is None:
        return Host
    from sparsecomm.compress.device import Device
    return Device(device)


def host(x) -> np.ndarray:
    """A NumPy array of x, an array or a tensor; of the same memory where that is possible."""
    return x if isinstance(x, np.ndarray) else x.cpu().numpy()
