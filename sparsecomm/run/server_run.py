"""Training over a parameter server (Li et al. 2014, Algorithm 1): workers push and pull, servers step, rank 0 decides.

Rank 0 is a worker and the scheduler: it evaluates, and calls meetings. For a meeting all workers stop after a step, the
servers stop serving, and all ranks do what rank 0 says: save a checkpoint, tell the schedules a metric, end. Where workers
wait for each other it calls one for a step that all of them have yet to reach, so that all stop at the same.
"""

import time
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from hogwild.errors import demand, sound
from hogwild.kernels.optim.schedules import observed, rate
from hogwild.training.loop import plain, rebuilt
from hogwild.training.record import listed
from hogwild.training.signals import interrupt, stop_on_signals
from hogwild.training.stopping import Stopper
from sparsecomm.run import server_state
from sparsecomm.run.loop import CHECKPOINT, Epoch
from sparsecomm.run.pushes import Pushes
from sparsecomm.server.client import Client
from sparsecomm.server.filters import KKT, RandomSkip
from sparsecomm.server.flat import Flat
from sparsecomm.wire import nic_counters
from sparsecomm.wire.gather import broadcast_json

MEET, TALLY, SIGNAL = 11, 12, 13  # tags between workers
PHASES = "compute", "push", "wait"  # a worker's seconds
NAP = 0.001


class Tally(NamedTuple):
    """What a worker did since its last tally."""

    epoch: float
    loss: float
    examples: float
    skipped: float
    kept: float
    pushes: float
    sent: float
    residual: float  # squared L2 norm, now
    compute: float
    push: float
    wait: float


class WorkerRun:
    """One worker's part of a run."""

    def __init__(self, job, comm, report, serving, saved=None):
        self.job, self.comm, self.report, self.serving, self.stopper = job, comm, report, serving, Stopper(job.stop)
        self.workers, self.bound = comm.size - serving.servers, serving.bound
        self.task, self.schedule = job.make(comm.rank, self.workers), None
        self.steps, self.schedule, config = self.task.steps, job.schedule(self.task), job.config(self.task)
        self.total = min(job.epochs * self.steps, job.stop.max_steps or job.epochs * self.steps)
        self.shapes = {name: self.task.shapes().get(name, (w.size,)) for name, w in self.task.tensors().items()}
        self.n = sum(w.size for w in self.task.tensors().values())
        self.slow = serving.slowed(self.workers)
        self.slow = self.slow[1] if self.slow[0] == comm.rank else 1.0
        self._compile()
        self.client = Client(self.task.tensors(), servers=serving.servers, comm=comm, value_code=config.value_code,
                             say=report.say)
        self.group = self.client.link.group
        self.sparse = self.task.needs(0) is not None
        self.pushes = Pushes(self.client, self.shapes, config, job.seed, self.workers,
                             filters(serving, self.client, self.task, job.seed), self.sparse)
        _, clip = self.task.penalties(job.decay, job.clip)
        self.norm = clip.norm if clip else np.inf
        self.epoch, self.k, self.history, self.best, self.reason, self.held = 1, 0, [], None, None, {}
        # Meetings so far, the clock of the next, what rank 0 will say there, whether it said the end.
        self.met, self.due, self.action, self.stopped = 0, None, {}, False
        self.seen, self.told, self.signal = 0, False, 0
        self.pending, self.fresh, self.tallies, self.notes = None, False, [], []
        self.seconds, self.clock, self.before = 0.0, time.perf_counter(), 0.0
        self.spent, self.counts, self.all = dict.fromkeys(PHASES, 0.0), np.zeros(3), np.zeros(len(Tally._fields))
        self.marked, self.final = np.zeros(3), None
        if saved:
            self._restore(saved)
        elif job.stop.metric and comm.rank == 0:
            Stopper(job.stop, list(self._alone()))
        self.wired = nic_counters.sent()

    def _compile(self):
        """Compute a gradient that nobody takes, before the clock starts."""
        self.task.begin(1)
        self.task.step(0, lambda name, gradient: None)

    def signalled(self, number):
        """Ctrl-C, or SIGTERM."""
        self.seen = number

    @property
    def first(self) -> bool:
        """Whether this worker is the scheduler."""
        return self.comm.rank == 0

    @property
    def done(self) -> int:
        """Steps of this worker."""
        return self.client.clock

    def go(self):
        """To the end, which all ranks reach together."""
        self.clock = time.perf_counter()
        while not self.stopped:
            if self.done < self.total and not self.reason:
                self._epoch()
            self._meet()
        self._finish()
        self.client.close()

    def _finish(self):
        """Rank 0: the result is in the task: the servers' parameters, or those of the best epoch."""
        while self.first and self.group.Iprobe(MPI.ANY_SOURCE, TALLY):
            self.group.Recv(np.zeros(len(Tally._fields)), MPI.ANY_SOURCE, TALLY)
        if not self.first or self.signal:
            return
        self.final = self._evaluated() if self.bound else None
        if self.final:
            self.report.say(f"when all workers had ended: {listed(self.final)}")
        if not self.bound:
            self.client.wait(self.client.pull(whole=True))
        if self.best and self.job.stop.restore_best and self.stopper.best_epoch != len(self.history):
            for name, w in self.task.tensors().items():
                w[:] = self.best[name]
            self.final = None
            self.report.say(f"the parameters of epoch {self.stopper.best_epoch}, the best, are restored")

    @property
    def metrics(self) -> dict:
        """Of the result."""
        return self.final or (self.history[-1].metrics if self.history else {})

    def facts(self) -> dict:
        """For the table at the end."""
        self._tally()
        sums, post, sift = Tally(*self.all.tolist()), self.client.link.post, self.pushes.filters
        return {"pushes": self.done, "kept": sums.kept, "sent": post.sent, "received": post.received, "skipped": sums.skipped,
                "residual": self.pushes.residual(), **{phase: getattr(sums, phase) for phase in PHASES},
                "filters": {name: [sift.held[name], seen] for name, seen in sift.seen.items()}}

    def collected(self) -> dict:
        """See server_state."""
        return server_state.collected(self)

    shown = staticmethod(server_state.shown)

    def close(self):
        """The client is closed at the end of `go`."""

    def _epoch(self):
        self.task.begin(self.epoch)
        if self.held:
            self.task.load(self.held)
            self.held = {}
        while self.k < self.steps and self.done < self.total:
            if self._called():
                self._meet()
                if self.stopped:
                    return
            self._step()
            self._decide()
        self._close_epoch()

    def _step(self):
        began = time.perf_counter()
        if not self.fresh:
            self.client.wait(self.pending or self._pull(self.k))
        self.pending, self.fresh = None, False
        more = self.k + 1 < self.steps
        if more and (self.sparse or self.bound == 0):
            self.pending = self._pull(self.k + 1, ahead=1)
        pulled, gradients = time.perf_counter(), {}
        loss, count = self.task.step(self.k, gradients.__setitem__)
        computed = time.perf_counter()
        if self.slow > 1:
            time.sleep((self.slow - 1) * (computed - pulled))
            computed = time.perf_counter()
        fine = self.pushes.push(gradients, self.norm)
        self.counts += (loss, count, 0) if fine else (0, 0, 1)
        self.k += 1
        if more and self.pending is None:
            self.pending = self._pull(self.k)
        for phase, seconds in zip(PHASES, (computed - pulled, time.perf_counter() - computed, pulled - began)):
            self.spent[phase] += seconds

    def _pull(self, k, ahead=0):
        return self.client.pull(self.task.needs(k), ahead)

    def _decide(self):
        """Rank 0, after a step: is a checkpoint due, an evaluation, the end?"""
        if self.seen and not self.first and not self.told:
            self.told = True
            self.notes.append(self.group.Isend(np.array([self.seen], np.int64), 0, SIGNAL))
        if not self.first:
            return
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        self.report.progress(self.done, self.total, self.counts, float(rate(self.schedule, self.done)))
        reason, every = self.stopper.spent(self.done, self.seconds), self.job.every
        if every and self.k % every == 0 and self.k < self.steps and self.done < self.total:
            metrics = self._evaluated()
            self.report.evaluation(self.done, self.seconds, metrics)
            reason = reason or self.stopper.reached(metrics)
        if reason and self.done < self.total:
            self._call(stop=reason)
        elif self._signalled():
            self._call(signal=self.seen)
        elif self.job.writer and self.job.writer.due():
            self._call(save=True)

    def _signalled(self) -> int:
        while not self.seen and self.group.Iprobe(MPI.ANY_SOURCE, SIGNAL):
            note = np.zeros(1, np.int64)
            self.group.Recv(note, MPI.ANY_SOURCE, SIGNAL)
            self.seen = int(note[0])
        return self.seen

    def _call(self, **action):
        """Rank 0: have all workers meet, for the first call of several; `action`: stop (a reason), signal, observe, save."""
        self.action |= action
        if self.due is not None:
            return
        self.due = min(self.done + (0 if self.bound == np.inf else int(self.bound) + 1), self.total)
        self.notes = [note for note in self.notes if not note.Test()]
        for worker in range(1, self.workers):
            self.notes.append(self.group.Isend(np.array([self.met + 1, self.due], np.int64), worker, MEET))

    def _called(self) -> bool:
        """Whether this worker has come to the step of a meeting."""
        while not self.first and self.group.Iprobe(0, MEET):
            note = np.zeros(2, np.int64)
            self.group.Recv(note, 0, MEET)
            number, due = note.tolist()
            if number > self.met:
                self.due = due
        return self.due is not None and self.done >= self.due

    def _meet(self):
        """Stop with all others, and do what rank 0 says. Collective over all ranks."""
        began = time.perf_counter()
        self.client.pause()
        everyone = self.group.Ibarrier()
        while not everyone.Test():
            if self.first and self._signalled() and self.due is None:
                self._call(signal=self.seen)
            time.sleep(NAP)
        ended = self.done >= self.total or bool(self.reason)
        action = broadcast_json(self.comm, self._action(ended) if self.first else None)
        self.met, self.due, self.signal = self.met + 1, None, action["signal"]
        self.reason = self.reason or action["stop"]
        if action["observe"] is not None:
            self.schedule = observed(self.schedule, action["observe"])
        self.stopped = action["end"]
        if action["save"]:
            server_state.save(self.job.writer, self.comm, self._position(), self._own())
        self.clock += time.perf_counter() - began

    def _action(self, ended):
        action, self.action = {"stop": None, "signal": 0, "observe": None, "save": False, **self.action}, {}
        action["end"] = bool(ended or action["stop"] or action["signal"])
        action["save"] = self.job.writer is not None and (action["save"] or action["end"])
        return action

    def _close_epoch(self):
        tally = self._tally()
        if not self.first:
            self.notes = [note for note in self.notes if not note.Test()]
            self.notes.append(self.group.Isend(np.array(tally), 0, TALLY))
        else:
            self._report_epoch(tally)
        self.epoch, self.k, self.before = self.epoch + 1, 0, self.seconds

    def _tally(self) -> Tally:
        now = np.array([self.pushes.kept, self.done, self.client.link.post.sent], np.float64)
        tally = Tally(self.epoch, *self.counts, *(now - self.marked), self.pushes.residual(),
                      *(self.spent[phase] for phase in PHASES))
        self.all += tally
        self.marked, self.counts, self.spent = now, np.zeros(3), dict.fromkeys(PHASES, 0.0)
        return tally

    def _report_epoch(self, own):
        """Rank 0: evaluate, ask the stopper, report. Where nobody waits, with the tallies that have come so far."""
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        tallies = self.tallies + [own]
        while True:
            while self.group.Iprobe(MPI.ANY_SOURCE, TALLY):
                tally = np.zeros(len(Tally._fields))
                self.group.Recv(tally, MPI.ANY_SOURCE, TALLY)
                tallies.append(Tally(*tally))
            if self.bound == np.inf or sum(each.epoch == self.epoch for each in tallies) == self.workers:
                break
            time.sleep(NAP)
        self.tallies = [each for each in tallies if each.epoch > self.epoch and self.bound < np.inf]
        told = [each for each in tallies if each not in self.tallies]
        sums = Tally(*np.sum(told, axis=0))
        pushes, seconds = max(sums.pushes, 1), self.seconds - self.before
        epoch = Epoch(self.epoch, sums.loss / max(sums.examples, 1), float(rate(self.schedule, max(self.done - 1, 0))),
                      int(sums.examples), seconds, sums.examples / max(seconds, 1e-9), self._evaluated(), int(sums.skipped),
                      sums.kept / (pushes * self.n), sums.sent / pushes, float(sums.residual**0.5),
                      {phase: getattr(sums, phase) / self.workers for phase in PHASES})
        self.history.append(epoch)
        reason = self.stopper.observe(epoch.epoch, epoch.metrics, epoch.loss, self.done, self.seconds)
        if self.stopper.improved:
            self.best = {name: w.copy() for name, w in self.task.tensors().items()}
        self.report.epoch(epoch, self.job.epochs)
        watched = epoch.metrics[self.job.stop.metric or self.task.metric] if epoch.metrics else epoch.loss
        plateau = hasattr(getattr(self.schedule, "after", self.schedule), "observe")
        if reason:
            self.reason = reason
            self.report.say(f"stopped: {reason}")
            self._call(stop=reason)
        elif plateau and self.done < self.total:
            self._call(observe=float(watched))

    def _evaluated(self) -> dict:
        """The metrics of the servers' parameters, which this worker then has to the bit."""
        if self.pending is not None:
            self.client.wait(self.pending)
        self.client.wait(self.client.pull(whole=True))
        self.pending, self.fresh = None, True
        began = time.perf_counter()
        metrics = self._alone()
        self.clock += time.perf_counter() - began
        return metrics

    def _alone(self) -> dict:
        rank, size = self.task.rank, self.task.size
        self.task.rank, self.task.size = 0, 1
        try:
            return self.task.evaluate()
        finally:
            self.task.rank, self.task.size = rank, size

    def _position(self) -> dict:
        return {"ranks": self.workers, "servers": self.serving.servers, "steps": self.steps, "epoch": self.epoch,
                "k": self.k, "t": self.done, "seconds": self.seconds, "before": self.before,
                "schedule": plain(self.schedule), "stopper": self.stopper.state(), "met": 0,
                "stopped": bool(self.reason) and not self.stopper.spent(self.done, self.seconds),
                "history": [asdict(epoch) for epoch in self.history]}

    def _own(self) -> dict[str, np.ndarray]:
        best = {f"best.{name}": w for name, w in (self.best or {}).items()}
        return {"place": np.array([self.epoch, self.k, self.done], np.int64), "counts": self.counts,
                **{f"w.{name}": w for name, w in self.task.tensors().items()},
                **{f"push.{name}": x for name, x in self.pushes.state().items()},
                **{f"task.{name}": x for name, x in (self.task.state() if self.k else {}).items()}, **best}

    def _restore(self, saved):
        state, own = saved
        with sound(*CHECKPOINT):
            for name, w in self.task.tensors().items():
                demand(own[f"w.{name}"].shape == w.shape, f"{name} is of another form")
                w[:] = own[f"w.{name}"]
            self.epoch, self.k, self.client.clock = own["place"].tolist()
            self.counts = own["counts"].copy()
            self.pushes.load(_part(own, "push."))
            self.held, self.best = _part(own, "task."), _part(own, "best.") or None
            self.seconds, self.before = state["seconds"], state["before"]
            self.schedule = rebuilt(self.schedule, state["schedule"])
            self.stopper.restore(state["stopper"])
            self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.reason = "it had stopped before" if state["stopped"] else self.stopper.spent(self.done, self.seconds)


def filters(serving, client, task, seed) -> list:
    """The filters of a worker's pushes."""
    flat, l1 = Flat(client.tensors), {name: serving.l1 for name in client.tensors if name not in task.undecayed}
    return ([KKT(serving.kkt, l1, flat)] if serving.kkt else []) + (
        [RandomSkip(serving.random_skip, seed, client.rank)] if serving.random_skip else [])


def _part(arrays, prefix):
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}


def train(run):
    """Have a WorkerRun or ServerRun go to its end, as sparsecomm.run.loop.train does."""
    with stop_on_signals(run.signalled):
        run.go()
    if run.signal:
        try:
            interrupt(run.signal)
        except KeyboardInterrupt as stop:
            stop.run = run
            raise
    return run
