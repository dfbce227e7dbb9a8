"""Training over a parameter server (Li et al. 2014, Algorithm 1): workers push and pull, servers step, rank 0 decides.

Rank 0 is a worker and the scheduler: it evaluates, and calls meetings, see meetings.py. A worker comes to one when it has
written what it pulled, and no pull is under way: what servers count as pulled is then what workers have.
"""

import time
from dataclasses import asdict

import numpy as np

from hogwild.errors import demand, sound
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.schedules import observed, rate
from hogwild.training.loop import plain, rebuilt
from hogwild.training.record import listed
from hogwild.training.signals import interrupt, stop_on_signals
from hogwild.training.stopping import Stopper
from sparsecomm.run import server_state
from sparsecomm.run.loop import CHECKPOINT, Epoch
from sparsecomm.run.meetings import Meetings
from sparsecomm.run.pushes import Pushes, compile_pushes
from sparsecomm.run.tallies import PHASES, Tallies, Tally
from sparsecomm.server.client import Client
from sparsecomm.server.filters import KKT, RandomSkip
from sparsecomm.server.flat import Flat
from sparsecomm.wire import nic_counters

SOON = 1.0  # seconds of waiting for a pull after which a worker that is called to a meeting comes without it


class WorkerRun:
    """One worker's part of a run."""

    def __init__(self, job, comm, report, serving, saved=None):
        self.job, self.comm, self.report, self.serving, self.stopper = job, comm, report, serving, Stopper(job.stop)
        self.workers, self.bound = comm.size - serving.servers, serving.bound
        self.task = job.make(comm.rank, self.workers)
        self.steps, config = self.task.steps, job.config(self.task)
        self.pace = serving.pace(self.workers)
        self.schedule = job.schedule(self.task, round(self.steps * self.pace))
        self.total = min(job.epochs * self.steps, job.stop.max_steps or job.epochs * self.steps)
        shapes = {name: self.task.shapes().get(name, (w.size,)) for name, w in self.task.tensors().items()}
        self.n = sum(w.size for w in self.task.tensors().values())
        slowed, factor = serving.slowed(self.workers)
        self.slow = factor if slowed == comm.rank else 1.0
        self.task.begin(1)
        self.task.step(0, lambda name, gradient: None)  # torch's first gradient takes half a second
        compile_pushes(config, self.workers)
        self.client = Client(self.task.tensors(), servers=serving.servers, comm=comm, value_code=config.value_code,
                             say=report.say)
        self.meetings = Meetings(self.client, comm, self.bound, self.total)
        self.tallies = Tallies(self.client.link.group, self.bound < np.inf)
        self.sparse = self.task.needs(0) is not None
        self.pushes = Pushes(self.client, shapes, config, job.seed, self.workers,
                             filters(serving, self.client, self.task, job.seed), self.sparse)
        clip = self.task.penalties(job.decay, job.clip)[1]
        self.norm = clip.norm if clip else np.inf
        # Whether all meet at the end of each epoch: what rank 0 finds there decides on the next one.
        plateau = hasattr(getattr(self.schedule, "after", self.schedule), "observe")
        self.judged, self.plateau = bool(job.stop.metric or job.stop.tol is not None or plateau), plateau
        self.epoch, self.k, self.history, self.best, self.reason, self.held = 1, 0, [], None, None, {}
        self.stopped, self.signal, self.final = False, 0, None
        self.pending, self.fresh = None, False  # a pull under way; whether the next step's parameters are there
        self.seconds, self.clock, self.before = 0.0, time.perf_counter(), 0.0
        self.spent, self.counts, self.marked = dict.fromkeys(PHASES, 0.0), np.zeros(3), np.zeros(3)
        if saved:
            self._restore(saved)
        elif job.stop.metric and self.first:
            Stopper(job.stop, list(self._alone()))  # tells a metric that will not be measured now
        self.wired = nic_counters.sent()

    def signalled(self, number):
        """Ctrl-C, or SIGTERM."""
        self.meetings.seen = number

    @property
    def first(self) -> bool:
        """Whether this worker is the scheduler."""
        return self.comm.rank == 0

    @property
    def done(self) -> int:
        """Steps of this worker."""
        return self.client.clock

    @property
    def metrics(self) -> dict:
        """Of the result."""
        return self.final or (self.history[-1].metrics if self.history else {})

    def go(self):
        """To the end, which all ranks reach together."""
        if self.reason:
            self.report.say(f"stopped: {self.reason}")
        self.clock = time.perf_counter()
        while not self.stopped:
            if self.done < self.total and not self.reason:
                self._epoch()
            if not self.stopped:
                self._meet()
        self._finish()
        self.meetings.end()
        self.tallies.end()
        self.client.close()

    def _finish(self):
        """Rank 0: the result is in the task: the servers' parameters, or those of the best epoch."""
        if not self.first:
            return
        self.client.wait(self.client.pull(whole=True))
        if self.signal:
            return
        if self.best and self.job.stop.restore_best and self.stopper.best_epoch != len(self.history):
            for name, w in self.task.tensors().items():
                w[:] = self.best[name]
            self.report.say(f"the parameters of epoch {self.stopper.best_epoch}, the best, are restored")
        elif self.bound:
            self.final = self._alone()
            self.report.say(f"when all workers had ended: {listed(self.final)}") if self.final else None

    def facts(self) -> dict:
        """For the table at the end."""
        self.tallies.all += self._tally()
        sums, post, sift = Tally(*self.tallies.all.tolist()), self.client.link.post, self.pushes.filters
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
        while self.k < self.steps and self.done < self.total and not self.stopped:
            self._await()
            if self.meetings.called():
                self._meet()
            elif self.fresh:
                self._step()
                self._decide()
        while self.k < self.steps and not self.stopped:
            self._meet()  # saves, before closing the epoch, which a resumed run does itself
        if not self.signal:
            self._close_epoch()

    def _await(self):
        """Write the pull of the next step into the tensors."""
        if self.fresh:
            return
        began = time.perf_counter()
        self.pending = self.pending or self.client.pull(self.task.needs(self.k))
        if self.client.wait(self.pending, lambda: time.perf_counter() > began + SOON and self.meetings.called()):
            self.pending, self.fresh = None, True
        self.spent["wait"] += time.perf_counter() - began

    def _step(self):
        began, gradients = time.perf_counter(), {}
        more = self.k + 1 < self.steps and self.done + 1 < self.total
        ahead = more and (self.sparse or self.bound == 0)
        if ahead:
            self.pending = self.client.pull(self.task.needs(self.k + 1), ahead=1)
        loss, count = self.task.step(self.k, gradients.__setitem__)
        if self.slow > 1:
            time.sleep((self.slow - 1) * (time.perf_counter() - began))
        computed = time.perf_counter()
        fine = self.pushes.push(gradients, self.norm)
        self.counts += (loss, count, 0) if fine else (0, 0, 1)
        self.k, self.fresh = self.k + 1, False
        if more and not ahead:
            self.pending = self.client.pull()
        self.spent["compute"] += computed - began
        self.spent["push"] += time.perf_counter() - computed

    def _lr(self) -> float:
        """The learning rate of the step before."""
        return float(rate(self.schedule, int(max(self.done - 1, 0) * self.pace)))

    def _time(self):
        """Count the seconds of training, which are rank 0's."""
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now

    def _decide(self):
        """After a step: tell rank 0 of a signal; rank 0: is a checkpoint due, an evaluation, the end?"""
        signal = self.meetings.signalled()
        if not self.first:
            return
        self._time()
        self.report.progress(self.done, self.job.epochs * self.steps, self.counts, self._lr())
        reason, every = self.stopper.spent(self.done, self.seconds), self.job.every
        if every and self.done % every == 0 and self.k < self.steps and self.done < self.total:
            metrics = self._evaluated()
            self.report.evaluation(self.done, self.seconds, metrics)
            reason = reason or self.stopper.reached(metrics)
        if reason and self.done < self.total:
            self.meetings.call(stop=reason)
        elif signal:
            self.meetings.call(signal=signal)
        elif self.job.writer and self.job.writer.due():
            self.meetings.call(save=True)

    def _meet(self):
        """Stop with all others, and do what rank 0 says. Collective over all ranks."""
        began = time.perf_counter()
        action = self.meetings.hold(self.done >= self.total or bool(self.reason), self.job.writer is not None)
        self.signal, self.stopped, self.reason = action["signal"], action["end"], self.reason or action["stop"]
        if action["observe"] is not None:
            self.schedule = observed(self.schedule, action["observe"])
        if action["save"]:
            server_state.save(self.job.writer, self.comm, self._position(), self._own())
        self.clock += time.perf_counter() - began

    def _close_epoch(self):
        self.tallies.tell(self._tally())
        if self.first:
            self._report_epoch()
        self.epoch, self.k, self.before = self.epoch + 1, 0, self.seconds
        if self.judged and self.bound < np.inf and self.done < self.total and not self.stopped:
            self._meet()

    def _tally(self) -> Tally:
        now = np.array([self.pushes.kept, self.done, self.client.link.post.sent], np.float64)
        tally = Tally(self.epoch, *self.counts, *(now - self.marked), self.pushes.residual(), *self.spent.values())
        self.marked, self.counts, self.spent = now, np.zeros(3), dict.fromkeys(PHASES, 0.0)
        return tally

    def _report_epoch(self):
        """Rank 0: evaluate, ask the stopper, report."""
        self._time()
        sums, seconds = self.tallies.sum(self.epoch), self.seconds - self.before
        pushes = max(sums.pushes, 1)
        epoch = Epoch(self.epoch, sums.loss / max(sums.examples, 1), self._lr(), int(sums.examples), seconds,
                      sums.examples / max(seconds, 1e-9), self._evaluated(), int(sums.skipped), sums.kept / (pushes * self.n),
                      sums.sent / pushes, float(sums.residual**0.5),
                      {phase: getattr(sums, phase) / self.workers for phase in PHASES})
        self.history.append(epoch)
        reason = self.stopper.observe(epoch.epoch, epoch.metrics, epoch.loss, self.done, self.seconds) or self.reason
        if self.stopper.improved:
            self.best = {name: w.copy() for name, w in self.task.tensors().items()}
        self.report.epoch(epoch, self.job.epochs)
        if reason:
            self.report.say(f"stopped: {reason}")
        if self.stopped or self.done >= self.total:
            return
        if reason:
            self.meetings.call(stop=reason)
        elif self.plateau:
            watched = epoch.metrics[self.job.stop.metric or self.task.metric] if epoch.metrics else epoch.loss
            self.meetings.call(observe=float(watched))

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
        """The metrics of the parameters as they are here."""
        rank, size = self.task.rank, self.task.size
        self.task.rank, self.task.size = 0, 1
        try:
            return self.task.evaluate()
        finally:
            self.task.rank, self.task.size = rank, size

    def _position(self) -> dict:
        return {"ranks": self.workers, "servers": self.serving.servers, "steps": self.steps, "epoch": self.epoch,
                "k": self.k, "t": self.done, "seconds": self.seconds, "before": self.before,
                "schedule": plain(self.schedule), "stopper": self.stopper.state(),
                "stopped": bool(self.reason) and not self.stopper.spent(self.done, self.seconds),
                "history": [asdict(epoch) for epoch in self.history]}

    def _own(self) -> dict[str, np.ndarray]:
        """This worker's arrays."""
        best = {f"best.{name}": w for name, w in (self.best or {}).items()}
        return {"place": np.array([self.epoch, self.k, self.done, self.fresh, *self.client.versions], np.int64),
                "counts": self.counts, **{f"w.{name}": w for name, w in self.task.tensors().items()},
                **{f"push.{name}": x for name, x in self.pushes.state().items()},
                **{f"task.{name}": x for name, x in (self.task.state() if self.k else {}).items()}, **best}

    def _restore(self, saved):
        state, own = saved
        with sound(*CHECKPOINT):
            for name, w in self.task.tensors().items():
                demand(own[f"w.{name}"].shape == w.shape, f"{name} is of another form")
                w[:] = own[f"w.{name}"]
            self.epoch, self.k, self.client.clock, fresh, *self.client.versions = own["place"].tolist()
            self.fresh, self.counts, self.marked[1] = bool(fresh), own["counts"].copy(), self.client.clock
            self.pushes.load(_part(own, "push."))
            self.held, self.best = _part(own, "task."), _part(own, "best.") or None
            self.seconds, self.before = state["seconds"], state["before"]
            self.schedule = checked(rebuilt(self.schedule, state["schedule"]))
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
