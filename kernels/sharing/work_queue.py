"""How workers divide an order of examples among them without the GIL."""

from hogwild.kernels.compiler.atomics import atomic_load, compare_swap
from hogwild.kernels.compiler.jit import kernel

LEAST = 64  # examples of a chunk, if there are so many
# Places in a queue, int64[16] on two cache lines: the next example, whether to stop, workers.
NEXT, STOP, WORKERS = 0, 8, 9


@kernel
def claim(queue, n, most):
    """(start, stop) of the next of n examples, up to `most`; start == stop at the end, or when queue[STOP] is not 0.

    Chunks become shorter towards the end, so that all workers reach it at once.
    """
    while True:
        start = atomic_load(queue, NEXT)
        if start >= n or atomic_load(queue, STOP) != 0:
            return start, start
        left = n - start
        share = max(left // (2 * queue[WORKERS]), LEAST) if queue[WORKERS] > 1 else left
        stop = start + min(min(share, most), left)
        if compare_swap(queue, NEXT, start, stop):
            return start, stop
