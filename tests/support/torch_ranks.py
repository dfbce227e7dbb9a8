"""What the tests of the torch optimizers run on each rank: `python torch_ranks.py MODULE[.CHECK] …`, such as "script.edits".

A MODULE is a file MODULE_ranks.py beside this one. Rank 0 prints "passed".
"""

import sys

import checks
import torch
from torch_twins import COMM, RANK

if __name__ == "__main__":
    torch.set_num_threads(1)
    checks.run(checks.chosen(sys.argv[1:]), checks.mpi(COMM), RANK)
