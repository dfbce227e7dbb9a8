"""What a worker process does for a torch model: batch after batch, a gradient each, and a step on the shared tensors."""

import contextlib
import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from hogwild.errors import UserError
from hogwild.families import torch_data
from hogwild.families.torch_tensors import Stepper, has_sparse, tensors_of, trained
from hogwild.kernels.optim.schedules import cycled, rate
from hogwild.training.processes import unpacked

LOSS, STEPS, EXAMPLES, BAD = range(4)  # of a worker's tally
MASK = (1 << 64) - 1


class Task(NamedTuple):
    """What is trained, as functions that every worker process imports: at the top level of a module.

    make_model() -> torch.nn.Module on the CPU. make_data() -> training data, or a pair with held-out data: each a tuple of
    tensors of one length, a Dataset, or a DataLoader (whose batch size is then taken). loss(model, batch) -> scalar tensor,
    the mean over the batch. metrics(model, batch) -> {name: mean over the batch} of held-out data, or None. batch: examples.
    """

    make_model: Callable[[], torch.nn.Module]
    make_data: Callable[[], Any]
    loss: Callable[[torch.nn.Module, Any], torch.Tensor]
    metrics: Callable[[torch.nn.Module, Any], dict] | None = None
    batch: int = 64


class Settings(NamedTuple):
    """How each worker trains."""

    rule: tuple
    decay: tuple | None
    clip: tuple | None
    mode: str
    view: str  # shared: gradients of the shared tensors themselves; copy: of a copy made before each step
    seed: int
    threads: int = 1  # of torch's operators


@contextlib.contextmanager
def _seeded(seed):
    """Give torch, numpy.random and random the same seed in every process; afterwards they go on as before."""
    drawn = random.getstate(), np.random.get_state()  # noqa: NPY002  # users' functions draw from it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(mixed(seed, 0) & 0xFFFFFFFF)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])  # noqa: NPY002


def made_data(task, seed) -> tuple:
    """(training, held-out or None), see torch_data.sources; a split at random is the same in every process."""
    with _seeded(seed):
        return torch_data.sources(task.make_data(), task.batch)


def made_model(task, seed) -> torch.nn.Module:
    """The model, with the same first weights in every process. Raises UserError."""
    with _seeded(seed):
        model = task.make_model()
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"make_model must return a torch.nn.Module, got {type(model).__name__}")
    return model


def scalar(value) -> torch.Tensor:
    """What loss has returned. Raises UserError where it cannot be trained on."""
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise UserError(f"loss must return a scalar tensor, the mean over the batch, got {got}")
    return value.reshape(())


def shuffled(seed, epoch, n) -> np.ndarray:
    """The order of the n examples in an epoch, from 0; batches are cut from it."""
    return np.random.default_rng((seed, epoch, 1)).permutation(n)


def mixed(seed, t) -> int:
    """A seed for step t (splitmix64), so that what a step draws does not depend on who does it."""
    z = (seed * 0x9E3779B97F4A7C15 + (t + 1) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return (z ^ (z >> 31)) >> 1


class Worker:
    """One worker process, see hogwild/training/processes.py. arenas: of the model's state, and of the data or None."""

    def __init__(self, k, task, settings, arenas):
        torch.set_num_threads(settings.threads)
        self.task, self.settings, (state, data) = unpacked(task), settings, arenas
        self.arrays = state.arrays
        self.source = self._source(data)
        self.batches, self.tally, self.epoch = torch_data.Batches(self.source), self.arrays["tally"][k], None
        random.seed(mixed(settings.seed, k))
        np.random.seed(mixed(settings.seed, k) & 0xFFFFFFFF)  # noqa: NPY002  # users' datasets draw from it
        self.model = made_model(self.task, settings.seed)
        self.parameters = trained(self.model)
        self._attach()
        weights = {name: self.arrays[f"model.{name}"].reshape(-1) for name in self.parameters}
        self.stepper = Stepper(self.arrays, self.parameters, weights, settings.rule, settings.mode, k)
        self.model.train()
        self.stepper.compile(settings.rule, settings.decay, settings.clip, has_sparse(self.model))
        torch.zeros(1, requires_grad=True).sum().backward()  # starts autograd's threads

    def _source(self, data):
        if data is None:
            return made_data(self.task, self.settings.seed)[0]
        tensors = tuple(torch.from_numpy(x) for name, x in data.arrays.items() if name.startswith("train."))
        return torch_data.Source(tensors, None, int(data.arrays["batch"][0]), drop_last=bool(data.arrays["batch"][1]))

    def _attach(self):
        """Make the model's tensors the shared ones; in view copy those that are trained keep their own memory."""
        self.copies, self.shared = [], {}
        for name, x in tensors_of(self.model).items():
            there = self.arrays.get(f"model.{name}")
            if there is None or there.shape != tuple(x.shape) or there.dtype != x.detach().numpy().dtype:
                raise UserError(f"make_model must make the same model in every process: {name} has shape {tuple(x.shape)} in "
                                "a worker only")
            self.shared[name] = torch.from_numpy(there)
            if self.settings.view == "copy" and name in self.parameters:
                self.copies.append((x, self.shared[name]))
            else:
                x.data = self.shared[name]

    def __call__(self, message):
        """(rule, schedule, step t of the first, batch numbers) -> None; the tally says what was done."""
        rule, schedule, t, numbers = message
        epoch = t // self.source.batches
        if epoch != self.epoch:
            self.epoch, self.order = epoch, shuffled(self.settings.seed, epoch, self.source.examples)
        rows = [self.source.rows(self.order, number) for number in numbers]
        for k, batch in enumerate(self.batches.of(rows)):
            if not self._one(batch, cycled(rule, schedule, t + k), rate(schedule, t + k), t + k, len(rows[k])):
                self.tally[BAD] = numbers[k] + 1
                break
        self._put_back()

    def _one(self, batch, rule, lr, t, examples) -> bool:
        """A step; whether the loss was finite."""
        torch.default_generator.manual_seed(mixed(self.settings.seed, t))
        with torch.no_grad():
            for x, shared in self.copies:
                x.copy_(shared)
        for p in self.parameters.values():
            p.grad = None
        loss = scalar(self.task.loss(self.model, batch))
        value = loss.item()
        if math.isfinite(value):
            if not loss.requires_grad:
                raise UserError("loss must return a tensor that depends on the model's parameters, got one without gradient")
            loss.backward()
            gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
            self.stepper.step(gradients, rule, lr, self.settings.decay, self.settings.clip)
        weight = examples * self.source.batches / self.source.used  # so that the epoch's mean is that of its examples
        self.tally[LOSS] += value * weight
        self.tally[STEPS] += 1
        self.tally[EXAMPLES] += examples
        return math.isfinite(value)

    def _put_back(self):
        """A buffer that the model has replaced by a new tensor, in place of changing it, goes back into the shared memory."""
        for name, b in self.model.named_buffers():
            shared = self.shared.get(name)  # None: the model has made it since
            if shared is not None and b.data_ptr() != shared.data_ptr() and b.shape == shared.shape:
                shared.copy_(b)
                if b.dtype == shared.dtype:
                    b.data = shared
