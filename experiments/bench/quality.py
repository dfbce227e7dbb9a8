"""Seconds to a result: hogwild against scikit-learn, snapml and vowpalwabbit (where installed) on logistic regression.

python -m hogwild.experiments.bench.quality [--sets imdb,kddcup99] [--trainers hogwild,lbfgs] [--rows 1000000]
[--repeats 5] [--limit 120] [--C 1] [--quick]

The objective is mean log-loss + l2/2 |w|² with l2 = 1 / (C rows), the intercept free, taken in float64 of the weights that
a trainer returns. Its optimum is the best of converged LogisticRegressions; liblinear, which penalises the intercept, may
scale it by 10. Targets: an objective within 0.1% of the optimum; 99.9% of the optimum's test accuracy. A trainer runs
along ladders of rising effort, each rung a fresh fit; what counts is its shortest fit whose median run reaches the target.
Reading and measuring are not counted, setting up is. The second table adds the reading.
"""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import dump_svmlight_file, load_svmlight_file
from sklearn.linear_model import LogisticRegression, SGDClassifier

from hogwild.data import dataset
from hogwild.experiments.plan.datasets import NAMES, load, matrix
from hogwild.experiments.run.machine import describe
from hogwild.families import linear
from hogwild.kernels.losses import Logistic
from hogwild.kernels.optim.rules import SGD, AdaGrad
from hogwild.kernels.optim.schedules import InverseTime, Polynomial
from hogwild.kernels.optim.steps import Decay
from hogwild.training.loop import train
from hogwild.training.workers import cores

TARGETS = {"objective": 1e-3, "accuracy": 0.999}
EPOCHS = 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 40
RECIPES = {  # (rule, schedule(rows, epochs, l2)); 1/t as SGDClassifier's "optimal" falls (Bottou 2012)
    "linear from 1": (SGD(), lambda n, epochs, l2: Polynomial(1.0, epochs * n, 1.0)),
    "linear from 3": (SGD(), lambda n, epochs, l2: Polynomial(3.0, epochs * n, 1.0)),
    "squared from 1": (SGD(), lambda n, epochs, l2: Polynomial(1.0, epochs * n, 2.0)),
    "1/t from 2": (SGD(), lambda n, epochs, l2: InverseTime(2.0, 1.6 * l2)),
    "adagrad, linear from 0.5": (AdaGrad(), lambda n, epochs, l2: Polynomial(0.5, epochs * n, 1.0))}


class Rows(NamedTuple):
    """Training data as each trainer wants them."""

    data_set: dataset.Dataset
    X: object
    y: np.ndarray
    l2: float


class Fit(NamedTuple):
    seconds: float
    gap: float  # of the objective, relative
    accuracy: float


class Criteria:
    """The optimum on a data set, by which the fits of all trainers are measured."""

    def __init__(self, train_data, test, C):
        self.X, self.T, self.t = matrix(train_data).astype(np.float64), matrix(test), test.labels > 0
        self.y, self.l2 = np.where(train_data.labels > 0, 1.0, -1.0), 1 / (C * train_data.rows)
        tight = [LogisticRegression(C=C, tol=1e-9, max_iter=5000), LogisticRegression(C=C, solver="liblinear", tol=1e-6)]
        fits = [model.fit(self.X, self.y) for model in tight]
        self.best, best = min(((self.objective(m.coef_[0], m.intercept_), m) for m in fits), key=lambda pair: pair[0])
        self.accuracy = self.correct(best.coef_[0], best.intercept_)

    def objective(self, w, b):
        w = np.asarray(w, np.float64)
        penalty = self.l2 / 2 * np.square(w).sum()  # a product would leave BLAS's threads awake, beside the next fit
        return float(np.logaddexp(0, -self.y * (self.X @ w + float(np.ravel(b)[0]))).mean() + penalty)

    def correct(self, w, b):
        return float(np.mean((self.T @ np.asarray(w, np.float64) + float(np.ravel(b)[0]) > 0) == self.t))

    def __call__(self, seconds, w, b):
        return Fit(seconds, self.objective(w, b) / self.best - 1, self.correct(w, b))

    def reached(self, run, slack=1.0):
        """The targets that a fit has reached; slack: factor of the allowed distance from the optimum."""
        short = 1 - (1 - TARGETS["accuracy"]) * slack
        met = {"objective": run.gap <= TARGETS["objective"] * slack, "accuracy": run.accuracy >= short * self.accuracy}
        return {target for target, yes in met.items() if yes}


def ours(workers, recipe, epochs, rows, seed):
    """(seconds, weights, intercept) of a recipe's rule and learning rates."""
    start, (rule, falling) = time.perf_counter(), RECIPES[recipe]
    schedule = falling(rows.data_set.rows, epochs, rows.l2)
    problem = linear.Linear(rows.data_set, None, Logistic(), rule, Decay(rows.l2, 0.0), workers=workers)
    train(problem, rule, schedule, epochs=epochs, workers=workers, seed=seed)
    w = np.array(problem.w)
    return time.perf_counter() - start, w[:-1], w[-1]


def theirs(make, rows, seed):
    """(seconds, weights, intercept) of an estimator `make(rows, seed)`."""
    model, start = make(rows, seed), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        model.fit(rows.X, rows.y)
    return time.perf_counter() - start, np.ravel(model.coef_), np.ravel(model.intercept_)


def ladders(C):
    """{trainer: {ladder: [(rung, fit(rows, seed)), …]}}, the rungs of each ladder in order of rising effort."""
    def of(make, name, rungs):
        return [(f"{name} {rung:g}", partial(theirs, partial(make, rung))) for rung in rungs]

    def sgd(epochs, rows, seed, **options):
        n = len(rows.y)
        options = {"learning_rate": "constant", "eta0": 0.5, **options}
        average = options.pop("average", False) and epochs * n // 2
        return SGDClassifier(loss="log_loss", alpha=rows.l2, max_iter=int(epochs), tol=None, random_state=seed,
                             average=average, **options)

    def lr(name, value, rows, seed, **options):
        return LogisticRegression(C=C, random_state=seed, **{"tol": 1e-10, "max_iter": 1000, **options, name: value})

    tols, steps = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5), (5, 10, 15, 20, 30, 40, 60, 80, 120, 200, 400)
    found = {f"hogwild, {W} worker{'s' * (W > 1)}": {
        recipe: [(f"{recipe}, epochs {E}", partial(ours, W, recipe, E)) for E in EPOCHS] for recipe in RECIPES}
        for W in sorted({1, cores()})}
    found["SGDClassifier"] = {
        "optimal": of(partial(sgd, learning_rate="optimal"), "optimal, epochs", EPOCHS),
        "constant, averaged": of(partial(sgd, average=True), "eta0 0.5, second half averaged, epochs", EPOCHS),
        "optimal, averaged": of(partial(sgd, learning_rate="optimal", average=True), "optimal, averaged, epochs", EPOCHS),
        "invscaling": of(partial(sgd, learning_rate="invscaling", eta0=10.0, power_t=0.25), "invscaling, epochs", EPOCHS)}
    found["lbfgs"] = {"": of(partial(lr, "max_iter"), "steps", steps)}
    found["liblinear"] = {f"{dual} {scale}": of(
        partial(lr, "tol", solver="liblinear", dual=dual, intercept_scaling=scale),
        f"{'dual' if dual else 'primal'}, intercept x {scale}, tol", tols) for dual in (False, True) for scale in (1, 10)}
    found["saga"] = {"": of(partial(lr, "max_iter", solver="saga"), "epochs", steps)}
    if importlib.util.find_spec("snapml"):
        from snapml import LogisticRegression as Snap
        for jobs in sorted({1, cores()}):
            found[f"snapml, {jobs} thread{'s' * (jobs > 1)}"] = {scale: of(
                lambda steps, rows, seed, jobs=jobs, scale=scale: Snap(
                    max_iter=int(steps), regularizer=1 / C, tol=1e-9, n_jobs=jobs, fit_intercept=True,
                    intercept_scaling=scale, random_state=seed), f"intercept x {scale:g}, steps", (2, 3, *steps))
                for scale in (1.0, 10.0)}
    else:
        print("snapml: skipped, not installed", file=sys.stderr)
    return found


def climb(trainer, rows, criteria, repeats, limit):
    """{target: (Fit of medians, rung, fit)}: the shortest fit of a trainer's ladders that reaches it."""
    found = {}
    for rungs in trainer.values():
        here = set()
        for rung, fit in rungs:
            runs = [criteria(*fit(rows, 0))]
            if criteria.reached(runs[0], 2.0) - here:  # near enough for the median to be on either side
                runs += [criteria(*fit(rows, seed)) for seed in range(1, repeats)]
            middle = Fit(*(statistics.median(numbers) for numbers in zip(*runs)))
            for target in criteria.reached(middle) - here:
                here.add(target)
                if target not in found or middle.seconds < found[target][0].seconds:
                    found[target] = middle, rung, fit
            slower = len(found) == len(TARGETS) and middle.seconds > max(run.seconds for run, _, _ in found.values())
            if len(here) == len(TARGETS) or slower or middle.seconds > limit:
                break
    return found


def seconds(read, repeats):
    """Median time of `read`."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        read()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def vowpal(path, d, epochs, rows, seed):
    """(seconds, weights, intercept) of Vowpal Wabbit on a file of its own format: its own parser, cache and threads."""
    from vowpalwabbit import pyvw
    start, model = time.perf_counter(), f"{path}.model"
    pyvw.Workspace(f"-d {path} --loss_function logistic -b 18 --l2 {rows.l2} --no_bias_regularization --passes {epochs}"
                   f" -c -k --holdout_off --predict_only_model --quiet --random_seed {seed} -f {model}").finish()
    taken, vw = time.perf_counter() - start, pyvw.Workspace(f"-i {model} --quiet")
    w = np.array([vw.get_weight(j + 1) for j in range(d)])  # integers are their own hash; the constant has a fixed one
    b = vw.get_weight(11650396 % (1 << 18))
    vw.finish()
    return taken, w, b


def files(name, rows, results, criteria, repeats, limit, folder):
    """From the text file: seconds of reading it, and with those of the fits found in memory."""
    path, d = Path(folder) / f"{name.partition(',')[0]}.svm", rows.X.shape[1]
    dump_svmlight_file(np.round(rows.X.astype(np.float64), 6), rows.y, str(path), zero_based=False)
    os.utime(path, (time.time() - 60,) * 2)  # that of a file just written might still stay the same when it changes
    dataset.read(path, n_features=d)  # fills the cache
    theirs = seconds(lambda: load_svmlight_file(str(path), n_features=d, dtype=np.float32, zero_based=False), repeats)
    ours = {f", {how}": seconds(partial(dataset.read, path, n_features=d, cache=how == "cached"), repeats)
            for how in ("cache off", "cached")}
    lines = [(trainer + how, reading, {target: reading + run.seconds for target, (run, _, _) in found.items()})
             for trainer, found in results.items()
             for how, reading in (ours if trainer.startswith("hogwild") else {"": theirs}).items()]
    if importlib.util.find_spec("vowpalwabbit") and d < 1 << 17:
        own = path.with_suffix(".vw")
        with open(path) as text, open(own, "w") as out:
            out.writelines(line.replace(" ", " | ", 1) for line in text)
        rungs = [(f"{E} passes", partial(vowpal, own, d, E)) for E in (1, 2, 5, 10, 20)]
        found = climb({"": rungs}, rows, criteria, repeats, limit)
        lines.append(("vowpalwabbit", 0, {target: run.seconds for target, (run, _, _) in found.items()}))
    for trainer, reading, totals in lines:
        cells = [f"{reading:.2f}" if reading else "-"]
        for target in TARGETS:
            peers = [other[target] for who, _, other in lines if target in other and not who.startswith("hogwild")]
            here = totals.get(target)
            cells += [f"{here:.2f}" if here else "not reached", f"{min(peers) / here:.2f}" if here and peers else "-"]
        print(f"| {name}, {path.stat().st_size / 1e6:,.0f} MB | {trainer} | {' | '.join(cells)} |", flush=True)


def arguments():
    """(options, sets, trainers) of the command line; what is wrong with it ends the program in a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the synthetic data")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sets", default=",".join(NAMES))
    parser.add_argument("--trainers", default="", help="only those whose name begins so: hogwild,lbfgs")
    parser.add_argument("--C", type=float, default=1.0)
    parser.add_argument("--limit", type=float, default=120, help="seconds of one fit after which a ladder ends")
    parser.add_argument("--quick", action="store_true", help="50,000 synthetic rows, one repeat, fits of at most 10 s")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.repeats, options.limit = min(options.rows, 50_000), 1, 10
    sets, wanted, found = options.sets.split(","), options.trainers.split(","), ladders(options.C)
    if unknown := sorted(set(sets) - set(NAMES)):
        parser.error(f"--sets: choose from {', '.join(NAMES)}, got {', '.join(unknown)}")
    if unknown := [name for name in wanted if not any(who.startswith(name) for who in found)]:
        parser.error(f"--trainers: choose from {', '.join(sorted({who.partition(',')[0] for who in found}))}, got "
                     f"{', '.join(unknown)}")
    return options, sets, {who: rungs for who, rungs in found.items() if who.startswith(tuple(wanted))}


def in_memory(name, results):
    """The rows of one set of data."""
    for trainer, found in results.items():
        cells = []
        for target, value in (("objective", "{0.gap:.3%}"), ("accuracy", "{0.accuracy:.4f}")):
            peers = [r[target][0].seconds for t, r in results.items() if target in r and not t.startswith("hogwild")]
            run, rung, _ = found.get(target, (None, "not reached", None))
            ratio = f"{min(peers) / run.seconds:.2f}" if run and peers else "-"
            cells += [f"{run.seconds:.3f}", ratio, value.format(run), rung] if run else ["-", "-", "-", rung]
        print(f"| {name} | {trainer} | " + " | ".join(cells) + " |", flush=True)


def main():
    (options, sets, trainers), warm = arguments(), False
    print(f"{describe()}\n\nC {options.C:g}; medians of {options.repeats} runs; hogwild: sgd where it names no rule\n\n"
          "| data | trainer | s to the objective | best peer's / its | gap | with | s to the accuracy | best peer's / its | "
          "accuracy | with |\n|---|---|---|---|---|---|---|---|---|---|")
    texts = []
    for name, train_data, test in load(options.rows, sets):
        criteria = Criteria(train_data, test, options.C)
        rows = Rows(train_data, matrix(train_data), criteria.y, criteria.l2)
        for W in () if warm else (1, cores()):
            for recipe in RECIPES:
                ours(W, recipe, 1, rows, 0)  # compile
        warm = True
        results = {}
        for who, rungs in trainers.items():
            results[who] = climb(rungs, rows, criteria, options.repeats, options.limit)
            reached = ", ".join(f"{target} in {run.seconds:.3f} s" for target, (run, _, _) in results[who].items())
            print(f"{name}: {who}: {reached or 'neither reached'}", file=sys.stderr, flush=True)
        in_memory(name, results)
        texts.append((name, rows, results, criteria))
    print("\nFrom a text file in the page cache (svmlight; Vowpal Wabbit its own format): reading and the fit together;\n"
          "cached: hogwild's parsed copy of an earlier run.\n\n"
          "| data | trainer | s reading | s to the objective | best peer's / its | s to the accuracy | best peer's / its |\n"
          "|---|---|---|---|---|---|---|")
    if not importlib.util.find_spec("vowpalwabbit"):
        print("vowpalwabbit: skipped, not installed", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # the parsed copies of these texts need not stay
        for text in texts:
            files(*text, options.repeats, options.limit, folder)


if __name__ == "__main__":
    main()
