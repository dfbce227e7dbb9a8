"""Options of training as small records, each given to those whom it concerns; their comments are the text of --help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from tyro.conf import arg

from hogwild.errors import UserError, demand_folder
from hogwild.kernels.optim.rules import RULES
from hogwild.kernels.optim.schedules import SCHEDULES, Warmup
from hogwild.kernels.optim.steps import Clip, Decay
from hogwild.training import loggers, model_files
from hogwild.training.metrics import MAXIMISED
from hogwild.training.registry import build
from hogwild.training.replication import check_sharing
from hogwild.training.stopping import Stop
from hogwild.training.units import steps_of

# Options that a resumed run may change: they say where and how long, not what is computed; the data
# themselves are compared.
FREE_ON_RESUME = ("data", "test", "sample_weight", "cache", "model", "record", "logger", "config", "quiet", "checkpoint",
                  "checkpoint_seconds", "resume", "epochs", "max_steps", "max_seconds", "retries", "workers", "replicas",
                  "on_failure")


@dataclass(frozen=True)
class Optimization:
    """How a gradient becomes a step."""

    group = "training"  # in --help

    rule: str = "adagrad"
    """sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, nadam, radam, adabelief, apollo;
    or module.Class of your own. Hyper-parameters follow: adam:b1=0.95,eps=1e-6."""
    lr: Annotated[str | None, arg(metavar="RATE")] = None
    """Learning rate; auto: the best of some tried on a sample; default: what suits the rule and the data's rows.
    For real targets: of targets scaled to a standard deviation of 1."""
    schedule: str = "constant"
    """constant, inverse-time, inverse-sqrt, exponential, step, multistep, polynomial, noam, cosine, cosine-restarts,
    triangular, triangular2, exp-range, onecycle, plateau (of the held-out metric, or of the training loss).
    Parameters follow, durations in steps or epochs: step:gamma=0.8,every=1epoch."""
    warmup: Annotated[str | None, arg(metavar="DURATION")] = None
    """Linear warm-up of the learning rate, in front of the schedule: 0.5epochs, 500steps; a number alone: epochs. Default: 0
    (Apollo: 500steps)."""
    l2: float = 0.0
    """L2 penalty l2/2 |w|^2 on the mean loss, added to the gradient (coupled)."""
    weight_decay: float | None = None
    """Decoupled weight decay; default 0 (AdamW: 0.01)."""
    clip_norm: float | None = None
    """Clip each example's gradient to this L2 norm."""
    clip_value: float | None = None
    """Clip each component of the gradient to this size."""


@dataclass(frozen=True)
class Stopping:
    """What ends a run before its last epoch."""

    group = "stopping"

    early_stopping: Annotated[str | None, arg(metavar="METRIC")] = None
    """Metric whose best epoch is the result, and training stopped --patience epochs after it: accuracy, f1, log_loss (of
    logistic and softmax), auc (of two classes, not with softmax); for real targets rmse, mae, r2."""
    patience: int = 3
    """Epochs in a row without improvement before --early-stopping or --tol ends the run."""
    min_delta: float = 0.0
    """What counts as an improvement of the metric."""
    target: float | None = None
    """Stop once the metric of --early-stopping has reached this."""
    tol: float | None = None
    """Stop when the training loss has not fallen by this for --patience epochs."""
    max_steps: int | None = None
    """Stop after so many examples."""
    max_seconds: float | None = None
    """Stop after so many seconds of training."""

    def criteria(self) -> Stop:
        """Raises UserError for a value outside its range."""
        return Stop(metric=self.early_stopping, patience=self.patience, min_delta=self.min_delta, max_steps=self.max_steps,
                    max_seconds=self.max_seconds, target=self.target, tol=self.tol)


@dataclass(frozen=True)
class Workers:
    """The workers of one machine, and what they share."""

    group = "sharing"

    workers: int | None = None
    """Threads; default: as many as are advised for the data, see hogwild inspect."""
    mode: str = "wild"
    """How workers share the parameters.
    wild: plain loads and stores, no lock: no worker waits for another's step, and an update of a shared weight may be lost.
    atomic: compare-and-swap additions: no update is lost.
    locked: a row's weights change together (a lock each), and no update is lost.
    round-robin: updates in strict turn, step t after step t - 1, and none is lost.
    deterministic: for a seed the same bits, whatever the number of workers.
    """
    replicas: str = "auto"
    """What each worker has a replica of, merged every few hundred updates.
    auto: all in mode wild where parameters are few beside the data, else hot; none in the modes that lock or take turns.
    none: everything is shared; with mode wild, the Hogwild paper's lock-free algorithm to the letter.
    hot: the intercept and the commonest features (modes wild and atomic).
    all: all parameters, so that no update is lost (mode wild; not for --l1 with --average).
    """


@dataclass(frozen=True)
class Training(Stopping, Workers, Optimization):
    """How a model is trained by the workers of one machine."""

    group = "training"

    l1: float = 0.0
    """L1 penalty l1 |w|_1 on the mean loss: weights that do not help become 0, at the end of training those that its last
    steps left near 0. With --l2: elastic net."""
    epochs: int | None = None
    """Passes over the training data; default: those that make 50,000 steps, at least 5, at most 200."""
    average: float | None = None
    """Average the weights over all steps from this epoch on (ASGD); 0: from the start."""
    retries: int = 5
    """Maximum rollbacks to the last good state, each with half the learning rate, after a loss that is not finite."""
    seed: int = 0
    """Seed of the permutations (and of the synthetic data)."""

    def check(self):
        """Raises UserError for a value outside its range."""
        at_least(self, epochs=1, workers=1, seed=0, retries=0)
        not_negative(self, "average", "l1")
        steps_of("--warmup", self.warmup or 0, 1)  # of any epoch: before the data are read
        check_sharing(self.mode, self.replicas)


@dataclass(frozen=True)
class Output:
    """Where the run's results are written, and from where an interrupted run resumes."""

    group = "output"

    model: Path | None = None
    """Where the model is saved (safetensors)."""
    record: Path | None = None
    """File to which the run's JSON lines are appended."""
    logger: str | None = None
    """Log options, losses and metrics to tensorboard (folder runs/), mlflow or wandb too, if it is installed."""
    checkpoint: Path | None = None
    """File for checkpoints: written while it runs, and on Ctrl-C and SIGTERM."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints."""
    resume: bool = False
    """Resume from --checkpoint, where there is one."""
    quiet: bool = False
    """Print nothing but warnings and errors, both on standard error; files are written as ever."""
    config: Path | None = None
    """TOML file with any of these options; the command line overrides it."""

    def check(self):
        """Raises UserError where a file could not be written at the end, before hours of training."""
        if self.resume and not self.checkpoint:
            raise UserError("--resume needs --checkpoint FILE: what to resume from")
        if self.logger is not None:
            loggers.check(self.logger)
        if self.record:
            demand_folder(self.record, "record", "--record")
        for path in (self.model, self.checkpoint):
            if path:
                model_files.check_writable(path)


def at_least(options, **lowest):
    """Raise UserError for an option below its lowest value; None is none."""
    for name, low in lowest.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")


def not_negative(options, *names):
    """Raise UserError for an option that is no finite number from 0 on; None is none."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 <= value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} must be a finite number, not negative, got {value:g}")


def learning_rate(optimization):
    """The learning rate as a number, "auto", or None for the rule's default. Raises UserError."""
    if optimization.lr is None or optimization.lr == "auto":
        return optimization.lr
    try:
        lr = float(optimization.lr)
    except ValueError:
        lr = -1.0
    if not 0 <= lr < float("inf"):
        raise UserError(f"--lr must be auto or a finite number, not negative, got {optimization.lr}")
    return lr


def penalties(optimization, rule=None) -> tuple:
    """(Decay or None, Clip or None) of an Optimization; rule: in place of its own. Raises UserError."""
    rule_decay = getattr(build(optimization.rule, RULES, "rule") if rule is None else rule, "default_wd", 0.0)
    l2, wd = optimization.l2, rule_decay if optimization.weight_decay is None else optimization.weight_decay
    decay = build("decay", {"decay": Decay}, "option", l2=l2, wd=wd) if l2 or wd else None
    bounds = {"norm": optimization.clip_norm, "value": optimization.clip_value}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    return decay, build("clip", {"clip": Clip}, "option", **bounds) if bounds else None


class Span(NamedTuple):
    """How long a schedule is."""

    epochs: float
    steps: int  # of an epoch


def schedule_of(optimization, rule, span, lr, watched):
    """The schedule of the learning rate with its warm-up. watched: a plateau's metric, or "loss" of training. Raises
    UserError."""
    rows = span.steps
    ahead, share = getattr(rule, "default_warmup", (0, 0.0)) if optimization.warmup is None else (
        steps_of("--warmup", optimization.warmup, rows), 0.0)
    total = max(span.epochs * rows - ahead, 1)
    half, kind = max(total // 2, 1), optimization.schedule.partition(":")[0]
    # Where a step is an example, a decay that people think of by the epoch is its root by the step.
    gamma = 0.8 ** (1 / rows) if kind in ("exponential", "exp-range") else 1.0 if kind.startswith("triangular") else 0.8
    schedule = build(optimization.schedule, SCHEDULES, "schedule", rows, lr=lr,
                     steps=rows if kind == "cosine-restarts" else total, warmup=max(rows // 10, 1), every=rows,
                     decay=1 / rows, up=half, down=half, low=lr / 10, gamma=gamma, milestones=(half,),
                     maximise=watched in MAXIMISED)
    return Warmup(schedule, ahead, share) if ahead else schedule


def check_schedule(optimization, rule, epochs):
    """Raise UserError for a schedule that cannot be built, before the data are read. epochs: int, or None for the default."""
    schedule_of(optimization, rule, Span(epochs or 1, 1 << 30), 1.0, "loss")
