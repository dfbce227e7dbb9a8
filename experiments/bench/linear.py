"""One lock-free worker against scikit-learn's SGDClassifier: same float32 CSR, same epochs, same constant step.

python -m hogwild.experiments.bench.linear [--rows 1000000] [--epochs 10] [--repeats 3]
"""

import argparse
import statistics
import time
from functools import partial

import numpy as np

from hogwild.experiments.plan.datasets import load, matrix
from hogwild.experiments.run.machine import describe
from hogwild.families import linear, predictions
from hogwild.kernels.losses import Logistic
from hogwild.kernels.optim.rules import SGD, AdaGrad
from hogwild.kernels.optim.schedules import Constant
from hogwild.training.loop import train

SETS = "imdb", "20newsgroups", "synthetic"


def ours(train_data, test, rule, lr, epochs, seed):
    """(seconds, test accuracy) of one worker: set-up, permutations and training, without evaluation."""
    schedule, start = Constant(lr), time.perf_counter()
    problem = linear.Linear(train_data, None, Logistic(), rule)
    train(problem, rule, schedule, epochs=epochs, seed=seed)
    seconds = time.perf_counter() - start
    accuracy = np.mean((predictions.scores(problem.w, test) > 0) == (test.labels > 0))
    return seconds, float(accuracy)


def theirs(X, y, T, test, lr, epochs, seed):
    """The same of SGDClassifier.fit."""
    from sklearn.linear_model import SGDClassifier
    model = SGDClassifier(loss="log_loss", penalty=None, learning_rate="constant", eta0=lr, max_iter=epochs, tol=None,
                          random_state=seed)
    start = time.perf_counter()
    model.fit(X, y)
    return time.perf_counter() - start, float(np.mean((model.decision_function(T) > 0) == (test.labels > 0)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(describe())
    print(f"\n{options.epochs} epochs, logistic loss, no penalty, one thread; medians of {options.repeats} runs\n")
    print("| data | trainer | k examples/s | M non-zeros/s | times SGDClassifier | test accuracy |\n"
          "|---|---|---|---|---|---|")
    for name, train_data, test in load(options.rows, SETS):
        X, y, T = matrix(train_data), train_data.labels, matrix(test)
        runs = {"scikit-learn SGDClassifier, lr 0.5": partial(theirs, X, y, T, test, 0.5, options.epochs),
                "hogwild sgd, lr 0.5": partial(ours, train_data, test, SGD(), 0.5, options.epochs),
                "hogwild adagrad, lr 0.1": partial(ours, train_data, test, AdaGrad(), 0.1, options.epochs)}
        ours(train_data, test, SGD(), 0.5, 1, 0), ours(train_data, test, AdaGrad(), 0.1, 1, 0)  # compile
        results = {run: [] for run in runs}
        for repeat in range(options.repeats):
            for run, function in runs.items():
                results[run].append(function(repeat))
        base = next(iter(results.values()))
        for run, pairs in results.items():
            seconds = statistics.median(s for s, _ in pairs) / options.epochs
            ratio = statistics.median(b[0] / s for (s, _), b in zip(pairs, base, strict=True))
            print(f"| {name} | {run} | {train_data.rows / seconds / 1e3:,.0f} | {train_data.nnz / seconds / 1e6:,.0f} | "
                  f"{ratio:.2f} | {statistics.median(a for _, a in pairs):.4f} |", flush=True)


if __name__ == "__main__":
    main()
