"""What the commands, and model files, need of a problem family."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from hogwild.training.loop import Problem


class Job(NamedTuple):
    """A run of training that a family has prepared."""

    problem: Problem
    title: str  # what is fitted, the first words of the line that says how
    rule: tuple
    schedule: tuple
    epochs: int
    workers: int
    lr: float
    lines: list[str]  # for the user, before the run starts
    facts: dict  # what JSON can write, for the record of the run: "data" and more
    content: dict[str, np.ndarray]  # the training data, which a resumed run must have alike
    export: Callable[[], tuple[dict[str, np.ndarray], dict]]  # (tensors, header) of the model file, after the run
    remark: Callable[[dict[str, float]], str | None] = lambda metrics: None  # a last line, from the final metrics


class FittedModel(Protocol):
    """A saved model in memory."""

    def read(self, path, **reading) -> tuple[Any, list[str]]:
        """(data, lines for the user) of a file, read as the training file was. reading: as of Reading.reading(), see
        hogwild/data/options.py; what the family cannot heed is a UserError. The data have `source` and `rows`."""

    def measure(self, data) -> tuple[dict[str, float], list[str]]:
        """(metrics by name, lines for the user)."""

    def check_probabilities(self):
        """Raise UserError where the model predicts no probabilities."""

    def predict(self, data, probabilities) -> Iterable[str]:
        """Text in whole lines: one line a row; with `probabilities`, a header first."""

    def for_python(self) -> Any:
        """What hogwild.load gives: an object with `predict`, named and behaving as scikit-learn's, which it does not need."""


class Family(Protocol):
    """One family. What its methods raise for a user's mistake is a UserError."""

    options: type  # frozen dataclass of `hogwild train NAME`, whose docstring is the text of --help: the groups of options
    # data, model, …, and `training` and `output` (hogwild/training/options.py)

    def prepare(self, options) -> Job:
        """Check the options, read the data, and make what is to be trained."""

    def load(self, path, tensors, header) -> FittedModel:
        """The model in the file `path`, whose header names this family."""

    def describe(self, options) -> tuple[list[str], list[str]]:
        """(lines on how a data file was read, lines on what it holds) for a hogwild.cli.options.Inspect."""
