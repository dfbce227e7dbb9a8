"""Mode deterministic for matrix factorization: a fixed grid of blocks, of which those that share no row run side by side.

The ratings of a block are trained in their order by one worker. A block waits until all are done that come before the last
stratum, a row of blocks without a common user or item: so every row sees its ratings in the same order, whoever trains them.
Gemulla et al. 2011, "Large-scale matrix factorization with distributed stochastic gradient descent", section 4.
"""

from typing import NamedTuple

import numpy as np

from hogwild.kernels.compiler.atomics import atomic_add, atomic_load, compare_swap, reached
from hogwild.kernels.compiler.jit import kernel
from hogwild.kernels.sharing.worker import train_examples

CLAIMED, DONE = 0, 8  # places in Strata.progress


class Strata(NamedTuple):
    """What the workers share, and what one of them owns."""

    number: int  # of the worker
    starts: np.ndarray  # int64[blocks + 1]: the first example of each, row behind row of the grid
    side: int  # blocks in a row of the grid
    progress: np.ndarray  # int64[16]: blocks claimed, blocks done, since the round began
    losses: np.ndarray  # float64[blocks + 2]: of the round's blocks
    counts: np.ndarray  # int64[blocks + 2]: examples, likewise
    halt: np.ndarray  # int64[8]: from halt[0] = 1 on nobody waits
    seen: np.ndarray  # int64[8]: the worker's own: [0] blocks of the round in calls before
    used: np.ndarray  # int64[2 side]: the worker's own: the stratum that last had a band of users, of items


@kernel(inline=True)
def _claim(progress, k):
    """Whether block k, the next of all, is this worker's: nobody has claimed it before."""
    return atomic_load(progress, CLAIMED) == k and compare_swap(progress, CLAIMED, k, k + 1)


@kernel(inline=True)
def _done(strata, count):
    """Wait until `count` blocks are done; False where a worker has failed."""
    while not reached(strata.progress, DONE, count):
        if atomic_load(strata.halt, 0) != 0:
            return False
    return True


@kernel
def train_strata(model, optimizer, worker, strata, order, t, tally):
    """Steps on the examples of `order`, with which all workers call this: whole blocks one behind another.

    t, tally: as of `train_examples`, with stride 1; worker 0 alone counts losses and examples.
    """
    first, starts, side, own = strata.seen[0], strata.starts, strata.side, np.zeros(8)
    strata.used[:] = -1
    at, k, stratum, before = 0, first, 0, first  # `before`: blocks ahead of the stratum
    while at < order.shape[0]:
        block = np.searchsorted(starts, order[at], "right") - 1
        stop = min(at + starts[block + 1] - np.int64(order[at]), order.shape[0])
        user, item = block // side, side + block % side
        if strata.used[user] == stratum or strata.used[item] == stratum:
            stratum, before = stratum + 1, k
        strata.used[user] = strata.used[item] = stratum
        if _claim(strata.progress, k):
            if not _done(strata, before):
                break
            own[:3] = 0.0
            if not own[3] > 0:
                train_examples(model, optimizer, worker, order[at:stop], t + at, 1, own)
            strata.losses[k], strata.counts[k] = own[0], np.int64(own[1])
            atomic_add(strata.progress, DONE, 1)
        at, k = stop, k + 1
    strata.seen[0] = k
    tally[3] = max(tally[3], own[3])
    if strata.number == 0 and _done(strata, k):
        for j in range(first, k):
            tally[0] += strata.losses[j]
            tally[1] += strata.counts[j]
            tally[2] += strata.counts[j]
