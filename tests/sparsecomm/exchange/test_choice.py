"""Exchange auto: what is chosen of timings that are made up, and that ranks which time differently choose alike, soon."""

import json

import pytest
from mpi import mpirun, ranks

from sparsecomm.exchange.choice import PLAIN, chosen

ALL = "dense", "allgather", "balanced"
PROGRAM = """
import json, time
from mpi4py import MPI
from sparsecomm.config import Config
from sparsecomm.exchange import choice
from sparsecomm.exchange.sparse import EXCHANGES
world, lines = MPI.COMM_WORLD, []

class Late:
    seconds_late = 0.0
    def sum(self, *args):
        time.sleep(self.seconds_late * (world.rank == world.size - 1))  # one rank alone is slow
        return super().sum(*args)

def tell(name, seconds, **config):
    Late.seconds_late = seconds
    choice.EXCHANGES[name] = type(name, (Late, EXCHANGES[name]), {})
    start = time.perf_counter()
    exchange, config, line = choice.make_exchange(world, Config(exchange="auto", **config), 300_000)
    lines.append([config.exchange, line, time.perf_counter() - start])
    choice.EXCHANGES[name] = choice.EXCHANGES[name].__mro__[2]

choice.EXCHANGES = dict(EXCHANGES)
tell("balanced", 0.0)
tell("dense", 0.3)
tell("allgather", 0.3, combine="local", average_every=9)
tell("balanced", 1.5, value_code="float16", momentum=0.5)
every = world.gather(lines)
if world.rank == 0:
    print(json.dumps(every), flush=True)
"""


@pytest.mark.parametrize("timed, among, name, hopeless", [
    ({PLAIN: 2.0, "allgather": 1.0, "balanced": 3.0}, ALL, "allgather", False),
    ({PLAIN: 1.0, "allgather": 2.0, "balanced": 3.0}, ALL, "dense", True),
    ({PLAIN: 1.0, "allgather": 2.0, "balanced": 1.5}, ALL[1:], "balanced", True),
    ({"dense": 5.0, PLAIN: 1.0, "allgather": 2.0, "balanced": 3.0}, ALL, "allgather", True),
    ({"dense": 1.0, PLAIN: 1.5, "allgather": 2.0, "balanced": 3.0}, ALL, "dense", False)])
def test_the_fastest_is_chosen_and_compression_weighed_against_dense_float32(timed, among, name, hopeless):
    got, line = chosen(timed, among, "timed")
    assert got == name and line.startswith(f"exchange {name}") and ("compression will not help here" in line) == hopeless
    assert all(f"{each} {seconds * 1e3:.3g} ms" in line for each, seconds in timed.items())


@ranks
def test_ranks_that_time_differently_choose_alike_and_soon(n):
    ended = mpirun(n, "-c", PROGRAM)
    assert ended.code == 0, ended.err
    every = json.loads(ended.out)
    assert len(every) == n and all([line[:2] for line in each] == [line[:2] for line in every[0]] for each in every)
    free, dense_is_slow, local, slow = every[0]
    if n == 1:
        assert free[0] == "dense" and "one rank, which exchanges nothing" in free[1] and local[0] == "allgather"
        return
    assert f"timed between {n} ranks, a bucket of 300,000 elements" in free[1] and free[1].startswith(f"exchange {free[0]}")
    assert dense_is_slow[0] != "dense" and local[0] == "balanced" and slow[0] == "allgather"
    assert slow[2] < 2 * 2 * 1.5 + 10  # two rounds in each of two steps, and the other ones
