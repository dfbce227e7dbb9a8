"""Before a run: conflicts between examples, and the lost updates of lock-free workers. Niu et al. 2011, section 2.

The examples are the edges of a hypergraph over the features; n examples, N non-zeros, d_j examples with feature j:
Ω is the size of the largest edge, Δ the largest d_j / n, ρ the largest share of the edges that one edge meets.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import partial

import numpy as np

from hogwild.kernels.data import conflicts
from hogwild.training.machine import usable_cores
from hogwild.training.replication import NONE, hottest

WORK = 1 << 25  # entries that each pass of the search for ρ may read; on less data, all its passes together
ROW_WORK = 16  # what a row costs besides its entries, in entries
WIDE, MISS = 1 << 18, 8  # over so many features an entry is a cache miss and costs as much as so many
WINDOW = 1.0  # updates that another worker makes between an update's load and its store: see lost_share
MOST_LOST = 0.05  # share of lost updates up to which workers are advised
LEAST_EXAMPLES = 2000  # for each worker: below it, threads cost more than they gain
DENSE = 0.1  # share of the features in the average row above which workers mostly contend for cache lines


@dataclass(frozen=True)
class Preflight:
    """Conflict statistics of a data set, and advice on workers."""

    rows: int
    features: int
    occurring: int  # features that some row stores
    nonzeros: int
    omega: int  # Ω
    delta: float  # Δ
    rho: float  # ρ
    rho_method: str  # "exact"; or "lower bound: …" or "sampled: …" with the numbers of rows
    p_mean: float  # probability that a random example touches a coordinate that another one, at random, updates: Σ d² / nN
    workers: int  # those that `lost` is for: given, or else advised
    lost: float  # predicted share of lost updates
    hot: int  # hot features, which these workers replicate, so that none of their updates is lost
    advised: int  # workers
    cores: int
    cores_text: str
    warnings: tuple[str, ...]

    def line(self, loses=True) -> str:
        """The line at the start of a run; loses: in its mode, updates may be lost."""
        lost = f"; predicted: {_percent(self.lost)} of the updates lost with {_plural(self.workers, 'worker')}"
        return (f"{self.rows:,} rows, {self.features:,} features, {self.nonzeros:,} non-zeros; Ω {self.omega:,}, "
                f"Δ {self.delta:.3g}, ρ {self.rho:.3g} ({self.rho_method.partition(':')[0]}){lost * loses}; "
                f"advised: {_plural(self.advised, 'worker')} on {self.cores_text}")

    def lines(self, whole=False) -> list[str]:
        """The lines of `hogwild inspect` on conflicts, cores and workers; whole: by default workers have replicas of all."""
        instead = "; with replicas of all, the default for so few (--replicas auto), none" if whole else ""
        shared = f"all but {_plural(self.hot, 'hot feature')}" if self.hot else "shared parameters"
        return [f"Ω           {self.omega:,} non-zeros in the longest row",
                f"Δ           {self.delta:.3g} of the rows hold the most common feature",
                f"ρ           {self.rho:.3g} of the rows meet the best-connected row ({self.rho_method})",
                f"mean p      {self.p_mean:.3g}: chance that a row holds the coordinate that another row updates",
                f"cores       {self.cores_text}",
                f"workers     {self.advised} advised",
                f"lost        {_percent(self.lost)} of the updates, predicted for {_plural(self.workers, 'worker')} "
                f"with plain stores to {shared}{instead}",
                *(f"warning     {warning}" for warning in self.warnings)]


def examine(dataset, workers=None, seed=0, rows=None, loses=True, shares=None, size=None) -> Preflight:
    """Preflight of a Dataset: one pass over it, and a search for ρ of bounded work, whose sampling `seed` decides.

    workers: those the user asked for, None for as many as advised; rows: int64[n], those to train on, None for all.
    loses: workers share the parameters with plain stores; shares: they share them, if not so (None: as `loses` says).
    size: float32 a feature, where they replicate the hottest; None: they share all.
    """
    lengths = np.diff(dataset.indptr)
    if rows is None:
        degrees = dataset.degrees()
    else:
        degrees, lengths = np.zeros(dataset.n_features, np.int64), lengths[rows]
        conflicts.degrees_of(dataset.csr, rows, degrees)
    n, nonzeros = len(lengths), int(lengths.sum())
    occurring = int(np.count_nonzero(degrees))
    found, method = rho(dataset.csr, degrees, seed, rows=rows)
    available, text = usable_cores()
    kept = None if size is None else partial(_hot, degrees if rows is None else dataset.degrees(), dataset.rows, size)
    advised = advise(degrees, n, available, kept) if loses else _fed(n, available)
    wanted, taken = workers or available, workers or advised
    lost = {count: lost_share(degrees, n, count, kept) for count in {wanted, taken}}
    density = nonzeros / max(n * occurring, 1)
    warnings = []
    if (loses if shares is None else shares) and wanted > 1 and density > DENSE:
        warnings.append(f"dense data: the average row holds {_percent(density)} of the features that occur; workers that "
                        f"share them gain little above {_percent(DENSE)}, since all write the same cache lines")
    if loses and lost[wanted] > MOST_LOST:
        warnings.append(f"{_plural(wanted, 'worker')} would lose about {_percent(lost[wanted])} of the updates; "
                        f"advised: {advised}")
    if wanted > available:
        warnings.append(f"{_plural(wanted, 'worker')} on {text}: the surplus only takes turns")
    return Preflight(n, dataset.n_features, occurring, nonzeros, int(lengths.max(initial=0)),
                     int(degrees.max(initial=0)) / max(n, 1), found, method,
                     conflicts.squares(degrees) / max(n * nonzeros, 1), taken, lost[taken],
                     0 if kept is None else len(kept(taken)), advised, available, text, tuple(warnings))


def _hot(degrees, rows, size, workers):
    """The features that so many workers replicate, as in training; size: float32 a feature."""
    if workers <= 1:
        return np.zeros(0, np.int64)
    hot, _ = hottest(degrees, rows, workers, size)
    return hot[hot != NONE]


def lost_share(degrees, rows, workers, kept=None) -> float:
    """Predicted share, in [0, (W-1)/W], of updates lost by W workers with plain stores. degrees: int64[d] over `rows`;
    kept(W): the features that W workers replicate, whose updates are not lost; None: they share all.

    An update of coordinate j is lost if another worker loads w_j before its store and stores after it. In the time from
    a load to its store each other worker makes about WINDOW updates, a share d_j / N of them to j (in rows of less than
    one entry it makes fewer: d_j / n), so x_j = WINDOW (W-1) d_j / max(N, n) updates of j overlap, and that is also the
    share lost while x_j is small. W workers in lockstep on one coordinate would lose (W-1)/W. The simplest curve between
    both limits, x / (1 + x W/(W-1)), is averaged over the updates, Σ d_j · / N. For small x it is
    WINDOW (W-1) Σ d_j² / N², the paper's p̄ over the mean number of non-zeros.

    Calibration: two threads that add to equally likely coordinates, one a row, lost 22-32% on 1 coordinate (predicted
    33%), 3% on the 16 of one cache line (5.6%), 0.13% on 1,000 (0.10%), 0.00-0.01% on 10,000 (0.010%): WINDOW = 1 is
    within a factor of 2 of each. Under plain SGD two workers lost 2.7 to 3.2 times the prediction on a quiet machine,
    at any density (docs/results.md), and the prediction on a loaded one. Rows of 10 to 50 entries lost 0.3 to
    0.8 of the prediction in the kernel of linear models with an adaptive rule, and 1 to 7 times it where the threads
    did nothing but add, since a processor then has many updates under way. More workers are extrapolated; the examples
    come in random order.
    """
    updates = int(degrees.sum())
    if workers <= 1 or updates == 0:
        return 0.0
    rate, most = WINDOW * (workers - 1) / max(updates, rows), (workers - 1) / workers
    if kept is not None:
        degrees = degrees.copy()
        degrees[kept(workers)] = 0
    return min(conflicts.lost_updates(degrees, rate, most) / updates, most)


def advise(degrees, rows, available, kept=None) -> int:
    """Most workers, from 1 to `available`, with LEAST_EXAMPLES each and a predicted loss of at most MOST_LOST; they share
    parameters with plain stores, but for those that they replicate, as in `lost_share`.

    The paper's condition for a near-linear speed-up, o(n^(1/4)) workers with ρ and Δ o(1/n), would forbid most data
    on which it is seen.
    """
    counts = range(1, _fed(rows, available) + 1)
    return bisect_right(counts, MOST_LOST, key=lambda workers: lost_share(degrees, rows, workers, kept))


def _fed(rows, available) -> int:
    """Most workers that have LEAST_EXAMPLES each, 1 at least."""
    return max(min(available, rows // LEAST_EXAMPLES), 1)


def rho(csr, degrees, seed=0, work=WORK, rows=None) -> tuple[float, str]:
    """(ρ, method) from a search that reads about `work` entries. rows: int64[n], None for all; degrees: int64[n_features]
    of these rows.

    Rows are examined against all others, those first that can meet the most (hogwild.kernels.data.conflicts.reach), until
    no other can beat the best: "exact". If the work ends before: "lower bound". Of data that cost more, a sample stands
    for all, one random row out of each of equal stretches: "sampled".
    """
    rows = np.arange(csr.indptr.size - 1) if rows is None else rows
    n, most = rows.size, int(degrees.max(initial=0))
    if most in (0, n):  # no edges; or some feature is in all rows, which then meet each other
        return float(most > 0), "exact"
    cost = int(degrees.sum()) * (MISS if degrees.size > WIDE else 1) + ROW_WORK * n
    whole = cost <= work
    if whole:
        pool, seen = rows, degrees
    else:
        edges = np.linspace(0, n, max(n * work // cost, 1) + 1).astype(np.int64)
        pool = rows[np.random.default_rng(seed).integers(edges[:-1], edges[1:])]
        seen = np.zeros(degrees.size, np.int64)
        conflicts.degrees_of(csr, pool, seen)
    bound = np.empty(pool.size, np.int64)
    conflicts.reach(csr, pool, seen, bound)
    np.minimum(bound, np.count_nonzero(bound), out=bound)
    examine_most = min(conflicts.BATCH * max(work // cost, 1), pool.size)
    first = np.argpartition(-bound, examine_most)[:examine_most + 1] if examine_most < pool.size else np.arange(pool.size)
    first = first[np.argsort(-bound[first], kind="stable")]
    best, examined = int(seen.max()), 0  # a row with the most common feature meets all the others with it
    mask, met = np.zeros(degrees.size, np.uint64), np.zeros(conflicts.BATCH, np.int64)
    while examined < examine_most and bound[first[examined]] > best:
        batch = first[examined:min(examined + conflicts.BATCH, examine_most)]
        conflicts.meet(csr, pool, pool[batch], mask, met)
        best, examined = max(best, int(met.max())), examined + batch.size
    if not whole:
        return max(best / pool.size, most / n), f"sampled: {examined:,} rows against {pool.size:,}"
    proved = examined == pool.size or bound[first[examined]] <= best
    return best / n, "exact" if proved else f"lower bound: {examined:,} rows against all {n:,}"


def _plural(count, noun) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _percent(share) -> str:
    return f"{100 * share:.3g}%"
