"""Problem family "torch": a torch model in shared memory, which spawned worker processes step without waiting."""

import contextlib
from dataclasses import dataclass, field

import numpy as np
import torch

from hogwild.errors import UserError
from hogwild.families import torch_data, torch_worker
from hogwild.families.torch_tensors import Stepper, check_mode, has_sparse, start_slots, state_shapes, tensors_of, trained
from hogwild.families.torch_worker import BAD, Settings, Worker
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.sharing.work_queue import claim
from hogwild.training import console, processes
from hogwild.training.arena import Arena
from hogwild.training.loop import Problem
from hogwild.training.machine import demand_memory
from hogwild.training.workers import TALLIES

VIEWS, FAILURES = ("shared", "copy"), ("stop", "shrink")


@dataclass
class TorchEpoch:
    """What one epoch did."""

    epoch: int  # from 1
    loss: float  # mean over the examples, each before its batch's update
    lr: float  # at the end of the epoch
    steps: int
    examples: int
    seconds: float  # training alone, without evaluation
    steps_per_s: float
    examples_per_s: float
    metrics: dict[str, float]
    exchange: dict[str, float] = field(default_factory=dict)  # workers: that were at work at its end

    @classmethod
    def of(cls, epoch, loss, lr, done, metrics, exchange):
        """done: loss, steps, examples and seconds of the epoch."""
        _, steps, examples, seconds = map(float, done)
        return cls(epoch, loss, lr, int(steps), int(examples), seconds, steps / max(seconds, 1e-9),
                   examples / max(seconds, 1e-9), metrics, exchange)

    def rates(self) -> str:
        """How fast it went, for the console."""
        return f"{self.steps_per_s:,.0f} steps/s  {self.examples_per_s:,.0f} examples/s"


class TorchProblem(Problem):
    """A Task (hogwild/families/torch_worker.py) for hogwild.training.loop.train, whose worker k is a process.

    The loop's examples are batches, a step each. An epoch's batches are cut from a new permutation of the examples, and each
    is done once, by whichever worker claims it. Buffers, such as BatchNorm's running means, are shared as parameters are:
    every worker's batches count. on_failure: with shrink, the others go on where a worker's process ends.
    Raises UserError for what cannot be trained.
    """

    summary, unit = TorchEpoch, "steps"

    def __init__(self, task, settings: Settings, workers=1, on_failure="stop"):
        processes.demand_guard()
        _check(task, settings, workers, on_failure)
        self.task, self.workers, self.on_failure = task, workers, on_failure
        self.settings = settings._replace(rule=checked(settings.rule))
        self.train, self.test = _called("make_data", lambda: torch_worker.made_data(task, settings.seed))
        self.examples, self.team = self.train.batches, []
        self.model = _called("make_model", lambda: torch_worker.made_model(task, settings.seed))
        self.trained = _called("make_model", lambda: trained(self.model))
        self._share()

    def _share(self):
        """Put the model, the optimizer's state and the examples that are tensors into shared memory."""
        tensors, rule = tensors_of(self.model), self.settings.rule
        shapes = {f"model.{name}": (tuple(x.shape), x.detach().numpy().dtype) for name, x in tensors.items()}
        shapes |= state_shapes(self.trained, rule) | {"tally": ((self.workers, TALLIES), np.float64)}
        own = sum(p.numel() * p.element_size() for p in self.trained.values()) * (1 + (self.settings.view == "copy"))
        what = "the model, its optimizer's state and the workers' gradients"
        demand_memory(Arena.size(shapes) + self.workers * own, what, "use a smaller model, or fewer workers")
        self.arena, self.data = Arena(shapes), None
        for name, x in tensors.items():
            self.arena.arrays[f"model.{name}"][...] = x.detach().numpy()
            x.data = torch.from_numpy(self.arena.arrays[f"model.{name}"])
        self.halt = self.arena.arrays["halt"]
        start_slots(self.arena.arrays, self.trained, rule)
        if self.train.tensors and not self.train.loader:
            found = {f"train.{k}": x.numpy() for k, x in enumerate(self.train.tensors)}
            shapes = {**{name: (x.shape, x.dtype) for name, x in found.items()}, "batch": ((2,), np.int64)}
            demand_memory(Arena.size(shapes), "the workers' copy of the examples", "use fewer, or a Dataset")
            self.data = Arena(shapes)
            for name, x in found.items():
                self.data.arrays[name][...] = x
            self.data.arrays["batch"][:] = self.train.batch, self.train.drop_last
            self.train = self.train._replace(tensors=tuple(torch.from_numpy(self.data.arrays[name]) for name in found))

    # The workers.

    def private(self, k):
        """The process of worker k, started."""
        arguments = k, processes.packed(self.task), self.settings, (self.arena, self.data)
        self.team.append(processes.Process(k, Worker, *arguments))
        return self.team[-1]

    def begin(self, t):
        self.arena.arrays["locks"][:] = 0

    def work(self, rule, schedule, own, order, t, queue, most, first, tally):
        if not len(order):  # before the clock starts
            self._compile()
            for process in self.team:
                process.ready(self.halt)
            return True
        if own.dead:
            return True
        start, stop = claim(queue, len(order), 1 if first else most)  # the first call measures how long a step takes
        if start < stop:
            self._do(own, (rule, schedule, t + start, order[start:stop]), tally)
        return start == stop

    def _compile(self):
        weights = {name: self.arena.arrays[f"model.{name}"].reshape(-1) for name in self.trained}
        settings = self.settings
        Stepper(self.arena.arrays, self.trained, weights, settings.rule, settings.mode).compile(
            settings.rule, settings.decay, settings.clip, has_sparse(self.model))

    def _do(self, own, message, tally):
        """Have the worker do it or, where its process has ended and the run is to go on, another one the rest."""
        mine = self.arena.arrays["tally"][own.k]
        with own.lock:
            mine[:] = 0
            try:
                own.ask(message, self.halt)
                lost = None
            except processes.Ended as error:
                lost = error
            tally[:BAD + 1] += mine[:BAD + 1]
            done = int(mine[torch_worker.STEPS])
        if lost is None:
            return
        self._without(own, lost)
        rule, schedule, t, numbers = message
        if done < len(numbers) and not mine[BAD]:
            self._do(self._alive(lost), (rule, schedule, t + done, numbers[done:]), tally)

    def _without(self, own, error):
        """Go on without a worker, or raise."""
        if self.on_failure == "stop":
            raise error
        locks = self.arena.arrays["locks"]
        locks[locks == own.k + 1] = 0  # those that it held; nobody else changes these
        left = sum(not process.dead for process in self.team)
        if left:
            console.note(f"warning: {error}; the run goes on with {left} worker{'s' * (left > 1)}")

    def _alive(self, error):
        for process in self.team:
            if not process.dead:
                return process
        raise error

    def over(self):
        with contextlib.ExitStack() as stack:
            for process in self.team:
                stack.callback(process.close)
        self.team = []

    # What the loop asks.

    @torch.no_grad()
    def evaluate(self):
        """Mean loss and the task's metrics of the held-out data, on as many threads as there are workers."""
        if self.test is None:
            return {}
        order, totals, threads = np.arange(self.test.examples), {}, torch.get_num_threads()
        rows = [self.test.rows(order, number) for number in range(self.test.batches)]
        torch.set_num_threads(self.workers)
        self.model.eval()
        try:
            for some, batch in zip(rows, torch_data.Batches(self.test).of(rows)):
                for name, value in _called("held-out data", lambda: self._measured(batch)).items():  # noqa: B023
                    totals[name] = totals.get(name, 0.0) + value * len(some)
        finally:
            torch.set_num_threads(threads)
            self.model.train()
        return {name: total / sum(map(len, rows)) for name, total in totals.items()}

    def _measured(self, batch):
        """{name: number} of a batch."""
        found = self.task.metrics(self.model, batch) if self.task.metrics else {}
        if not isinstance(found, dict):
            raise UserError(f"metrics must return {{name: mean over the batch}}, got {type(found).__name__}")
        loss = torch_worker.scalar(self.task.loss(self.model, batch))
        return {name: float(value) for name, value in {"loss": loss, **found}.items()}

    def exchanged(self):
        return {"workers": sum(not process.dead for process in self.team)} if self.on_failure == "shrink" else {}

    def parameters(self):
        arrays = self.arena.arrays
        return {name: x for name, x in arrays.items() if name.startswith(("model.", "slots.")) or name == "updates"}

    def named(self, i):
        return f"batch {i + 1} of the epoch"

    def suspect(self):
        return "a batch"

    def said(self):
        view = "" if self.settings.view == "shared" else ", view copy"
        return f"mode {self.settings.mode}{view}, {self.train.examples:,} examples in batches of {self.train.batch}"

    def result(self) -> torch.nn.Module:
        """The model, with memory of its own."""
        for x in tensors_of(self.model).values():
            x.data = x.detach().clone()
        return self.model


def _check(task, settings, workers, on_failure):
    for what in ("make_model", "make_data", "loss", "metrics"):
        if (function := getattr(task, what)) is not None or what != "metrics":
            if not callable(function):
                raise UserError(f"{what} must be a function, got {type(function).__name__}")
            processes.demand_importable(what, function)
    for what, value, known in ("view", settings.view, VIEWS), ("on_failure", on_failure, FAILURES):
        if value not in known:
            raise UserError(f"{what} must be {' or '.join(known)}, got {value!r}")
    for what, value in ("batch", task.batch), ("workers", workers):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{what} must be a whole number, at least 1, got {value!r}")
    check_mode(settings.mode)


def _called(what, function):
    """What a function of the user's returns; an exception in it is a UserError, with that as its cause."""
    try:
        return function()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {processes.line_of(error)}") from error
