"""Family "torch" as the commands find it: torch models, trained by processes that share them."""

from dataclasses import dataclass, field, replace
from typing import Annotated

from tyro.conf import Positional, arg

from hogwild.errors import UserError
from hogwild.families.family import Job
from hogwild.training.options import Optimization, Output, Stopping, at_least
from hogwild.training.units import steps_of

EPOCHS = 5


@dataclass(frozen=True)
class TorchData:
    """What is trained."""

    group = "data"

    task: Annotated[Positional[str], arg(metavar="MODULE:FUNCTION")] = ""
    """A function in a module that can be imported from here; it returns a hogwild.torch.Task."""


@dataclass(frozen=True)
class TorchSharing:
    """How the worker processes share the model."""

    group = "sharing"

    workers: int | None = None
    """Processes, each with one thread; default: one for each core."""
    mode: str = "wild"
    """How workers change the shared model.
    wild: plain loads and stores, no lock: an update of a shared weight may be lost.
    locked: a block of rows of a tensor, with the rule's state, changes under a lock.
    atomic: compare-and-swap additions: no update is lost, and a step takes much longer.
    """
    view: str = "shared"
    """What gradients are computed on.
    shared: the shared tensors themselves, which others may change between forward and backward.
    copy: a copy, made before each step.
    """
    on_failure: str = "stop"
    """What happens when a worker's process ends.
    stop: the run ends.
    shrink: it goes on with the other workers.
    """


@dataclass(frozen=True)
class TorchTraining(Stopping, TorchSharing, Optimization):
    """How it is trained. What is said of the fields of the bases in other words here is true of torch models."""

    group = "training"

    rule: str = "adam"
    """sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, nadam, radam, adabelief, apollo;
    or module.Class of your own. Hyper-parameters follow: adam:b1=0.95,eps=1e-6."""
    lr: Annotated[str | None, arg(metavar="RATE")] = None
    """Learning rate; default: the rule's usual one, of adam 0.001."""
    clip_norm: float | None = None
    """Clip each batch's gradient, of all tensors together, to this L2 norm."""
    clip_value: float | None = None
    """Clip each component of a batch's gradient to this size."""
    early_stopping: Annotated[str | None, arg(metavar="METRIC")] = None
    """Metric whose best epoch is the result, and training stopped --patience epochs after it: loss, or one of the task's."""
    higher_is_better: bool = False
    """The metric of --early-stopping is to rise; of accuracy, auc, f1 and r2 this is known."""
    max_steps: int | None = None
    """Stop after so many steps, each of a batch."""
    epochs: int = EPOCHS
    """Passes over the training data, of all workers together."""
    retries: int = 5
    """Maximum rollbacks to the last good state, each with half the learning rate, after a loss that is not finite."""
    seed: int = 0
    """Seed of the first weights, of the batches, and of what each step draws."""

    def check(self):
        """Raises UserError for a value outside its range."""
        at_least(self, epochs=1, workers=1, seed=0, retries=0)
        steps_of("--warmup", self.warmup or 0, 1)
        if self.lr == "auto":
            raise UserError("--lr auto is for linear models; give a number")

    def criteria(self):
        stop = super().criteria()
        return replace(stop, mode="max") if self.higher_is_better else stop


@dataclass(frozen=True)
class TrainTorch:
    """Train a torch model in shared memory, without locks between the worker processes (Hogwild).

    The task's functions make the model and the data, and say what the loss is; see docs/hogwild-torch.md. An epoch is a pass
    over the data of all workers together: each batch is done once, by whichever worker is free.
    """

    data: TorchData = field(default_factory=TorchData)
    training: TorchTraining = field(default_factory=TorchTraining)
    output: Output = field(default_factory=Output)


class TorchFamily:
    """See hogwild.families.family.Family."""

    options = TrainTorch

    def prepare(self, options) -> Job:
        if not options.data.task:
            raise UserError("needed MODULE:FUNCTION, a function of yours that returns a hogwild.torch.Task")
        try:
            import torch  # noqa: F401
        except ImportError as error:
            raise UserError(f"torch models need torch ({error}): pip install 'hogwild-sparsecomm[torch]'") from None
        from hogwild.families import torch_run
        return torch_run.prepared(torch_run.imported(options.data.task), options, options.data.task)

    def load(self, path, tensors, header):
        return TorchTensors(path, tensors)

    def describe(self, options):
        raise UserError("--family torch: inspect describes data files, and torch models have none of their own")


class TorchTensors:
    """A saved torch model: its tensors by name."""

    def __init__(self, path, tensors):
        self.path, self.tensors = path, tensors

    def read(self, path, **reading):
        raise UserError(f"{self.path}: is a torch model, which the commands cannot apply to a file; in Python: "
                        f"model.load_state_dict(hogwild.load({str(self.path)!r}))")

    measure = predict = check_probabilities = read

    def for_python(self):
        """Tensors by name, for load_state_dict."""
        import torch
        return {name: torch.from_numpy(x) for name, x in self.tensors.items()}


FAMILY = TorchFamily()
