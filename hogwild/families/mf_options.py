"""What `hogwild train mf` asks for, in records."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hogwild.errors import UserError
from hogwild.training.options import Optimization, Output, Stopping, Workers, at_least
from hogwild.training.replication import check_sharing
from hogwild.training.units import steps_of


@dataclass(frozen=True)
class RatingFiles:
    """Which ratings are trained on and measured."""

    group = "data"  # in --help

    data: Annotated[Positional[Path | None], arg(metavar="RATINGS")] = None
    """Lines user::item::rating[::time], or CSV of any separator (plain, .gz, .bz2, .xz), .parquet, the CSR matrix of
    scipy.sparse.save_npz (.npz), - (standard input); nothing: synthetic ratings."""
    test: Path | None = None
    """Held-out file; without one, the share --holdout of RATINGS is held out."""
    holdout: float = 0.1
    """Share of RATINGS held out where there is no --test; 0 trains on everything."""
    leave_last_out: bool = False
    """Hold out, in place of a share, each user's last rating by time (without times: in the file)."""
    columns: Annotated[str | None, arg(metavar="USER,ITEM,…")] = None
    """Columns of a table: USER,ITEM[,RATING[,TIME]], names or numbers from 0; default: found by usual names, else the
    first."""
    header: Annotated[str, arg(metavar="auto|yes|no")] = "auto"
    """Whether the first line names the columns: auto (it holds no number), yes or no."""
    rows: int = 200_000
    """Synthetic training ratings."""

    def check(self):
        """Raises UserError for a value outside its range."""
        at_least(self, rows=1000)
        if not 0 <= self.holdout < 1:
            raise UserError(f"--holdout must be a share in [0, 1), got {self.holdout:g}")
        if self.leave_last_out and self.test:
            raise UserError("--leave-last-out and --test both say what is held out: leave one of them out")


@dataclass(frozen=True)
class MFModelOptions:
    """What is fitted."""

    group = "model"

    loss: str = "squared"
    """Of ratings: squared, absolute, huber[:delta=1.35], logistic (above 0: yes, else no). Of positives, whatever their
    ratings, against items that the user has not: bpr, warp[:draws=10]."""
    rank: int = 32
    """Number of factors of a user and of an item, 1 to 256."""
    biases: bool = True
    """Train without biases of users and items."""
    decay_per: Annotated[str, arg(metavar="rating|row")] = "rating"
    """What the L2 penalty is of. rating: of each rating's rows, as in LIBMF: rows with more ratings are shrunk more.
    row: of each row once, as in the Hogwild paper.
    """
    popularity: float = 0.0
    """Power of the items' popularity by which bpr and warp draw negatives; 0: all alike."""


@dataclass(frozen=True)
class MFTraining(Stopping, Workers, Optimization):
    """How a factorization is trained by the workers of one machine."""

    group = "training"

    rule: str | None = None
    """sgd, momentum, nesterov, adagrad, row-adagrad (one sum of squares a row, as LIBMF), rmsprop, adam, adamw, nadam, radam,
    adabelief; or module.Class of your own. Hyper-parameters follow: adam:b1=0.95. Default: sgd."""
    lr: Annotated[float | None, arg(metavar="RATE")] = None
    """Learning rate, for ratings scaled to a standard deviation of 1; default: what suits the rule and the loss."""
    schedule: str | None = None
    """constant, inverse-time, inverse-sqrt, exponential, step, multistep, polynomial, noam, cosine, cosine-restarts,
    triangular, triangular2, exp-range, onecycle, plateau (of the held-out metric, or of the training loss).
    Parameters follow, durations in steps or epochs: step:gamma=0.8,every=1epoch. Default: polynomial (to 0 in a line)."""
    l2: float | None = None
    """L2 penalty l2/2 of a rating's factors and biases, in the unit of the ratings (see --decay-per); default: what suits
    the loss and the ratings' spread."""
    early_stopping: Annotated[str | None, arg(metavar="METRIC")] = None
    """Metric whose best epoch is the result, and training stopped --patience epochs after it: rmse, mae; of bpr and warp
    ndcg@10, precision@10, recall@10, auc; of logistic accuracy, f1, auc, log_loss."""
    max_steps: int | None = None
    """Stop after so many ratings."""
    replicas: Annotated[str, arg(metavar="auto|none")] = "auto"
    """Workers share all rows: auto and none say the same."""
    epochs: int | None = None
    """Passes over the ratings; default: 10, of bpr 30, of warp 20."""
    retries: int = 5
    """Maximum rollbacks to the last good state, each with half the learning rate, after a loss that is not finite."""
    seed: int = 0
    """Seed of the first factors, the order, the held-out part and the synthetic ratings."""

    def check(self):
        """Raises UserError for a value outside its range."""
        at_least(self, epochs=1, workers=1, seed=0, retries=0)
        for name in "lr", "l2":
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(f"--{name} must be a finite number, not negative, got {value:g}")
        steps_of("--warmup", self.warmup or 0, 1)
        check_sharing(self.mode, self.replicas)


@dataclass(frozen=True)
class TrainMF:
    """Factorize a matrix of ratings with lock-free workers. Without RATINGS: synthetic ones of rank 8.

    Examples:
      hogwild train mf
      hogwild train mf ratings.csv --rank 64 --model films.safetensors
      hogwild train mf ratings.csv --loss bpr --leave-last-out --model films.safetensors

    Ctrl-C and SIGTERM end the training early: what was learnt is saved (--checkpoint, --model), and the exit code is 130 or
    143. A second one ends it at once, and saves nothing more.
    """

    data: RatingFiles = field(default_factory=RatingFiles)
    model: MFModelOptions = field(default_factory=MFModelOptions)
    training: MFTraining = field(default_factory=MFTraining)
    output: Output = field(default_factory=Output)
