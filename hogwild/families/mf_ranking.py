"""Metrics of a full ranking: each user's held-out items among all items that the user had not in training."""

import numpy as np

from hogwild.kernels.families.mf_ranking import Pairs, Scored, stand
from hogwild.training.workers import cores, spread

K = 10  # of the metrics that are measured in training
STEP = 16  # users of a call


def pairs(users, items, n_users) -> Pairs:
    """Items of each user, ascending, of pairs (int[n], int[n])."""
    order = np.lexsort((items, users))
    return Pairs(np.concatenate(([0], np.cumsum(np.bincount(users, minlength=n_users)))).astype(np.int64),
                 np.ascontiguousarray(items[order], np.uint32))


def measure(factors, masked: Pairs, held: Pairs, users=None, k=K) -> dict[str, float]:
    """Means over the users (int64[m]; None: all) that have held-out items: precision@k (hits over k), recall@k, NDCG@k and
    AUC.

    factors: a hogwild.families.mf_factors.Factors. Equal scores are in the order of the items' numbers, and count half in the
    AUC. A held-out item that the user had in training is none. NaN where no user has one.
    """
    lengths = np.diff(held.indptr)
    users = np.flatnonzero(lengths) if users is None else users[lengths[users] > 0]
    scored = Scored(factors.users, np.ascontiguousarray(factors.items.T), factors.item_biases)
    places = np.full((len(held.items), 3), -1, np.int64)

    def part(start, stop):
        stand(scored, users[start:stop], masked, held, places, np.empty(len(factors.items), np.float32))
    spread(part, len(users), max(min(cores(), len(users) // STEP), 1), STEP)
    user = np.repeat(np.arange(len(lengths)), lengths)
    good = places[:, 0] >= 0
    return _means(user[good], places[good], len(factors.items) - np.diff(masked.indptr), k)


def _means(user, places, choices, k):
    """The metrics of held-out pairs: their users, where they stand, and how many items each user could have got."""
    names = [f"{name}@{k}" for name in ("precision", "recall", "ndcg")] + ["auc"]
    if not len(user):
        return dict.fromkeys(names, float("nan"))
    higher, same, before = places.T
    place = higher + before
    order = np.lexsort((place, user))
    user, place, higher, same = user[order], place[order], higher[order], same[order]
    first = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
    count = np.diff(np.append(first, len(user)))

    def total(x):
        return np.add.reduceat(x, first)
    hits, discount = place < k, 1 / np.log2(place + 2.0)
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))[np.minimum(count, k) - 1]
    # Of the items above, those that are held out themselves are no negatives: equal `higher` are equal scores.
    rank = np.arange(len(user)) - np.repeat(first, count)
    alike = np.append(True, (user[1:] != user[:-1]) | (higher[1:] != higher[:-1]))
    start = np.flatnonzero(alike)
    size = np.repeat(np.diff(np.append(start, len(user))), np.diff(np.append(start, len(user))))
    above = rank[start][np.cumsum(alike) - 1]
    negatives = choices[user[first]] - count
    lost = higher - above + (same - (size - 1)) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = 1 - total(lost) / (count * negatives)
    return {names[0]: float((total(hits) / k).mean()), names[1]: float((total(hits) / count).mean()),
            names[2]: float((total(np.where(hits, discount, 0.0)) / ideal).mean()),
            "auc": float(np.nanmean(auc)) if (negatives > 0).any() else float("nan")}
