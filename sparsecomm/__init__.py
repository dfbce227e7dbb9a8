"""Floor 2: many processes that exchange sparse gradients."""

import importlib

from hogwild import _version
from sparsecomm.faults import uncaught

uncaught.end_all_on_exception()

# Only when asked for: torch and MPI load slowly.
LATE = {"DistributedOptimizer": "optimizer", "CatchUpOptimizer": "catch_up_optimizer", "Config": "config",
        "Server": "server.server", "Client": "server.client", "is_server": "server.link"}


def __getattr__(name):
    if name in LATE:
        return getattr(importlib.import_module(f"sparsecomm.{LATE[name]}"), name)
    return importlib.import_module("sparsecomm.hook") if name == "hook" else _version.attribute("sparsecomm", name)


def __dir__():
    return sorted([*LATE, "hook", "__version__"])
