"""The options of each task, as the command line asks for them; their comments are the text of --help."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

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
