"""Tensors laid end to end: what payloads have indices of."""

import numpy as np


class Flat:
    """tensors: flat float32 arrays by name, which are read and changed in place. n: elements of all."""

    def __init__(self, tensors):
        self.tensors, self.sizes = tensors, [w.size for w in tensors.values()]
        self.bases = np.cumsum([0, *self.sizes])
        self.n = int(self.bases[-1])

    def cut(self, indices=None) -> list[tuple]:
        """(name, slice, local) of each tensor that has one of `indices` (uint32, ascending; None: all of them): where its
        entries lie among them, and their indices within the tensor (None: all)."""
        if indices is None:
            return [(name, slice(*pair), None) for name, *pair in zip(self.tensors, self.bases, self.bases[1:])]
        ends = np.searchsorted(indices, self.bases)
        return [(name, slice(first, last), indices[first:last] - np.uint32(base))
                for name, first, last, base in zip(self.tensors, ends, ends[1:], self.bases) if last > first]

    def at(self, indices) -> np.ndarray:
        """float32[k]: the values at `indices` (uint32[k], ascending)."""
        values = np.empty(indices.size, np.float32)
        for name, part, local in self.cut(indices):
            values[part] = self.tensors[name][local]
        return values

    def add(self, indices, values):
        """Add `values` (float32[k]) at `indices` (uint32[k], strictly ascending; None: k is n)."""
        for name, part, local in self.cut(indices):
            self.tensors[name][slice(None) if local is None else local] += values[part]
