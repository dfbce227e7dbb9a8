"""Runs of torch models, from the command's options or from Python's."""

import importlib
import os
import sys
from functools import partial

import numpy as np
import torch

from hogwild.errors import UserError
from hogwild.families.family import Job
from hogwild.families.torch_problem import TorchProblem
from hogwild.families.torch_worker import Settings, Task
from hogwild.kernels.optim.rules import RULES
from hogwild.training import preflight, processes
from hogwild.training.options import Span, check_schedule, learning_rate, penalties, schedule_of
from hogwild.training.record import versions
from hogwild.training.registry import build


def imported(name) -> Task:
    """The Task that a function MODULE:FUNCTION returns. Raises UserError."""
    module, colon, function = name.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), function)):
        raise UserError(f"needed MODULE:FUNCTION, such as my_task:task, got '{name}'")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), function)()
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}: {processes.line_of(error)}") from error
    if not isinstance(made, Task):
        raise UserError(f"{name} must return a hogwild.torch.Task, got {type(made).__name__}")
    return made


def prepared(task, options, title, rule=None, schedule=None) -> Job:
    """The run of a Task under a hogwild.families.torch_family.TrainTorch. rule, schedule: objects in place of the texts."""
    training = options.training
    rule = build(training.rule, RULES, "rule") if rule is None else rule
    lr = learning_rate(training)
    if schedule is None:
        check_schedule(training, rule, training.epochs)
    settings = Settings(rule, *penalties(training, rule), training.mode, training.view, training.seed)
    problem = TorchProblem(task, settings, training.workers or preflight.usable_cores()[0], training.on_failure)
    lr = getattr(rule, "default_lr", 0.01) if lr is None else lr
    if schedule is None:
        schedule = schedule_of(training, rule, Span(training.epochs, problem.examples), lr, training.early_stopping or "loss")
    return Job(problem, title, rule, schedule, training.epochs, problem.workers, lr, [], facts(problem), content(problem),
               partial(export, problem, title))


def facts(problem) -> dict:
    """For the record."""
    settings, test = problem.settings, problem.test
    return {"data": {"examples": problem.train.examples, "batch": problem.train.batch,
                     "held_out": test.examples if test else 0},
            "parameters": sum(p.numel() for p in problem.trained.values()), "view": settings.view,
            "torch": torch.__version__}


def content(problem) -> dict:
    """What a resumed run must have alike: the examples, as far as they are tensors, and their number."""
    return {"examples": np.array([problem.train.examples, problem.train.batch]),
            **{f"tensor {k}": x.numpy() for k, x in enumerate(problem.train.tensors or ())}}


def export(problem, title):
    """(tensors, header) of the model file."""
    tensors = {name: x.detach().numpy() for name, x in problem.model.state_dict().items() if isinstance(x, torch.Tensor)}
    return tensors, {"family": "torch", "task": title, "versions": {**versions(), "torch": torch.__version__}}
