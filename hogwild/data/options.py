"""Options of data files as small records; their comments are the text of --help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from hogwild.errors import UserError

COLUMN = arg(metavar="COLUMN")


@dataclass(frozen=True)
class Reading:
    """How a data file is read."""

    group = "data"  # in --help

    zero_based: bool = False
    """svmlight indices start at 0."""
    label: Annotated[str | None, COLUMN] = None
    """Label column of a table; default: the model's."""
    header: Annotated[str, arg(metavar="auto|yes|no")] = "auto"
    """Whether the first line of a CSV names the columns: auto (told from the lines below it), yes or no."""
    cache: bool = True
    """Do not keep the parsed file."""

    def reading(self) -> dict:
        """Arguments of hogwild.data.dataset.read; None is what the user leaves open."""
        return {"zero_based": self.zero_based or None, "label": self.label, "header": self.header, "cache": self.cache}


@dataclass(frozen=True)
class TableReading(Reading):
    """How a data file is read that no model knows yet."""

    label: Annotated[str | None, COLUMN] = None
    """Label column of a table (CSV, Parquet), by name or number from 0; default: the last."""
    categorical: Annotated[str | None, arg(metavar="COLUMN,…")] = None
    """Columns of a table, by name or number, each of whose values becomes a feature: COLUMN,…; text is taken so by itself."""

    def reading(self):
        return {**super().reading(), "categorical": self.categorical}


@dataclass(frozen=True)
class Files(TableReading):
    """The files that a model is trained and measured on."""

    data: Positional[Path | None] = None
    """svmlight/libsvm text or .csv (plain, .gz, .bz2, .xz), .parquet, .npz, - (standard input); nothing: synthetic data."""
    test: Path | None = None
    """Held-out file; without one, the share --holdout of DATA is held out."""
    holdout: float = 0.1
    """Share of DATA held out where there is no --test; 0 trains on everything."""
    features: int | None = None
    """Number of features: a larger index in DATA is a mistake; default: the largest index in DATA."""
    cache: bool = True
    """Do not keep the parsed file, with which the next run starts at once."""
    rows: int = 200_000
    """Rows of the synthetic training data."""

    def check(self):
        """Raises UserError for a value outside its range."""
        for name, low in ("rows", 2), ("features", 1):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"--{name} must be at least {low}, got {value}")
        if not 0 <= self.holdout < 1:
            raise UserError(f"--holdout must be a share in [0, 1), got {self.holdout:g}")
