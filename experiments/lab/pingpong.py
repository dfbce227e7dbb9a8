"""Time messages in pairs of ranks, from 1 byte to 16 MB, one way and both ways at once: what a link's α and β are fitted to.

All exchanges of a step send and receive at once: TCP's acknowledgements then share each direction with the data, and a
token bucket has no pause to refill in.

    mpiexec -n 2 python -m hogwild.experiments.lab.pingpong --record pingpong.jsonl
    python -m hogwild.experiments network --rate 100mbit -- python -m hogwild.experiments.lab.pingpong
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hogwild.cli.arguments import parsed
from hogwild.errors import UserError
from sparsecomm import guard
from sparsecomm.wire import launch
from sparsecomm.wire.pingpong import both, timed

STEP = 4  # from a size to the next


@dataclass
class PingPongOptions:
    """Time messages in pairs of ranks: the seconds one way (half a round trip), and while both send at once."""

    record: Path | None = None
    """File of JSON lines, one more a size: {"event": "pingpong", "bytes", "seconds", "lower", "upper", "both", "repeats"}."""
    largest: int = 16 << 20
    """Bytes of the longest message."""
    seconds: float = 0.5
    """Time spent on each size either way, if 3 round trips do not take longer."""


def sweep(comm, largest, seconds):
    """Yield (bytes, array of seconds one way, and while both send) for each size; rank 0's. Collective over all."""
    for size in [STEP**i for i in range(40) if STEP**i < largest] + [largest]:
        yield size, timed(comm, size, seconds), timed(comm, size, seconds, both)


def main():
    if launch.rank():  # only rank 0 speaks
        sys.stdout = open("/dev/null", "w")
    options = parsed("python -m hogwild.experiments.lab.pingpong", PingPongOptions, sys.argv[1:])
    if options.largest < 1:
        raise UserError(f"--largest must be at least 1 byte, got {options.largest}")
    comm = launch.world()
    if comm.Get_size() % 2:
        raise UserError(f"ping-pongs need ranks in pairs, got {comm.Get_size()}: "
                        "mpiexec -n 2 python -m hogwild.experiments.lab.pingpong")
    print(f"{'bytes':>10}{'one way, us':>15}{'quartiles':>24}{'both at once, us':>20}", flush=True)
    for size, one_way, at_once in sweep(comm, options.largest, options.seconds):
        lower, median, upper = np.quantile(one_way, (0.25, 0.5, 0.75)).tolist()
        middle = float(np.median(at_once))
        print(f"{size:>10,}{median * 1e6:>15,.1f}{f'{lower * 1e6:,.1f} to {upper * 1e6:,.1f}':>24}{middle * 1e6:>20,.1f}",
              flush=True)
        if options.record and comm.Get_rank() == 0:
            line = {"event": "pingpong", "bytes": size, "seconds": median, "lower": lower, "upper": upper,
                    "both": middle, "repeats": len(one_way)}
            with open(options.record, "a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    guard.run(main)
