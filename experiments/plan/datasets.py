"""The data of the benchmarks: published sets, and a synthetic one."""

import gzip
import sys

import numpy as np
import scipy.sparse

from hogwild.data import dataset, synthetic, transforms
from hogwild.experiments.plan import published

SETS = {"imdb": ("imdb/imdb-bow.{}.svm.xz", "log,l2"), "20newsgroups": ("20newsgroups/20news-comp-sci.{}.svm.xz", "none")}
KDD = "kddcup99/kddcup.data_10_percent.gz"
NAMES = (*SETS, "kddcup99", "synthetic")
WORDS = 1, 2, 3, 41  # columns of kddcup99 that hold words: protocol, service, flag; and the class


def load(rows=1_000_000, names=NAMES):
    """Yield (name, training data, test data) of each set that is asked for; a line on stderr says how to get one that is
    missing. Where all are, the program ends with exit code 1.
    """
    lacking = {name: reason for name in names if name in published.SETS and (reason := published.missing(name))}
    for reason in lacking.values():
        print(f"skipped: {reason}", file=sys.stderr)
    if len(lacking) == len(names):
        sys.exit("nothing to measure: every data set is missing")
    for name in names:
        if name in lacking:
            continue
        if name in SETS:
            yield name, *_text(name)
        elif name == "kddcup99":
            yield name, *kddcup99(published.folder() / KDD)
        else:
            whole, _ = synthetic.rcv1_like(rows + rows // 20)
            yield f"synthetic, {rows:,} rows", whole.subset(0, rows), whole.subset(rows, whole.rows)


def _text(name):
    pattern, transform = SETS[name]
    folder = published.folder()
    whole, names = dataset.read(folder / pattern.format("train")), transforms.parse(transform)
    state = transforms.fit(names, whole)
    test = dataset.read(folder / pattern.format("test"), n_features=whole.n_features)
    return transforms.apply(names, state, whole), transforms.apply(names, state, test)


def kddcup99(path, seed=0, share=0.2):
    """(training, test) of the CSV of KDD Cup 1999: attack (+1) or normal (-1), a random `share` of the rows held out.

    Each value of a categorical column is a feature of its own. A number becomes log(1 + x) over that column's largest
    in the training rows, so that all lie in [0, 1].
    """
    fields = [(str(k), "S16" if k in WORDS else np.float32) for k in range(42)]
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, dtype=fields, delimiter=",")
    labels = np.where(table["41"] == b"normal.", -1, 1).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(table))
    held = int(share * len(table))
    numbers = np.log1p(np.stack([table[str(k)] for k in range(41) if k not in WORDS], axis=1))
    numbers /= np.maximum(numbers[order[held:]].max(axis=0), 1e-30)
    parts = [scipy.sparse.csr_matrix(numbers)] + [_one_hot(table[str(k)]) for k in WORDS[:3]]
    whole = dataset.from_arrays(scipy.sparse.hstack(parts, format="csr", dtype=np.float32), labels, str(path))
    return dataset.select(whole, order[held:]), dataset.select(whole, order[:held])


def _one_hot(words):
    """float32 [n, number of different words]: 1 where the row has that word."""
    values, place = np.unique(words, return_inverse=True)
    ones = np.ones(len(words), np.float32)
    return scipy.sparse.csr_matrix((ones, place, np.arange(len(words) + 1)), shape=(len(words), len(values)))


def matrix(d):
    """SciPy's view of a dataset, without a copy of the values."""
    return scipy.sparse.csr_matrix((d.values, d.indices.astype(np.int32), d.indptr.astype(np.int32)),
                                   shape=(d.rows, d.n_features))
