"""What the test of dropping on a parameter server runs on each rank: two servers, and the other ranks are workers."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
from mpi4py import MPI

import sparsecomm
from hogwild.kernels.optim.rules import SGD, Nesterov
from sparsecomm.compress.pipeline import Pipeline
from sparsecomm.compress.protocol import Bucket
from sparsecomm.config import Config
from sparsecomm.server.filters import RandomSkip
from sparsecomm.server.push_exchange import PushExchange
from sparsecomm.server.updates import Updates, delayed
from sparsecomm.server.views import Views
from sparsecomm.wire.gather import gathered

COMM, SERVERS, LR = MPI.COMM_WORLD, 2, 0.2
RANK, WORKERS = COMM.Get_rank(), COMM.Get_size() - SERVERS
SHAPES = {"a": (40, 30), "b": (70,), "c": (1,)}
N = sum(map(math.prod, SHAPES.values()))
CONFIG = Config(exchange="allgather", threshold="exact", keep=0.1)
TARGET = np.random.default_rng(9).standard_normal(N).astype(np.float32)  # where the gradients of all workers are 0


def run(steps, config=None, pull_keep=None, significant=0.0, skip=0.0, rule=None, stop_at=None, again=None, **options):
    """(worker: its copy, residual, sum of gradients, exact values at the end; server: None), Client or Server.

    config None: everything is pushed and pulled. stop_at: the step before which all pause, and go on from their states in
    new objects.
    """
    views = config and partial(Views, config=replace(config, keep=pull_keep or config.keep), significant=significant)
    make = partial(sparsecomm.Server, {name: math.prod(shape) for name, shape in SHAPES.items()}, rule or SGD(), LR,
                   servers=SERVERS, views=views, stepping="dense", **options)
    if RANK >= WORKERS:
        server = make()
        if again is not None:
            server.load(again)
        if server.serve():
            return server.state(), server
        return None, server
    tensors = {name: np.zeros(math.prod(shape), np.float32) for name, shape in SHAPES.items()}
    client = sparsecomm.Client(tensors, servers=SERVERS)
    pushed = config or Config(exchange="allgather", compressor="none")
    filters = [RandomSkip(skip, 1, RANK)] if skip else ()
    pipeline = Pipeline(Bucket(tuple(SHAPES), tuple(SHAPES.values()), pushed), PushExchange(
        client.send, pushed, RANK, WORKERS, filters))
    given, first = np.zeros(N), 0
    if again is not None:
        pipeline.load(again)
        first = client.clock = int(again["clock"][0])
        given += again["given"]
        for name, w in tensors.items():
            w[:] = again[f"w.{name}"]
    for step in range(first, steps):
        if step == stop_at:
            client.pause()
            return {**pipeline.state(), "clock": np.array([client.clock]), "given": given,
                    **{f"w.{name}": w for name, w in tensors.items()}}, client
        client.wait(client.pull())
        w = np.concatenate(list(tensors.values()))
        noise = np.random.default_rng((RANK, step)).standard_normal(N).astype(np.float32)
        g = w - TARGET + 0.1 * noise
        given += g
        pipeline.reduce(step, list(np.split(g, np.cumsum([x.size for x in tensors.values()])[:-1])))
        pipeline.commit()
    client.flush()
    client.link.group.Barrier()
    client.wait(client.pull())
    copy = np.concatenate(list(tensors.values()))
    client.wait(client.pull(whole=True))
    exact = np.concatenate(list(tensors.values()))
    residual = np.zeros(N) if config is None else pipeline.memory.flat.astype(np.float64)
    bytes_ = client.post.sent + client.post.received
    client.close()
    return (copy, residual, given, exact, bytes_, pipeline.exchange.filters.held), client


def everyone(array):
    """The sum over all workers, on all ranks."""
    return COMM.allreduce(array if RANK < WORKERS else np.zeros(N))


def check_conservation():
    """LR / workers times all that was pushed is how far the parameters moved: the rest is in the workers' residuals."""
    for code, skip, options in (("float32", 0.0, {}), ("int8", 0.3, dict(consistency="ssp", staleness=2)),
                                ("1bit", 0.0, dict(consistency="async", updates=partial(Updates, pushes_per_step=WORKERS)))):
        got, _ = run(30, replace(CONFIG, value_code=code), skip=skip, **options)
        copy, residual, given, exact, _, held = got or (None,) * 6
        given, residual = everyone(given), everyone(residual)
        if got:
            np.testing.assert_allclose(-exact.astype(np.float64) * WORKERS / LR, (given - residual) * (
                1 if options.get("consistency") != "ssp" else WORKERS), rtol=1e-3, atol=2e-2 * WORKERS)
            assert bool(skip) == bool(held["random-skip"]) and np.abs(residual).max() > 0


def check_result():
    """Both ways at a tenth, with rounding and filters: within tolerance of dense, for a third of the bytes."""
    dense, _ = run(60)
    both, last = run(60, replace(CONFIG, value_code="bfloat16"), pull_keep=0.15, significant=0.05)
    if RANK < WORKERS:
        errors = [np.abs(got[3] - TARGET).mean() for got in (dense, both)]
        assert errors[1] < errors[0] + 0.08 and errors[0] < 0.1, errors
        assert both[4] < dense[4] / 3, (both[4], dense[4])
        assert np.abs(both[0] - both[3]).max() > 0 and np.abs(both[0] - both[3]).mean() < 0.1
    else:
        assert last.shard.views.filters.held["significant"] > 0


def check_states():
    """Paused and loaded into new objects, a run continues to the same bits."""
    config = replace(CONFIG, value_code="int8")
    through, _ = run(20, config)
    state, end = run(20, config, stop_at=11)
    gathered(COMM, {name: x for name, x in state.items() if x.size})  # as a checkpoint does
    state = {name: x.copy() for name, x in state.items()}
    end.link.free()
    again, _ = run(20, config, again=state)
    if again:
        for x, y in zip(through[:4], again[:4]):
            np.testing.assert_array_equal(x, y)


def check_delayed():
    """Delayed momentum of as many pushes as there are workers: Nesterov steps with the mean of each round's gradients."""
    got, _ = run(40, rule=delayed(Nesterov(0.5), WORKERS), consistency="async")
    if got:
        assert np.abs(got[3] - TARGET).mean() < 0.15


if __name__ == "__main__":
    for check in (check_conservation, check_result, check_states, check_delayed):
        check()
        print("fine", check.__name__, flush=True) if RANK == 0 else None
