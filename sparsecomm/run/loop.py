"""The rank-synchronous loop: all ranks make every step together, and take every decision alike."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from hogwild.errors import demand, sound
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.schedules import rate
from hogwild.training import checkpoint
from hogwild.training.loop import plain, rebuilt
from hogwild.training.signals import interrupt, stop_on_signals
from hogwild.training.stopping import Stop, Stopper
from sparsecomm.config import Config
from sparsecomm.replica.replica import Group
from sparsecomm.replica.state import as_just_stepped, repaced, reshared
from sparsecomm.replica.synchronizer import Synchronizer
from sparsecomm.run import summary
from sparsecomm.run.summary import COUNTS, PHASES
from sparsecomm.tasks.base import Task
from sparsecomm.wire import nic_counters
from sparsecomm.wire.gather import broadcast_arrays, broadcast_json, gathered, on_root, scattered

CHECKPOINT = "the checkpoint", "state of a run", "start again with another --checkpoint"
ASK = 0.1  # seconds between two agreements on signals, budgets of time, and checkpoints


class Job(NamedTuple):
    """What is to be trained, for any number of ranks."""

    make: Callable[[int, int], Task]  # of (rank, ranks)
    rule: tuple
    schedule: Callable[..., tuple]  # of the task and, where they are not its own, the steps of an epoch
    config: Callable[[Task], Config]
    decay: tuple | None
    clip: tuple | None
    epochs: int
    stop: Stop
    seed: int
    writer: checkpoint.Writer | None  # rank 0 writes with it
    every: int | None = None  # steps between two evaluations within an epoch


class Saved(NamedTuple):
    """Where a run is."""

    state: dict  # numbers, for JSON
    common: dict  # arrays that all ranks have alike: "w." parameters, "best." those of the best epoch, "step." moments …
    own: dict  # arrays of this rank alone: "sync." what it has not sent …, "task."; empty: it starts without


@dataclass
class Epoch:
    """What one epoch did, all ranks together."""

    epoch: int  # from 1
    loss: float  # mean over the examples, each before its own update
    lr: float  # at the end of the epoch
    examples: int
    seconds: float  # training alone, without evaluation
    examples_per_s: float
    metrics: dict[str, float]
    skipped: int  # steps whose gradient was not finite
    kept: float  # share of the gradient's elements that was sent
    bytes_per_step: float  # that a rank meant to send
    residual: float  # L2 norm of what all ranks have not sent
    phases: dict[str, float]  # seconds by phase, mean over the ranks

    def rates(self) -> str:
        """How fast it went and what was sent, for the console."""
        return (f"{self.examples_per_s / 1e3:,.1f} k examples/s  kept {self.kept:.2%}  "
                f"{self.bytes_per_step / 1e3:,.1f} kB/step")


def train(job, comm, report, saved=None, recover=None) -> "DistributedRun":
    """Train on the ranks of `comm`, all of which call this; the DistributedRun at its end, whose parameters are the result.

    report: see hogwild/training/record.py, one that is quiet on all ranks but 0. saved: the state to continue from. recover:
    a function of a DistributedRun and an MPI.Exception that returns a DistributedRun of the surviving ranks, or raises;
    None: the death of a rank ends the others. Ctrl-C and SIGTERM, on any rank, end the run on all ranks after a step: a
    checkpoint is written and KeyboardInterrupt raised, with the DistributedRun as its `run`.
    """
    run = DistributedRun(job, comm, report, saved)
    with stop_on_signals(lambda number: run.signalled(number)):
        while True:
            try:
                run.go()
                if recover:
                    run.comm.Agree(1)  # no rank leaves while another one needs it to recover
                return run
            except KeyboardInterrupt as stop:
                stop.run = run
                raise
            except MPI.Exception as failure:
                if recover is None:
                    raise
                run = recover(run, failure)


class DistributedRun:
    """One rank's part of a run on `comm`, from its start or from where `saved` says."""

    def __init__(self, job, comm, report, saved=None):
        self.job, self.comm, self.report, self.stopper = job, comm, report, Stopper(job.stop)
        # Where the run is: epoch, the next step of it, what it has done (loss, examples, steps skipped), seconds of training
        # in all and before this epoch. The seconds are those of rank 0, which all ranks are told now and then.
        self.epoch, self.k, self.done, self.seconds, self.before = 1, 0, np.zeros(3), 0.0, 0.0
        self.history, self.best, self.reason, self.partial = [], None, None, False
        self.midway, self.held = False, {}  # within an epoch; the task's state there, from a checkpoint
        self.signal = self.seen = 0  # agreed on; seen by this rank
        self.compute, self.ask, self.since, self.clock = 0.0, 0, 0, time.perf_counter()
        self.task = job.make(comm.rank, comm.size)
        self.steps, self.n = self.task.steps, sum(w.size for w in self.task.tensors().values())
        config, schedule = job.config(self.task), job.schedule(self.task)
        if saved:
            with sound(*CHECKPOINT):
                config, schedule = self._settings(saved, config, schedule)
                self._put(_part(saved.common, "w."))
        self.local = config.combine == "local"  # the ranks' parameters and moments differ
        groups = [Group(tuple(self.task.undecayed), job.rule, schedule)]
        decay, clip = self.task.penalties(job.decay, job.clip)
        self.sync = Synchronizer(self.task.tensors(), job.rule, schedule, comm, config, decay, clip, groups, job.seed,
                                 report.say, self.task.shapes())
        self._compile()
        if saved:
            with sound(*CHECKPOINT):
                self._restore(saved)
        elif job.stop.metric:  # tells a metric that will not be measured now
            Stopper(job.stop, list(self.task.evaluate(comm)))
        self.begun = self.marked = self.totals()
        self.wired = nic_counters.sent()

    def _compile(self):
        """Make a step with three numbers, so that no kernel is compiled while the clock runs; and let the task compute a
        gradient that nobody takes: torch's first one takes half a second.
        """
        self.task.begin(1)
        self.task.step(0, lambda name, gradient: None)
        trial = Synchronizer({"three": np.zeros(3, np.float32)}, self.job.rule, self.schedule, self.comm, self.sync.config,
                             self.job.decay, self.job.clip, say=lambda line: None)
        trial.ready("three", np.ones(3, np.float32))
        trial.step()
        trial.close()

    @property
    def exchange(self) -> str:
        """The name of the exchange that is in use, also where the configuration says auto."""
        return type(self.sync.exchange).__name__.lower()

    def signalled(self, number):
        """Ctrl-C, or SIGTERM: the next agreement of the ranks ends the run."""
        self.seen = number

    @property
    def schedule(self):
        """The schedule as the evaluations so far have left it."""
        return next(iter(self.sync.groups.values())).schedule

    def go(self):
        """Epoch after epoch, until the last or a reason to stop."""
        if self.reason:
            self.report.say(f"stopped: {self.reason}")
        while self.epoch <= self.job.epochs and not self.reason:
            self._one_epoch()
        if self.job.writer and not self.partial:
            self.save()
        if self.best and self.job.stop.restore_best and self.stopper.best_epoch != len(self.history):
            self._put(self.best)
            self.report.say(f"the parameters of epoch {self.stopper.best_epoch}, the best, are restored")

    def _one_epoch(self):
        self.task.begin(self.epoch)
        if self.held:
            self.task.load(self.held)
        self.midway, self.held, self.ask, self.since, self.clock = True, {}, 0, self.sync.round, time.perf_counter()
        while self.k < self.steps and not (self.reason or self.signal):
            self._step()
        if self.signal:
            self.save() if self.job.writer else None
            interrupt(self.signal)
        self._agree()
        self.partial = self.k < self.steps
        if self.partial and self.job.writer:  # what closing the epoch does is not to be done twice
            self.save()
        self._close_epoch()

    def _step(self):
        start = time.perf_counter()
        loss, count = self.task.step(self.k, self.sync.ready)
        self.compute += time.perf_counter() - start
        self.done += (loss, count, 0) if self.sync.step() else (0, 0, 1)
        self.k += 1
        if self.sync.round >= self.ask and self._agree() and self.k < self.steps:
            self.save()
        if self.job.every and self.sync.round % self.job.every == 0 and self.k < self.steps:
            self._evaluate()
        self.reason = self.reason or self.stopper.spent(self.sync.t, self.seconds)

    def _evaluate(self):
        """Within an epoch: for the record and for a target; schedules and patience follow the epochs."""
        self._agree()
        metrics = self.task.evaluate(self.comm)
        self.reason = self.stopper.reached(metrics)
        self.report.evaluation(self.sync.t, self.seconds, metrics)
        self.clock = time.perf_counter()  # the seconds are those of training alone

    def _agree(self) -> bool:
        """What all ranks do next is the same: who has seen a signal, rank 0's clock, whether a checkpoint is due."""
        now, writer = time.perf_counter(), self.job.writer
        first = self.comm.rank == 0
        mine = np.array([self.seen, first * (self.seconds + now - self.clock), first and writer is not None and writer.due(),
                         now - self.clock])
        self.comm.Allreduce(MPI.IN_PLACE, mine, MPI.MAX)
        self.signal, self.seconds, due, took = int(mine[0]), float(mine[1]), bool(mine[2]), float(mine[3])
        pace = took / max(self.sync.round - self.since, 1)
        self.ask, self.since, self.clock = self.sync.round + max(int(ASK / max(pace, 1e-6)), 1), self.sync.round, now
        lr = float(rate(self.schedule, self.sync.t))
        self.report.progress(self.sync.round, self.job.epochs * self.steps, self.done, lr)
        return due

    def _close_epoch(self):
        """Evaluate, ask the stopper, report."""
        if self.local:
            self.sync.average_parameters()
        now = self.totals()
        rounds = int(now[-1] - self.marked[-1])
        mine = np.concatenate([self.done, now[:-1] - self.marked[:-1], [self.sync.residual_norm() ** 2]])
        self.comm.Allreduce(MPI.IN_PLACE, mine)
        (loss, examples, skipped), phases, (kept, sent, _) = mine[:3], mine[3:-4] / self.comm.size, mine[-4:-1]
        each, seconds = max(self.comm.size * rounds, 1), self.seconds - self.before
        epoch = Epoch(self.epoch, float(loss / max(examples, 1)), float(rate(self.schedule, max(self.sync.t - 1, 0))),
                      int(examples), seconds, examples / max(seconds, 1e-9), self.task.evaluate(self.comm),
                      round(skipped / self.comm.size), kept / (each * self.n), sent / each, float(mine[-1] ** 0.5),
                      dict(zip(PHASES, phases.tolist())))
        self.history.append(epoch)
        self.reason = self.stopper.observe(epoch.epoch, epoch.metrics, epoch.loss, self.sync.t, self.seconds) or self.reason
        if self.stopper.improved:
            self.best = {name: w.copy() for name, w in self.task.tensors().items()}
        self.sync.observe(epoch.metrics[self.job.stop.metric or self.task.metric] if epoch.metrics else epoch.loss)
        self.epoch, self.k, self.done, self.before, self.marked = self.epoch + 1, 0, np.zeros(3), self.seconds, now
        self.midway = False
        self.report.epoch(epoch, self.job.epochs)
        if self.reason:
            self.report.say(f"stopped: {self.reason}")

    @property
    def metrics(self) -> dict:
        """Of the last epoch."""
        return self.history[-1].metrics if self.history else {}

    def collected(self) -> dict:
        """As summary.collected."""
        return summary.collected(self)

    shown = staticmethod(summary.shown)

    def close(self):
        """Called by all ranks, at the end."""
        self.sync.close()

    def totals(self) -> np.ndarray:
        """float64: this rank's seconds by phase, its counts, and the number of rounds of which they are."""
        phases, counts = self.sync.phases | {"compute": self.compute}, self.sync.counts
        return np.array([*(phases.get(name, 0.0) for name in PHASES), *(counts.get(name, 0) for name in COUNTS),
                         self.sync.round])

    def _put(self, parameters):
        for name, w in self.task.tensors().items():
            demand(np.shape(parameters[name]) == np.shape(w), f"{name} is of another form")
            w[:] = parameters[name]

    def save(self):
        """Write a checkpoint of all that the next step depends on. Called by all ranks."""
        start, saved = time.perf_counter(), self.position(self.comm)
        owns = gathered(self.comm, saved.own)
        apart = {f"rank{r}.{name}": x for r, own in enumerate(owns) for name, x in own.items()}
        on_root(self.comm, lambda: self.job.writer.save({**saved.common, **apart}, saved.state))
        self.clock += time.perf_counter() - start

    def position(self, comm) -> Saved:
        """Where the run is, the ranks of `comm` together; the arrays are not copied."""
        done = self.done.copy()
        comm.Allreduce(MPI.IN_PLACE, done)
        alike = {**_named("w.", self.task.tensors()), **_named("step.", self.sync.common())}
        own = {**_named("sync.", self.sync.own()), **_named("task.", self.task.state() if self.midway else self.held)}
        if self.local:
            own.update(alike)
        return Saved({
            "ranks": self.comm.size, "steps": self.steps, "epoch": self.epoch, "k": self.k, "t": self.sync.t,
            "done": done.tolist(), "seconds": self.seconds, "before": self.before, "schedule": plain(self.schedule),
            "exchange": self.exchange, "stopper": self.stopper.state(),
            "stopped": bool(self.reason) and not self.stopper.spent(self.sync.t, self.seconds),
            "history": [asdict(epoch) for epoch in self.history],
        }, {**alike, **_named("best.", self.best or {})}, own)

    def moved(self, comm) -> "DistributedRun":
        """This run on the ranks of `comm`, fewer than before: from where its rank 0 is, with what these have not sent."""
        self.sync.end()
        saved = self.position(comm)
        state, common = broadcast_json(comm, saved.state), broadcast_arrays(comm, saved.common)
        run = DistributedRun(self.job, comm, self.report, Saved(state, common, _without_task(saved.own)))
        run.seen = self.seen
        return run

    def _settings(self, saved, config, schedule):
        """Config and schedule with which the run goes on."""
        state = saved.state
        if self.comm.size == state["ranks"] or _part(saved.own, "sync."):
            config = replace(config, exchange=state["exchange"])  # what was measured once is not measured again
        if self.steps == state["steps"] or hasattr(getattr(schedule, "after", schedule), "observe"):
            schedule = checked(rebuilt(schedule, state["schedule"]))
        return config, schedule

    def _restore(self, saved):
        state, common = saved.state, _part(saved.common, "step.")
        if self.local:
            self._put(_part(saved.own, "w."))
            common = {**_part(saved.own, "step."), "clock": common["clock"]}
        # With another number of ranks there are other steps: to the same place in the epoch and in the schedule.
        self.k, steps = state["k"] * self.steps // state["steps"], (self.steps, state["steps"])
        common, own = repaced(common, self.sync.tensors, *steps), _part(saved.own, "sync.")
        if not own:  # of a dense exchange
            lasts = {name: self.sync.last.get(name) for name in self.sync.tensors}
            common, own = as_just_stepped(common, lasts), self.sync.own()
        self.sync.load(common, own)
        self.best = _part(saved.common, "best.") or None
        self.held = _part(saved.own, "task.")
        self.epoch, self.seconds, self.before = state["epoch"], state["seconds"], state["before"]
        self.done = np.array(state["done"], np.float64) * (self.comm.rank == 0)
        demand(self.done.shape == (3,) and 0 <= self.k <= self.steps and np.isfinite([self.seconds, self.before]).all(),
               "what it has done")
        self.stopper.restore(state["stopper"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.reason = "it had stopped before" if state["stopped"] else self.stopper.spent(self.sync.t, self.seconds)


def load(comm, path, say) -> Saved:
    """The newest valid checkpoint of `path`, read by rank 0, for every rank its part. Raises UserError on all ranks.

    Written by another number of ranks, what these had not sent is given to those there are; its sum stays the same.
    """
    tensors, state = on_root(comm, lambda: _loaded(path, say)) or ({}, None)
    state = broadcast_json(comm, state)
    owns = [_part(tensors, f"rank{r}.") for r in range(state["ranks"])]
    if comm.rank == 0 and comm.size != state["ranks"]:
        owns = _shared_out(owns, comm.size)
    common = broadcast_arrays(comm, {name: x for name, x in tensors.items() if not name.startswith("rank")})
    return Saved(state, common, scattered(comm, owns))


def _loaded(path, say):
    """checkpoint.load, of a run's state."""
    tensors, state = checkpoint.load(path, say)
    with sound(path, *CHECKPOINT[1:]):
        for name, low, high in (("ranks", 1, 1 << 20), ("epoch", 1, 1 << 53), ("t", 0, 1 << 53)):
            demand(type(state[name]) is int and low <= state[name] <= high, name)
        demand(isinstance(state["fingerprint"], dict), "fingerprint")
    return tensors, state


def _shared_out(owns, size):
    """The arrays of `size` ranks from those of another number; parameters and moments that ranks have apart, as means."""
    unsent = reshared([_named("sync.", _part(own, "sync.")) for own in owns], size)
    means = {name: np.mean([own[name] for own in owns], axis=0).astype(x.dtype) for name, x in owns[0].items()
             if name.startswith(("w.", "step."))}
    return [{**own, **means} for own in unsent]


def _without_task(own):
    return {name: x for name, x in own.items() if not name.startswith("task.")}


def _named(prefix, arrays):
    return {prefix + name: x for name, x in arrays.items()}


def _part(arrays, prefix):
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
