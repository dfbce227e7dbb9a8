"""From ratings and options to a factorization that can be trained, for the command and for the estimator alike."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.families import mf_ranking
from hogwild.families.mf_factors import Factors
from hogwild.families.mf_problem import LOSSES, MF_RULES, Factorization, MatrixFactorization, default_l2
from hogwild.families.mf_problem import Ratings as Pairs
from hogwild.kernels.families.mf_negatives import BPR, WARP
from hogwild.kernels.losses import Logistic
from hogwild.kernels.optim.steps import Clip, Decay
from hogwild.training import metrics
from hogwild.training.machine import usable_cores
from hogwild.training.options import Span, schedule_of
from hogwild.training.registry import build
from hogwild.training.replicated import Sharing, Steps

WORK = 4e9  # multiplications of a measurement of rankings in training: of more, some users at random stand for all
LEAST_USERS = 100


class Defaults(NamedTuple):
    """Of options that are not given."""

    rule: str
    lr: float
    schedule: str
    epochs: int


EXPLICIT = Defaults("sgd", 0.08, "polynomial", 10)
IMPLICIT = {BPR: Defaults("sgd", 0.1, "polynomial", 30), WARP: Defaults("sgd", 0.05, "polynomial", 20)}


class Recipe(NamedTuple):
    """What is fitted, parsed."""

    fitted: Factorization
    rule: tuple
    lr: float
    schedule: str
    epochs: int


def recipe(model, training) -> Recipe:
    """The Recipe of an MFModelOptions and an MFTraining. Raises UserError."""
    if model.decay_per not in ("rating", "row"):
        raise UserError(f"--decay-per must be rating or row, got '{model.decay_per}'")
    loss = build(model.loss, LOSSES, "loss")
    fitted = Factorization(loss, model.rank, model.biases, model.decay_per == "row", model.popularity)
    if model.popularity and not fitted.implicit:
        raise UserError("--popularity is of the negatives of the losses bpr and warp; leave it out")
    usual = IMPLICIT.get(type(loss), EXPLICIT)
    rule = build(training.rule or usual.rule, MF_RULES, "rule")
    made = Recipe(fitted, rule, usual.lr if training.lr is None else training.lr, training.schedule or usual.schedule,
                  training.epochs or usual.epochs)
    schedule(made, training, 1 << 30, 1)  # raises before the data are read
    return made


def schedule(made, training, steps, epochs, watched="rmse"):
    """The schedule of the learning rate over so many epochs of so many steps."""
    return schedule_of(replace(training, schedule=made.schedule), made.rule, Span(epochs, steps), made.lr, watched)


def l2_of(made, training, train) -> float:
    """The L2 penalty, in the unit of the ratings."""
    return default_l2(train, made.fitted.loss) if training.l2 is None else training.l2


def as_pairs(train) -> Pairs:
    """Ratings (hogwild.data.ratings) as the problem wants them."""
    return Pairs(train.users, train.items, train.values, len(train.user_ids), len(train.item_ids))


def problem(made, training, train, workers, measure=None, units=None, had=None) -> MatrixFactorization:
    """A new problem of Ratings (hogwild.data.ratings). Raises UserError.

    measure: called with it after each epoch, gives the metrics; units: mean and scale of an earlier problem;
    had: Ratings of all that users have, which are no negatives, None: `train`.
    """
    if not train.rated and not made.fitted.implicit:
        raise UserError(f"{train.source}: has no ratings, which the loss {type(made.fitted.loss).__name__.lower()} needs; "
                        "add them, or use --loss bpr or warp")
    pairs = as_pairs(train)._replace(had=had and (had.users, had.items))
    l2, wd = l2_of(made, training, pairs), training.weight_decay
    wd = getattr(made.rule, "default_wd", 0.0) if wd is None else wd
    decay = build("decay", {"decay": Decay}, "option", l2=l2, wd=wd) if l2 or wd else None
    bounds = {"norm": training.clip_norm, "value": training.clip_value}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    clip = build("clip", {"clip": Clip}, "option", **bounds) if bounds else None
    return MatrixFactorization(pairs, made.fitted, Steps(made.rule, decay, clip), Sharing(workers, training.mode, "none"),
                               seed=training.seed, measure=measure, named=partial(_named, train), units=units)


def _named(train, user, item):
    return f"{train.source}: user {train.user_ids.name(user)}, item {train.item_ids.name(item)}"


def workers_of(training, count) -> int:
    """Threads: those asked for, by default the usable cores; never more than ratings."""
    return max(min(training.workers or usable_cores()[0], count), 1)


class Measured:
    """Held-out ratings, made ready to be measured against the factors that ratings to train on have given.

    lines: for the user, on what of them the model does not know.
    """

    def __init__(self, loss_of, train_ids, masked, held, most_users=None, seed=0):
        """loss_of: the loss; train_ids: Ids (users, items); masked: Pairs that users had in training; held: Ratings;
        most_users: as many at random stand for all in a ranking, None: all do."""
        self.loss, self.masked, self.chosen = loss_of, masked, None
        users, items = (ids.find(own.texts) for ids, own in zip(train_ids, (held.user_ids, held.item_ids)))
        self.users, self.items, self.values = users[held.users], items[held.items], held.values
        self.rated = hasattr(loss_of, "task")
        if not held.rows:
            raise UserError(f"{held.source}: holds no rating to measure; needed at least one")
        if self.rated and not held.rated:
            raise UserError(f"{held.source}: has no ratings to compare with; add them")
        self.lines = unknown_lines(held.source, self.users, self.items, ranked=not self.rated)
        if count := self._trained():
            done = "metrics flatter the model" if self.rated else "left out of the rankings"
            self.lines.append(f"{held.source}: {count:,} of {held.rows:,} pairs were trained on: {done}")
        if not self.rated:
            known = (self.users >= 0) & (self.items >= 0)
            self.held = mf_ranking.pairs(self.users[known], self.items[known], len(train_ids[0]))
            having = np.flatnonzero(np.diff(self.held.indptr))
            if most_users is not None and len(having) > most_users:
                self.chosen = np.sort(np.random.default_rng(seed).choice(having, most_users, replace=False))
                self.lines.append(f"held out: metrics in training are of {most_users:,} users of {len(having):,}, at random")

    def _trained(self) -> int:
        """How many of the pairs are among those to train on."""
        known, n_items = (self.users >= 0) & (self.items >= 0), max(int(self.items.max(initial=0)), int(
            self.masked.items.max(initial=0))) + 1
        owners = np.repeat(np.arange(len(self.masked.indptr) - 1), np.diff(self.masked.indptr))
        return int(np.isin(self.users[known] * n_items + self.items[known], owners * n_items + self.masked.items).sum())

    def metrics(self, factors, k=mf_ranking.K) -> dict[str, float]:
        """Metrics by name: of ratings RMSE and MAE, of yes and no as in classification, of positives those of a ranking."""
        if not self.rated:
            return mf_ranking.measure(factors, self.masked, self.held, self.chosen, k)
        z = factors.scores(self.users, self.items)
        if isinstance(self.loss, Logistic):
            return metrics.classification(z, np.where(self.values > 0, 1, -1))
        return {"rmse": metrics.rmse(z, self.values), "mae": metrics.mae(z, self.values)}

    def __call__(self, problem):
        return self.metrics(Factors.of(problem))


def most_users(made, train) -> int:
    """How many users' rankings may be measured after each epoch."""
    return max(int(WORK / max(len(train.item_ids) * made.fitted.rank, 1)), LEAST_USERS)


def unknown_lines(source, users, items, ranked=False) -> list[str]:
    """What is said of pairs of numbers of which -1 is unknown. ranked: what is measured are rankings."""
    lines = []
    for what, numbers, other in ("a user", users, "item"), ("an item", items, "user"):
        if count := int((numbers < 0).sum()):
            done = "left out of the rankings" if ranked else f"their scores are the mean and the bias of the {other}"
            lines.append(f"{source}: {count:,} of {len(numbers):,} pairs have {what} that the model does not know: {done}")
    return lines
