"""When to stop: early stopping by a held-out metric or by the training loss, a target, budgets of steps and seconds."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

from hogwild.errors import UserError
from hogwild.training.metrics import MAXIMISED


@dataclass(frozen=True)
class Stop:
    """Stopping criteria; the first that holds ends the run. Raises UserError for a value outside its range."""

    metric: str | None = None  # held-out metric to watch; None: neither early stopping by a metric nor a target
    patience: int = 3  # stop at the end of so many epochs in a row without improvement (Keras' rule: bad >= patience)
    min_delta: float = 0.0  # an improvement is more than this, in the metric's unit, beyond the last improvement
    restore_best: bool = True  # the result is the parameters of the best epoch, not of the last
    max_steps: int | None = None  # budget of steps (examples)
    max_seconds: float | None = None  # budget of training time
    target: float | None = None  # stop once the metric has reached this
    tol: float | None = None  # stop after `patience` epochs in a row whose training loss > best loss - tol (scikit-learn)
    mode: str | None = None  # max or min; None: max for those in metrics.MAXIMISED, min for all others

    def __post_init__(self):
        self._number("patience", Integral, 1, optional=False)
        self._number("min_delta", Real, 0, optional=False)
        self._number("max_steps", Integral, 1)
        self._number("max_seconds", Real, 0)
        self._number("target", Real, -math.inf)
        self._number("tol", Real, 0)
        if self.mode not in (None, "max", "min"):
            raise UserError(f"mode must be max or min, got {self.mode!r}")
        if self.target is not None and self.metric is None:
            raise UserError(f"target {self.target:g} needs the name of a metric to watch")

    def _number(self, name, kind, low, optional=True):
        value = getattr(self, name)
        if value is None and optional:
            return
        if not isinstance(value, kind) or isinstance(value, bool) or not low <= value or not math.isfinite(value):
            bound = "" if low == -math.inf else f" of at least {low}"
            raise UserError(f"{name} must be a {'whole' if kind is Integral else 'finite'} number{bound}, got {value!r}")


class Stopper:
    """Follows one run under the criteria `stop`.

    known: names of the metrics that the run will measure; with it an unknown name is an error at once, not after an epoch.
    `improved`: the last observation was the best so far (by any margin: min_delta is for patience alone), so its
    parameters are the best ones. `best_epoch`: that epoch, None before one with a finite metric.
    """

    KEPT = ("best", "best_epoch", "reference", "bad", "best_loss", "flat")

    def __init__(self, stop: Stop, known=None):
        self.stop, self.improved = stop, False
        self.maximise = stop.mode == "max" if stop.mode else stop.metric in MAXIMISED
        self.best = self.best_epoch = self.best_loss = None
        self.reference = None  # the metric at the last improvement by more than min_delta
        self.bad = self.flat = 0  # epochs since then; epochs in a row without improvement of the loss
        if known is not None:
            self._check(known)

    def observe(self, epoch: int, metrics: dict[str, float], loss: float, steps: int, seconds: float) -> str | None:
        """Why to stop after `epoch`, in words, or None.

        loss: mean training loss of the epoch; steps, seconds: of the whole run, before a resume too. A metric or loss
        that is not finite counts as no improvement. Raises UserError when the watched metric is not among `metrics`.
        """
        self.improved = False
        reasons = self._metric(epoch, metrics), self._loss(loss), self.spent(steps, seconds)
        return next((reason for reason in reasons if reason), None)

    def reached(self, metrics: dict[str, float]) -> str | None:
        """Why to stop, if the watched metric has reached the target; changes no state: it may be called within an epoch."""
        name, target = self.stop.metric, self.stop.target
        if target is None:
            return None
        value, sign = float(metrics[name]), 1 if self.maximise else -1
        return f"{name} has reached {value:g} (target {target:g})" if sign * value >= sign * target else None

    def spent(self, steps: int, seconds: float) -> str | None:
        """Why to stop, if a budget is used up; changes no state: it may be called within an epoch."""
        stop = self.stop
        if stop.max_steps is not None and steps >= stop.max_steps:
            return f"{steps:,} steps are done (max_steps {stop.max_steps:,})"
        if stop.max_seconds is not None and seconds >= stop.max_seconds:
            return f"{seconds:.1f} s of training are over (max_seconds {stop.max_seconds:g})"
        return None

    def state(self) -> dict:
        """State for `restore`, of types that JSON has."""
        return {name: getattr(self, name) for name in self.KEPT}

    def restore(self, state: dict):
        """Continue from a `state`. Raises UserError for anything else."""
        numbers = isinstance(state, dict) and all(isinstance(value, (int, float, type(None))) for value in state.values())
        if not numbers or set(state) != set(self.KEPT):
            raise UserError("the checkpoint's state of stopping is of another version; start again without the checkpoint")
        for name, value in state.items():
            setattr(self, name, value)
        self.improved = False

    def _check(self, known):
        name = self.stop.metric
        if name is None or name in known:
            return
        if not known:
            raise UserError(f"stopping by {name} needs held-out data, there are none; hold some out, or give a test file")
        raise UserError(f"no metric {name!r} is measured here; choose one of {', '.join(known)}")

    def _metric(self, epoch, metrics):
        stop, name = self.stop, self.stop.metric
        if name is None:
            return None
        self._check(metrics)
        value, sign = float(metrics[name]), 1 if self.maximise else -1
        finite = math.isfinite(value)
        if finite and (self.best is None or sign * value > sign * self.best):
            self.best, self.best_epoch, self.improved = value, int(epoch), True
        if finite and (self.reference is None or sign * value > sign * self.reference + stop.min_delta):
            self.reference, self.bad = value, 0
        else:
            self.bad += 1
        reached = self.reached(metrics) if finite else None
        if reached or self.bad < stop.patience:
            return reached
        moved, by = "risen" if self.maximise else "fallen", f" by more than {stop.min_delta:g}" * (stop.min_delta > 0)
        best = "never finite" if self.best is None else f"best {self.best:g} in epoch {self.best_epoch}"
        return f"{name} has not {moved}{by} for {_epochs(self.bad)} ({best})"

    def _loss(self, loss):
        tol = self.stop.tol
        if tol is None:
            return None
        fallen = math.isfinite(loss) and (self.best_loss is None or loss <= self.best_loss - tol)
        self.flat = 0 if fallen else self.flat + 1
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss = float(loss)
        if self.flat < self.stop.patience:
            return None
        best = "never finite" if self.best_loss is None else f"best {self.best_loss:g}"
        return f"the training loss has not fallen{f' by {tol:g}' * (tol > 0)} for {_epochs(self.flat)} ({best})"


def _epochs(n):
    return f"{n} epoch{'s' * (n != 1)}"
