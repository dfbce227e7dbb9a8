"""What HogwildClassifier and HogwildRegressor share: the linear family with the parameters and checks of scikit-learn."""

import contextlib
import math
import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse

from hogwild.data import dataset, features
from hogwild.data.sample_weights import SMALLEST, for_kernel
from hogwild.errors import UserError
from hogwild.families import constant, linear, predictions
from hogwild.families.continued import State, begin_at, seen, widened
from hogwild.families.targets import moments, units_of
from hogwild.families.top_features import top_features
from hogwild.kernels.compiler.cache import announce
from hogwild.kernels.losses import LOSSES
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import RULES
from hogwild.kernels.optim.schedules import rate
from hogwild.training import default_rates, lr_search, preflight
from hogwild.training.closing import close
from hogwild.training.loop import Run
from hogwild.training.options import Optimization, Span, penalties, schedule_of
from hogwild.training.record import Report
from hogwild.training.registry import build
from hogwild.training.stopping import Stop, Stopper

try:
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model._base import SparseCoefMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils.extmath import safe_sparse_dot
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("HogwildClassifier and HogwildRegressor need scikit-learn 1.6 or newer: "
                      f"pip install --upgrade scikit-learn ({error})") from error

ROWS_A_WORKER = 2000  # with fewer, starting a thread and merging its private rows cost more than it does
BATCHES = 10_000  # examples of small batches that count as an epoch of a schedule, where there was no fit
INPUT = {"accept_sparse": "csr", "dtype": [np.float32, np.float64]}


@contextlib.contextmanager
def value_errors():
    """Our UserError as the ValueError that scikit-learn's users expect, with the same text."""
    try:
        yield
    except UserError as error:
        raise ValueError(str(error)) from None


@dataclass(kw_only=True, eq=False, repr=False)
class Hogwild(SparseCoefMixin, BaseEstimator):
    """What both estimators share: their parameters, and training. Whatever is wrong with data or parameters is a ValueError.

    Parameters
    ----------
    loss
        Of examples; hyper-parameters may follow: "huber:delta=2".
    rule
        One of `hogwild.kernels.optim.rules.RULES`, as on the command line: "adam:b1=0.95"; or MODULE.CLASS.
    lr
        Learning rate; None: by the rule and the rows' length (hogwild/training/default_rates.py); "auto": tried out.
    schedule
        One of `hogwild.kernels.optim.schedules.SCHEDULES`: "step:gamma=0.8,every=1epoch".
    epochs
        Passes over the rows; None: those that make 50,000 steps, at least 5, at most 200.
    l1
        Penalty l1 |w|_1 on the mean loss; at the end of fit weights that do not help become 0.
    l2
        Penalty l2/2 |w|^2 on the mean loss.
    weight_decay
        Decoupled; None: the rule's own, which is 0 for all but AdamW (0.01).
    clip_norm
        Bound on the L2 norm of an example's gradient.
    clip_value
        Bound on each of its components.
    fit_intercept
        Whether there is an intercept.
    mode
        What happens when two workers change one weight at once: a key of `hogwild.training.replication.MODES`.
    replicas
        What each worker has of its own: a key of `hogwild.training.replication.REPLICAS`.
    workers
        Threads; None: the usable cores, but one for every 2,000 rows at most.
    random_state
        A fit is reproducible by it with one worker, or with mode="deterministic".
    average
        Average the weights over the steps from this epoch on; True: from the second.
    tol
        Stop when the training loss has not fallen by tol for `patience` epochs.
    early_stopping
        Hold a part out, stop `patience` epochs after the best one and keep that.
    validation_fraction
        That part.
    metric
        What is measured on it, without weights; None: accuracy or rmse.
    patience
        Epochs of early_stopping and tol.
    min_delta
        What counts as an improvement of the metric.
    warm_start
        A further fit continues from the weights, the rule's state and the step of the last call.
    verbose
        Above 0: a line an epoch; below 0: not even the one on stderr that the first fit has kernels to compile.

    Attributes
    ----------
    coef_ : float32 array
        [K, d] or, of two classes, [1, d] of a classifier; [d] of a regressor.
    intercept_ : float32 array
        [K], [1].
    n_iter_ : int
        Epochs of the last call.
    loss_curve_ : list of float
        The mean training loss of each epoch, each example before its own step, without penalties, in the unit of y; of
        all calls of partial_fit, and of fit with warm_start.
    n_features_in_ : int
        d.
    """

    loss: str
    rule: str = "adagrad"
    lr: Any = None
    schedule: str = "constant"
    epochs: int | None = None
    l1: float = 0.0
    l2: float = 0.0
    weight_decay: float | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    fit_intercept: bool = True
    mode: str = "wild"
    replicas: str = "auto"
    workers: int | None = None
    random_state: Any = None
    average: Any = False
    tol: float | None = None
    early_stopping: bool = False
    validation_fraction: float = 0.1
    metric: str | None = None
    patience: int = 3
    min_delta: float = 0.0
    warm_start: bool = False
    verbose: int = 0

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _validated(self, X, y, **how):
        """X and y as scikit-learn checks them; columns of a data frame that hold no numbers are named."""
        try:
            return validate_data(self, X, y, **how, **INPUT)
        except ValueError as error:
            columns = [name for name in getattr(X, "column_names", getattr(X, "columns", ())) if not _numeric(X[name])]
            if not columns:
                raise
            raise ValueError(f"columns {', '.join(map(repr, columns[:5]))}{', …' * (len(columns) > 5)} of X hold no numbers: "
                             f"encode them first, say with sklearn.preprocessing.OneHotEncoder ({error})") from None

    def _train(self, X, y, weights, classes=0, once=False, go_on=False, begin=(None, None)):
        """Learn from X [n, d] and y float[n]: targets or, below `classes`, class numbers. Rows of weight 0 are left out.

        once: one epoch, on all rows (partial_fit). go_on: from `_state` on, where there is one. begin: coef_init and
        intercept_init, in place of weights that are 0 or the last call's.
        """
        if self.verbose >= 0:
            announce()
        old, seed = getattr(self, "_state", None) if go_on else None, check_random_state(self.random_state).randint(2**31)
        X, y, weights = _weighted(X, y, weights)
        with value_errors():
            whole, rows, held = dataset.from_arrays(X, y, "X"), None, None
            if self.early_stopping and not once:
                rows, out = _split(y if classes else None, len(y), self.validation_fraction, seed)
                held = dataset.select(whole, out)
            whole = widened(whole, begin[0])
            if old:
                old.demand(whole.width, predictions.outputs_of(self._loss(), classes))
                whole, old = old.met(whole)
            held = held and features.onto(held, whole)[0]
            fitted = slice(None) if rows is None else rows
            known = seen(whole, None if classes else moments(y[fitted], weights if weights is None else weights[fitted]))
            if old:
                known = old.seen.joined(known)
            # Of batches nobody knows how many make an epoch; schedules should not depend on their size.
            length = max(len(y), old.epoch if old else BATCHES) if once else len(y[fitted])
            problem, run, lr, sizes = self._prepare(whole, rows, held, weights, classes, once, old, seed, known, length)
            begin_at(problem, *begin)
            first = run.t
            run.go()
            if not once:  # a batch is too small to judge by
                run.judge()
                hint = default_rates.hint(problem.rule, problem.loss, sizes, float(rate(run.schedule, first)))
                run.warnings += [hint] if hint else []
        for line in run.warnings:
            warnings.warn(line, ConvergenceWarning, stacklevel=3)
        # The weights are those of the best epoch, or of the last; so must be the step that the average is taken at.
        problem.steps = first + sum(epoch.examples for epoch in run.history[:run.stopper.best_epoch])
        if not once:
            close(problem, run.stopper.stop.metric, run.report)
        self.n_iter_ = len(run.history)
        self.loss_curve_ = [*(getattr(self, "loss_curve_", ()) if old else ()), *(epoch.loss for epoch in run.history)]
        if run.report:
            run.report.close()
        self._state = State(problem.shared, problem.steps, self.rule, lr, problem.average and tuple(problem.average),
                            problem.units, known, sizes, length, whole.ids, whole.width)
        self._set_weights(problem.w.reshape(len(problem.shared), -1), classes, whole)
        return self

    def _set_weights(self, w, classes, whole):
        """Set coef_ and intercept_ to the weights w [features that occur in `whole` + 1, K]."""
        w = w[:, 1:] - w[:, :1] if classes == 2 and w.shape[1] == 2 else w  # softmax of two: its log-odds
        self.coef_, self.intercept_ = np.ascontiguousarray(w[:-1].T), w[-1].copy()
        if whole.ids is not None:
            narrow, self.coef_ = self.coef_, np.zeros((w.shape[1], whole.width), w.dtype)
            self.coef_[:, whole.ids] = narrow

    def _prepare(self, whole, rows, held, weights, classes, once, old, seed, known, length):
        """(problem, run, learning rate that was found, sizes of rows) of one call, at the step where `old` ended."""
        examples = whole.rows if rows is None else len(rows)
        epochs = 1 if once else self._epochs(examples)
        loss = self._loss()
        same = old and old.rule == self.rule
        old = old if same or not old else old.anew()
        first = old.steps if old else 0
        metric = (self.metric or ("accuracy" if classes else "rmse")) if held else None
        # A schedule spans the steps done and those of `epochs` more, so that it has not ended before they begin.
        span = Span(first / length + self._epochs(length), length)
        steps = Optimization(self.rule, None, self.schedule, None, self.l2, self.weight_decay, self.clip_norm,
                             self.clip_value)
        rule = build(self.rule, RULES, "rule")
        sizes = default_rates.sizes_of(whole, rows, weights)
        sizes = old.sizes.joined(sizes) if old else sizes
        default = default_rates.default_lr(rule, loss, sizes)
        decay, clip = penalties(steps)
        average, workers = self._average_from(old, first, examples), self._workers(examples)
        units = units_of(loss, known.targets, self.fit_intercept)

        def make(rows, workers, mode, replicas="auto"):
            return constant.start(linear.Linear(
                whole, held, loss, rule, decay, clip, self.fit_intercept, workers, rows, mode, self.l1, average, weights,
                np.arange(classes) if classes else None, replicas, units=units, seen=known))
        lr, found = default if self.lr is None else self.lr, None
        if lr == "auto":
            every = np.arange(whole.rows) if rows is None else rows
            lr = found = old and old.lr or lr_search.best_rate(lambda some: make(some, 1, "wild"), rule, default, every,
                                                                workers, seed)[0]
        if not isinstance(lr, Real):
            raise ValueError(f"lr must be a number, None or 'auto', got {lr!r}")
        schedule = checked(schedule_of(steps, rule, span, lr, metric or "loss"))
        problem = make(rows, workers, self.mode, self.replicas)
        if old:
            old.put(problem, 1 + len(rule.start()) if same else 1)
        stop = Stop(metric, self.patience, self.min_delta, tol=None if once else self.tol)
        run = Run(problem, rule, schedule, epochs, workers, seed + first, Report() if self.verbose > 0 else None,
                  Stopper(stop, list(problem.evaluate())), 5, None)
        run.t = first
        return problem, run, found, sizes

    def _loss(self):
        return build(self.loss, {name: LOSSES[name] for name in self._losses}, "loss")

    def _epochs(self, examples):
        if self.epochs is None:
            return default_rates.default_epochs(examples)
        return _whole("epochs", self.epochs)

    def _workers(self, examples):
        if self.workers is None:
            return max(min(preflight.usable_cores()[0], examples // ROWS_A_WORKER), 1)
        return min(_whole("workers", self.workers), examples)

    def _average_from(self, old, first, examples):
        """The step from which the weights are averaged, or None."""
        epoch = float(self.average) if isinstance(self.average, Real) else math.nan  # True is 1
        if not 0 <= epoch < math.inf:
            raise ValueError(f"average must be True, False or an epoch, not negative, got {self.average!r}")
        if self.average is False:
            return None
        return old.average[0] if old and old.average else first + epoch * examples

    def top_features(self, n=20, class_=None):
        """The features with the n largest and the n smallest weights: hogwild.families.top_features.TopFeatures, whose
        `positive` and `negative` are lists of (feature, weight), largest in size first.

        A feature is named by `feature_names_in_`, else by its column in X, an int from 0. class_: whose weights; of two
        classes the second by default (those of the first have the other sign); of more it must be given; a regressor has
        none. Weights compare features of one scale.
        """
        check_is_fitted(self)
        coef = self.coef_.toarray() if issparse(self.coef_) else self.coef_
        with value_errors():
            return top_features(np.atleast_2d(coef).T, getattr(self, "feature_names_in_", None), n,
                                getattr(self, "classes_", None), class_)

    def _scores(self, X):
        check_is_fitted(self)
        X, coef = validate_data(self, X, reset=False, **INPUT), self.coef_
        if issparse(X) and issparse(coef):  # scikit-learn multiplies these only where they have one dtype
            dtype = np.result_type(X.dtype, coef.dtype)
            X, coef = X.astype(dtype), coef.astype(dtype)
        elif issparse(X) and features.too_wide(X.shape[1], X.nnz):  # would copy all of coef_ for some of X's features
            ids, places = np.unique(X.indices, return_inverse=True)
            X, coef = csr_array((X.data, places, X.indptr), (X.shape[0], ids.size)), coef[..., ids]
        return safe_sparse_dot(X, coef.T, dense_output=True) + self.intercept_


def _weighted(X, y, weights):
    """Those of X, y and the weights (or None), as the kernel wants these, whose weight is not 0."""
    if weights is not None and weights.min() <= 0:
        kept = weights > 0
        if weights.min() < 0 or not kept.any():
            raise ValueError("weights of rows and classes must not be negative nor all be zero")
        X, y, weights = X[kept], y[kept], weights[kept]
    if weights is not None:
        with value_errors():
            kept, weights = weights >= SMALLEST, for_kernel(weights)
        if not kept.all():
            warnings.warn(f"weights below {SMALLEST:.2g} count as 0: {len(kept) - kept.sum():,} rows", stacklevel=4)
            X, y, weights = X[kept], y[kept], weights[kept]
    return X, y, weights


def _split(labels, n, share, seed):
    """(rows to train on, rows held out) of n, of each class alike if there are enough; a class's only row is of the first."""
    rows, few = np.arange(n), np.zeros(n, bool)
    if labels is not None:
        _, numbers, counts = np.unique(labels, return_inverse=True, return_counts=True)
        few = counts[numbers] < 2
        labels = labels[~few]
    try:
        own, out = train_test_split(rows[~few], test_size=share, random_state=seed, stratify=labels)
    except ValueError:  # fewer rows on one side than classes, or none
        own, out = train_test_split(rows[~few], test_size=share, random_state=seed)
    return np.append(own, rows[few]), out


def _numeric(column) -> bool:
    try:
        np.asarray(column, np.float64)
    except (ValueError, TypeError):
        return False
    return True


def _whole(name, value):
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, or None, got {value!r}")
    return int(value)
