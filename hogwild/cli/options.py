"""The options of evaluate, predict and inspect, a dataclass a command; their comments are the text of --help.

Those of `hogwild train FAMILY` belong to the family.
"""

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from hogwild.data.options import Reading, TableReading


@dataclass(frozen=True)
class Evaluate:
    """Measure a saved model on a file: accuracy, F1, AUC (two classes), log-loss (logistic, softmax); RMSE, MAE and R²
    for real targets."""

    model: Positional[Path]
    """A model saved by `hogwild train`."""
    data: Positional[Path]
    """Data file, read as the training file was; the model's row transforms are applied."""
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class Predict:
    """Print one prediction a row: the class and that class's probability, or the predicted value.

    Of the hinge losses, in place of a probability: the class's score; of two classes the score of the second, which is
    predicted where it is above 0. Numbers have all their digits. Lines on how DATA was read are written to standard error.
    """

    model: Positional[Path]
    """A model saved by `hogwild train`."""
    data: Positional[Path]
    """Data file, read as the training file was; its labels are ignored (svmlight wants one: any number)."""
    out: Path | None = None
    """File (or pipe) for the predictions; default: standard output."""
    probabilities: bool = False
    """Print a header line of the classes, then of each row their probabilities."""
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class Inspect:
    """Describe a data file and what it means for lock-free workers.

    Prints rows, features, non-zeros, values and labels; the paper's Ω, Δ and ρ (exact, a lower bound, or from a
    sample); the predicted share of lost updates; the advised number of workers, and how many cores there really are.
    """

    data: Positional[Path]
    """Data file."""
    workers: int | None = None
    """Threads to predict lost updates for; default: as many as advised."""
    family: str = "linear"
    """Problem family that would be trained on it."""
    reading: TableReading = field(default_factory=TableReading)
