"""torch's DistributedDataParallel over gloo on the CPU, on the tasks of `sparsecomm train`: the baselines of that command.

    mpiexec -n 2 python -m hogwild.experiments.programs.baselines mlp mnist/ --hook powersgd --rank-approximation 4

Networks, first weights, data, each rank's share of every batch, evaluation and record are sparsecomm's own; rules are torch's
(fused). MPI is used only for rendezvous, evaluation and the guard of the ranks, not by the training.

Where EXPERIMENTS_INTERFACE names a network interface, gloo uses it, and what it sends is counted; EXPERIMENTS_MASTER is then
the address of rank 0. Phases of a step: compute is measured before the run, by steps that exchange nothing; what a step
takes beyond it is called exchange, whether or not some of it passed beside the backward pass.
"""

import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from hogwild.cli.arguments import parsed
from hogwild.errors import UserError
from hogwild.kernels.optim.rules import RULES
from hogwild.training.record import Report, versions
from hogwild.training.stopping import Stop, Stopper
from sparsecomm import guard
from sparsecomm.tasks import registry
from sparsecomm.tasks.options import LmOptions, MlpOptions
from sparsecomm.wire import launch, nic_counters

ONE_BUCKET = 1 << 16  # MB, more than any model has
TRIALS = 5  # steps that the computing alone is measured with
PHASES = ("compute", "exchange", "apply")


@dataclass
class Peer:
    """Options of the training."""

    hook: Literal["none", "fp16", "powersgd"] = "none"
    """Communication hook: none (Allreduce of float32), fp16 (of float16), powersgd (Vogels et al. 2019)."""
    rank_approximation: int = 4
    """Rank of PowerSGD's approximation of each matrix."""
    powersgd_start: int = 2
    """Steps before PowerSGD begins, which send everything; torch wants 2 at least, and advises 10% of all steps."""
    rule: Literal["sgd", "momentum", "nesterov", "adagrad", "adam"] | None = None
    """Optimizer rule; default: adagrad, for lm adam."""
    lr: float | None = None
    """Learning rate; default: that of sparsecomm train."""
    clip_norm: float | None = None
    """Clip the mean gradient of all ranks to this L2 norm."""
    epochs: int = 5
    """Passes over the training data."""
    evaluate_every: int | None = None
    """Evaluate after every so many steps too."""
    early_stopping: str | None = None
    """Metric of --target: accuracy, f1, log_loss; lm: perplexity."""
    target: float | None = None
    """Stop once the metric of --early-stopping has reached this."""
    max_steps: int | None = None
    """Stop after so many steps."""
    record: Path | None = None
    """File to which the run's JSON lines are appended."""


@dataclass
class PeerMlp:
    """Train sparsecomm's mlp with torch's DistributedDataParallel over gloo."""

    task: MlpOptions = field(default_factory=MlpOptions)
    training: Peer = field(default_factory=Peer)


@dataclass
class PeerLm:
    """Train sparsecomm's lm with torch's DistributedDataParallel over gloo."""

    task: LmOptions = field(default_factory=LmOptions)
    training: Peer = field(default_factory=Peer)


TASKS = {"mlp": PeerMlp, "lm": PeerLm}


def parse(arguments):
    """(task, options) of the command line. Raises UserError."""
    name, command = arguments[0] if arguments else "", "python -m hogwild.experiments.programs.baselines"
    if name not in TASKS:
        raise UserError(f"needs a task, one of {', '.join(TASKS)}, got '{name}': {command} mlp [DATA] --hook fp16")
    options = parsed(f"{command} {name}", TASKS[name], arguments[1:])
    for option, low in ("epochs", 1), ("rank_approximation", 1), ("powersgd_start", 2), ("evaluate_every", 1):
        value = getattr(options.training, option)
        if value is not None and value < low:
            raise UserError(f"--{option.replace('_', '-')} must be at least {low}, got {value}")
    return name, options


def main(arguments=None):
    """The command, on this rank."""
    if launch.rank():
        sys.stdout = open(os.devnull, "w")
    name, options = parse(list(sys.argv[1:] if arguments is None else arguments))
    comm = launch.world()
    import torch.distributed as dist
    join(comm)
    PeerRun(name, options, comm).train()
    dist.destroy_process_group()  # not after a failure: the others would fail of it too, and hide the cause


def join(comm):
    """Make the ranks of `comm` torch's default process group, over gloo."""
    import torch.distributed as dist
    from mpi4py import MPI

    from sparsecomm.wire.gather import broadcast_json, gathered
    own = {"name": np.frombuffer(MPI.Get_processor_name().encode(), np.uint8)}
    names = broadcast_json(comm, [each["name"].tobytes().decode() for each in gathered(comm, own)])
    interface = os.environ.get("EXPERIMENTS_INTERFACE") or ("lo" if len(set(names)) == 1 else "")
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    address = os.environ.get("EXPERIMENTS_MASTER") or ("127.0.0.1" if len(set(names)) == 1 else names[0])
    store = dist.TCPStore(address, 0, comm.size, True, wait_for_workers=False) if comm.rank == 0 else None
    address, port = broadcast_json(comm, (address, store.port) if store else None)
    store = store or dist.TCPStore(address, port, comm.size, False)
    dist.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)


def wrapped(model, options, size):
    """(DistributedDataParallel around the model with its hook, a function: bytes a rank has sent after so many steps).

    PowerSGD's callbacks themselves call Allreduce, from gloo's threads: where two buckets are on their way, ranks call it in
    different orders, and gloo aborts or hangs (torch 2.13). In one bucket there is only one order.
    """
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
    from torch.nn.parallel import DistributedDataParallel
    n, moved = sum(p.numel() for p in model.parameters()), 2 * (size - 1) / size
    if options.hook != "powersgd":
        ddp = DistributedDataParallel(model)
        if options.hook == "fp16":
            ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
        width = 2 if options.hook == "fp16" else 4
        return ddp, lambda steps: steps * moved * width * n
    ddp = DistributedDataParallel(model, bucket_cap_mb=ONE_BUCKET)
    state = powerSGD_hook.PowerSGDState(None, options.rank_approximation, options.powersgd_start,
                                        orthogonalization_epsilon=1e-8)  # a layer may have no gradient at all
    ddp.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return ddp, lambda steps: moved * 4 * (min(steps, options.powersgd_start) * n + state.total_numel_after_compression)


def rule_of(name, options):
    """(rule, learning rate), by default those of `sparsecomm train`."""
    task = registry.TASKS[name]
    rule = options.rule or task.rule
    lr = task.lr_factor * getattr(RULES[rule], "default_lr", 0.01)
    return rule, lr if options.lr is None else options.lr


def optimizer(rule, parameters, lr):
    """torch's optimizer with the formulas of sparsecomm's rule."""
    from torch import optim
    if rule == "adagrad":
        return optim.Adagrad(parameters, lr, eps=1e-10, fused=True)
    if rule == "adam":
        return optim.Adam(parameters, lr, fused=True)
    return optim.SGD(parameters, lr, momentum=0.0 if rule == "sgd" else 0.9, nesterov=rule == "nesterov", fused=True)


class PeerRun:
    """A training run on one rank."""

    def __init__(self, name, options, comm):
        self.options, self.comm, chosen = options.training, comm, options.training
        self.stopper = Stopper(Stop(metric=chosen.early_stopping, max_steps=chosen.max_steps, target=chosen.target))
        self.report = Report(quiet=comm.rank > 0, unit="steps")
        self.task = registry.build(name, options.task, comm.rank, comm.size)
        if chosen.target is not None:
            Stopper(self.stopper.stop, list(self.task.evaluate(comm)))  # raises for a metric that is not measured
        if chosen.evaluate_every and not self.task.facts["held_out"]:
            raise UserError("--evaluate-every needs held-out data: give --holdout or --test")
        rule, self.lr = rule_of(name, chosen)
        self.model = self.task.model
        self.ddp, self.sent = wrapped(self.model, chosen, comm.size)
        self.optimizer = optimizer(rule, self.model.parameters(), self.lr)
        self.t, self.seconds, self.reason, self.phases = 0, 0.0, None, dict.fromkeys(PHASES, 0.0)
        self.report.open(chosen.record if comm.rank == 0 else None)
        self.report.start(task=name, options=asdict(options), versions=versions("torch", "mpi4py"), ranks=comm.size,
                          peer=f"DistributedDataParallel, hook {chosen.hook}", rule=f"torch {rule}",
                          schedule=f"Constant(lr={self.lr:g})", data=self.task.facts)

    def train(self):
        """Train to the last epoch or the first reason to stop."""
        self.alone = self.computing()
        self.comm.Barrier()
        before, metrics = nic_counters.sent(), {}
        for epoch in range(1, self.options.epochs + 1):
            metrics = self.epoch(epoch)
            if self.reason:
                self.report.say(f"stopped: {self.reason}")
                break
        self.close(metrics, nic_counters.sent() - before if "EXPERIMENTS_INTERFACE" in os.environ else None)

    def computing(self) -> float:
        """Seconds of a step's forward and backward pass, without an exchange."""
        self.task.begin(1)
        taken = []
        for k in range(min(TRIALS + 1, self.task.steps)):
            start = time.perf_counter()
            with self.ddp.no_sync():
                self.learn(k)
            taken.append(time.perf_counter() - start)
        return float(np.median(taken[1:] or taken))

    def learn(self, k):
        """(loss sum, number) of this rank's examples of batch k; the gradients are then means over the ranks."""
        self.task.model = self.ddp
        try:
            return self.task.step(k, lambda name, gradient: None)
        finally:
            self.task.model = self.model

    def epoch(self, epoch) -> dict:
        """One pass over the data, its metrics and its line."""
        self.task.begin(epoch)
        done, began, start = np.zeros(2), self.seconds, time.perf_counter()
        for k in range(self.task.steps):
            done += self.step(k)
            due = self.options.evaluate_every and self.t % self.options.evaluate_every == 0 and k + 1 < self.task.steps
            if due:
                self.seconds += self.slowest(time.perf_counter() - start)
                metrics = self.task.evaluate(self.comm)
                self.reason = self.stopper.reached(metrics)
                self.report.evaluation(self.t, self.seconds, metrics)
                start = time.perf_counter()
            self.reason = self.reason or self.stopper.spent(self.t, self.seconds)
            if self.reason:
                break
        self.seconds += self.slowest(time.perf_counter() - start)
        return self.ended(epoch, done, self.seconds - began)

    def step(self, k):
        from torch.nn.utils import clip_grad_norm_
        start = time.perf_counter()
        done = self.learn(k)
        learned = time.perf_counter()
        if self.options.clip_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        self.optimizer.step()
        compute = min(self.alone, learned - start)
        for phase, seconds in zip(PHASES, (compute, learned - start - compute, time.perf_counter() - learned)):
            self.phases[phase] += seconds
        self.t += 1
        return done

    def slowest(self, seconds) -> float:
        """The largest `seconds` of all ranks, so that all decide alike."""
        from mpi4py import MPI
        most = np.array([seconds])
        self.comm.Allreduce(MPI.IN_PLACE, most, MPI.MAX)
        return float(most[0])

    def ended(self, epoch, done, seconds):
        """The epoch's line; its metrics, and the reason to stop if they are one."""
        from sparsecomm.run.loop import Epoch
        self.comm.Allreduce(done.copy(), done)
        loss, examples = done
        metrics = self.task.evaluate(self.comm)
        if self.options.target is not None:
            self.reason = self.reason or self.stopper.reached(metrics)
        each, rate = self.sent(self.t) / max(self.t, 1), examples / max(seconds, 1e-9)
        epoch = Epoch(epoch, loss / max(examples, 1), self.lr, int(examples), seconds, rate, metrics, skipped=0, kept=1.0,
                      bytes_per_step=each, residual=0.0, phases=dict(self.phases))
        self.report.epoch(epoch, self.options.epochs)
        return metrics

    def close(self, metrics, wire):
        """Write the end event, with the fields of `sparsecomm train`."""
        from sparsecomm.wire.gather import gathered
        own = {name: np.float64(seconds) for name, seconds in self.phases.items()}
        ranks = gathered(self.comm, own if wire is None else {**own, "wire": np.int64(wire)})
        if self.comm.rank:
            return
        wires = {} if wire is None else {"wire": [int(rank["wire"]) for rank in ranks]}
        size, n, sent = self.comm.size, self.task.facts["parameters"], self.sent(self.t)
        dense, each = 8 * n * (size - 1) / size, sent / max(self.t, 1)
        self.report.close(interrupted=False, metrics=metrics, ranks=size, exchange=f"ddp {self.options.hook}", steps=self.t,
                          parameters=n, phases={name: [float(rank[name]) for rank in ranks] for name in PHASES},
                          sent=[sent] * size, received=[sent] * size, bytes_per_step=each, dense_bytes_per_step=dense,
                          compression=dense / each if each else None, **wires)


if __name__ == "__main__":
    guard.run(main)
