"""A trained factorization with its identifiers: what model files hold, and what commands and Python do with it."""

from dataclasses import dataclass, field

import numpy as np

from hogwild.data import ratings
from hogwild.data.files import excerpt
from hogwild.data.rating_ids import Ids
from hogwild.errors import UserError, demand, sound
from hogwild.families import mf_ranking
from hogwild.families.mf_factors import Factors
from hogwild.families.mf_fitting import Measured, unknown_lines
from hogwild.families.mf_problem import LOSSES, Units
from hogwild.kernels.families.mf_ranking import Pairs
from hogwild.training.machine import demand_memory
from hogwild.training.registry import build

ROWS = 1 << 14  # lines printed together
TRAINED = "rule", "lr", "schedule", "epochs", "l2", "weight_decay", "clip_norm", "clip_value", "mode"  # settings of training
ARRAYS = "user_factors", "item_factors", "user_biases", "item_biases"


@dataclass
class MFModel:
    """A factorization in memory."""

    path: object  # None: of no file
    factors: Factors
    user_ids: Ids
    item_ids: Ids
    seen: Pairs  # items that each user had in training
    loss: tuple
    l2: float  # in the unit of the ratings
    units: Units
    settings: dict = field(default_factory=dict)  # of the estimator, by name, in what JSON can write
    columns: str | None = None  # how the training file was read
    maps: dict = field(default_factory=dict)  # "user", "item": float32[features + 1, rank + 1], see mf_cold_start.feature_map

    @property
    def implicit(self) -> bool:
        return not hasattr(self.loss, "task")

    # What the commands ask.

    def read(self, path, *, zero_based=None, label=None, header="auto", cache=True):
        """(Ratings, lines for the user) of a file. Raises UserError."""
        demand_none({"--zero-based": zero_based, "--label": label})
        data = ratings.read(path, self.columns, header, repeated=True)  # a prediction for each line
        return data, [*data.notes, *unknown_lines(data.source, *self.pairs(data))]

    def pairs(self, data):
        """(users, items) of Ratings, int64[n]: numbers of the model, -1 where it does not know them."""
        return tuple(ids.find(own.texts)[numbers] for ids, own, numbers in (
            (self.user_ids, data.user_ids, data.users), (self.item_ids, data.item_ids, data.items)))

    def measured(self, data) -> Measured:
        """The Ratings `data`, ready to be measured."""
        return Measured(self.loss, (self.user_ids, self.item_ids), self.seen, data)

    def measure(self, data):
        """(metrics by name, lines for the user)."""
        known, once = len(data.notes), ratings.distinct(data)
        made = self.measured(once)
        said = [line for line in made.lines if line not in unknown_lines(data.source, *self.pairs(once))]
        return made.metrics(self.factors), [*once.notes[known:], *said]

    def check_probabilities(self):
        """Raise UserError: there are none."""
        raise UserError(f"--probabilities: {self.path} has none, it is a factorization; leave it out")

    def predict(self, data, probabilities=False):
        """Text in whole lines: the score of each pair, in the order of the file, with all digits."""
        z = self.factors.scores(*self.pairs(data))
        for start in range(0, len(z), ROWS):
            yield "".join(f"{value!r}\n" for value in z[start:start + ROWS].tolist())

    def recommend(self, users, k, items=None, exclude_seen=True):
        """(users' numbers, items int64[m, k], scores float32[m, k], lines for the user); see Factors.best.

        users: identifiers, None: all that the model knows; items: identifiers to choose from, None: all. m columns: k, or as
        many as there are items to choose from.
        """
        at_least_one("k", k)
        numbers, lines = (np.arange(len(self.user_ids)), []) if users is None else _numbers(
            self.user_ids, users, "user", "they get the items with the highest biases")
        among, more = (None, []) if items is None else _numbers(self.item_ids, items, "item", "they are left out")
        among = among if among is None else np.unique(among[among >= 0])
        if among is not None and not len(among):
            raise UserError("none of the items to choose from is known to the model")
        k = min(k, len(self.item_ids) if among is None else len(among))
        demand_memory(16.0 * k * len(numbers), f"{k:,} items for each of {len(numbers):,} users", "ask for fewer at a time")
        return numbers, *self.factors.best(numbers, k, among, self.seen if exclude_seen else None), [*lines, *more]

    def recommendations(self, users, k, items=None, exclude_seen=True):
        """(text in whole lines: user, item and score between tabs, best first; lines for the user)."""
        numbers, found, scores, said = self.recommend(users, k, items, exclude_seen)
        names = [self.user_ids.name(u) for u in numbers] if users is None else list(map(str, users))

        def lines():
            for name, row, values in zip(names, found, scores):
                yield "".join(f"{name}\t{self.item_ids.name(i)}\t{z:.6g}\n" for i, z in zip(row, values) if i >= 0)
        return lines(), said

    # Files.

    def contents(self):
        """(tensors, header) of a model file."""
        tensors = dict(zip(ARRAYS, self.factors[1:]))
        tensors |= {"seen_indptr": self.seen.indptr, "seen_items": self.seen.items}
        tensors |= self.user_ids.tensors("user") | self.item_ids.tensors("item")
        tensors |= {f"{name}_map": x for name, x in self.maps.items()}
        header = {"family": "mf", "mean": self.factors.mean, "l2": self.l2, "scale": self.units.scale,
                  "columns": self.columns,
                  "whole": [self.user_ids.whole, self.item_ids.whole], "settings": self.settings}
        return {name: np.ascontiguousarray(x) for name, x in tensors.items()}, header


def _numbers(ids, given, what, unknown):
    """(numbers int64[n], -1 of those unknown; lines for the user) of identifiers. unknown: what is done with those."""
    found = ids.find(given)
    lacking = [x for x, k in zip(given, found) if k < 0]
    return found, [f"{len(lacking):,} of {len(found):,} {what}s are unknown, such as {excerpt(lacking[0])}: "
                   f"{unknown}"] if lacking else []


def at_least_one(name, k):
    """Raise UserError unless k is a whole number from 1 on."""
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise UserError(f"{name} must be at least 1, a whole number, got {k!r}")


def demand_none(given):
    """Raise UserError for an option, by name, that was given and is not of ratings."""
    if name := next((name for name, value in given.items() if value), None):
        raise UserError(f"{name} was given, but ratings have no such thing; leave it out")


def load(path, tensors, header, kind=MFModel) -> MFModel:
    """The model at `path`, with this content, as a `kind`. Raises UserError."""
    with sound(path, "factorization", "train again, or restore the file"):
        settings = header["settings"]
        demand(isinstance(settings, dict) and isinstance(settings.get("loss"), str), "settings")
        loss = build(settings["loss"], LOSSES, "loss")
        ids = [Ids.of_tensors(tensors, name, whole) for name, whole in zip(("user", "item"), header["whole"], strict=True)]
        seen = Pairs(tensors.pop("seen_indptr"), tensors.pop("seen_items"))
        factors = Factors(header["mean"], *(tensors.pop(name) for name in ARRAYS))
        units = Units(factors.mean, header["scale"], getattr(loss, "degree", 0))
        maps = {name: tensors.pop(f"{name}_map") for name in ("user", "item") if f"{name}_map" in tensors}
        made = kind(path, factors, *ids, seen, loss, header["l2"], units, settings, header["columns"], maps)
        _check(made)
    return made


def _check(made):
    """Raise ValueError where the parts of a model do not go together: what is done with them trusts that they do."""
    factors, seen = made.factors, made.seen
    sizes = len(made.user_ids), len(made.item_ids)
    demand(min(sizes) > 0, "no users or items")
    for x, shape in zip(factors[1:], ((sizes[0], factors.users.shape[1]), (sizes[1], factors.users.shape[1]), sizes[:1],
                                      sizes[1:])):
        demand(x.dtype == np.float32 and x.shape == shape and np.isfinite(x).all(), "factors")
    demand(all(isinstance(x, float) and np.isfinite(x) for x in (factors.mean, made.l2, made.units.scale))
           and made.units.scale > 0,
           "numbers")
    demand(seen.indptr.dtype == np.int64 and seen.items.dtype == np.uint32 and seen.indptr.shape == (sizes[0] + 1,), "pairs")
    demand(seen.indptr[0] == 0 and (np.diff(seen.indptr) >= 0).all() and seen.indptr[-1] == seen.items.size, "pairs")
    demand(not seen.items.size or int(seen.items.max()) < sizes[1], "pairs")
    demand(isinstance(made.columns, (str, type(None))), "columns")
    for x in made.maps.values():
        demand(x.dtype == np.float32 and x.ndim == 2 and x.shape[1] == factors.users.shape[1] + 1, "maps of features")


def of_problem(problem, train, l2, settings, columns=None) -> MFModel:
    """The MFModel that a trained problem has become; train: the Ratings (hogwild.data.ratings)."""
    return MFModel(None, Factors.of(problem), train.user_ids, train.item_ids,
                   mf_ranking.pairs(train.users, train.items, len(train.user_ids)),
                   problem.fitted.loss, l2, problem.units, settings, columns)
