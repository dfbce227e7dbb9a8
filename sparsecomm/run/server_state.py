"""Checkpoints of a run over servers, and its table at the end: what all ranks give rank 0."""

import json
from collections import Counter

import numpy as np

from hogwild.errors import UserError, demand, sound
from hogwild.training import checkpoint
from sparsecomm.run.loop import CHECKPOINT
from sparsecomm.run.summary import WIDE, as_bytes
from sparsecomm.wire import nic_counters
from sparsecomm.wire.gather import broadcast_json, gathered, on_root, scattered


def save(writer, comm, position, own):
    """Write a checkpoint: `position` of rank 0, numbers for JSON, and `own`, arrays of each rank. Called by all ranks."""
    owns = gathered(comm, own)
    arrays = {f"rank{r}.{name}": x for r, own in enumerate(owns) for name, x in own.items()}
    on_root(comm, lambda: writer.save(arrays, position))


def load(comm, path, servers, say) -> tuple[dict, dict]:
    """(position, this rank's arrays) of the newest valid checkpoint of `path`. Called by all ranks, which raise UserError
    alike."""
    tensors, state = on_root(comm, lambda: _loaded(path, comm.size - servers, servers, say)) or ({}, None)
    state = broadcast_json(comm, state)
    owns = [{name.partition(".")[2]: x for name, x in tensors.items() if name.startswith(f"rank{r}.")}
            for r in range(comm.size)]
    return state, scattered(comm, owns)


def _loaded(path, workers, servers, say):
    tensors, state = checkpoint.load(path, say)
    with sound(path, *CHECKPOINT[1:]):
        demand(isinstance(state["fingerprint"], dict) and type(state["epoch"]) is int, "fingerprint and epoch")
        had = state["ranks"], state["servers"]
    if had != (workers, servers):
        raise UserError(f"{path}: is of {had[0]} workers and {had[1]} servers, got {workers} and {servers}: resume with "
                        f"mpiexec -n {sum(had)} and --servers {had[1]}")
    return tensors, state


def collected(run) -> dict:
    """What the ranks of a WorkerRun or ServerRun did in all, on rank 0; elsewhere nothing. Called by all ranks."""
    facts = json.dumps({**run.facts(), "host": nic_counters.host(), "wire": nic_counters.sent() - run.wired}).encode()
    every = [json.loads(bytes(each["json"])) for each in gathered(run.comm, {"json": np.frombuffer(facts, np.uint8)})]
    if not every:
        return {}
    workers, servers = every[:run.workers], every[run.workers:]
    steps = max(workers[0]["pushes"], 1)
    dense = 8.0 * run.n
    moved = float(np.mean([(worker["sent"] + worker["received"]) / max(worker["pushes"], 1) for worker in workers]))
    staleness = Counter()
    for server in servers:
        staleness.update({int(stale): count for stale, count in server["staleness"].items()})
    hosts = {rank["host"]: rank["wire"] for rank in every}
    serving = run.serving
    return {"ranks": run.workers, "exchange": "server", "servers": serving.servers, "consistency": serving.consistency,
            "bound": serving.staleness, "steps": steps, "parameters": run.n,
            "phases": {name: [worker[name] for worker in workers] for name in ("compute", "push", "wait")},
            "sent": [worker["sent"] for worker in workers], "received": [worker["received"] for worker in workers],
            "bytes_per_step": moved, "dense_bytes_per_step": dense, "compression": dense / moved if moved else None,
            "kept": float(np.mean([worker["kept"] / max(worker["pushes"], 1) for worker in workers])) / max(run.n, 1),
            "residual": float(np.sqrt(sum(worker["residual"] for worker in workers))),
            "skipped": sum(server["skipped"] for server in servers) // len(servers),
            "staleness": {str(stale): count for stale, count in sorted(staleness.items())},
            "mean_staleness": sum(k * n for k, n in staleness.items()) / max(sum(staleness.values()), 1),
            "filters": _filters(every), "server": servers, "wire": list(hosts.values()) if len(hosts) > 1 else None}


def _filters(every):
    sums = {}
    for rank in every:
        for name, (held, seen) in rank.get("filters", {}).items():
            before = sums.get(name, (0, 0))
            sums[name] = before[0] + held, before[1] + seen
    return {name: {"held": held, "of": seen} for name, (held, seen) in sums.items()}


def shown(table) -> str:
    """The table as people read it."""
    lines = [f"{'phase':<9}{'mean s':>{WIDE}}{'longest s':>{WIDE}}  worker"]
    for name, seconds in table["phases"].items():
        lines.append(f"{name:<9}{np.mean(seconds):>{WIDE}.3f}{max(seconds):>{WIDE}.3f}  {int(np.argmax(seconds))}")
    ratio = f": {table['compression']:,.1f} times as much" if table["compression"] else ""
    lines.append(f"kept {table['kept']:.3%} of the gradient; norm of what was not pushed (residual): {table['residual']:.4g}")
    pushed, pulled = (as_bytes(np.mean(table[name])) for name in ("sent", "received"))
    lines.append(f"each worker pushed {pushed} and pulled {pulled} in {table['steps']:,} steps: "
                 f"{as_bytes(table['bytes_per_step'])} a step; dense float32, both ways, would be "
                 f"{as_bytes(table['dense_bytes_per_step'])}{ratio}")
    stale = {int(k): v for k, v in table["staleness"].items()}
    if max(stale, default=0):
        lines.append(f"staleness of the pushes, in steps: mean {table['mean_staleness']:.2f}, longest {max(stale)}")
    lines += [f"filter {name}: held {each['held']:,} of {each['of']:,} entries back"
              for name, each in table["filters"].items()]
    memory = ", ".join(f"{server['bytes a parameter']:g}" for server in table["server"])
    return "\n".join([*lines, f"memory of the servers, bytes a parameter: {memory}"])
