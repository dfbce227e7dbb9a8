"""What the tests of the DDP hook run on each process: `torchrun … gloo_ranks.py MODULE[.CHECK] …`, such as "hook.state".

A MODULE is a file MODULE_ranks.py beside this one; `ddp`, which begins before there is a process group, comes first. Rank 0
prints "passed".
"""

import sys

import checks
import torch
import torch.distributed as dist

if __name__ == "__main__":
    torch.set_num_threads(1)
    found = checks.chosen(sys.argv[1:])  # which starts the process group
    checks.run(found, checks.gloo(dist), dist.get_rank())
    dist.destroy_process_group()
