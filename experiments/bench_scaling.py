"""How lock-free workers scale, how many updates they lose, and how much memory a run takes.

python -m experiments.bench_scaling [--rows 400000] [--epochs 3] [--repeats 5] [--rules sgd,adagrad] [--quick]

Scaling: examples/s of W workers over the sum of W independent copies of one worker each, threads with parameters of their
own on the same read-only data, measured right before: what this machine can give. Lost updates: exactly, from a sum that
is known. Memory: of a child process that reads the parsed data from the cache and trains.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from experiments.datasets import matrix
from experiments.machine import describe
from hogwild import data, formats, linear, preflight, synthetic
from hogwild.train import train
from hogwild.workers import cores
from kernels.jit import user_cache
from kernels.losses import Hinge, Logistic
from kernels.rules import SGD, AdaGrad
from kernels.schedules import Constant

RULES = {"sgd": SGD(), "adagrad": AdaGrad()}
DENSITIES = 1.0, 0.1, 0.01, 1e-3, 1e-4
ENTRIES = 10  # features of a row of the data for lost updates
STATUS = "VmRSS", "RssAnon", "RssFile"


def counts():
    """1, 2, 4, … workers up to the cores, at least 2."""
    return [2**k for k in range(max(cores(), 2).bit_length())]


def together(dataset, rule, mode, workers, epochs):
    """Examples/s of workers that share their parameters."""
    schedule = Constant(linear.DEFAULT_LR[type(rule).__name__])
    problem = linear.Linear(dataset, None, Logistic(), rule, schedule, workers=workers, mode=mode)
    history = train(problem, rule, schedule, epochs=epochs, workers=workers)
    return sum(epoch.examples for epoch in history) / sum(epoch.seconds for epoch in history)


def apart(dataset, rule, workers, epochs):
    """Examples/s of as many copies, each alone on its share of the rows, all at the same time."""
    schedule, speeds = Constant(linear.DEFAULT_LR[type(rule).__name__]), [0.0] * workers
    problems = [linear.Linear(dataset, None, Logistic(), rule, schedule, rows=np.arange(k, dataset.rows, workers),
                              classes=np.array([-1.0, 1.0])) for k in range(workers)]
    gate = threading.Barrier(workers)

    def copy(k):
        gate.wait()
        history = train(problems[k], rule, schedule, epochs=epochs, workers=1)
        speeds[k] = sum(epoch.examples for epoch in history) / sum(epoch.seconds for epoch in history)

    threads = [threading.Thread(target=copy, args=(k,)) for k in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(speeds)


def scaling(rows, epochs, repeats, rules):
    """The first table."""
    dataset, _ = synthetic.rcv1_like(rows)
    small = dataset.subset(0, 2000)
    print(f"\nRows {rows:,} of RCV1's shape, {epochs} epochs, medians of {repeats} runs; of copies: examples/s over those of "
          "as many independent\ncopies at the same time.\n\n"
          "| rule | mode | workers | k examples/s | of copies | times one copy |\n|---|---|---:|---:|---:|---:|")
    for name in rules:
        rule, speed = RULES[name], {}
        together(small, rule, "wild", 1, 1)  # compiles
        one = statistics.median(apart(dataset, rule, 1, epochs) for _ in range(repeats))
        for workers in counts():
            for mode in linear.MODES:
                together(small, rule, mode, workers, 1)  # compiles
                runs = []
                for _ in range(repeats):
                    copies = apart(dataset, rule, workers, epochs)
                    shared = together(dataset, rule, mode, workers, epochs)
                    runs.append((shared, shared / copies))
                speed[mode, workers], ratio = map(statistics.median, zip(*runs))
                print(f"| {name} | {mode} | {workers} | {speed[mode, workers] / 1e3:,.0f} | {ratio:.2f} | "
                      f"{speed[mode, workers] / one:.2f} |", flush=True)
        most = counts()[-1]
        wild, locked, turns = (speed[mode, most] for mode in ("wild", "locked", "round-robin"))
        print(f"| {name} | wild > locked > round-robin (Niu et al. 2011) | {most} | "
              f"{wild / 1e3:,.0f}, {locked / 1e3:,.0f}, {turns / 1e3:,.0f} | {'yes' if wild > locked > turns else 'no'} | |")


def uniform(rows, density, seed=0):
    """Rows of ENTRIES ones, the s-th anywhere in the s-th of ENTRIES equal stretches of the features; all labels +1."""
    stretch = round(1 / density)
    place = np.random.default_rng(seed).integers(0, stretch, (rows, ENTRIES), np.uint32)
    place += np.arange(ENTRIES, dtype=np.uint32) * np.uint32(stretch)
    return data.Dataset(np.arange(rows + 1) * ENTRIES, place.ravel(), np.ones(place.size, np.float32),
                        np.ones(rows, np.float32), ENTRIES * stretch, "uniform")


def lost(dataset, workers, epochs, seed):
    """Share of the updates that are missing in the weights.

    A hinge far inside its slack gives every update of a weight the same size, a power of two: without a loss the weights
    are exactly that times the number of updates.
    """
    degree = np.bincount(dataset.indices, minlength=dataset.n_features)
    lr = 2.0 ** np.floor(np.log2(0.5 / (ENTRIES * degree.max() * epochs)))
    problem = linear.Linear(dataset, None, Hinge(), SGD(), Constant(lr), intercept=False, workers=workers, copies=False,
                            classes=np.array([-1.0, 1.0]))
    train(problem, SGD(), Constant(lr), epochs=epochs, workers=workers, seed=seed)
    made = np.asarray(problem.w, np.float64)[:-1].sum() / lr
    return 1 - made / (epochs * dataset.nnz)


def losses(rows, repeats):
    """The second table."""
    print(f"\nLost updates, mode wild on shared parameters: {rows:,} rows of {ENTRIES} ones at random places, 2 epochs; "
          f"medians of {repeats} runs.\nDensity: {ENTRIES} over the number of features.\n\n"
          "| density | workers | lost, exactly | as predicted |\n|---:|---:|---:|---:|")
    lost(uniform(2000, 1.0), 1, 1, 0), lost(uniform(2000, 1.0), 2, 1, 0)
    for density in DENSITIES:
        dataset = uniform(rows, density)
        degree = np.bincount(dataset.indices, minlength=dataset.n_features)
        for workers in (max(cores(), 2), 2 * max(cores(), 2)):
            exact = statistics.median(lost(dataset, workers, 2, seed) for seed in range(repeats))
            predicted = preflight.lost_share(degree, dataset.rows, workers)
            print(f"| {density:g} | {workers} | {exact:.4%} | {predicted:.4%} |", flush=True)


def status():
    """Resident kB of this process: in all, anonymous, and mapped from files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {words[0][:-1]: int(words[1]) for words in lines if words and words[0][:-1] in STATUS}
    return np.array([found.get(name, 0) for name in STATUS])


def child(path, rule, workers):
    """Print, as JSON, bytes of data and model, and how much each number of `status` has grown at its highest."""
    rule, schedule = RULES[rule], Constant(0.1)
    small = synthetic.rcv1_like(2000)[0]
    for count in {1, workers}:
        together(small, rule, "wild", count, 1)  # compiles
    before, top, done = status(), status(), threading.Event()

    def watch():
        while not done.wait(0.002):
            np.maximum(top, status(), out=top)

    watcher = threading.Thread(target=watch)
    watcher.start()
    dataset = data.read(path)
    problem = linear.Linear(dataset, None, Logistic(), rule, schedule, workers=workers)
    train(problem, rule, schedule, epochs=2, workers=workers)
    done.set()
    watcher.join()
    size = sum(getattr(dataset, name).nbytes for name in data.ARRAYS)
    print(json.dumps({"data": size, "model": problem.flat.nbytes, "grown": ((top - before) * 1024).tolist()}))


def memory(rows, rules):
    """The third table."""
    print("\nMemory: growth of the resident set from before the data are read to its highest, 2 epochs; aim 1.2.\n\n"
          "| rows | rule | workers | data MB | model MB | grown MB | anonymous | of files | grown / (data + model) |\n"
          "|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        dataset, _ = synthetic.rcv1_like(rows)
        path = Path(folder) / "synthetic.npz"
        formats.save_npz(path, matrix(dataset), dataset.labels)
        del dataset
        room = {**os.environ, "XDG_CACHE_HOME": folder,
                "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR") or str(user_cache() / "kernels")}
        subprocess.run([sys.executable, "-c", f"from hogwild import data; data.read({str(path)!r})"], env=room, check=True)
        for rule in rules:
            for workers in sorted({1, cores()}):
                command = [sys.executable, "-m", "experiments.bench_scaling", "--child", str(path), rule, str(workers)]
                out = json.loads(subprocess.run(command, env=room, check=True, stdout=subprocess.PIPE).stdout)
                total, anonymous, mapped = out["grown"]
                numbers = [f"{x / 1e6:,.0f}" for x in (out["data"], out["model"], total, anonymous, mapped)]
                share = total / (out["data"] + out["model"])
                print(f"| {rows:,} | {rule} | {workers} | {' | '.join(numbers)} | {share:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rules", default="sgd,adagrad")
    parser.add_argument("--tables", default="scaling,lost,memory")
    parser.add_argument("--quick", action="store_true", help="100,000 rows, two epochs, three repeats")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.child[1], int(options.child[2]))
        return
    if options.quick:
        options.rows, options.epochs, options.repeats = 100_000, 2, 3
    rules, tables = options.rules.split(","), options.tables.split(",")
    print(describe())
    if "scaling" in tables:
        scaling(options.rows, options.epochs, options.repeats, rules)
    if "lost" in tables:
        losses(options.rows, options.repeats)
    if "memory" in tables:
        memory(options.rows, rules)


if __name__ == "__main__":
    main()
