"""What `hogwild train linear` asks for, in records; sparsecomm's task `linear` asks for the first two, too."""

from dataclasses import dataclass, field
from pathlib import Path

from hogwild.data.options import Files
from hogwild.training.options import Output, Training


@dataclass(frozen=True)
class LinearData(Files):
    """Which rows are trained on and measured, and how they are transformed and weighted."""

    transform: str = "none"
    """Transforms in order: log (log(1+x)), binary, tfidf, l2 (unit rows), scale (by each feature's largest |x|), none. For
    raw counts: log,l2; for columns of different units: scale."""
    class_weight: str | None = None
    """Factors of the classes' losses: balanced, or LABEL=WEIGHT,… (spam=2,ham=1)."""
    sample_weight: Path | None = None
    """Text file with a factor of each row's loss, one a line in the order of DATA's rows (plain, .gz, .bz2, .xz)."""


@dataclass(frozen=True)
class LinearModelOptions:
    """What is fitted."""

    group = "model"  # in --help

    loss: str = "logistic"
    """logistic, hinge, squared-hinge, modified-huber, perceptron, softmax (classes; more than two: each against the rest,
    or softmax); squared, huber[:delta=1.35], epsilon-insensitive[:epsilon=0.1] and squared-epsilon-insensitive (real
    targets, of any size: they are scaled for training, and the model's weights are not)."""
    intercept: bool = True
    """Train without an intercept."""


@dataclass(frozen=True)
class TrainLinear:
    """Train a sparse linear model with lock-free workers. Without DATA: on synthetic data of RCV1's shape.

    Examples:
      hogwild train linear
      hogwild train linear reviews.svm.xz --transform log,l2 --test held-out.svm.xz --model reviews.safetensors
      hogwild train linear prices.csv --loss squared --rule adam:b1=0.95 --schedule cosine --epochs 10

    Ctrl-C and SIGTERM end the training early: what was learnt is saved (--checkpoint, --model), and the exit code is 130 or
    143. A second one ends it at once, and saves nothing more.
    """

    data: LinearData = field(default_factory=LinearData)
    model: LinearModelOptions = field(default_factory=LinearModelOptions)
    training: Training = field(default_factory=Training)
    output: Output = field(default_factory=Output)
