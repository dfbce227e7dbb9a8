"""Every rule's dense step on one thread, beside NumPy's copy and torch's own optimizer, interleaved in one loop.

Bytes are counted once per stream: w and each slot read and written, g read, so (3 + 2 S) * 4 an element in place.
"""

import argparse
import statistics
import time

import numpy as np

from hogwild.experiments.run.machine import describe
from hogwild.kernels.optim.rules import RULES
from hogwild.kernels.optim.steps import aligned, dense_step, new_slots

try:
    import torch
except ImportError:
    torch = None

TORCH = {"sgd": ("SGD", {}), "momentum": ("SGD", {"momentum": 0.9}),
         "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}), "adagrad": ("Adagrad", {}),
         "rmsprop": ("RMSprop", {}),
         "adam": ("Adam", {}), "adamw": ("AdamW", {"weight_decay": 0.0}),
         "nadam": ("NAdam", {}), "radam": ("RAdam", {})}
FUSED = {"SGD", "Adagrad", "Adam", "AdamW"}
COPY_BYTES = 12  # read, read for ownership, write


def rivals(name, w, g):
    """{column: step} of torch's optimizer for rule `name`, on parameters of its own."""
    if torch is None or name not in TORCH:
        return {}
    cls, options = TORCH[name]
    steps = {}
    for kind in ("fused", "foreach") if cls in FUSED else ("foreach",):
        p = torch.nn.Parameter(torch.from_numpy(w.copy()))
        p.grad = torch.from_numpy(g)
        steps[kind] = getattr(torch.optim, cls)([p], **options, **{kind: True}).step
    return steps


def medians(runs, repeats):
    """{name: median seconds} of callables that take turns; one untimed round first."""
    times = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, call in runs.items():
            start = time.perf_counter()
            call()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def bench(name, w, g, target, repeats):
    """One row of the table."""
    rule = RULES[name]()
    slots = new_slots(rule, w.size)
    slots.fill(0)  # touch the pages before the clock runs
    slots.T[:] = rule.start()
    took = medians({"copy": lambda: np.copyto(target, g), "ours": lambda: dense_step(rule, w, g, slots, 1e-6, 10),
                    **rivals(name, w, g)}, repeats)
    rate = (3 + 2 * len(slots)) * 4 * w.size / took["ours"] / 1e9
    ratio = rate / (COPY_BYTES * w.size / took["copy"] / 1e9)
    theirs = [f"{took[kind] * 1e3:.1f}" if kind in took else "-" for kind in ("fused", "foreach")]
    return " | ".join([name, str(len(slots)), f"{took['ours'] * 1e3:.1f}", f"{rate:.1f}", f"{ratio:.2f}", *theirs])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=lambda text: int(float(text)), default=25_000_000, help="float32 elements")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds; the median counts")
    options = parser.parse_args()
    if torch:
        torch.set_num_threads(1)
    print(f"{describe()}\n")
    print(f"{options.n:,} float32 elements, one thread, medians of {options.repeats} interleaved rounds\n")
    print("| rule | slots | ms | GB/s | of numpy copy | torch fused ms | torch foreach ms |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    rng, w, g, target = np.random.default_rng(0), *(aligned((options.n,)) for _ in range(3))
    rng.standard_normal(dtype=np.float32, out=w)
    rng.standard_normal(dtype=np.float32, out=g)
    for name in RULES:
        print(f"| {bench(name, w, g, target, options.repeats)} |", flush=True)


if __name__ == "__main__":
    main()
