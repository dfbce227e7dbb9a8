"""Clients and servers over MPI: `server_ranks.py SERVERS`. Every rank checks its part; rank 0 prints "passed"."""

import sys
import time
from functools import partial

import numpy as np
from mpi4py import MPI
from rank_helpers import raises

import sparsecomm
from hogwild.kernels.optim.rules import Momentum
from hogwild.kernels.optim.steps import dense_step, new_slots

K = int(sys.argv[1])
SIZES = {"w": 3000, "b": 70}
STEPS, SLOW = 12, 0.02
COMM = MPI.COMM_WORLD
WORKERS = COMM.size - K
GRADIENTS = np.random.default_rng(5).normal(size=(STEPS, WORKERS, sum(SIZES.values()))).astype(np.float32)


def parameters():
    return {"w": np.linspace(-1, 1, SIZES["w"]).astype(np.float32), "b": np.ones(SIZES["b"], np.float32)}


def by_name(flat):
    return {"w": flat[:SIZES["w"]], "b": flat[SIZES["w"]:]}


def run(work, rule="momentum", lr=0.125, **options):
    """work(client) on workers; the servers' records on all ranks."""
    record = None
    if sparsecomm.is_server(K):
        server = sparsecomm.Server(parameters(), rule, lr, servers=K, **options)
        while server.serve():
            pass
        record = server.record()
    else:
        client = sparsecomm.Client(parameters(), servers=K)
        work(client)
        client.close()
    return COMM.allgather(record)[WORKERS:]


def trained(slow=None, prefetch=False, **options):
    """Steps with known gradients: (the values at the end as bytes, of all workers; the servers' records; clocks ahead)."""
    values, ahead = b"", [0]

    def work(client):
        nonlocal values
        pull = client.pull()
        for t in range(STEPS):
            client.wait(pull)
            ahead.append(t - min(client.slowest))  # when the slowest server answered
            if prefetch:
                pull = client.prefetch()
            if client.rank == slow:
                time.sleep(SLOW)
            client.push(by_name(GRADIENTS[t, client.rank]))
            if not prefetch:
                pull = client.pull()
            if t == STEPS // 2:
                client.pause()
        client.wait(pull)
        client.flush()
        client.link.group.Barrier()
        client.wait(client.pull())
        values = np.concatenate(list(client.tensors.values())).tobytes()

    records = run(work, **options)
    return set(COMM.allgather(values)[:WORKERS]), records, max(COMM.allgather(max(ahead)))


def single_process():
    """The mean gradient with the same rule in one process."""
    w, rule = np.concatenate(list(parameters().values())), Momentum()
    slots = new_slots(rule, w.size)
    for t in range(STEPS):
        total = np.zeros_like(w)
        for g in GRADIENTS[t]:
            total += g
        dense_step(rule, w, total, slots, 0.125, t, scale=1 / WORKERS)
    return w.tobytes()


def bsp():
    for options in {}, {"consistency": "ssp"}, {"prefetch": True}:
        values, records, ahead = trained(slow=1, **options)
        assert values == {single_process()} and ahead == 0, options
        assert all(x["steps"] == STEPS and x["staleness"] == {"0": STEPS * WORKERS} for x in records), records


def ssp():
    values, records, ahead = trained(slow=0, consistency="ssp", staleness=2)
    assert len(values) == 1 and 0 < ahead <= 2, ahead
    assert all(0 < x["most clocks ahead"] <= 2 and x["pushes"] == x["steps"] == STEPS * WORKERS for x in records), records


def asynchronous():
    """With SGD at rate 1 the values count the pushes: each is applied once, and a slow worker holds up no other."""
    def work(client):
        for _ in range(STEPS):
            client.wait(client.pull())
            if client.rank == 0:
                time.sleep(SLOW)
            client.push({name: np.full(n, 2.0**client.rank, np.float32) for name, n in SIZES.items()})
        client.flush()
        client.link.group.Barrier()
        start = parameters()
        client.wait(client.pull())
        for name, w in client.tensors.items():
            assert np.allclose(start[name] - w, STEPS * (2**WORKERS - 1), rtol=1e-5)

    records = run(work, "sgd", 1.0, consistency="async")
    assert all(x["pushes"] == sum(x["staleness"].values()) == STEPS * WORKERS for x in records)
    assert all(x["most clocks ahead"] > 2 for x in records), records


def rows():
    """Sparse gradients at lists of keys, prefetched, half of the lists named twice."""
    lists = [np.unique(np.random.default_rng([s, COMM.rank]).integers(0, SIZES["w"], 40)).astype(np.uint32) for s in range(6)]
    counts = np.zeros(SIZES["w"], np.float32)
    for s in range(STEPS):
        counts[lists[s % 6]] += COMM.rank < WORKERS
    counts = COMM.allreduce(counts)

    def work(client):
        needs = [{"w": lists[s % 6], "b": None} for s in range(STEPS + 1)]
        pull = client.pull(needs[0])
        for s in range(STEPS):
            client.wait(pull)
            pull = client.prefetch(needs[s + 1])
            client.push({"w": (lists[s % 6], np.ones(lists[s % 6].size, np.float32))})
        client.wait(pull)
        client.flush()
        client.link.group.Barrier()
        client.wait(client.pull())
        assert np.allclose(parameters()["w"] - client.tensors["w"], counts, atol=1e-5)
        assert np.array_equal(client.tensors["b"], parameters()["b"])

    run(work, "sgd", 1.0, consistency="async")


def bad_input():
    def work(client):
        rank = f"rank {client.rank}"
        raises([rank, "w", "3000 values", "[5]"], lambda: client.push({"w": np.ones(5, np.float32)}))
        raises([rank, "from 0 to 69", "key 70"], lambda: client.pull({"b": np.array([3, 70])}))
        raises([rank, "ascend"], lambda: client.pull({"b": np.array([3, 3])}))
        raises(["no tensor c"], lambda: client.push({"c": np.ones(1, np.float32)}))
        assert client.clock == 0

    run(work, "sgd")
    for servers in 0, COMM.size, True:
        raises([f"1 to {COMM.size - 1} servers", repr(servers)], partial(sparsecomm.Client, parameters(), servers=servers))


for check in bsp, ssp, asynchronous, rows, bad_input:
    check()
if COMM.rank == 0:
    print("passed")
