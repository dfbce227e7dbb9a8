"""Which exchange a configuration names, or which is fastest here: for that, each is timed on one bucket of the run."""

import math
import time
from dataclasses import replace

import numpy as np

from hogwild.errors import UserError
from sparsecomm.compress.pipeline import Pipeline
from sparsecomm.compress.protocol import Bucket
from sparsecomm.compress.registry import compressor
from sparsecomm.config import Config
from sparsecomm.exchange.sparse import EXCHANGES, sparse
from sparsecomm.wire.mpi import Wire

STEPS = 3  # of each exchange; the first one is not counted: its memory is not mapped, and its kernels are not loaded
ENOUGH = 2.0  # seconds after which there are no more than two of them
PLAIN = "dense float32"  # the baseline of compression


def make_exchange(comm, config, n):
    """(the exchange, the configuration with its name, a line that says which); "auto" is timed, for n elements in all.

    comm: a communicator of its own, or a wire, with which nothing is timed. Called by all ranks.
    """
    size = comm.Get_size() if hasattr(comm, "Get_size") else comm.size
    if config.exchange == "server":
        raise UserError("exchange server is one of the command sparsecomm train; in Python use sparsecomm.Client and "
                        "sparsecomm.Server")
    name, line = config.exchange, ""
    if not compressor(config).sparse:
        name = "dense" if name in ("auto", "sparse") else name
    elif name == "auto" and hasattr(comm, "Get_size"):
        name, line = fastest(comm, config, n)
    elif name in ("auto", "sparse"):
        name = sparse(size)
    return EXCHANGES[name](comm, config), replace(config, exchange=name), line or f"exchange {name} between {size} ranks"


def fastest(comm, config, n) -> tuple[str, str]:
    """(name of the exchange, a line that says why), the same on all ranks, for n elements in all. Called by all ranks.

    Where ranks combine what was sent with their own gradient, have a velocity of their own, or name another compressor than
    the threshold, which a dense exchange replaces, only a sparse one will do.
    """
    needed = config.combine == "local" or config.momentum or config.compressor != "threshold"
    among = ("allgather", "balanced") if needed else ("dense", "allgather", "balanced")
    if comm.Get_size() == 1:
        return among[0], f"exchange {among[0]}; compression will not help here (one rank, which exchanges nothing)"
    room = n if config.scope == "global" else max(int(config.bucket_mb * 2**20 / 4), 1)
    gradient = np.random.default_rng(comm.Get_rank()).standard_normal(min(n, room)).astype(np.float32)
    timed = {name: seconds(comm, replace(config, exchange=name), gradient) for name in among}
    plain = "dense" in among and config.value_code == "float32"
    timed[PLAIN] = timed.pop("dense") if plain else seconds(comm, Config(exchange="dense"), gradient)
    return chosen(timed, among, f"timed between {comm.Get_size()} ranks, a bucket of {gradient.size:,} elements")


def chosen(timed, among, how) -> tuple[str, str]:
    """(the fastest of `among`, the line). timed: seconds by name, those of PLAIN also where it is not among them."""
    of = {name: timed[name] if name in timed else timed[PLAIN] for name in among}
    name = min(among, key=of.get)
    hopeless = "; compression will not help here" if timed[PLAIN] <= of[name] else ""
    each = ", ".join(f"{name} {timed[name] * 1e3:.3g} ms" for name in sorted(timed, key=timed.get))
    return name, f"exchange {name}{hopeless} ({how}: {each})"


def seconds(comm, config, gradient) -> float:
    """The least time of a step with one bucket of these elements, of the slowest rank in each step."""
    bucket = Bucket(("timed",), (gradient.shape,), config)
    pipeline, wire, taken = Pipeline(bucket, EXCHANGES[config.exchange](comm, config)), Wire(comm), []
    while len(taken) < 2 or (len(taken) < STEPS and sum(taken) < ENOUGH):
        wire.numbers([0])  # all begin together
        start = time.perf_counter()
        pipeline.reduce(len(taken), [gradient])
        pipeline.commit()
        own = time.perf_counter() - start
        taken.append(float(wire.numbers([math.ceil(own * 1e9)]).max()) * 1e-9)
    return min(taken[1:])
