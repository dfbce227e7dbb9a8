"""Requests of a parameter server: pulls and pushes of 100 and of 10,000 keys, against the number of workers.

Starts mpiexec by itself, with one server and as many workers as --workers has at most. A request is of float32 values at a
random list of keys of one tensor; each worker makes one at a time. "named": the server has the list from this worker already,
so that its checksum alone is sent. MB/s are those of the values, of all workers together.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np

import sparsecomm
from hogwild.errors import UserError
from hogwild.experiments.run.machine import describe
from sparsecomm import guard
from sparsecomm.wire import launch

RULES = {"sgd": 4, "momentum": 8, "adam": 12}  # bytes of parameter and slots
KINDS = "pull, named list", "pull, new list", "push, named list", "push, new list"


def sizes(text):
    """Whole numbers, separated by commas."""
    return [int(float(word)) for word in text.split(",")]


def requests(client, kind, keys, count):
    """Make `count` requests at lists of so many keys; the seconds from the first to the last of all workers."""
    rng, n = np.random.default_rng([client.rank, keys]), client.layout.n
    lists = [np.sort(rng.choice(n, keys, replace=False, shuffle=False)).astype(np.uint32)
             for _ in range(1 if "named" in kind else count + 1)]
    values = np.full(keys, 1e-6, np.float32)

    def make(at):
        if "pull" in kind:
            client.wait(client.pull({"w": at}))
        else:
            client.push({"w": (at, values)})
            client.flush()

    client.wait(client.pull({"w": lists[0]}))  # the server has the list, and all is compiled
    make(lists[0])
    client.link.group.Barrier()
    start = time.perf_counter()
    for i in range(count):
        make(lists[(i + 1) % len(lists)])
    client.link.group.Barrier()
    return time.perf_counter() - start


def measured(comm, options, rule) -> list | None:
    """Rows (kind, keys, requests a second, MB a second), or of a server its record. Called by all ranks of `comm`."""
    if sparsecomm.is_server(1, comm):
        server = sparsecomm.Server({"w": options.n}, rule, 1e-3, comm=comm, consistency="async")
        while server.serve():
            pass
        return server.record()
    client, rows = sparsecomm.Client({"w": np.zeros(options.n, np.float32)}, comm=comm), []
    for keys in options.keys:
        for kind in KINDS:
            count = max(options.requests * 100 // (100 + keys // 10), 20)
            rate = count * client.link.workers / requests(client, kind, keys, count)
            rows.append((kind, keys, rate, rate * 4 * keys / 1e6))
    client.close()
    return rows


def on_ranks(options):
    """The table, printed by rank 0."""
    world = launch.mpi().COMM_WORLD
    guard.install(world)
    if world.rank == 0:
        library = " ".join(launch.mpi().Get_library_version().split()[:3])
        print(f"{describe()}; {library}\n\n1 server, {options.n:,} parameters, sgd, async\n")
        print("| workers | request | keys | requests/s | MB/s |\n|---:|---|---:|---:|---:|", flush=True)
    for workers in options.workers:
        takes_part = world.rank < workers or world.rank == world.size - 1
        comm = world.Split(takes_part, world.rank)
        if takes_part:
            rows = measured(comm, options, "sgd")
            for kind, keys, rate, speed in rows if world.rank == 0 else []:
                print(f"| {workers} | {kind} | {keys:,} | {rate:,.0f} | {speed:.1f} |", flush=True)
        idle(world)
        comm.Free()
    memory(world, options)


def memory(world, options):
    """Bytes of a server for each parameter, by rule, as its record counts them."""
    options.keys, options.requests, lines = options.keys[:1], 1, []
    for rule, least in RULES.items():
        record = measured(world, options, rule)
        record = world.bcast(record if world.rank == world.size - 1 else None, world.size - 1)
        lines.append(f"| {rule} | {least} | {record['bytes a parameter']} |")
    if world.rank == 0:
        print("\n| rule | parameter and slots | bytes a parameter on the server |\n|---|---:|---:|\n" + "\n".join(lines))


def idle(world):
    """A barrier in which ranks without work leave the cores to the others."""
    request = world.Ibarrier()
    while not request.Test():
        time.sleep(0.005)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=sizes, default=[1, 2, 3], help="numbers of workers, separated by commas")
    parser.add_argument("--keys", type=sizes, default=[100, 10_000], help="keys of a request, separated by commas")
    parser.add_argument("--n", type=lambda text: int(float(text)), default=1_000_000, help="parameters")
    parser.add_argument("--requests", type=int, default=2000, help="requests of 100 keys of each worker; fewer of more keys")
    options = parser.parse_args()
    if launch.size() > 1:
        return on_ranks(options)
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not found:
        raise UserError("no mpiexec: pip install '.[mpich]'")
    sys.stdout.flush()
    return os.execv(found, [found, "-n", str(max(options.workers) + 1), sys.executable, "-m", __spec__.name, *sys.argv[1:]])


if __name__ == "__main__":
    main()
