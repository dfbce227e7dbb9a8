"""MatrixFactorization: factorizations of ratings in Python, called as scikit-learn's estimators, and without it."""

import warnings
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from hogwild.data import rating_splits
from hogwild.data.rating_ids import Ids, texts_of
from hogwild.data.ratings import given as given_ratings
from hogwild.errors import UserError
from hogwild.families import mf_fitting, mf_model, mf_ranking
from hogwild.families.mf_cold_start import feature_map, fold_in, mapped
from hogwild.families.mf_options import MFModelOptions, MFTraining
from hogwild.kernels.compiler.cache import announce
from hogwild.training import model_files
from hogwild.training.loop import train
from hogwild.training.record import Report, versions

MODEL = tuple(field.name for field in fields(MFModelOptions))
OPTIONAL = "l2", "rule", "lr", "schedule", "epochs", "workers"  # None: the default


def _check(made):
    """Raise UserError for a parameter of the wrong kind: what checks its range trusts in that."""
    for kind, what, names in ((Integral, "a whole number", "rank epochs workers random_state verbose"),
                              (Real, "a number", "l2 lr popularity feature_l2"),
                              (str, "a text", "loss decay_per rule schedule mode"), (bool, "True or False", "biases")):
        for name in names.split():
            value = getattr(made, name)
            if not isinstance(value, kind) and not (value is None and name in OPTIONAL):
                raise UserError(f"MatrixFactorization needs {what} as {name}, got {value!r}")
    if not 0 <= made.feature_l2 < float("inf"):
        raise UserError(f"feature_l2 must be a finite number, not negative, got {made.feature_l2}")


def _plain(parameters):
    """With Python's numbers in place of NumPy's: JSON takes no others."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in parameters.items()}


def _said(lines):
    for line in lines:
        warnings.warn(line, stacklevel=3)


@dataclass(kw_only=True, eq=False)
class MatrixFactorization:
    """Factors of users and items, trained on ratings, or on positives, by lock-free workers.

    Score of user u and item i: mean + b_u + b_i + p_u·q_i. Ratings, wherever they are taken: the path of a file (as of
    `hogwild train mf`); a SciPy sparse matrix [users, items], whose stored entries are the ratings; a data frame or pyarrow
    table with columns user, item and, if it has them, rating and time; or a tuple of arrays (users, items, ratings).
    Identifiers are whole numbers or texts. Of a pair that occurs twice the latest counts. Whatever is wrong is a UserError.

    Parameters
    ----------
    rank
        Number of factors, 1 to 256.
    loss
        Of ratings: squared, absolute, huber[:delta=1.35], logistic (above 0: yes, else no); of positives, whatever their
        ratings: bpr (Rendle et al. 2009), warp[:draws=10] (Weston et al. 2011).
    biases
        Whether users and items have biases.
    l2
        Penalty l2/2 of the factors and biases, in the unit of the ratings; None: what suits the loss and the ratings.
    decay_per
        What the penalty is of: each "rating" (as LIBMF), or each "row" (as Niu et al. 2011).
    popularity
        Power of the items' popularity by which negatives of bpr and warp are drawn.
    rule, lr, schedule, epochs
        As of `hogwild train mf`; None: what suits the loss. lr is for ratings scaled to a standard deviation of 1.
    mode
        What happens when two workers change one number at once: a key of `hogwild.training.replication.MODES`.
    workers
        Threads; None: the usable cores.
    random_state
        Whole number; a fit is reproducible by it with one worker, or with mode="deterministic".
    feature_l2
        Ridge penalty of the maps from features to factors.
    verbose
        Above 0: a line an epoch.

    Attributes
    ----------
    user_ids_, item_ids_ : int64[n] or object[n] of str
        What row k of the factors is of.
    user_factors_, item_factors_ : float32[n, rank]
    user_biases_, item_biases_ : float32[n]
    mean_ : float
    loss_curve_ : list of float
        Mean training loss of each epoch, in the unit of the ratings; not of a loaded model.
    """

    rank: int = 32
    loss: str = "squared"
    biases: bool = True
    l2: float | None = None
    decay_per: str = "rating"
    popularity: float = 0.0
    rule: str | None = None
    lr: float | None = None
    schedule: str | None = None
    epochs: int | None = None
    mode: str = "wild"
    workers: int | None = None
    random_state: int = 0
    feature_l2: float = 1.0
    verbose: int = 0

    # What scikit-learn's `clone` and searches ask of an estimator.

    def get_params(self, deep=True) -> dict[str, Any]:
        """Parameters by name."""
        return asdict(self)

    def set_params(self, **parameters):
        """Set parameters by name."""
        known = {field.name for field in fields(self)}
        for name, value in parameters.items():
            if name not in known:
                raise ValueError(f"unknown parameter {name!r} of MatrixFactorization: choose from {', '.join(sorted(known))}")
            setattr(self, name, value)
        return self

    @classmethod
    def of_model(cls, model):
        """A fitted one, of a hogwild.families.mf_model.MFModel."""
        known = {field.name for field in fields(cls)}
        made = cls(**{name: value for name, value in model.settings.items() if name in known})
        made._model = model
        return made

    # Training.

    def fit(self, ratings, user_features=None, item_features=None):
        """Train on ratings.

        user_features, item_features: (identifiers, X [n, d], dense or sparse); a ridge regression maps them to the factors
        and biases of those that have ratings (Gantner et al. 2010), and the others get what the map says: they can be
        predicted for and recommended.
        """
        known = rating_splits.demand_several(given_ratings(ratings))
        self._model = self._trained(known, None, known)
        for name, features in ("user", user_features), ("item", item_features):
            if features is not None:
                self._map(name, *_features(name, features))
        return self

    def partial_fit(self, ratings):
        """An epoch on these ratings at the constant rate `lr`, from the factors that there are; new users and items join
        them.

        Without a fit before: the same as the first epoch of one. The rule begins anew, and loss and penalty are of
        these ratings, so give the new ones alone; negatives of bpr and warp are none of earlier calls' positives.
        """
        batch = given_ratings(ratings)
        if not hasattr(self, "_model"):
            self._model = self._trained(rating_splits.demand_several(batch), None, batch, once=True)
            return self
        old = self._model
        user_ids, item_ids = old.user_ids.joined(batch.user_ids), old.item_ids.joined(batch.item_ids)
        whole = batch._replace(users=user_ids.find(batch.user_ids.texts)[batch.users].astype(np.uint32),
                               items=item_ids.find(batch.item_ids.texts)[batch.items].astype(np.uint32),
                               user_ids=user_ids, item_ids=item_ids)
        users = np.concatenate((np.repeat(np.arange(len(old.user_ids)), np.diff(old.seen.indptr)), whole.users))
        items = np.concatenate((old.seen.items, whole.items))
        keys = np.unique(users.astype(np.int64) * len(item_ids) + items)
        seen = whole._replace(users=keys // len(item_ids), items=keys % len(item_ids))
        self._model = replace(self._trained(whole, old, seen, once=True), maps=old.maps, columns=old.columns)
        return self

    def _options(self):
        _check(self)
        given = {name: getattr(self, name) for name in ("l2", "rule", "lr", "schedule", "epochs", "mode", "workers")}
        training = MFTraining(seed=self.random_state, **given)
        training.check()
        return MFModelOptions(**{name: getattr(self, name) for name in MODEL}), training

    def _trained(self, known, old, seen, once=False):
        """The MFModel after training on `known`; old: the MFModel to go on from; seen: what users had in training."""
        options, training = self._options()
        if self.verbose >= 0:
            announce()
        if once:
            training = replace(training, schedule="constant", epochs=1)
        made = mf_fitting.recipe(options, training)
        workers = mf_fitting.workers_of(training, known.rows)
        if old is not None:
            self._demand_alike(old)
            training = replace(training, l2=old.l2 if training.l2 is None else training.l2)
        units, had = (None, None) if old is None else (old.units, seen)
        problem = mf_fitting.problem(made, training, known, workers, units=units, had=had)
        if old is not None:
            factors = old.factors
            problem.begin_at(factors.users, factors.items, factors.user_biases, factors.item_biases)
        report = Report() if self.verbose > 0 else None
        history = train(problem, made.rule, mf_fitting.schedule(made, training, known.rows, made.epochs), epochs=made.epochs,
                        workers=workers, seed=self.random_state, report=report)
        self.loss_curve_ = [*(getattr(self, "loss_curve_", ()) if old else ()), *(epoch.loss for epoch in history)]
        l2 = mf_fitting.l2_of(made, training, mf_fitting.as_pairs(known))
        model = mf_model.of_problem(problem, known, float(l2), _plain(self.get_params()))
        return replace(model, seen=mf_ranking.pairs(seen.users, seen.items, len(known.user_ids)))

    def _demand_alike(self, old):
        before = old.settings
        if changed := [name for name in ("loss", "rank", "biases") if before.get(name) != getattr(self, name)]:
            raise UserError(f"partial_fit goes on with {changed[0]}={before.get(changed[0])!r}, got "
                            f"{getattr(self, changed[0])!r}: set it back, or call fit")

    # Users and items that training had not.

    def fold_in(self, ratings):
        """Add new users by their ratings, with the items as they are; of a user that is known these ratings replace the
        factors.

        The user's part of the training objective is minimised (scipy.optimize, L-BFGS); of bpr and warp each positive against
        all items that the user has not. Items that the model does not know are left out, with a warning.
        """
        model, new = self._fitted, given_ratings(ratings)
        items = model.item_ids.find(new.item_ids.texts)[new.items]
        if (lacking := int((items < 0).sum())):
            _said([f"{lacking:,} of {new.rows:,} ratings are of items that the model does not know: they are left out"])
        new = new.select(items >= 0)._replace(items=items[items >= 0])
        if not new.rows:
            raise UserError("fold_in got no rating of an item that the model knows")
        if not new.rated and not model.implicit:
            raise UserError(f"fold_in needs ratings for loss {self.loss}: give (users, items, ratings)")
        owners = np.unique(new.users)
        found = [fold_in(model, new.items[new.users == u], new.values[new.users == u], self.decay_per == "row", self.biases)
                 for u in owners]
        ids = new.user_ids.take(owners)
        self._put("user", ids, np.array([p for p, _ in found]), np.array([b for _, b in found]))
        numbers = self._model.user_ids.find(ids.texts)
        lists = np.split(self._model.seen.items, self._model.seen.indptr[1:-1])
        for u, number in zip(owners, numbers):
            lists[number] = np.unique(new.items[new.users == u])
        users = np.repeat(np.arange(len(lists)), [len(x) for x in lists])
        self._model = replace(self._model, seen=mf_ranking.pairs(users, np.concatenate(lists), len(lists)))
        return self

    def add_users(self, ids, X):
        """Add users without ratings by their features X [n, d], through the map that `fit` learnt from user_features."""
        return self._add("user", ids, X)

    def add_items(self, ids, X):
        """Add items without ratings by their features X [n, d], through the map that `fit` learnt from item_features."""
        return self._add("item", ids, X)

    def _add(self, name, ids, X):
        model = self._fitted
        if name not in model.maps:
            raise UserError(f"add_{name}s needs a map from features: give {name}_features to fit")
        (ids, X), factors = _features(name, (ids, X)), (model.factors.users if name == "user" else model.factors.items)
        if X.shape[1] != len(model.maps[name]) - 1:
            raise UserError(f"{name} features have {X.shape[1]} columns, needed {len(model.maps[name]) - 1} as in fit")
        made = mapped(model.maps[name], X)
        self._put(name, ids, made[:, :factors.shape[1]], made[:, -1], replaced=False)
        return self

    def _map(self, name, ids, X):
        """Learn the map from features to factors, and add those that have no ratings."""
        model = self._model
        own, factors, biases = (model.user_ids, model.factors.users, model.factors.user_biases) if name == "user" else (
            model.item_ids, model.factors.items, model.factors.item_biases)
        numbers = own.find(ids.texts)
        if not (numbers >= 0).any():
            raise UserError(f"{name}_features are of no {name} that has ratings")
        known = np.flatnonzero(numbers >= 0)
        table = np.column_stack((factors, biases))[numbers[known]]
        self._model = replace(model, maps={**model.maps, name: feature_map(X[known], table, self.feature_l2)})
        new = np.flatnonzero(numbers < 0)
        if new.size:
            made = mapped(self._model.maps[name], X[new])
            self._put(name, ids.take(new), made[:, :-1], made[:, -1])

    def _put(self, name, ids, factors, biases, replaced=True):
        """Set rows of the users or items `ids`, new ones behind the others; replaced: known ones too."""
        model, user = self._model, name == "user"
        before = model.user_ids if user else model.item_ids
        joined = before.joined(ids)
        numbers, rows = joined.find(ids.texts), len(joined) - len(before)
        if not replaced and (known := np.flatnonzero(numbers < len(before))).size:
            raise UserError(f"{name} {ids.name(known[0])} is known already: add those alone that are new")
        rank = model.factors.users.shape[1]
        more = np.zeros((rows, rank), np.float32), np.zeros(rows, np.float32)
        new = model.factors.joined(more if user else None, None if user else more)
        tables = (new.users, new.user_biases) if user else (new.items, new.item_biases)
        tables[0][numbers], tables[1][numbers] = factors, biases
        seen = model.seen
        if user:
            seen = seen._replace(indptr=np.append(seen.indptr, np.full(rows, seen.indptr[-1])))
        self._model = replace(model, factors=new, seen=seen, **{f"{name}_ids": joined})

    # What it has learnt.

    @property
    def _fitted(self):
        if not hasattr(self, "_model"):
            raise UserError("this MatrixFactorization is not fitted yet: call fit first")
        return self._model

    def predict(self, users, items) -> np.ndarray:
        """Scores float64[n] of the pairs of users [n] and items [n]. Of what is unknown: mean and biases alone, with a
        warning."""
        model = self._fitted
        if np.shape(users) != np.shape(items) or np.ndim(users) != 1:
            raise UserError(f"got users of shape {np.shape(users)} and items of shape {np.shape(items)}, needed [n] and [n]")
        u, i = model.user_ids.find(users), model.item_ids.find(items)
        _said(mf_fitting.unknown_lines("predict", u, i))
        return model.factors.scores(u, i)

    def recommend(self, users=None, k=10, items=None, exclude_seen=True):
        """(items [m, k], scores float32[m, k]) with the highest scores for the users, best first.

        users: [m], None: all, in the order of user_ids_. items: those to choose from; None: all. exclude_seen: leave out what
        the user has in the training ratings. Where a user has fewer left: item None (-1 where items are whole numbers),
        score -inf; fewer columns where there are fewer items to choose from. Unknown users get the items with the highest
        biases, with a warning.
        """
        model = self._fitted
        _, found, scores, lines = model.recommend(_listed(users), k, _listed(items), exclude_seen)
        _said(lines)
        return _named(model.item_ids, found), scores

    def similar_items(self, items, k=10):
        """(items [m, k], cosines float32[m, k]) of the items whose factors have the smallest angle to those of each given
        item."""
        model = self._fitted
        mf_model.at_least_one("k", k)
        found, cosines = model.factors.similar(model.item_ids.demand(_listed(items), "item"), k)
        return _named(model.item_ids, found), cosines

    def evaluate(self, ratings, k=10) -> dict[str, float]:
        """Metrics of held-out ratings: rmse and mae; of logistic accuracy, f1, auc, log_loss; of bpr and warp precision@k,
        recall@k, ndcg@k and auc over the full ranking, where a user's training items are left out, as means over users."""
        mf_model.at_least_one("k", k)
        made = self._fitted.measured(given_ratings(ratings))
        _said(made.lines)
        return made.metrics(self._fitted.factors, k)

    def save(self, path):
        """Write the model file that `hogwild predict`, `evaluate`, `recommend` and hogwild.load read. Raises UserError."""
        tensors, header = self._fitted.contents()
        model_files.save(path, tensors, header | {"versions": versions()})

    @property
    def user_ids_(self):
        return self._fitted.user_ids.values

    @property
    def item_ids_(self):
        return self._fitted.item_ids.values

    @property
    def user_factors_(self):
        return self._fitted.factors.users

    @property
    def item_factors_(self):
        return self._fitted.factors.items

    @property
    def user_biases_(self):
        return self._fitted.factors.user_biases

    @property
    def item_biases_(self):
        return self._fitted.factors.item_biases

    @property
    def mean_(self):
        return self._fitted.factors.mean


def _listed(given):
    """A list of identifiers; one alone as a list of one."""
    return [given] if isinstance(given, (str, int, np.integer)) else given


def _named(ids, numbers):
    """Identifiers of numbers int64[m, k]; of -1: None, or -1 where they are whole numbers."""
    values = ids.values
    out = np.append(values, np.array([-1 if ids.whole else None], values.dtype))
    return out[numbers]


def _features(name, given):
    """(Ids, X [n, d]) of a pair of identifiers and features."""
    from scipy.sparse import csr_array, issparse
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise UserError(f"{name}_features must be a pair (identifiers, X [n, d])")
    texts, whole = texts_of(given[0])
    X = csr_array(given[1]) if issparse(given[1]) else np.asarray(given[1])
    if X.ndim != 2 or X.shape[0] != len(texts) or X.dtype.kind not in "iufb" or len(texts.unique()) != len(texts):
        raise UserError(f"{name} features: got {len(texts):,} identifiers ({len(texts.unique()):,} different) and X of "
                        f"shape {X.shape} and dtype {X.dtype}, needed a row of real numbers for each, each identifier once")
    if not np.isfinite(X.data if issparse(X) else X).all():
        raise UserError(f"{name} features hold a number that is not finite; replace it")
    return Ids(texts, whole), X
