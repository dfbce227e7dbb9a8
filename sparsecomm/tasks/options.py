"""The options of each task, as the command line asks for them; their comments are the text of --help."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from hogwild.errors import UserError
from hogwild.families.linear_options import LinearData, LinearModelOptions
from hogwild.training.options import at_least


@dataclass(frozen=True)
class _Data:
    """What is trained and measured on."""

    group = "data"  # in --help

    data: Positional[Path | None] = None
    """Training data."""
    test: Path | None = None
    """Held-out data; without them, the share --holdout of DATA is held out."""
    holdout: float = 0.1
    """Share of DATA held out where there is no --test; 0 trains on everything."""


@dataclass(frozen=True)
class _Batches:
    """What the ranks step on."""

    group = "training"

    batch: int = 32
    """Examples of each rank in a step; all ranks together make the batch."""
    seed: int = 0
    """Seed of the first weights, the permutations and the held-out share."""


@dataclass(frozen=True)
class _TaskOptions(_Batches, _Data):
    """What every task has."""

    group = "data"


@dataclass(frozen=True)
class LinearOptions(LinearModelOptions, LinearData, _TaskOptions):
    """The sparse linear models of `hogwild train linear`."""

    data: Positional[Path | None] = None
    """svmlight/libsvm text or .csv (plain, .gz, .bz2, .xz), .parquet or .npz; nothing: synthetic data of RCV1's shape."""


@dataclass(frozen=True)
class _ImageOptions(_TaskOptions):
    """Labelled images."""

    data: Positional[Path | None] = None
    """An idx file of images (plain, .gz, .bz2, .xz), a folder with MNIST's four files, or an .npz with x and y (or
    x_train, y_train, x_test, y_test); nothing: scikit-learn's digits."""
    labels: Path | None = None
    """idx file of DATA's labels; default: the one beside it that MNIST's naming tells."""
    test_labels: Path | None = None
    """The same for --test."""


@dataclass(frozen=True)
class MlpOptions(_ImageOptions):
    """Three fully connected layers and a softmax, on images."""

    group = "model"

    batch: int = 40
    """Images of each rank in a step; all ranks together make the batch."""
    width: int = 1024
    """Units of each layer; Aji & Heafield (2017) have 4096."""
    layer_norm: bool = False
    """Normalize each layer: its gradients are then of a like scale, as one threshold over all layers wants it."""


@dataclass(frozen=True)
class CnnOptions(_ImageOptions):
    """Two convolutions and two linear layers, on images."""

    group = "model"

    channels: int = 32
    """Planes of the first convolution; the second has twice as many."""


@dataclass(frozen=True)
class LmOptions(_TaskOptions):
    """Language model on the words of a text."""

    group = "model"

    data: Positional[Path | None] = None
    """A text (plain, .gz, .bz2, .xz) with words separated by blanks, or a folder with *train* and *valid* texts."""
    batch: int = 20
    """Parallel streams of each rank, into which the text is cut."""
    bptt: int = 35
    """Words through which each step propagates back; the transformer's context."""
    network: str = "lstm"
    """lstm, whose state is carried from step to step, or transformer: causal, norms in front, at most --bptt words seen."""
    hidden: int = 200
    """Size of the word vectors and of the layers."""
    layers: int | None = None
    """Layers; default: lstm 1, transformer 2."""
    heads: int | None = None
    """Attention heads of each layer of the transformer, a divisor of --hidden; default: 4."""
    tied: bool = False
    """Score the next word with the word vectors themselves."""
    dropout: float = 0.0
    """Share of the layers' inputs and outputs that a step leaves out (transformer: of its attention weights too)."""
    vocab_size: int = 10_000
    """Words that are told apart, the commonest of the training text; the others become <unk>."""

    def check(self):
        one_of(self, "network", "lstm", "transformer")
        if self.network == "lstm" and self.heads is not None:
            raise UserError(f"--heads {self.heads} is of --network transformer; an lstm has no attention")
        if self.network == "transformer" and self.hidden % (self.heads or 4):
            raise UserError(f"--hidden must be a multiple of the {self.heads or 4} attention heads, got {self.hidden}; "
                            "change it, or --heads")


@dataclass(frozen=True)
class TaggerOptions(_TaskOptions):
    """BiLSTM that tags the words of sentences."""

    group = "model"

    data: Positional[Path | None] = None
    """CoNLL columns (plain, .gz, .bz2, .xz): a word a line, the word first and its tag last, a blank line behind each
    sentence; or a folder with *train* and *valid*, *dev* or *test* files; nothing: synthetic sentences."""
    batch: int = 16
    """Sentences of each rank in a step; all ranks together make the batch."""
    decoder: str = "softmax"
    """softmax: each word's tag by itself; crf: the likeliest sequence of tags, with a score for each pair in a row."""
    hidden: int = 100
    """Size of the word vectors and of the LSTM in each direction."""
    dropout: float = 0.0
    """Share of the LSTM's inputs and outputs that a step leaves out."""
    vocab_size: int = 20_000
    """Words that are told apart, the commonest of the training sentences; the others become <unk>."""

    def check(self):
        one_of(self, "decoder", "softmax", "crf")


LOWEST = {"batch": 1, "seed": 0, "rows": 2, "features": 1, "width": 1, "channels": 1, "bptt": 1, "hidden": 1, "layers": 1,
          "heads": 1, "vocab_size": 3}
SHARES = ("holdout", "dropout")


def check(options):
    """Everything about a task's options that can be said before the data are read. Raises UserError."""
    at_least(options, **{name: low for name, low in LOWEST.items() if hasattr(options, name)})
    for name in SHARES:
        if not 0 <= getattr(options, name, 0.0) < 1:
            raise UserError(f"--{name} must be a share in [0, 1), got {getattr(options, name):g}")
    if hasattr(options, "check"):
        options.check()


def one_of(options, name, *choices):
    """Raises UserError unless option `name` is one of the choices."""
    if getattr(options, name) not in choices:
        raise UserError(f"--{name} must be {' or '.join(choices)}, got '{getattr(options, name)}'")
