"""Floor 2: many processes that exchange sparse gradients."""

import importlib

from hogwild._guard import check_kernels, lazy  # importing hogwild has checked `kernels` already
from sparsecomm import launch

check_kernels()
launch.end_all_on_exception()

LATE = {"DistributedOptimizer": "optimizer", "Config": "config"}  # only when asked for: torch and MPI load slowly


def __getattr__(name):
    if name in LATE:
        return getattr(importlib.import_module(f"sparsecomm.{LATE[name]}"), name)
    return importlib.import_module("sparsecomm.hook") if name == "hook" else lazy(name)
