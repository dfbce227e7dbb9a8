"""The step of the coordinates that a share of the gradient arrives for, beside the dense step of all, interleaved.

At each of a few steps other coordinates are drawn, so that each has waited for about 1 / share steps.
"""

import argparse
import statistics
import time

import numpy as np

from hogwild.experiments.run.machine import describe
from hogwild.kernels.optim.catch_up import LONGEST, catch_up, catches_up
from hogwild.kernels.optim.rules import RULES
from hogwild.kernels.optim.steps import aligned, dense_step, new_slots

SHARES = 0.001, 0.01, 0.05, 0.25


def took(rule, n, share, repeats):
    """(median seconds of catching up, of the dense step) with n elements, of which a share arrives."""
    rng, w, g = np.random.default_rng(0), aligned((n,)), aligned((n,))
    sparse, dense = new_slots(rule, n), new_slots(rule, n)
    last = np.full(n, -1, np.int16)
    last -= np.minimum(rng.exponential(1 / share, n), LONGEST - 2).astype(np.int16)
    caught, stepped = [], []
    for t in range(1, repeats + 2):
        at = np.sort(rng.choice(n, max(int(n * share), 1), replace=False, shuffle=False)).astype(np.uint32)
        g.fill(0)
        g[at] = rng.standard_normal(at.size, np.float32)
        for state, times in (sparse, caught), (dense, stepped):
            start = time.perf_counter()
            if state is sparse:
                catch_up(rule, (w, tuple(sparse), last), at, g, (1.0, 1e-6, t))
            else:
                dense_step(rule, w, g, dense, 1e-6, t)
            times.append(time.perf_counter() - start)
    return statistics.median(caught[1:]), statistics.median(stepped[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=lambda text: int(float(text)), default=10_000_000, help="float32 elements")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps; the median counts")
    options = parser.parse_args()
    print(f"{describe()}\n")
    print(f"{options.n:,} float32 elements, one thread; ms of catching up, and as a share of the dense step's\n")
    print("| rule | dense ms | " + " | ".join(f"{share:.1%} arrives" for share in SHARES) + " |")
    print("|---|---:|" + "---:|" * len(SHARES))
    for name, rule in ((name, cls()) for name, cls in RULES.items()):
        if catches_up(rule):
            pairs = [took(rule, options.n, share, options.repeats) for share in SHARES]
            cells = [f"{a * 1e3:.1f} ({a / b:.2f})" for a, b in pairs]
            print(f"| {name} | {statistics.median(b for _, b in pairs) * 1e3:.1f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
