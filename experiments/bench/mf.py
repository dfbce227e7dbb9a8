"""Matrix factorization against LIBMF, implicit and cornac: same ratings, same split, same evaluation, in one run.

python -m hogwild.experiments.bench.mf [--only explicit,implicit,scaling,jester,large] [--libmf libmf.so.2] [--quick]

LIBMF is measured where --libmf names its shared library (its sources: `make lib` with USEAVX), the others where they are
installed (extra `peers`). One thread each, but in `scaling`.
"""

import argparse
import ctypes
import importlib.util
import lzma
import resource
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import scipy.sparse

from hogwild.experiments.plan import published
from hogwild.experiments.run.machine import describe
from hogwild.families.mf_problem import LOSSES, MF_RULES, Factorization, MatrixFactorization, Ratings, decay_of, default_l2
from hogwild.kernels.optim.schedules import Polynomial
from hogwild.training.loop import train
from hogwild.training.replicated import Sharing, Steps

PARTS = "explicit", "implicit", "scaling", "jester", "large"
RANK, HELD = 32, 0.1
LIBMF_L2, LIBMF_ROUNDS = 0.05, (5, 10, 15, 20)  # its best penalty here; iterations, each a run


class Split(NamedTuple):
    """Ratings with a random tenth held out."""

    train: Ratings
    test: Ratings


def read(name):
    """Ratings of a file in the data folder, `user::item::rating` or three columns; ids are numbered as they are sorted."""
    if reason := published.missing(name):
        sys.exit(reason)
    with lzma.open(published.folder() / name, "rt") as file:
        table = np.array(file.read().replace("::", " ").split(), np.float64).reshape(-1, 3)
    (users, u), (items, i) = (np.unique(table[:, k], return_inverse=True) for k in range(2))
    return Ratings(u.astype(np.uint32), i.astype(np.uint32), table[:, 2].astype(np.float32), len(users), len(items))


def split(ratings, seed) -> Split:
    order = np.random.default_rng(seed).permutation(len(ratings.users))
    held = int(HELD * len(order))
    return Split(*(ratings._replace(users=ratings.users[rows], items=ratings.items[rows], values=ratings.values[rows])
                   for rows in (order[held:], order[:held])))


class Fit(NamedTuple):
    """What a trainer has done."""

    seconds: float  # wall time of training alone: no reading, no evaluation
    cpu: float
    score: float
    examples: int  # ratings, or triples


def timed(function):
    """(seconds, CPU seconds of all threads, what it returns)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - wall, time.process_time() - cpu, result


# Explicit ratings.


def rmse(test, low, high, mean, p, q, b=None, c=None):
    """Of scores kept between the lowest and the highest rating."""
    z = mean + np.einsum("nr,nr->n", p[test.users], q[test.items])
    z += 0 if b is None else b[test.users] + c[test.items]
    return float(np.sqrt(np.mean((np.clip(z, low, high) - test.values)**2)))


def problem_of(ratings, rule, loss="squared", rank=RANK, workers=1, mode="wild", seed=0, popularity=0.0):
    loss = LOSSES[loss]()
    return MatrixFactorization(ratings, Factorization(loss, rank, popularity=popularity),
                               Steps(rule, decay_of(default_l2(ratings, loss))), Sharing(workers, mode, "none"), seed=seed)


def fitted(ratings, name, lr, epochs, seed=0, **how):
    """(problem, wall, CPU) of a training with a rate that falls to 0; setting up the blocks counts, compiling does not."""
    rule = MF_RULES[name]()
    schedule = Polynomial(lr, float(epochs * len(ratings.users)))
    few = ratings._replace(**{field: getattr(ratings, field)[:1] for field in ("users", "items", "values")})
    workers = how.get("workers", 1)
    train(problem_of(few, rule, **how), rule, schedule, epochs=1, workers=workers)  # compile

    def run():
        problem = problem_of(ratings, rule, seed=seed, **how)
        train(problem, rule, schedule, epochs=epochs, workers=workers, seed=seed)
        return problem
    wall, cpu, problem = timed(run)
    return problem, wall, cpu


def explicit_ours(data, seed, rule, lr, epochs, **how):
    problem, wall, cpu = fitted(data.train, rule, lr, epochs, seed, **how)
    low, high = data.train.values.min(), data.train.values.max()
    score = rmse(data.test, low, high, problem.mean, problem.user_factors, problem.item_factors, problem.user_biases,
                 problem.item_biases)
    return Fit(wall, cpu, score, epochs * len(data.train.users))


class _Node(ctypes.Structure):
    _fields_ = [("u", ctypes.c_int), ("v", ctypes.c_int), ("r", ctypes.c_float)]


class _Problem(ctypes.Structure):
    _fields_ = [("m", ctypes.c_int), ("n", ctypes.c_int), ("nnz", ctypes.c_longlong), ("R", ctypes.c_void_p)]


class _Parameter(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("fun", "k", "nr_threads", "nr_bins", "nr_iters")] + [
        (name, ctypes.c_float) for name in ("lambda_p1", "lambda_p2", "lambda_q1", "lambda_q2", "eta", "alpha", "c")] + [
        (name, ctypes.c_bool) for name in ("do_nmf", "quiet", "copy_data")]


class _Model(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("fun", "m", "n", "k")] + [
        ("b", ctypes.c_float), ("P", ctypes.POINTER(ctypes.c_float)), ("Q", ctypes.POINTER(ctypes.c_float))]


def libmf(data, seed, library, rounds, l2=LIBMF_L2, threads=1):
    """LIBMF's mf_train, with the struct layouts of its mf.h."""
    lib = ctypes.CDLL(library)
    lib.mf_get_default_param.restype, lib.mf_train.restype = _Parameter, ctypes.POINTER(_Model)
    lib.mf_train.argtypes = [ctypes.POINTER(_Problem), _Parameter]
    nodes = np.zeros(len(data.train.users), [("u", np.int32), ("v", np.int32), ("r", np.float32)])
    nodes["u"], nodes["v"], nodes["r"] = data.train[:3]
    given = _Problem(data.train.n_users, data.train.n_items, len(nodes), nodes.ctypes.data)
    options = lib.mf_get_default_param()
    options.k, options.nr_threads, options.nr_iters, options.quiet, options.copy_data = RANK, threads, rounds, True, True
    options.lambda_p2 = options.lambda_q2 = l2
    wall, cpu, model = timed(lambda: lib.mf_train(ctypes.byref(given), options).contents)
    p, q = (np.ctypeslib.as_array(array, (count, model.k)) for array, count in ((model.P, model.m), (model.Q, model.n)))
    low, high = data.train.values.min(), data.train.values.max()
    return Fit(wall, cpu, rmse(data.test, low, high, 0.0, np.nan_to_num(p), np.nan_to_num(q)), rounds * len(nodes))


def explicit(options, name="ml-1m/ratings.txt.xz", l2=LIBMF_L2, decimals=4):
    ratings = read(name)
    print(f"\n{name}: {len(ratings.users):,} ratings of {ratings.n_users:,} users and {ratings.n_items:,} items, a random "
          f"tenth held out, rank {RANK}, {options.splits} splits, medians\n")
    print("| trainer | iterations | s | CPU s | M ratings / CPU s | RMSE |\n|---|---|---|---|---|---|")
    runs = {}
    if options.libmf:
        for rounds in LIBMF_ROUNDS[-1:] if options.quick else LIBMF_ROUNDS:
            runs[f"LIBMF, 1 thread, l2 {l2:g} | {rounds}"] = lambda d, s, r=rounds: libmf(d, s, options.libmf, r, l2)
    for rule, lr, epochs in (("sgd", 0.12, 5), ("sgd", 0.12, 6), ("sgd", 0.08, 10), ("row-adagrad", 0.2, 8),
                             ("adagrad", 0.2, 8)):
        for mode in ("wild", "deterministic") if rule == "sgd" else ("wild",):
            runs[f"hogwild {rule}, lr {lr:g} to 0, {mode} | {epochs}"] = (
                lambda d, s, a=(rule, lr, epochs), m=mode: explicit_ours(d, s, *a, mode=m))
    report(runs, ratings, options.splits, decimals)


def report(runs, ratings, splits, decimals=4):
    """A line for each run, of which the medians over the splits are shown; the runs take turns."""
    results = {name: [] for name in runs}
    for seed in range(splits):
        data = split(ratings, seed)
        for name, run in runs.items():
            results[name].append(run(data, seed))
    for name, fits in results.items():
        wall, cpu, score = (statistics.median(fit[k] for fit in fits) for k in range(3))
        speed = statistics.median(fit.examples / fit.cpu / 1e6 for fit in fits)
        print(f"| {name} | {wall:.2f} | {cpu:.2f} | {speed:.1f} | {score:.{decimals}f} |", flush=True)


# Positives to rank.


def ndcg(data, p, q, k=10):
    """NDCG@k over the full ranking, training items left out; the mean over the users with held-out items."""
    seen, held = (scipy.sparse.csr_matrix((np.ones(len(x.users), bool), (x.users, x.items)), (x.n_users, x.n_items))
                  for x in data)
    gain, total, users = 1 / np.log2(np.arange(2, k + 2)), 0.0, 0
    for first in range(0, data.train.n_users, 1024):
        rows = slice(first, first + 1024)
        scores, hits, numbers = p[rows] @ q.T, held[rows].toarray(), np.diff(held.indptr)[rows]
        scores[seen[rows].nonzero()] = -np.inf
        top = np.argpartition(-scores, k, 1)[:, :k]
        top = np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, 1), 1), 1)
        ideal = np.cumsum(gain)[np.clip(numbers, 1, k) - 1]
        total += ((np.take_along_axis(hits, top, 1) @ gain) / ideal)[numbers > 0].sum()
        users += int((numbers > 0).sum())
    return total / users


def implicit_ours(data, seed, loss, lr, epochs, rank=RANK, popularity=0.0, **how):
    problem, wall, cpu = fitted(data.train, "sgd", lr, epochs, seed, loss=loss, rank=rank, popularity=popularity, **how)
    p = np.column_stack((problem.user_factors, np.ones(data.train.n_users, np.float32)))
    q = np.column_stack((problem.item_factors, problem.item_biases))
    return Fit(wall, cpu, ndcg(data, p, q), epochs * len(data.train.users))


def _matrix(ratings):
    return scipy.sparse.csr_matrix((np.ones(len(ratings.users), np.float32), (ratings.users, ratings.items)),
                                   (ratings.n_users, ratings.n_items))


def implicit_bpr(data, seed, lr, epochs, rank=RANK, l2=0.01):
    from implicit.bpr import BayesianPersonalizedRanking
    model = BayesianPersonalizedRanking(factors=rank, learning_rate=lr, regularization=l2, iterations=epochs, num_threads=1,
                                        random_state=seed)
    matrix = _matrix(data.train)
    wall, cpu, _ = timed(lambda: model.fit(matrix, show_progress=False))
    return Fit(wall, cpu, ndcg(data, model.user_factors, model.item_factors), epochs * matrix.nnz)


def implicit_als(data, seed, epochs=15, rank=RANK):
    from implicit.als import AlternatingLeastSquares
    model = AlternatingLeastSquares(factors=rank, regularization=0.05, iterations=epochs, num_threads=1, random_state=seed)
    matrix = _matrix(data.train)
    wall, cpu, _ = timed(lambda: model.fit(matrix, show_progress=False))
    return Fit(wall, cpu, ndcg(data, model.user_factors, model.item_factors), epochs * matrix.nnz)


def cornac_bpr(data, seed, lr, epochs, rank=RANK, l2=0.01):
    import cornac
    table = list(zip(data.train.users.tolist(), data.train.items.tolist(), np.ones(len(data.train.users)).tolist()))
    given = cornac.data.Dataset.build(table)
    model = cornac.models.BPR(k=rank, max_iter=epochs, learning_rate=lr, lambda_reg=l2, num_threads=1, seed=seed)
    wall, cpu, _ = timed(lambda: model.fit(given))
    p, q = np.zeros((data.train.n_users, rank + 1), np.float32), np.zeros((data.train.n_items, rank + 1), np.float32)
    q[:, -1] = -1e9  # items without a training rating
    users, items = np.array(list(given.uid_map)), np.array(list(given.iid_map))
    p[users, :rank], p[:, -1] = model.u_factors, 1
    q[items, :rank], q[items, -1] = model.i_factors, model.i_biases
    return Fit(wall, cpu, ndcg(data, p, q), epochs * len(table))


def implicit(options):
    ratings = read("ml-1m/ratings.txt.xz")
    print(f"\nml-1m, all {len(ratings.users):,} ratings as positives, a random tenth held out, rank {RANK}, {options.splits} "
          "splits, medians; of ALS a triple is a rating\n")
    print("| trainer | iterations | s | CPU s | M triples / CPU s | NDCG@10 |\n|---|---|---|---|---|---|")
    runs, few = {}, options.quick
    if importlib.util.find_spec("implicit"):
        for lr, epochs in ((0.05, 30),) if few else ((0.05, 30), (0.01, 100), (0.1, 30)):
            runs[f"implicit BPR, lr {lr:g} | {epochs}"] = lambda d, s, a=(lr, epochs): implicit_bpr(d, s, *a)
        runs["implicit ALS | 15"] = implicit_als
    if importlib.util.find_spec("cornac") and not few:
        for lr, epochs in (0.05, 30), (0.01, 100):
            runs[f"cornac BPR, lr {lr:g} | {epochs}"] = lambda d, s, a=(lr, epochs): cornac_bpr(d, s, *a)
    runs["hogwild sgd, bpr, lr 0.1 to 0 | 30"] = lambda d, s: implicit_ours(d, s, "bpr", 0.1, 30)
    runs["hogwild sgd, bpr, lr 0.1 to 0, deterministic | 30"] = lambda d, s: implicit_ours(d, s, "bpr", 0.1, 30,
                                                                                          mode="deterministic")
    runs["hogwild sgd, warp, lr 0.05 to 0 | 20"] = lambda d, s: implicit_ours(d, s, "warp", 0.05, 20)
    report(runs, ratings, options.splits)


# Workers.


def together(functions):
    """Results of functions that are called at the same time."""
    gate = threading.Barrier(len(functions))

    def call(function):
        gate.wait()
        return function()
    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(call, functions))


def speed(ratings, loss, workers, mode, epochs, copies=1):
    """Ratings/s of so many trainings at the same time, each with so many workers: their sum."""
    rule, n = MF_RULES["sgd"](), len(ratings.users)
    problems = [problem_of(ratings, rule, loss, workers=workers, mode=mode, seed=k) for k in range(copies)]
    for problem in problems:
        train(problem, rule, Polynomial(0.05, float(n)), epochs=1, workers=workers)  # compile
    histories = together([lambda p=p: train(p, rule, Polynomial(0.05, float(epochs * n)), epochs=epochs, workers=workers)
                          for p in problems])
    return sum(epochs * n / sum(epoch.seconds for epoch in history) for history in histories)


def scaling(options):
    ratings, workers = read("ml-1m/ratings.txt.xz"), options.workers
    print(f"\nml-1m, sgd, rank {RANK}, {workers} workers against {workers} independent copies at the same time, medians of "
          f"{options.repeats} turns\n")
    print("| loss | mode | 1 worker, M/s | copies, M/s | workers, M/s | workers / copies |\n|---|---|---|---|---|---|")
    for loss, most in (("squared", 20), ("bpr", 8)):
        for mode in ("wild", "deterministic", "atomic", "locked"):
            epochs = most if mode in ("wild", "deterministic") else most // 8  # the others take ten times as long
            rows = [(speed(ratings, loss, 1, mode, epochs), speed(ratings, loss, 1, mode, epochs, workers),
                     speed(ratings, loss, workers, mode, epochs)) for _ in range(options.repeats)]
            one, copied, shared = (statistics.median(row[k] for row in rows) / 1e6 for k in range(3))
            ratio = statistics.median(row[2] / row[1] for row in rows)
            print(f"| {loss} | {mode} | {one:.1f} | {copied:.1f} | {shared:.1f} | {ratio:.2f} |", flush=True)


# Many ratings.


def planted(n, n_users, n_items, rank=8, seed=0):
    """Ratings of a planted model plus noise; items by a power law."""
    rng = np.random.default_rng(seed)
    p, q = (rng.standard_normal((count, rank), np.float32) for count in (n_users, n_items))
    users, items, values = np.empty(n, np.uint32), np.empty(n, np.uint32), np.empty(n, np.float32)
    for first in range(0, n, 1 << 20):
        rows = slice(first, min(first + (1 << 20), n))
        users[rows] = rng.integers(0, n_users, rows.stop - first)
        items[rows] = n_items * rng.random(rows.stop - first)**2
        values[rows] = np.einsum("nr,nr->n", p[users[rows]], q[items[rows]]) + rng.standard_normal(rows.stop - first)
    return Ratings(users, items, values, n_users, n_items)


def large(options):
    n = 1_000_000 if options.quick else options.ratings
    ratings = planted(n, n // 100, n // 1000)
    print(f"\n{n:,} synthetic ratings of {n // 100:,} users and {n // 1000:,} items, sgd, rank {RANK}, {options.workers} "
          "workers\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rule = MF_RULES["sgd"]()
    made, made_cpu, problem = timed(lambda: problem_of(ratings, rule, workers=options.workers))
    _, cpu, history = timed(lambda: train(problem, rule, Polynomial(0.08, 3.0 * n), epochs=3, workers=options.workers))
    seconds, grown = statistics.median(e.seconds for e in history), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print("| blocks, s (CPU s) | epoch, s | 3 epochs, CPU s | M ratings / CPU s | loss of epochs 1 to 3 | ratings, GB | "
          "process at most, GB |\n|---|---|---|---|---|---|---|")
    print(f"| {made:.1f} ({made_cpu:.1f}) | {seconds:.1f} | {cpu:.1f} | {3 * n / cpu / 1e6:.1f} | "
          f"{', '.join(f'{e.loss:.3f}' for e in history)} | {12 * n / 1e9:.2f} | {grown / 1e9:.2f} "
          f"({before / 1e9:.2f} with the ratings alone) |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--libmf", help="LIBMF's shared library")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ratings", type=int, default=100_000_000)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(PARTS):
        sys.exit(f"--only has {', '.join(PARTS)}, got {min(unknown)}")
    print(describe())
    parts = {"explicit": explicit, "implicit": implicit, "scaling": scaling, "large": large,
             "jester": lambda options: explicit(options, "jester5k/jester5k.tsv.xz", 0.5, 3)}
    for name in PARTS:
        if name in options.only.split(","):
            parts[name](options)


if __name__ == "__main__":
    main()
