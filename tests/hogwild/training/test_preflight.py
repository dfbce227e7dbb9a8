"""The pre-flight against brute force on dense 0/1 matrices, closed forms and field measurements."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hogwild.data import dataset
from hogwild.kernels.data import conflicts
from hogwild.training import preflight, replication
from hogwild.training.preflight import advise, examine, lost_share, rho

matrices = st.tuples(st.integers(1, 90), st.integers(1, 12)).flatmap(lambda shape: st.floats(0, 0.9).flatmap(
    lambda share: st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random(shape) < share)))


def data_set(X):
    return dataset.from_arrays(np.asarray(X, np.float32), np.zeros(len(X)))


def skewed(n=3000, d=400, seed=0):
    """0/1 matrix whose feature j occurs with probability 0.3 / (1 + j / 2)."""
    return np.random.default_rng(seed).random((n, d)) < 0.3 / (1 + np.arange(d) / 2)


def met(X):
    """Number of rows that each row meets, by the product of all with all."""
    X = np.asarray(X, np.float32)
    return (X @ X.T > 0).sum(1)


def degrees(X):
    return np.asarray(X).sum(0).astype(np.int64)


@given(matrices)
def test_against_brute_force(X):
    found, n = examine(data_set(X)), len(X)
    p = X.mean(0)
    assert (found.rows, found.features, found.nonzeros) == (*X.shape, X.sum())
    assert found.occurring == X.any(0).sum() and found.omega == X.sum(1).max() and found.delta == p.max()
    assert found.rho_method == "exact" and found.rho == met(X).max() / n
    assert found.p_mean == pytest.approx((p @ p) / max(p.sum(), 1e-9))
    assert found.delta <= found.rho <= 1


@given(arrays(bool, st.tuples(st.integers(1, 100), st.integers(1, 9))), st.data())
def test_kernels(X, draw):
    rows = np.array(draw.draw(st.lists(st.integers(0, len(X) - 1), max_size=20)), np.int64)
    batch = np.array(draw.draw(st.lists(st.integers(0, len(X) - 1), max_size=conflicts.BATCH)), np.int64)
    csr, d = data_set(X).csr, X.shape[1]
    mask, out, count, bound = np.zeros(d, np.uint64), np.full(conflicts.BATCH, 7), np.zeros(d, int), np.full(rows.size, 7)
    conflicts.meet(csr, rows, batch, mask, out)
    assert list(out[:batch.size]) == [(X[rows] & X[b]).any(1).sum() for b in batch]
    assert not out[batch.size:].any() and not mask.any()
    conflicts.degrees_of(csr, rows, count)
    assert (count == X[rows].sum(0)).all()
    conflicts.reach(csr, rows, degrees(X), bound)
    assert (bound >= met(X)[rows]).all() and ((bound == 0) == ~X[rows].any(1)).all()
    assert conflicts.squares(count) == (count**2).sum()


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_row_that_only_the_bound_can_prove(share):
    X = np.zeros((200, 300), bool)
    X[:100, :100] = np.eye(100)
    X[0, :50] = True  # meets 50 rows
    X[100:, 0] = np.arange(100) < 100 * share
    value, method = rho(data_set(X).csr, degrees(X), work=X.sum() + 16 * 200)
    assert method == "exact" and value == met(X).max() / 200


def test_lower_bound_where_the_work_ends():
    X = skewed()
    d, work = data_set(X), X.sum() + 16 * len(X)
    value, method = rho(d.csr, degrees(X), work=work)
    assert method == "lower bound: 64 rows against all 3,000"
    exact, by = rho(d.csr, degrees(X))
    assert by == "exact" and exact == met(X).max() / len(X)
    assert 0.97 * exact <= value <= exact
    more = [rho(d.csr, degrees(X), work=k * work)[0] for k in (1, 2, 4, 8)]
    assert more == sorted(more)


def test_sampled():
    X = skewed(6000)
    d, exact = data_set(X), met(X).max() / 6000
    work = -(-(X.sum() + 16 * len(X)) // 4)
    value, method = rho(d.csr, degrees(X), work=work)
    assert method == "sampled: 64 rows against 1,500"
    assert value == pytest.approx(exact, abs=0.03)
    assert rho(d.csr, degrees(X), seed=0, work=work) == (value, method)
    assert len({rho(d.csr, degrees(X), seed=seed, work=work)[0] for seed in range(5)}) > 1
    assert X.mean(0).max() <= rho(d.csr, degrees(X), work=1)[0] <= 1


def test_a_feature_in_all_rows_needs_no_search():
    X = skewed()
    X[:, 3] = True
    assert rho(data_set(X).csr, degrees(X), work=1) == (1, "exact")


@pytest.mark.parametrize("X, omega, delta, expected", [
    (np.zeros((3, 2)), 0, 0, 0), ([[1, 1, 0]], 2, 1, 1), (np.zeros((1, 1)), 0, 0, 0), (np.eye(5), 1, 0.2, 0.2),
    ([[0, 0], [1, 0], [0, 1], [1, 1]], 2, 0.5, 0.75), (np.ones((4, 3)), 3, 1, 1)])
def test_closed_forms(X, omega, delta, expected):
    found = examine(data_set(X), workers=2)
    assert (found.omega, found.delta, found.rho, found.rho_method) == (omega, delta, expected, "exact")
    assert found.advised == 1 and found.workers == 2  # 2,000 examples a worker
    assert all(str(value) in found.line() for value in (found.omega, f"{found.rho:.3g}"))


def test_no_features_and_no_rows():
    nothing = dataset.Dataset(np.zeros(1, np.int64), [], [], [], 0, "nothing")
    assert (examine(nothing).rows, examine(nothing).rho, examine(nothing).lost) == (0, 0, 0)
    assert examine(nothing).warnings == () and examine(nothing).line()


@pytest.mark.parametrize("coordinates, low, high", [(1, 0.22, 0.32), (16, 0.03, 0.03), (1000, 0.0013, 0.0013),
                                                    (10_000, 0, 0.0001)])
def test_lost_updates_as_measured(coordinates, low, high):
    """Two threads, plain +=, equally likely coordinates: within a factor of 2 of the measurement."""
    share = lost_share(np.full(coordinates, 1_000_000), coordinates * 1_000_000, 2)
    assert low / 2 <= share <= high * 2


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(1, 300))
def test_lost_share_behaves(counts, workers):
    counts = np.array(counts)
    share = lost_share(counts, 1000, workers)
    assert 0 <= share <= (workers - 1) / workers
    assert share <= lost_share(counts, 1000, workers + 1)
    assert share == pytest.approx(lost_share(7 * counts, 7000, workers))  # copies of the data change nothing
    assert share >= lost_share(counts, 10**6, workers)  # empty rows keep workers from meeting
    assert share == pytest.approx(lost_share(np.append(counts, 0), 1000, workers))


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=300), st.integers(2, 40), st.integers(1, 4))
def test_what_workers_keep_copies_of_is_not_lost(counts, workers, log):
    counts, n, room = np.array(counts), 10_000, 1 << log
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replication, "VALUES", room)
        keep = partial(preflight._hot, counts, n, 1)
        share, more = (lost_share(counts, n, w, keep) for w in (workers, workers + 1))
        kept = replication.hottest(counts, n, workers, 1)[1]
    N = counts.sum()
    x = preflight.WINDOW * (workers - 1) * np.where(kept, 0, counts) / max(N, n)
    assert share == pytest.approx((counts * x / (1 + x * workers / (workers - 1))).sum() / max(N, 1), rel=1e-9, abs=1e-12)
    assert share <= lost_share(counts, n, workers) and share <= more  # to keep the more, they must be the more common
    assert np.count_nonzero(kept) <= room


def test_lost_share_limits():
    even = np.full(10_000, 3)
    assert lost_share(even, 30_000, 5) == pytest.approx(preflight.WINDOW * 4 / 10_000, rel=1e-2)
    skew = np.arange(1, 10_001)  # small: the paper's p̄ over the mean number of non-zeros
    n, N = 10**6, skew.sum()
    assert lost_share(skew, n, 2) == pytest.approx((skew**2).sum() / (n * N) / (N / n), rel=1e-2)
    assert lost_share(np.array([10**9]), 10**9, 1000) == pytest.approx(1, abs=0.01)
    assert lost_share(np.array([5, 5]), 5, 1) == lost_share(np.zeros(3, np.int64), 5, 8) == 0


def test_advice():
    sparse = np.full(100_000, 40)
    assert advise(sparse, 10**6, 8) == 8
    assert advise(sparse, 10_000, 8) == 5 and advise(sparse, 100, 8) == 1  # 2,000 examples each
    some = np.full(100, 10**6)
    count = advise(some, 10**7, 64)
    assert 1 < count < 64 and lost_share(some, 10**7, count) <= 0.05 < lost_share(some, 10**7, count + 1)
    assert advise(np.array([10**6]), 10**6, 64) == 1 and advise(np.array([10**6]), 10**6, 64, lambda workers: [0]) == 64


def warned(found):
    return " | ".join(found.warnings)


def test_warnings(monkeypatch):
    monkeypatch.setattr(preflight, "usable_cores", lambda: (2, "2 cores"))
    fine = np.zeros((5000, 400), bool)
    fine[np.arange(5000)[:, None], np.random.default_rng(0).integers(0, 400, (5000, 5))] = True
    assert examine(data_set(fine)).warnings == () and examine(data_set(fine)).advised == 2
    assert "3 workers on 2 cores" in warned(examine(data_set(fine), workers=3))
    dense = np.random.default_rng(0).random((4000, 50)) < 0.4
    found = examine(data_set(dense))
    assert "dense" in warned(found) and "40" in warned(found) and "lose" not in warned(found)
    single = np.zeros((5000, 50), bool)
    single[:, 0] = single[:50, 1:] = True
    found = examine(data_set(single))
    assert found.advised == 1 == found.workers and found.lost == 0 and "2 workers would lose" in warned(found)
    found = examine(data_set(single), workers=2)
    assert found.lost > 0.05 and "advised: 1" in warned(found)
    kept = examine(data_set(single), size=2)
    assert (kept.advised, kept.hot, kept.lost) == (2, 50, 0) and not kept.warnings
    assert "0% of the updates, predicted for 2 workers with plain stores to all but 50 hot features" in str(kept.lines())
    free = examine(data_set(single), loses=False)
    assert free.advised == 2 and not free.warnings and free.lost > 0.05  # nothing is lost, so all may work
    assert "of all" in "\n".join(free.lines(whole=True)) and "of all" not in "\n".join(found.lines())
    text = "\n".join(found.lines())
    assert all(part in text for part in ("Ω ", "Δ ", "ρ ", "(exact)", "mean p", "2 cores", "1 advised", "warning "))


@pytest.mark.parametrize("work", [preflight.WORK, 2000])  # exact, and sampled
def test_some_rows_are_as_a_dataset_of_them(monkeypatch, work):
    monkeypatch.setattr(preflight.rho, "__defaults__", (0, work, None))
    X, rows = skewed(500), np.flatnonzero(np.random.default_rng(1).random(500) < 0.6)
    some = examine(data_set(X), rows=rows)
    assert some == examine(data_set(X[rows])) != examine(data_set(X))
    assert (some.rows, some.nonzeros) == (len(rows), X[rows].sum())
    assert some.rho_method.startswith("sampled") == (work == 2000)


def test_shared_parameters_that_lose_nothing(monkeypatch):
    """Modes atomic and locked: dense rows are warned of, but not losses; one worker shares with nobody."""
    monkeypatch.setattr(preflight, "usable_cores", lambda: (2, "2 cores"))
    dense = data_set(np.ones((50, 4), bool))
    assert "dense data" in warned(examine(dense, 2, loses=False, shares=True))
    assert "would lose" in warned(examine(dense, 2))
    assert "would lose" not in warned(examine(dense, 2, loses=False, shares=True))
    assert not examine(dense, 2, loses=False).warnings and not examine(dense, 1, shares=True).warnings
    assert warned(examine(dense, 3, loses=False)) == "3 workers on 2 cores: the surplus only takes turns"
