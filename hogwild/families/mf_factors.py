"""What a factorization has learnt, as arrays, and what is computed from them: scores, recommendations, likeness."""

from typing import NamedTuple

import numpy as np

BLOCK = 1 << 23  # scores in memory at a time


class Factors(NamedTuple):
    """Score of user u and item i: mean + b_u + b_i + p_u·q_i."""

    mean: float
    users: np.ndarray  # float32[users, rank]
    items: np.ndarray  # float32[items, rank]
    user_biases: np.ndarray  # float32[users]
    item_biases: np.ndarray  # float32[items]

    @classmethod
    def of(cls, problem) -> "Factors":
        """Those of a hogwild.families.mf_problem.MatrixFactorization."""
        return cls(problem.mean, problem.user_factors, problem.item_factors, problem.user_biases, problem.item_biases)

    def scores(self, users, items) -> np.ndarray:
        """float64[n] of pairs of numbers; of -1, which is nobody's, there are neither factors nor a bias."""
        out, rank = np.empty(len(users)), max(self.users.shape[1], 1)
        for start in range(0, len(users), BLOCK // rank):
            u, i = users[start:start + BLOCK // rank], items[start:start + BLOCK // rank]
            z = np.einsum("nr,nr->n", self.users[u], self.items[i], dtype=np.float64)
            z[(u < 0) | (i < 0)] = 0.0
            out[start:start + len(u)] = (self.mean + z + np.where(u < 0, 0.0, self.user_biases[u])
                                         + np.where(i < 0, 0.0, self.item_biases[i]))
        return out

    def best(self, users, k, among=None, masked=None):
        """(items int64[m, k], scores float32[m, k]) with the highest scores, falling; equal ones by their numbers.

        users: int64[m], -1: a user without factors; among: int64[c], the items to choose from, None: all; masked: Pairs of
        items that users do not get. Where fewer are left: item -1, score -inf.
        """
        among = np.arange(len(self.items)) if among is None else np.unique(among)
        place = np.full(len(self.items), -1)
        place[among] = np.arange(len(among))
        found, best = np.full((len(users), k), -1), np.full((len(users), k), -np.inf, np.float32)
        step = max(BLOCK // max(len(among), 1), 1)
        for start in range(0, len(users), step):
            part = users[start:start + step]
            z = np.where(part[:, None] < 0, np.float32(0), self.users[part]) @ self.items[among].T
            z += np.float32(self.mean) + self.item_biases[among] + np.where(part < 0, 0, self.user_biases[part])[:, None]
            for row, (u, own) in enumerate(zip(part, z), start):
                if masked is not None and u >= 0:
                    out = place[masked.items[masked.indptr[u]:masked.indptr[u + 1]]]
                    own[out[out >= 0]] = -np.inf
                least = np.partition(own, -k)[-k] if k < len(own) else -np.inf
                chosen = np.flatnonzero((own >= least) & (own > -np.inf))
                chosen = chosen[np.lexsort((chosen, -own[chosen]))][:k]
                found[row, :len(chosen)], best[row, :len(chosen)] = among[chosen], own[chosen]
        return found, best

    def similar(self, items, k):
        """(items int64[m, k], cosines float32[m, k]) of the items whose factors point the same way, itself left out."""
        unit = self.items / np.maximum(np.linalg.norm(self.items, axis=1, keepdims=True), 1e-30)
        rows = Factors(0.0, unit[items], unit, np.zeros(len(items), np.float32), np.zeros(len(unit), np.float32))
        found, cosines = rows.best(np.arange(len(items)), min(k + 1, len(unit)))
        other = found != np.asarray(items)[:, None]
        other[other.all(axis=1), -1] = False  # where k others are as alike as itself
        shape = len(items), found.shape[1] - 1
        return found[other].reshape(shape), cosines[other].reshape(shape)

    def joined(self, users, items) -> "Factors":
        """With rows behind the others. users, items: (factors [m, rank], biases [m]), or None."""
        tables = []
        for factors, biases, more in (self.users, self.user_biases, users), (self.items, self.item_biases, items):
            more = (factors[:0], biases[:0]) if more is None else more
            tables.append((np.concatenate((factors, more[0])).astype(np.float32),
                           np.concatenate((biases, more[1])).astype(np.float32)))
        return Factors(self.mean, tables[0][0], tables[1][0], tables[0][1], tables[1][1])
