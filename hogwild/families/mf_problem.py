"""Problem family "mf": matrix factorization of ratings, or of positives (kernel: kernels/families/mf.py)."""

import math
from functools import partial
from typing import NamedTuple

import numpy as np

from hogwild.errors import UserError
from hogwild.families import mf_blocks
from hogwild.families.mf_blocks import Ratings
from hogwild.kernels.families import mf as kernel
from hogwild.kernels.families.mf_negatives import BPR, WARP
from hogwild.kernels.families.mf_rows import LANE, RowAdaGrad, RowSizes
from hogwild.kernels.families.mf_strata import Strata, train_strata
from hogwild.kernels.losses import EpsilonInsensitive, Huber, Logistic, Squared, evaluate
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import RULES, AdaGrad
from hogwild.kernels.optim.steps import Decay
from hogwild.training.divergence import known
from hogwild.training.replicated import ReplicatedProblem, Sharing, Steps, Tables
from hogwild.training.replication import Touches

LOSSES = {"squared": Squared, "absolute": partial(EpsilonInsensitive, epsilon=0.0), "huber": Huber, "logistic": Logistic,
          "bpr": BPR, "warp": WARP}
MF_RULES = {name: rule for name, rule in RULES.items() if not hasattr(rule, "terms")}  # Apollo's statistics are of a layer
MF_RULES |= {"adagrad": partial(AdaGrad, G0=1.0), "row-adagrad": RowAdaGrad}
SPREAD = 0.1  # standard deviation of the first factors, times the root of the rank; larger ones learn the noise
L2 = 0.04  # default penalty of ratings of unit deviation
MOST_RANK = 256


class Factorization(NamedTuple):
    """What is fitted."""

    loss: tuple = Squared()  # of a rating; or BPR or WARP, of a positive against a negative
    rank: int = 32
    biases: bool = True
    per_row: bool = False  # the decay of a row is divided by its ratings, as Niu et al. 2011 have it; else it is of a rating
    popularity: float = 0.0  # negatives are drawn by so great a power of it

    @property
    def implicit(self) -> bool:
        return isinstance(self.loss, (BPR, WARP))


class Units(NamedTuple):
    """Ratings are trained on as (value - mean) / scale."""

    mean: float = 0.0
    scale: float = 1.0
    degree: int = 0  # of the loss, see kernels/losses.py

    def penalties(self, decay, clip):
        """(decay, clip) of scaled ratings: factors are in units of the scale's root."""
        decay = decay and decay._replace(l2=decay.l2 * self.scale**(1 - self.degree))
        return decay, clip and type(clip)(*(bound * self.scale**(0.5 - self.degree) for bound in clip))


def units_of(values, loss) -> Units:
    """Mean and standard deviation of the ratings, where the loss is one of numbers. Raises UserError."""
    if isinstance(loss, (BPR, WARP)) or not getattr(loss, "degree", 0):
        return Units()
    mean = float(values.mean(dtype=np.float64))
    deviation = float(values.std(dtype=np.float64)) if math.isfinite(mean) else math.inf
    if not deviation < math.inf:
        raise UserError("ratings must be finite numbers within float32's range; scale them")
    return Units(mean, deviation or 1.0, loss.degree)


def default_l2(ratings, loss) -> float:
    """The default L2 penalty of a rating."""
    units = units_of(ratings.values, loss)
    return L2 * units.scale**(units.degree - 1) if units.degree else L2 / 4


class MatrixFactorization(ReplicatedProblem):
    """Factors of users and items, trained on Ratings.

    Score of user u and item i: mean + b_u + b_i + p_u·q_i. decay, clip: of ratings as given. measure(problem): metrics of the
    held-out part after an epoch. named(user, item): how a person finds that rating. side: blocks in a row of the grid, None:
    as the sizes advise. units: of an earlier problem, to go on in its mean and scale; None: of these ratings.

    An implicit loss takes all ratings as positives, whatever their values; a logistic loss takes values
    above 0 as 1, others as -1.
    """

    numbers = np.uint32

    def __init__(self, ratings: Ratings, fitted: Factorization, steps: Steps, sharing: Sharing, seed=0, measure=None,
                 named=None, side=None, units=None):
        mf_blocks.check(ratings)
        _check(fitted, steps, sharing)
        self.fitted, self.measure, self.name, self.rank, self.seed = fitted, measure, named, fitted.rank, seed
        self.loss, rule = checked(fitted.loss), checked(steps.rule)
        self.units = units or units_of(ratings.values, self.loss)
        decay, clip = self.units.penalties(steps.decay, steps.clip)
        lengths = getattr(self.loss, "lengths", ())
        self.loss = self.loss._replace(**{name: getattr(self.loss, name) / self.units.scale for name in lengths})
        lanes, slots = -(-fitted.rank // LANE), len(rule.start())
        factors = lanes * LANE
        tail = 3 if isinstance(rule, RowAdaGrad) else 1 + slots
        width = -(-(factors * (1 + slots) + tail) // 4) * 4
        self.sizes = RowSizes((None,) * lanes, (None,) * slots, width, factors * (1 + slots), fitted.rank)
        self.grid = made = mf_blocks.grid(ratings, side or mf_blocks.side_of(ratings, width), seed)
        self.degrees = np.bincount(made.users, minlength=ratings.n_users + ratings.n_items) + np.bincount(
            made.items, minlength=ratings.n_users + ratings.n_items)
        tables = Tables({"users": ratings.n_users, "items": ratings.n_items}, width, 3, own_slots=True)
        super().__init__(tables, Steps(rule, decay, clip), sharing._replace(replicas="none"), len(made.users))
        self._start(rule, ratings)
        per_row = (1.0 / np.maximum(self.degrees, 1)).astype(np.float32) if fitted.per_row and decay else None
        self.model = self._model(per_row, ratings.had)

    def _start(self, rule, ratings):
        """Small random factors; the rest as the rule begins."""
        flat, factors = self.shared[:, :, 0], LANE * len(self.sizes.lanes)
        rng = np.random.default_rng((self.seed, 1))
        for first in range(0, self.count, 1 << 16):
            rows = flat[first:first + (1 << 16), :self.rank]
            rows[:] = rng.standard_normal(rows.shape, np.float32) * np.float32(SPREAD / math.sqrt(self.rank))
        for k, value in enumerate(rule.start(), 1):
            flat[:, k * factors:(k + 1) * factors] = value
            flat[:, self.sizes.bias + k] = value
        if isinstance(rule, RowAdaGrad):
            flat[:, self.sizes.bias + 1:self.sizes.bias + 3] = rule.G0

    def _model(self, decay_weight, had):
        made, biased = self.grid, float(self.fitted.biases)
        if self.fitted.implicit:
            counts = self.degrees[len(made.user_rows):]
            drawn = mf_blocks.negatives(made, counts, self.fitted.popularity, self.whole, self.seed, had)
            return kernel.Implicit(self.sizes, self.loss, made.users, made.items, drawn, decay_weight, biased)
        mean, scale, degree = self.units
        values = made.values
        if not degree:
            values[:] = np.where(values > 0, 1, -1)
        else:
            values -= np.float32(mean)
            values /= np.float32(scale)
        return kernel.Explicit(self.sizes, self.loss, made.users, made.items, values, decay_weight, biased)

    # What the loop asks.

    def touches(self):
        return Touches(self.examples, self.degrees)

    def order(self, rng):
        return mf_blocks.order(self.grid, rng)

    def call_end(self, order, at):
        """The end of a block, or the loss of a part of one would be summed by itself, with other last bits."""
        if not self.whole or at >= len(order):
            return super().call_end(order, at)
        block = np.searchsorted(self.grid.starts, order[at - 1], "right")
        return min(at + int(self.grid.starts[block]) - int(order[at - 1]) - 1, len(order))

    def divide(self, touches):
        blocks, self.strata = self.grid.side**2 + 2, {}
        self.progress, self.losses, self.done = np.zeros(16, np.int64), np.zeros(blocks), np.zeros(blocks, np.int64)

    def begin_whole(self):
        self.progress[:] = 0
        for strata in self.strata.values():
            strata.seen[:] = 0

    def private(self, k):
        if self.whole:
            self.strata[k] = Strata(k, self.grid.starts, self.grid.side, self.progress, self.losses, self.done, self.halt,
                                    np.zeros(8, np.int64), np.zeros(2 * self.grid.side, np.int64))
        return super().private(k)

    def run_whole(self, optimizer, k, worker, order, t, tally):
        train_strata(self.model, optimizer, worker, self.strata[k], order, t, tally)

    def evaluate(self):
        return self.measure(self) if self.measure else {}

    @property
    def of_loss(self):
        return self.units.scale**self.units.degree

    def reference(self):
        """The mean as everybody's rating; for an implicit loss nothing is known but the start."""
        if isinstance(self.loss, WARP):
            return None
        if self.fitted.implicit:
            return known(math.log(2), math.log(2))
        some = self.model.values[:: max(self.examples // 1000, 1)]  # in random order within their blocks
        start = self.of_loss * float(np.mean([evaluate(self.loss, 0.0, float(y))[0] for y in some]))
        return known(start, start)

    def named(self, i):
        user = int(np.flatnonzero(self.grid.user_rows == self.grid.users[i])[0])
        item = int(np.flatnonzero(self.grid.item_rows == self.grid.items[i])[0])
        return self.name(user, item) if self.name else f"the rating of user {user} for item {item}"

    # What was learnt, and to begin with it.

    @property
    def mean(self) -> float:
        """What the score of an unknown user and item is."""
        return self.units.mean

    def _columns(self, rows, first, last):
        return self.shared[rows, first:last, 0]

    @property
    def user_factors(self) -> np.ndarray:
        """float32[users, rank]."""
        return self._columns(self.grid.user_rows, 0, self.rank) * np.float32(math.sqrt(self.units.scale))

    @property
    def item_factors(self) -> np.ndarray:
        """float32[items, rank]."""
        return self._columns(self.grid.item_rows, 0, self.rank) * np.float32(math.sqrt(self.units.scale))

    @property
    def user_biases(self) -> np.ndarray:
        """float32[users]."""
        return self._columns(self.grid.user_rows, self.sizes.bias, None)[:, 0] * np.float32(self.units.scale)

    @property
    def item_biases(self) -> np.ndarray:
        """float32[items]."""
        return self._columns(self.grid.item_rows, self.sizes.bias, None)[:, 0] * np.float32(self.units.scale)

    def begin_at(self, user_factors=None, item_factors=None, user_biases=None, item_biases=None):
        """Have a new problem begin at these: of the first users and items, whose number each array tells; the others as new.

        factors float[m, rank]; biases float[m], beside this problem's mean.
        """
        bias, flat, scale = self.sizes.bias, self.shared[:, :, 0], self.units.scale
        for rows, given in ((self.grid.user_rows, user_factors), (self.grid.item_rows, item_factors)):
            if given is not None:
                flat[rows[:len(given)], :self.rank] = np.asarray(given) / math.sqrt(scale)
        for rows, given in ((self.grid.user_rows, user_biases), (self.grid.item_rows, item_biases)):
            if given is not None:
                flat[rows[:len(given)], bias] = np.asarray(given) / scale


def _check(fitted, steps, sharing):
    """Raise UserError for what this family does not have."""
    if not 1 <= fitted.rank <= MOST_RANK or fitted.rank != int(fitted.rank):
        raise UserError(f"rank must be a whole number from 1 to {MOST_RANK}, got {fitted.rank}")
    if not 0 <= fitted.popularity <= 2:
        raise UserError(f"the power of the popularity must lie in [0, 2], got {fitted.popularity:g}")
    if hasattr(steps.rule, "terms"):
        raise UserError(f"rule {type(steps.rule).__name__.lower()} is one of whole layers, not of rows: choose from "
                        f"{', '.join(MF_RULES)}")
    if steps.average is not None or steps.l1:
        raise UserError("matrix factorization has neither an average of the weights nor an L1 penalty: leave --average and "
                        "--l1 out")
    if sharing.replicas not in ("auto", "none"):
        raise UserError(f"matrix factorization shares all rows, got replicas '{sharing.replicas}': use auto or none")


def decay_of(l2) -> Decay | None:
    """The Decay of an L2 penalty."""
    return Decay(l2=l2) if l2 else None

