"""Metrics of full rankings against a brute-force version in NumPy, and scikit-learn's NDCG and AUC."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from hogwild.families import mf_ranking
from hogwild.families.mf_factors import Factors


def made(rng, n_users, n_items, ties):
    """(Factors, known pairs bool[u, i], held-out pairs): with `ties`, scores take few values."""
    def some(*shape):
        return (rng.integers(-1, 2, shape) if ties else rng.standard_normal(shape)).astype(np.float32)
    factors = Factors(0.5, some(n_users, 3), some(n_items, 3), some(n_users), some(n_items))
    known, held = rng.random((n_users, n_items)) < 0.3, rng.random((n_users, n_items)) < 0.25
    known[0], held[1], held[2] = True, False, ~known[2]
    return factors, known, held & ~known


def brute(scores, known, held, k):
    """The four metrics, item by item."""
    rows = []
    for z, out, wanted in zip(scores, known, held):
        if not wanted.any():
            continue
        order = [i for i in np.lexsort((np.arange(len(z)), -z)) if not out[i]]
        hits = [wanted[i] for i in order[:k]]
        gain = sum(hit / np.log2(place + 2) for place, hit in enumerate(hits))
        best = sum(1 / np.log2(place + 2) for place in range(min(k, wanted.sum())))
        negatives = z[~out & ~wanted]
        below = np.nan
        if len(negatives):
            below = [(negatives < z[i]).mean() + (negatives == z[i]).mean() / 2 for i in np.flatnonzero(wanted)]
        rows.append([sum(hits) / k, sum(hits) / wanted.sum(), gain / best, np.mean(below)])
    return np.nanmean(rows, axis=0)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 10, 60])
def test_the_brute_force_version(ties, k):
    factors, known, held = made(np.random.default_rng(k), 40, 50, ties)
    scores = factors.users @ factors.items.T + factors.item_biases
    masked, wanted = mf_ranking.pairs(*np.nonzero(known), 40), mf_ranking.pairs(*np.nonzero(held), 40)
    found = mf_ranking.measure(factors, masked, wanted, k=k)
    assert list(found) == [f"precision@{k}", f"recall@{k}", f"ndcg@{k}", "auc"]
    assert list(found.values()) == pytest.approx(brute(scores, known, held, k), rel=1e-6)


def test_scikit_learn():
    factors, known, held = made(np.random.default_rng(3), 30, 50, False)
    found = mf_ranking.measure(factors, mf_ranking.pairs(*np.nonzero(known), 30), mf_ranking.pairs(*np.nonzero(held), 30))
    scores = factors.users @ factors.items.T + factors.item_biases
    users = np.flatnonzero(held.any(1))
    assert found["ndcg@10"] == pytest.approx(np.mean([
        ndcg_score(held[u][None, ~known[u]], scores[u][None, ~known[u]], k=10) for u in users]), rel=1e-6)
    assert found["auc"] == pytest.approx(np.mean([roc_auc_score(held[u, ~known[u]], scores[u, ~known[u]])
                                                  for u in users if (held[u] != ~known[u]).any()]), rel=1e-6)


def test_recommendations_are_the_ranking(monkeypatch):
    for ties in False, True:
        factors, known, _ = made(np.random.default_rng(5), 40, 50, ties)
        monkeypatch.setattr("hogwild.families.mf_factors.BLOCK", 300)  # a few users at a time
        among, masked = np.arange(0, 50, 2), mf_ranking.pairs(*np.nonzero(known), 40)
        users = np.array([3, 0, -1, 7])
        found, scores = factors.best(users, 6, among, masked)
        for user, items, values in zip(users, found, scores):
            z = factors.item_biases + (factors.users[user] @ factors.items.T + factors.user_biases[user] if user >= 0 else 0)
            order = [i for i in np.lexsort((np.arange(50), -z)) if i % 2 == 0 and not (user >= 0 and known[user, i])][:6]
            assert items.tolist() == order + [-1] * (6 - len(order)) and np.isneginf(values[len(order):]).all()
            assert values[:len(order)] == pytest.approx(z[order] + 0.5, abs=1e-5)
        cosine = factors.items @ factors.items.T / np.maximum(np.linalg.norm(factors.items, axis=1), 1e-30) / np.maximum(
            np.linalg.norm(factors.items, axis=1)[:, None], 1e-30)
        np.fill_diagonal(cosine, -2)
        similar, values = factors.similar(np.array([4, 9]), 5)
        assert values == pytest.approx(-np.sort(-cosine[[4, 9]], axis=1)[:, :5], abs=1e-5)
        assert not np.any(similar == [[4], [9]])
