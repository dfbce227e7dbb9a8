"""A server rank's part of a run: it serves, and comes to the meetings that rank 0 calls."""

from dataclasses import replace
from functools import partial

import numpy as np

from hogwild.errors import sound
from hogwild.kernels.optim.catch_up import catches_up
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import SGD, AdaGrad
from hogwild.training.loop import rebuilt
from sparsecomm.compress.registry import options_of
from sparsecomm.exchange.protocol import Payload
from sparsecomm.replica.replica import Group
from sparsecomm.run import server_state
from sparsecomm.run.loop import CHECKPOINT
from sparsecomm.server import requests as r
from sparsecomm.server.options import ServerOptions
from sparsecomm.server.ranges import Layout
from sparsecomm.server.server import Server
from sparsecomm.server.shard import Shard
from sparsecomm.server.updates import Updates
from sparsecomm.server.views import Views
from sparsecomm.wire import nic_counters
from sparsecomm.wire.gather import broadcast_json

PULLED = "float32", "bfloat16", "float16"  # codes of whole values: others are for changes, whose loss stays with the servers


class ServerRun:
    """One server of a run; see WorkerRun. It reads the data for the sizes of the tensors alone, and forgets them."""

    def __init__(self, job, comm, report, serving, saved=None):
        self.job, self.comm, self.report, self.serving = job, comm, report, serving
        self.workers, self.signal, self.history, self.best, self.metrics = comm.size - serving.servers, 0, [], None, {}
        task = job.make(0, self.workers)
        self.sizes = {name: w.size for name, w in task.tensors().items()}
        self.n = sum(self.sizes.values())
        self.schedule = job.schedule(task, round(task.steps * serving.pace(self.workers)))
        if saved:
            with sound(*CHECKPOINT):
                self.schedule = checked(rebuilt(self.schedule, saved[0]["schedule"]))
        rule = serving.rule_of(job.rule)
        chosen = settings(job, task, serving, rule, self.schedule)
        compile_shard(rule, self.schedule, chosen)
        self.server = Server(self.sizes, rule, self.schedule, servers=serving.servers, comm=comm, say=report.say, **chosen)
        job.make.forget()
        if saved:
            with sound(*CHECKPOINT):
                self.server.load(saved[1])
        self.wired = nic_counters.sent()

    def signalled(self, number):
        """Rank 0 tells what to do."""

    def go(self):
        """Serve until all workers have ended."""
        while self.server.serve():
            action = broadcast_json(self.comm, None)
            self.signal = action["signal"]
            if action["observe"] is not None:
                self.server.shard.replica.observe(action["observe"])
            if action["save"]:
                server_state.save(None, self.comm, None, self.server.state())

    def facts(self) -> dict:
        """For the table at the end."""
        return self.server.record()

    def collected(self) -> dict:
        """See server_state."""
        return server_state.collected(self)

    def close(self):
        """The server has closed at the end of `go`."""


def settings(job, task, serving, rule, schedule) -> dict:
    """The fields of ServerOptions for a run."""
    config, (decay, clip) = job.config(task), task.penalties(job.decay, job.clip)
    undecayed = tuple(name for name in task.tensors() if name in task.undecayed)
    task.begin(1)
    sparse = task.needs(0) is not None
    views = None
    if serving.pull == "sparse" and not sparse:
        pulled = replace(config, keep=serving.pull_keep or config.keep)
        views = partial(Views, config=pulled, significant=serving.significant, seed=job.seed) if pulled.keep < 1 else None
    return {"consistency": serving.consistency, "staleness": serving.staleness or 0,
            "stepping": "dense" if serving.delayed_momentum else stepping(rule, decay, config, sparse), "decay": decay,
            "l1": {name: serving.l1 for name in task.tensors() if name not in task.undecayed} if serving.l1 else 0.0,
            "clip": clip._replace(norm=np.inf) if clip and clip.value < np.inf else None,
            "groups": (Group(undecayed, rule, schedule),) if undecayed else (),
            "value_code": config.value_code if config.value_code in PULLED else "float32",
            "updates": partial(Updates, pushes_per_step=serving.pushes_per_step, staleness_scaling=serving.staleness_scaling),
            "views": views}


def compile_shard(rule, schedule, chosen):
    """Have a shard of a small tensor pushed to and pulled from, so that no kernel is compiled while workers wait."""
    l1 = max(chosen["l1"].values(), default=0.0) if isinstance(chosen["l1"], dict) else chosen["l1"]
    shard = Shard(Layout({"five": 5}, 1), 0, 1, 0, rule, schedule, ServerOptions(**{**chosen, "groups": (), "l1": l1}))
    some, ones = np.arange(3, dtype=np.uint32), partial(np.ones, dtype=np.float32)
    for sequence, (kind, payload) in enumerate((
            (r.START, Payload(None, ones(5))), (r.PULL, None), (r.PUSH, Payload(some, ones(3))), (r.PULL, None),
            (r.PUSH, Payload(None, ones(5))), (r.PULL, None))):
        body = r.NOTHING if payload is None else r.pack_values(payload, 5, "float32")
        shard.receive(0, r.packed(r.Request(kind, 0, 0, sequence + 1, clock=shard.clocks[0], version=shard.replica.t), body))


def stepping(rule, decay, config, sparse) -> str:
    """Which elements step. sparse: the gradients are 0 but for a few; the others step with 0, where that does anything."""
    if config.stepping != "auto":
        return config.stepping
    if isinstance(rule, SGD | AdaGrad) and decay is None and (sparse or isinstance(rule, SGD)):
        return "touched"
    return "catch-up" if not sparse and options_of(config).sparse and config.catches_up and catches_up(rule) else "dense"


def line(serving, size) -> str:
    """How the ranks go together, for people."""
    workers, servers = size - serving.servers, serving.servers
    how = {"bsp": "bsp: all wait for all", "ssp": f"ssp: at most {serving.staleness} steps ahead of the slowest",
           "async": "async: nobody waits"}[serving.consistency]
    return f"exchange server: {workers} worker{'s' * (workers > 1)}, {servers} server{'s' * (servers > 1)}, {how}"
