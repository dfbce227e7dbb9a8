"""Training jobs as one rank sees them: its share of every batch, its gradients, its part of the evaluation."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from hogwild.data.files import demand_file
from hogwild.errors import UserError


@dataclass
class _Options:
    """What every task has."""

    data: Positional[Path | None] = None
    """Training data."""
    test: Path | None = None
    """Held-out data; without them, the share --holdout of DATA is held out."""
    holdout: float = 0.1
    """Share of DATA held out where there is no --test; 0 trains on everything."""
    batch: int = 32
    """Examples of each rank in a step; all ranks together make the batch."""
    seed: int = 0
    """Seed of the first weights, the permutations and the held-out share."""


@dataclass
class LinearOptions(_Options):
    """The ground floor's sparse linear models."""

    data: Positional[Path | None] = None
    """svmlight/libsvm text or .csv (plain, .gz, .bz2, .xz), .parquet or .npz; nothing: synthetic data of RCV1's shape."""
    transform: str = "none"
    """Transforms in order: log (log(1+x)), binary, tfidf, l2 (unit rows), scale (by each feature's largest |x|), none. For
    raw counts: log,l2; for columns of different units: scale."""
    loss: str = "logistic"
    """logistic, hinge, squared-hinge, modified-huber, perceptron, softmax (classes; more than two: each against the rest,
    or softmax);
    squared, huber[:delta=1.35], epsilon-insensitive[:epsilon=0.1] and squared-epsilon-insensitive (real targets)."""
    intercept: bool = True
    """Train without an intercept."""
    class_weight: str | None = None
    """Factors of the classes' losses: balanced, or LABEL=WEIGHT,… (spam=2,ham=1)."""
    sample_weight: Path | None = None
    """Text file with a factor of each row's loss, one a line in the order of DATA's rows (plain, .gz, .bz2, .xz)."""
    features: int | None = None
    """Number of features: a larger index in DATA is a mistake; default: the largest index in DATA."""
    zero_based: bool = False
    """svmlight indices start at 0."""
    label: str | None = None
    """Label column of a table (CSV, Parquet), by name or number from 0; default: the last."""
    header: str = "auto"
    """Whether the first line of a CSV names the columns: auto (told from the lines below it), yes or no."""
    categorical: str | None = None
    """Columns of a table, by name or number, each of whose values becomes a feature: COLUMN,…; text is taken so by itself."""
    cache: bool = True
    """Do not keep the parsed file, with which the next run starts at once."""
    rows: int = 200_000
    """Rows of the synthetic training data."""


@dataclass
class _ImageOptions(_Options):
    """Labelled images."""

    data: Positional[Path | None] = None
    """An idx file of images (plain, .gz, .bz2, .xz), a folder with MNIST's four files, or an .npz with x and y (or
    x_train, y_train, x_test, y_test); nothing: scikit-learn's digits."""
    labels: Path | None = None
    """idx file of DATA's labels; default: the one beside it that MNIST's naming tells."""
    test_labels: Path | None = None
    """The same for --test."""


@dataclass
class MlpOptions(_ImageOptions):
    """Three fully connected layers and a softmax, on images."""

    batch: int = 40
    """Images of each rank in a step; all ranks together make the batch."""
    width: int = 1024
    """Units of each layer; Aji & Heafield (2017) have 4096."""
    layer_norm: bool = False
    """Normalize each layer: its gradients are then of a like scale, as one threshold over all layers wants it."""


@dataclass
class CnnOptions(_ImageOptions):
    """Two convolutions and two linear layers, on images."""

    channels: int = 32
    """Planes of the first convolution; the second has twice as many."""


@dataclass
class LmOptions(_Options):
    """LSTM language model on the words of a text."""

    data: Positional[Path | None] = None
    """A text (plain, .gz, .bz2, .xz) with words separated by blanks, or a folder with *train* and *valid* texts."""
    batch: int = 20
    """Parallel streams of each rank, into which the text is cut."""
    bptt: int = 35
    """Words through which each step propagates back."""
    hidden: int = 200
    """Size of the word vectors and of the LSTM layer."""
    tied: bool = False
    """Score the next word with the word vectors themselves."""
    dropout: float = 0.0
    """Share of the LSTM's inputs and outputs that a step leaves out."""
    vocab_size: int = 10_000
    """Words that are told apart, the commonest of the training text; the others become <unk>."""


OPTIONS = {"linear": LinearOptions, "mlp": MlpOptions, "cnn": CnnOptions, "lm": LmOptions}
LOWEST = {"batch": 1, "seed": 0, "rows": 2, "features": 1, "width": 1, "channels": 1, "bptt": 1, "hidden": 1, "vocab_size": 3}
SHARES = ("holdout", "dropout")


def check(options):
    """Everything about a task's options that can be said before the data are read. Raises UserError."""
    for name, low in LOWEST.items():
        value = getattr(options, name, None)
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')} must be at least {low}, got {value}")
    for name in SHARES:
        if not 0 <= getattr(options, name, 0.0) < 1:
            raise UserError(f"--{name} must be a share in [0, 1), got {getattr(options, name):g}")


def build(name, options, rank=0, size=1) -> "Task":
    """The task `name` of OPTIONS, as rank `rank` of `size` sees it. Raises UserError for bad options and bad data."""
    check(options)
    if name not in OPTIONS:
        raise UserError(f"unknown task '{name}': choose from {', '.join(OPTIONS)}")
    if name == "linear":
        from sparsecomm.tasks.linear import LinearTask
        return LinearTask(name, options, rank, size)
    demand_torch(name)
    from sparsecomm.tasks.torch_tasks import ImageTask, LanguageTask
    return (LanguageTask if name == "lm" else ImageTask)(name, options, rank, size)


def demand_torch(what):
    """Raise UserError where torch is missing."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{what} needs torch: pip install 'hogwild-sparsecomm[torch]'")


class Task:
    """One rank's view of a training job; the same on all ranks but for the share of the examples.

    A rank's gradient is that of the sum over its own part of the batch, times ranks / size of the whole batch: the mean
    over the ranks is the mean over the batch, however unequal the parts.
    """

    metric = "accuracy"  # of evaluate(): what early stopping watches by default
    undecayed: frozenset = frozenset()  # tensors that no penalty touches
    default_epochs = 5
    examples: int  # of an epoch
    facts: dict  # what it trains on and what it trains, for people and records
    notes = ()  # lines for people on how the data were read

    def __init__(self, name, options, rank, size):
        self.name, self.options, self.order = name, options, None
        for path in (getattr(options, name, None) for name in ("data", "test", "labels", "test_labels", "sample_weight")):
            if path is not None and size > 1:
                demand_file(path, f"each of {size} ranks reads it")
        self.reshard(rank, size)

    def reshard(self, rank, size):
        """Be rank `rank` of `size` from here on; begin() must follow."""
        self.rank, self.size = rank, size

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.examples // (self.size * self.options.batch))

    def tensors(self) -> dict[str, np.ndarray]:
        """The parameters by name: flat float32 views of the memory that the model computes with."""
        raise NotImplementedError

    def default_lr(self, rule) -> float:
        """The learning rate where the user names none, before what a batch makes of it."""
        return getattr(rule, "default_lr", 0.01)

    def penalties(self, decay, clip) -> tuple:
        """(Decay or None, Clip or None) as its gradients want them, of those that were asked for."""
        return decay, clip

    def reference(self):
        """Losses of a constant prediction and of a run's start (hogwild.training.divergence.Reference); None: not known."""

    def begin(self, epoch):
        """Shuffle for an epoch (from 1): the same permutation on all ranks."""
        self.order = np.random.default_rng((self.options.seed, epoch)).permutation(self.examples)
        self.epoch = epoch

    def part(self, k) -> tuple[np.ndarray, float]:
        """(this rank's examples of batch k, the factor of their summed gradient)."""
        whole = self.size * self.options.batch
        batch = self.order[k * whole:(k + 1) * whole]
        a, b = (len(batch) * r // self.size for r in (self.rank, self.rank + 1))
        return batch[a:b], self.size / len(batch)

    def step(self, k, ready) -> tuple[float, int]:
        """(loss sum, number) of this rank's examples of batch k, from 0.

        Calls ready(name, gradient float32, flat) once for every tensor, as soon as it is final; the array is overwritten
        by the next step.
        """
        raise NotImplementedError

    def evaluate(self, comm=None) -> dict[str, float]:
        """Metrics of the held-out part, the same to the bit for any number of ranks; {} where nothing is held out.

        comm: of all `size` ranks, which must all call this; None for one rank.
        """
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        """What of this rank's the next step depends on, besides parameters, epoch and k."""
        return {}

    def load(self, state):
        """Go on from a `state` of the same rank of as many ranks, after begin()."""

    def arrays(self) -> dict[str, np.ndarray]:
        """The training data, by which a resumed run knows that they are the same."""
        raise NotImplementedError

    def export(self) -> tuple[dict[str, np.ndarray], dict]:
        """(tensors, header) for a model file."""
        raise NotImplementedError


def summed(comm, part) -> np.ndarray:
    """Sum of the ranks' arrays; with zeros in each other's places no rounding happens. comm None: one rank."""
    if comm is None:
        return part
    total = np.empty_like(part)
    comm.Allreduce(part, total)
    return total
