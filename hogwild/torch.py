"""Hogwild for torch models: spawned workers train one model in shared memory, without waiting for each other.

    if __name__ == "__main__":
        model, history = hogwild.torch.train(make_model, make_data, loss, "adam", lr=1e-3, workers=2)

The modules here import the package torch, which this module's name does not hide.
"""

from typing import NamedTuple

import torch

from hogwild.cli.declared import built, options_of
from hogwild.cli.train import train_job
from hogwild.errors import UserError
from hogwild.families.torch_family import TrainTorch
from hogwild.families.torch_optimizer import SharedAdam, SharedOptimizer, SharedRMSprop
from hogwild.families.torch_problem import TorchEpoch
from hogwild.families.torch_run import prepared
from hogwild.families.torch_worker import Task
from hogwild.kernels.compiler.cache import announce
from hogwild.training.processes import demand_guard
from hogwild.training.registry import text_of

__all__ = ["SharedAdam", "SharedOptimizer", "SharedRMSprop", "Task", "Trained", "train"]


class Trained(NamedTuple):
    """What training gives."""

    model: torch.nn.Module  # trained, in memory of its own
    history: list[TorchEpoch]


def train(make_model, make_data, loss, rule="adam", schedule=None, *, metrics=None, batch=64, **options) -> Trained:
    """Train a torch model with several processes that share it (Hogwild, Niu et al. 2011).

    Call it under `if __name__ == "__main__":`, since every worker process imports the script. Ctrl-C, or SIGTERM, ends the
    run after the batches that are at work, writes a checkpoint, and raises KeyboardInterrupt; a second one ends the process.
    Raises hogwild.errors.UserError, in one line, for what cannot be trained, and where a worker fails, whose traceback is
    then its cause.

    Parameters
    ----------
    make_model, make_data, loss, metrics, batch
        See `hogwild.torch.Task`; functions at the top level of a module.
    rule
        A rule of `hogwild.kernels.optim.rules`, or its text, such as "adam:b1=0.95".
    schedule
        One of `hogwild.kernels.optim.schedules`, its text, such as "cosine", or a learning rate. None: the rate `lr`. A step
        is a batch of any worker.
    **options
        Those of `hogwild train torch`, by name: workers, mode, view, epochs, lr, warmup, l2, weight_decay, clip_norm,
        clip_value, on_failure, seed, retries; early_stopping, higher_is_better, patience, min_delta, target, tol, max_steps,
        max_seconds; model, record, checkpoint, checkpoint_seconds, resume, quiet, logger.
    """
    demand_guard()
    announce()
    known = {option.name: option.default for option in options_of(TrainTorch) if option.name not in ("task", "config")}
    given = dict(options)
    if isinstance(schedule, (int, float)) and not isinstance(schedule, bool):
        schedule, given["lr"] = None, schedule
    if odd := sorted(set(given) - set(known)):
        raise UserError(f"hogwild.torch.train: unknown option {odd[0]}; there are {', '.join(known)}")
    objects = {name: x for name, x in (("rule", rule), ("schedule", schedule)) if x is not None and not isinstance(x, str)}
    texts = {name: text_of(x) for name, x in (("rule", rule), ("schedule", schedule)) if x is not None}
    title = f"{getattr(make_model, '__module__', '')}:{getattr(make_model, '__qualname__', make_model)}"
    chosen = built(TrainTorch, {**known, **given, **texts, "task": title, "config": None})
    task = Task(make_model, make_data, loss, metrics, batch)
    problem, history = train_job(lambda: prepared(task, chosen, title, **objects), chosen)
    return Trained(problem.result(), history)
