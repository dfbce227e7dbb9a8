"""What the tests of the torch optimizers run on each rank: `python torch_ranks.py MODULE[.CHECK] …`, such as "script.edits".

A MODULE is a file MODULE_ranks.py beside this one. Rank 0 prints "passed".
"""

import importlib
import sys

import checks
import torch
from torch_twins import COMM, RANK


def chosen(words) -> dict:
    """The checks of these modules, by "check_MODULE.NAME"."""
    found = {}
    for word in words:
        module, _, only = word.partition(".")
        for name, check in vars(importlib.import_module(f"{module}_ranks")).items():
            if name.startswith("check_") and only in ("", name.removeprefix("check_")):
                found[f"check_{module}.{name.removeprefix('check_')}"] = check
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    checks.run(chosen(sys.argv[1:]), checks.mpi(COMM), RANK)
