"""The options of evaluate, predict, recommend and inspect, a dataclass a command; their comments are the text of --help.

Those of `hogwild train FAMILY` belong to the family.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hogwild.data.options import Reading, TableReading


@dataclass(frozen=True)
class Evaluate:
    """Measure a saved model on a file: accuracy, F1, AUC (two classes), log-loss (logistic, softmax); RMSE, MAE and R²
    for real targets. Of a factorization RMSE and MAE, or, with a loss of positives, precision, recall and NDCG at 10 and AUC
    over the full ranking, where a user's training items are left out."""

    model: Positional[Path]
    """A model saved by `hogwild train`."""
    data: Positional[Path]
    """Data file, read as the training file was; the model's row transforms are applied."""
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class Predict:
    """Print one prediction a row: the class and that class's probability, or the predicted value.

    Of the hinge losses, in place of a probability: the class's score; of two classes the score of the second, which is
    predicted where it is above 0. Of a factorization: the score of the row's user and item. Numbers have all their digits.
    Lines on how DATA was read are written to standard error.
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
class Recommend:
    """Print the items with the highest scores for users: lines of user, item and score between tabs, best first.

    Users that the model does not know get the items with the highest bias, and a line on standard error says so.
    """

    model: Positional[Path]
    """A model saved by `hogwild train mf`."""
    users: Annotated[str | None, arg(metavar="USER,…")] = None
    """Whom for: USER,…, or @FILE with one a line; default: all users of the training file."""
    k: Annotated[int, arg(aliases=["-k"], metavar="K")] = 10
    """Items for each user (-k 5 does as well)."""
    items: Path | None = None
    """File of the only items that may be recommended, one a line."""
    include_seen: bool = False
    """Recommend also what the user has a rating of in the training file."""
    out: Path | None = None
    """File (or pipe) for the recommendations; default: standard output."""


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
    """Problem family that would be trained on it: linear, mf."""
    reading: TableReading = field(default_factory=TableReading)
