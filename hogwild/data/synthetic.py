"""The data set that needs no download: rows of RCV1's shape, labelled by planted weights."""

import functools

import numpy as np

from hogwild.data.dataset import Dataset
from hogwild.kernels.data.synthetic import Recipe, generate, lengths
from hogwild.training.workers import cores, spread

FEATURES = 47_236  # RCV1 (Lewis et al. 2004) has as many, and rows of 75 features on average
LOG_MEAN, LOG_STD, LONGEST = np.log(75) - 0.6**2 / 2, 0.6, 600
ZIPF, OFFSET = 1.1, 20.0  # p(rank) ~ 1 / (rank + OFFSET)^ZIPF: Zipf-Mandelbrot, stop words removed
INFORMATIVE = 20, 600  # ranks that carry weight: frequent enough to be learnt, too rare to decide alone
BEST = 0.95  # accuracy of the planted weights
SOURCE = "synthetic (RCV1's shape)"


def rcv1_like(rows, seed=0, start=0, workers=None) -> tuple[Dataset, np.ndarray]:
    """(data set, planted weights float64[d + 1], the intercept last): rows start … start + rows - 1 of a stream.

    A row depends on seed and its own number alone, not on start, rows or workers (threads; None: one a core).
    """
    recipe = _recipe(seed)
    return _dataset(recipe, rows, seed, start, workers or cores()), recipe.weights


def _dataset(recipe, rows, seed, start, workers):
    indptr = np.zeros(rows + 1, np.int64)
    lengths(recipe, seed, start, indptr[1:])
    np.cumsum(indptr, out=indptr)
    indices, values = np.empty(indptr[-1], np.uint32), np.empty(indptr[-1], np.float32)
    labels = np.empty(rows, np.float32)

    def part(a, b):
        seen = np.zeros(FEATURES // 64 + 1, np.uint64)
        generate(recipe, seed, int(start + a), indptr[a:b + 1], indices, values, labels[a:b], seen)
    spread(part, rows, workers)
    return Dataset(indptr, indices, values, labels, FEATURES, SOURCE)


@functools.lru_cache(4)
def _recipe(seed) -> Recipe:
    """Frequencies and planted weights of a seed, the weights scaled so that they are right for BEST of all rows."""
    rng = np.random.default_rng(seed)
    chance = 1.0 / (np.arange(1, FEATURES + 1) + OFFSET) ** ZIPF
    chance /= chance.sum()
    alias, stay = _alias(chance)
    feature = rng.permutation(FEATURES).astype(np.uint32)
    idf, weights = np.empty(FEATURES, np.float32), np.zeros(FEATURES + 1)
    idf[feature] = -np.log(-np.expm1(75 * np.log1p(-chance)))
    ranks = slice(*INFORMATIVE)
    weights[feature[ranks]] = rng.laplace(size=ranks.stop - ranks.start)
    recipe = Recipe(alias, stay, feature, idf, weights, float(LOG_MEAN), LOG_STD, LONGEST)
    sample = _dataset(recipe, 20_000, seed, 1 << 40, 1)  # far beyond any row that is asked for
    scores = np.add.reduceat(sample.values * weights[sample.indices], sample.indptr[:-1])
    middle = np.median(scores)
    distance, low, high = np.abs(scores - middle), 0.0, 1e6
    for _ in range(60):
        scale = (low + high) / 2
        low, high = (scale, high) if np.mean(1 / (1 + np.exp(-scale * distance))) < BEST else (low, scale)
    weights[-1] = -middle
    return recipe._replace(weights=weights * scale)


def _alias(chance):
    """Walker's alias table (Vose 1991) of probabilities [d]: (alias uint32[d], stay float32[d])."""
    share, alias = list(chance * len(chance)), list(range(len(chance)))
    small, large = [], []
    for i, x in enumerate(share):
        (small if x < 1 else large).append(i)
    while small and large:
        i, j = small.pop(), large[-1]
        alias[i] = j
        share[j] -= 1 - share[i]
        if share[j] < 1:
            small.append(large.pop())
    for i in small + large:
        share[i] = 1.0  # what rounding has left over
    return np.array(alias, np.uint32), np.array(share, np.float32)
