"""Selection of the largest of residual + gradient on one thread, as a multiple of np.add, beside torch and NumPy.

np.add(r, g, out=r) touches the memory that no selection can spare. torch.topk and numpy.argpartition are given |r + g|
ready-made and only find the elements; all others add, find, take and zero.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from hogwild.experiments.run.machine import describe
from hogwild.kernels.compression.selection import Selector, select
from hogwild.kernels.compression.thresholds import METHODS, threshold
from hogwild.kernels.optim.steps import aligned


def by_torch(r, g, cut):
    """(indices, values) of what passes, with torch's operations; it becomes 0 in r, which is the sum elsewhere."""
    s = torch.from_numpy(r).add_(torch.from_numpy(g))
    passes = s.abs() >= cut
    indices = passes.nonzero().squeeze(1)
    values = s[indices]
    return indices, values, s.masked_fill_(passes, 0)


def medians(runs, repeats, reset):
    """{name: median seconds} of callables that take turns, each after an untimed reset; one untimed round first."""
    times = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, call in runs.items():
            reset()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def bench(keep, start, r, g, repeats):
    """Seconds of each, by name, at this kept share; `start` is what the residual r is at first."""
    n, k, sums = start.size, round(keep * start.size), np.abs(start + g)
    cut, selector = threshold([start], [g], keep, "exact"), Selector([n], keep)
    indices, values, steps = np.zeros(n // 5, np.uint32), np.zeros(n // 5, np.float32), iter(range(1000))

    def reset():
        np.copyto(r, start)
    ours = {"add": lambda: np.add(r, g, out=r), "select": lambda: select(r, g, cut, indices, values),
            "both": lambda: selector.select([r], [g], next(steps))}
    rivals = {"topk": lambda: torch.topk(torch.from_numpy(sums), k), "torch": lambda: by_torch(r, g, cut),
              "argpartition": lambda: np.argpartition(sums, n - k)}
    return medians(ours, repeats, reset) | medians(rivals, max(1, repeats // 4), reset)


def cell(sums, start, g, keep, method, repeats):
    """Milliseconds, and the smallest and largest share kept over as many seeds as repeats."""
    seeds, found = iter(range(repeats + 1)), []
    took = medians({method: lambda: found.append(threshold([start], [g], keep, method, seed=next(seeds)))}, repeats,
                   lambda: None)
    passed = [np.count_nonzero(sums >= cut) / sums.size for cut in found]
    return f"{1e3 * took[method]:.1f} | {min(passed):.3%} to {max(passed):.3%}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=lambda text: int(float(text)), default=25_000_000, help="float32 elements")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds of ours, four times those of the others")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.001, 0.01, 0.1], help="kept shares")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{describe()}\n")
    print(f"{options.n:,} float32 elements, one thread, medians of {options.repeats} interleaved rounds, ms\n")
    rng, start, r, g = np.random.default_rng(0), *(aligned((options.n,)) for _ in range(3))
    rng.standard_normal(dtype=np.float32, out=start)
    rng.standard_normal(dtype=np.float32, out=g)
    g *= np.float32(0.1)
    print("| kept | np.add | select | of np.add | threshold from a sample + select | of np.add | torch.topk | of select "
          "| torch threshold, nonzero | numpy.argpartition |")
    print("|---:|" + "---:|" * 9)
    for keep in options.keep:
        took = bench(keep, start, r, g, options.repeats)
        ms = {name: f"{1e3 * seconds:.1f}" for name, seconds in took.items()}
        print(f"| {keep:.1%} | {ms['add']} | {ms['select']} | {took['select'] / took['add']:.2f} | {ms['both']} "
              f"| {took['both'] / took['add']:.2f} | {ms['topk']} | {took['topk'] / took['select']:.0f} | {ms['torch']} "
              f"| {ms['argpartition']} |", flush=True)
    print("\n| threshold | " + " | ".join(f"{keep:.1%}: ms | kept" for keep in options.keep) + " |")
    print("|---|" + "---:|---:|" * len(options.keep))
    sums = np.abs(start + g)
    for method in METHODS:
        cells = [cell(sums, start, g, keep, method, options.repeats) for keep in options.keep]
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
