"""Time messages between two ranks, one way, from 1 byte to 16 MB: what the α-β model of a link is fitted to.

    mpiexec -n 2 python -m experiments.pingpong --record pingpong.jsonl
    python -m experiments network --rate 100mbit -- python -m experiments.pingpong
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hogwild.cli import parsed
from hogwild.errors import UserError
from sparsecomm import guard, launch

STEP = 4  # from a size to the next
LEAST, MOST = 3, 300  # round trips of a size


@dataclass
class Options:
    """Time messages between two ranks: a JSON line a size with the median and the quartiles of the seconds one way."""

    record: Path | None = None
    """File to which the lines are appended, {"event": "pingpong", "bytes", "seconds", "lower", "upper", "repeats"} each."""
    largest: int = 16 << 20
    """Bytes of the longest message."""
    seconds: float = 0.5
    """Time spent on each size, if 3 round trips do not take longer."""


def trip(comm, buffer) -> float:
    """Seconds of half a round trip of `buffer` between ranks 0 and 1."""
    began = time.perf_counter()
    if comm.Get_rank() == 0:
        comm.Send(buffer, 1)
        comm.Recv(buffer, 1)
    else:
        comm.Recv(buffer, 0)
        comm.Send(buffer, 0)
    return (time.perf_counter() - began) / 2


def sweep(comm, largest, seconds):
    """Yield (bytes, array of seconds one way) for each size; rank 0's measurements. Collective over two ranks."""
    sizes = [STEP**i for i in range(40) if STEP**i < largest] + [largest]
    for size in sizes:
        buffer = np.zeros(size, np.uint8)
        trip(comm, buffer)  # makes the connection, and touches the memory
        repeats = comm.bcast(int(min(max(seconds / (2 * trip(comm, buffer)), LEAST), MOST)))
        yield size, np.array([trip(comm, buffer) for _ in range(repeats)])


def main():
    if launch.rank():  # only rank 0 speaks
        sys.stdout = open("/dev/null", "w")
    options = parsed("python -m experiments.pingpong", Options, sys.argv[1:], description=Options.__doc__)
    if options.largest < 1:
        raise UserError(f"--largest must be at least 1 byte, got {options.largest}")
    comm = launch.world()
    if comm.Get_size() != 2:
        raise UserError(f"a ping-pong needs 2 ranks, got {comm.Get_size()}: mpiexec -n 2 python -m experiments.pingpong")
    print(f"{'bytes':>10}{'one way, us':>15}{'quartiles':>24}", flush=True)
    for size, taken in sweep(comm, options.largest, options.seconds):
        lower, median, upper = np.quantile(taken, (0.25, 0.5, 0.75)).tolist()
        print(f"{size:>10,}{median * 1e6:>15,.1f}{f'{lower * 1e6:,.1f} to {upper * 1e6:,.1f}':>24}", flush=True)
        if options.record and comm.Get_rank() == 0:
            line = {"event": "pingpong", "bytes": size, "seconds": median, "lower": lower, "upper": upper,
                    "repeats": len(taken)}
            with open(options.record, "a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    guard.run(main)
