"""The tasks by name, found before their code, torch or MPI is imported: a new task is its file, its options and one entry."""

import importlib
import importlib.util
from typing import NamedTuple

from hogwild.errors import UserError
from sparsecomm.tasks.options import CnnOptions, LinearOptions, LmOptions, MlpOptions, TaggerOptions, check


class Entry(NamedTuple):
    """What is known of a task without its code."""

    options: type  # dataclass of its options
    module: str  # of sparsecomm.tasks
    cls: str  # a subclass of sparsecomm.tasks.base.Task
    summary: str  # its line of `sparsecomm --help`
    help: str  # text of `sparsecomm train NAME --help`
    rule: str = "adagrad"  # where the user names none, and …
    lr_factor: float = 1  # … what its default learning rate is multiplied by
    data: str = "[DATA]"  # DATA: needed; [DATA]: there are data without
    needs_torch: bool = True
    evaluated_by: str = "sparsecomm"  # the command that measures a saved model


TASKS = {
    "linear": Entry(
        LinearOptions, "linear", "LinearTask", "a sparse linear model (no DATA: synthetic data); hogwild evaluates it",
        """Train a sparse linear model on many processes. Without DATA: on synthetic data of RCV1's shape.

Examples:
  mpiexec -n 4 sparsecomm train linear
  mpiexec -n 4 sparsecomm train linear reviews.svm.xz --transform log,l2 --model reviews.safetensors
  hogwild evaluate reviews.safetensors other.svm.xz""",
        lr_factor=2,  # the default is for steps of one example, and the mean gradient of a batch is smaller
        needs_torch=False, evaluated_by="hogwild"),
    "mlp": Entry(
        MlpOptions, "torch_tasks", "MlpTask", "fully connected layers on images (no DATA: scikit-learn's digits)",
        """Train three fully connected layers on images, on many processes. Without DATA: on scikit-learn's digits.

Examples:
  mpiexec -n 2 sparsecomm train mlp --width 128 --epochs 10
  mpiexec -n 4 sparsecomm train mlp mnist/ --keep 0.001 --value-code float16 --drop-warmup 1
  mpiexec -n 4 sparsecomm train mlp mnist/ --exchange dense"""),
    "cnn": Entry(
        CnnOptions, "torch_tasks", "CnnTask", "a convolutional network on images, likewise",
        """Train two convolutions and two linear layers on images, on many processes. Without DATA: on scikit-learn's digits.

Examples:
  mpiexec -n 2 sparsecomm train cnn
  mpiexec -n 4 sparsecomm train cnn mnist/ --rule sgd --lr 0.05 --momentum-correction 0.9"""),
    "lm": Entry(
        LmOptions, "torch_tasks", "LanguageTask", "a language model on a text: LSTM or Transformer",
        """Train a language model, LSTM or Transformer, on the words of a text, on many processes.

Examples:
  mpiexec -n 2 sparsecomm train lm ptb/ --epochs 2 --early-stopping perplexity
  mpiexec -n 2 sparsecomm train lm ptb/ --network transformer --warmup 500steps --dropout 0.1
  mpiexec -n 4 sparsecomm train lm novel.txt.gz --rule sgd --lr 1 --clip-norm 5 --schedule plateau""",
        rule="adam", lr_factor=4, data="DATA"),
    "tagger": Entry(
        TaggerOptions, "tagger", "TaggerTask", "a BiLSTM that tags words (no DATA: synthetic sentences)",
        """Train a BiLSTM, with softmax or CRF, that tags the words of sentences, on many processes. Without DATA: on
synthetic sentences. F1 is that of whole chunks (seqeval, strict); where tags mark no chunks, accuracy is measured alone.

Examples:
  mpiexec -n 2 sparsecomm train tagger --epochs 3
  mpiexec -n 4 sparsecomm train tagger conll2000/ --decoder crf --dropout 0.5 --early-stopping f1""",
        rule="adam", lr_factor=4),
}


def entry(name) -> Entry:
    """Raises UserError for a task that is not in TASKS, and where it needs torch and there is none."""
    if name not in TASKS:
        raise UserError(f"unknown task '{name}': choose from {', '.join(TASKS)}")
    if TASKS[name].needs_torch and importlib.util.find_spec("torch") is None:
        raise UserError(f"{name} needs torch: pip install '.[torch]'")
    return TASKS[name]


def task_class(name) -> type:
    """The class of the task `name`, its module imported. Raises UserError as `entry` does."""
    found = entry(name)
    return getattr(importlib.import_module(f"sparsecomm.tasks.{found.module}"), found.cls)


def build(name, options, rank=0, size=1):
    """The Task `name`, as rank `rank` of `size` sees it. Raises UserError for bad options and bad data."""
    check(options)
    return task_class(name)(name, options, rank, size)
