"""Filters of a payload's entries (Li et al. 2014, section 3.6; "Communication Efficient Distributed Machine Learning with the
Parameter Server", NIPS 2014, section 4). Each holds some back, and counts how many.

A filter has a `name`; `held(step, indices, values)` -> bool[k], of uint32[k] flat indices and float32[k] values; and
`discards`: whether what it holds back is done with, in place of staying with the sender (in its residual).
"""

from collections import Counter

import numpy as np


class RandomSkip:
    """Each entry is held back with probability `share`. Equal seeds, ranks and steps hold back the same."""

    name, discards = "random-skip", False

    def __init__(self, share, seed, rank):
        self.share, self.key = share, (seed, rank)

    def held(self, step, indices, values):
        return np.random.default_rng((*self.key, step)).random(indices.size) < self.share


class Significant:
    """Entries whose magnitude is at most `share` times that of the value they change are held back."""

    name, discards = "significant", False

    def __init__(self, share, flat):
        self.share, self.flat = np.float32(share), flat

    def held(self, step, indices, values):
        return np.abs(values) <= self.share * np.abs(self.flat.at(indices))


class KKT:
    """Gradients of parameters that are 0, no larger than `share` times their L1 penalty, are discarded.

    The proximal step would leave those parameters at 0, the optimum's condition there being |gradient| <= l1: with share 1
    and SGD nothing changes. Residual they would add up to what no single step is worth. l1: by the name of the tensor, in
    units of the gradient; tensors without are sent whole.
    """

    name, discards = "kkt", True

    def __init__(self, share, l1, flat):
        self.flat, self.bounds = flat, {name: np.float32(share * each) for name, each in l1.items() if each}

    def held(self, step, indices, values):
        held = np.zeros(indices.size, bool)
        for name, part, local in self.flat.cut(indices):
            if name in self.bounds:
                held[part] = (self.flat.tensors[name][local] == 0) & (np.abs(values[part]) <= self.bounds[name])
        return held


class Filters:
    """Filters one after the other. `seen`, `held`: entries so far, by the filter's name."""

    def __init__(self, filters=()):
        self.filters, self.seen, self.held = list(filters), Counter(), Counter()

    def sift(self, step, indices, values) -> tuple[np.ndarray, np.ndarray]:
        """(bool[k]: which entries are sent; bool[k]: which are discarded)."""
        sent, discarded = np.ones(indices.size, bool), np.zeros(indices.size, bool)
        for each in self.filters:
            held = each.held(step, indices, values) & sent
            self.seen[each.name] += int(np.count_nonzero(sent))
            self.held[each.name] += int(np.count_nonzero(held))
            sent &= ~held
            if each.discards:
                discarded |= held
        return sent, discarded
