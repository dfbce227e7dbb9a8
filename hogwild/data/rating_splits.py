"""Which ratings a factorization is trained on and which are held out; and the ratings that need no file."""

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from hogwild.data import ratings
from hogwild.data.rating_ids import Ids
from hogwild.data.ratings import Ratings
from hogwild.errors import UserError

RANK, ITEMS, EACH = 8, 1000, 100  # of synthetic ratings: factors, items, ratings of a user on average
NOISE = 0.5  # their standard deviation about the planted scores
SOURCE = "synthetic (planted rank 8)"


class Split(NamedTuple):
    """Ratings to train on, whose users and items are all that a model knows, and others."""

    train: Ratings
    held_out: Ratings | None  # with identifiers of its own
    planted: np.ndarray | None  # float32[held out], scores of which synthetic ratings were made

    def notes(self) -> list[str]:
        """Lines for the user on how the files were read."""
        return list(dict.fromkeys((*self.train.notes, *(self.held_out.notes if self.held_out else ()))))


def read(options, seed, implicit=False) -> Split:
    """The Split of a hogwild.families.mf_options.RatingFiles. Raises UserError."""
    if options.data is None:
        return _synthetic(options, seed, implicit)
    whole = ratings.read(options.data, options.columns, options.header)
    if options.test:
        return Split(demand_several(whole), ratings.read(options.test, options.columns, options.header), None)
    return split(whole, seed, options.holdout, options.leave_last_out)


def split(whole, seed, share=0.1, last=False) -> Split:
    """A share of the ratings held out at random or, with `last`, each user's last rating, where the user has others."""
    if last:
        out = _last_of_each(whole)
        if whole.times is None:
            note = f"{whole.source}: has no times: a user's last rating is the last in the file"
            whole = whole._replace(notes=(*whole.notes, note))
    else:
        out = np.zeros(whole.rows, bool)
        out[np.random.default_rng(seed).permutation(whole.rows)[:int(share * whole.rows)]] = True
    if not out.any():
        return Split(demand_several(whole), None, None)
    return Split(demand_several(whole.select(~out).renumbered()), whole.select(out)._replace(notes=()), None)


def _last_of_each(whole):
    """bool[n]: the last of the ratings of each user that has several."""
    times = np.arange(whole.rows) if whole.times is None else whole.times
    order = np.lexsort((times, whole.users))
    users, out = whole.users[order], np.zeros(whole.rows, bool)
    last, first = np.append(users[1:] != users[:-1], True), np.append(True, users[1:] != users[:-1])
    out[order[last & ~first]] = True
    return out


def demand_several(train) -> Ratings:
    """The same ratings, unless they are of one user or one item, of which nothing can be told from others."""
    for ids, what in (train.user_ids, "user"), (train.item_ids, "item"):
        if len(ids) < 2:
            raise UserError(f"{train.source}: has ratings of {'one' if len(ids) else 'no'} {what} to train on, needed two "
                            f"at least: a factorization learns from what {what}s have in common")
    return train


def _synthetic(options, seed, implicit):
    """options.rows ratings to train on, and a tenth as many; implicit: users have the items that they like."""
    if options.test or options.leave_last_out:
        raise UserError(f"{'--test' if options.test else '--leave-last-out'} needs RATINGS: the synthetic ones have their "
                        "own held-out part")
    rng = np.random.default_rng(seed)
    total = options.rows + max(options.rows // 10, 1)
    n_users = max(math.ceil(total / EACH), 2)
    q, bias = rng.standard_normal((ITEMS, RANK), np.float32), 0.4 * rng.standard_normal(ITEMS, np.float32)
    popularity = 0.7 * rng.standard_normal(ITEMS, np.float32)
    users, items, scores = [], [], []
    for first in range(0, n_users, 1024):
        m = min(1024, n_users - first)
        p = 0.6 / math.sqrt(RANK) * rng.standard_normal((m, RANK), np.float32)
        own = 0.4 * rng.standard_normal((m, 1), np.float32)
        z = 3.5 + own + bias + np.einsum("ur,ir->ui", p, q)
        # The largest of these keys are a sample without replacement, by chances exp(what is added to the Gumbel noise).
        keys = popularity + rng.gumbel(size=z.shape) + (4 * (z - own) if implicit else 0.0)
        chosen = np.argpartition(-keys, EACH, axis=1)[:, :EACH]
        users.append(np.repeat(np.arange(first, first + m), EACH))
        items.append(chosen.ravel())
        scores.append(np.take_along_axis(z, chosen, 1).ravel())
    users, items, scores = map(np.concatenate, (users, items, scores))
    order = rng.permutation(len(users))[:total]
    users, items, scores = (x[order] for x in (users, items, scores))
    values = np.ones(total, np.float32) if implicit else scores + np.float32(NOISE) * rng.standard_normal(total, np.float32)
    ids = [Ids(pa.array(np.arange(n)).cast(pa.string()), True) for n in (n_users, ITEMS)]
    whole = Ratings(users.astype(np.uint32), items.astype(np.uint32), values, None, *ids, SOURCE, rated=not implicit)
    part = whole.select(slice(options.rows, None))
    return Split(demand_several(whole.select(slice(options.rows)).renumbered()), part, scores[options.rows:])
