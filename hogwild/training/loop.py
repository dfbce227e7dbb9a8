"""The one training loop. It knows nothing of any problem family: see `Problem`."""

import functools
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from hogwild.errors import UserError, demand, sound
from hogwild.kernels.compiler.cache import announce
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.schedules import observed, rate, scaled
from hogwild.kernels.sharing.work_queue import claim
from hogwild.training.divergence import Reference, diverges, far
from hogwild.training.epoch import Epoch
from hogwild.training.stopping import Stop, Stopper
from hogwild.training.workers import BAD, Workers


class Problem:
    """What a problem family tells the loop: its size, one call of its kernel, and how to measure itself.

    The first three are what a family must have; what follows has a default.
    """

    examples: int

    def run(self, rule, schedule, own, order, t, stride, tally) -> None:
        """One kernel call without the GIL on the examples `order`; t: steps done before, raised by stride an example. It is
        also called with no examples, to compile it.

        Adds to tally[0:3]: loss, examples, non-zeros (or whatever the family's work is counted in). An example whose loss
        is not finite ends the call, and its number + 1 is then tally[3].
        """
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Metrics by name on the held-out part; empty where there is none."""
        return {}

    def work(self, rule, schedule, own, order, t, queue, most, first, tally) -> bool:
        """Take a chunk of up to `most` examples from the queue (kernels/sharing/work_queue.py), and `run` it; whether
        none is left.

        t: steps done before the order. first: the worker's first call for this order. A family may do several chunks.
        """
        start, stop = claim(queue, len(order), most)
        if start < stop or not len(order):
            self.run(rule, schedule, own, order[start:stop], t + start, 1, tally)
        if start == stop and not first:
            self.leave(rule, schedule, own)
        return start == stop

    summary = Epoch  # what the record and checkpoints hold of an epoch
    of_loss = 1.0  # what the kernel's loss is multiplied by, to be in the unit that people see
    unit = "examples"  # what the loop's examples are called, where each is a batch "steps"
    rows = None  # numbers of the examples to train on, where these are not all
    numbers = np.int64  # dtype of `order`
    lockstep = False  # workers call the kernel together
    whole = False  # and each of them gets all examples of the call
    halt = None  # int64[8], where workers wait for each other in a kernel: not when halt[0] is 1, after one has failed

    def order(self, rng) -> np.ndarray:
        """Numbers of the examples in the order of an epoch, [examples]; rng: a NumPy Generator of its own."""
        order = np.arange(self.examples) if self.rows is None else np.array(self.rows, np.int64)
        rng.shuffle(order)
        return order

    def call_end(self, order, at) -> int:
        """Where in `order` a call of workers in lockstep may end: at place `at`, or the next one behind it."""
        return at

    def private(self, k) -> Any:
        """What worker k owns alone (buffers, replicas); passed back to `run`."""

    def begin(self, t) -> None:
        """Called before the workers start at step t."""

    def leave(self, rule, schedule, own) -> None:
        """Called in each worker after its last, and in one that leaves before its first because more do not pay."""

    def end(self) -> None:
        """Called when all have stopped."""

    def over(self) -> None:
        """Called when the run has ended, in whatever way: to give up what the workers of `private` hold."""

    def pays(self) -> bool:
        """Whether several workers get on faster than one. Where not, all but the first leave before their next call."""
        return True

    def settle(self, rule, t) -> None:
        """Called at the end of an epoch, after step t: apply what was put off."""

    def reference(self) -> Reference | None:
        """Losses of a constant prediction and of a run's start, as the epochs' are measured; None: not known."""

    def exchanged(self) -> dict[str, float]:
        """How fresh the workers' view of each other was up to now, by name, for the record."""
        return {}

    def parameters(self) -> dict[str, np.ndarray]:
        """Everything that a checkpoint must hold to go on exactly, by name; restored in place."""
        return {}

    def named(self, i) -> str:
        """Example i as a person can find it."""
        return f"example {i + 1}"

    def suspect(self) -> str:
        """The example whose step has made a parameter infinite, though its loss was finite."""
        return "an example"

    def said(self) -> str:
        """How its workers share the parameters, for the line at the start of a run."""
        return "shared memory"

    closed = None  # parameters in place of the trained ones, see `close`

    def close(self) -> tuple[int, int] | None:
        """End the training as a penalty wants it: `closed` parameters, of which some are 0; (how many were not 0 before,
        how many are not 0 now), or None where there is nothing to do."""
        return None


def train(problem: Problem, rule, schedule, *, epochs=5, workers=1, seed=0, report=None, stop=None, retries=5,
          checkpoint=None, resume=None) -> list[Epoch]:
    """Lock-free training: every epoch a fresh permutation, of which each worker takes chunk after chunk.

    Step t of the schedule is the example at place t of the permutations, one after the other.
    report: an object with `progress`, `epoch`, `event` and `say`, see hogwild/training/record.py. stop: a `Stop`.
    checkpoint: an object with `due()` and `save(tensors, state)`; resume: (tensors, state) of one. A loss that is not
    finite, or a mean loss that in two epochs in a row is far above the run's start and grows, brings back the parameters
    before it and halves the learning rate, `retries` times; then UserError. Ctrl-C ends the run between two chunks,
    writes a checkpoint and raises KeyboardInterrupt; the parameters then hold what was learnt so far.
    """
    announce()
    try:
        run = Run(problem, checked(rule), checked(schedule), epochs, workers, seed, report, Stopper(stop or Stop()), retries,
                  checkpoint)
        if resume:
            run.restore(*resume)
        _train(run)
    finally:
        problem.over()
    return run.history


def _train(run):
    try:
        with run.team.signals:
            run.go()
        run.judge()
    except KeyboardInterrupt:
        if run.good and (run.bad or not _finite(run.problem.parameters())):
            run.back()
        if run.checkpoint:
            run.save()
        run.problem.settle(run.rule, run.t)
        raise


class Run:
    """The state of one run, and its steps."""

    def __init__(self, problem, rule, schedule, epochs, workers, seed, report, stopper, retries, checkpoint):
        self.problem, self.rule, self.schedule, self.epochs, self.seed = problem, rule, schedule, epochs, seed
        self.report, self.stopper, self.retries, self.checkpoint = report, stopper, retries, checkpoint
        self.team = Workers(problem, workers)
        # Where the run is: epoch, step, place in the epoch's order, and what the epoch has done so far.
        self.epoch, self.t, self.at, self.done = 1, 0, 0, np.zeros(4)  # loss, examples, non-zeros, seconds
        self.failures, self.seconds, self.history, self.reason = 0, 0.0, [], None
        self.best, self.bad, self.good, self.first, self.failed = None, False, None, None, None
        self.warnings = []  # what was said of rollbacks, and of an end that is none
        self.partial = False  # a budget ended the last epoch before its end

    def go(self):
        """Epoch after epoch, until the last or a reason to stop."""
        self.team.compile(self.rule, self.schedule, self.t)  # before the clock starts
        if self.reason:
            self._say(f"stopped: {self.reason}")
        while self.epoch <= self.epochs and not self.reason:
            self._remember()
            self._one_epoch()
        if self.checkpoint and not self.partial:
            self.save()
        if self.best and self.stopper.stop.restore_best and self.stopper.best_epoch != len(self.history):
            self._put(self.best)
            self._say(f"the parameters of epoch {self.stopper.best_epoch}, the best, are restored")

    @functools.cached_property
    def reference(self):
        return self.problem.reference()

    def judge(self):
        """Warn of a run that has learnt nothing, or whose epochs were too few for `tol`."""
        if not self.history:
            return
        best = self.stopper.best_epoch if self.best and self.stopper.stop.restore_best else None
        last = self.history[(best or len(self.history)) - 1]
        if self.reference and self.reference.worse(last.loss, last.examples < self.problem.examples):
            self._warn(self.reference.line(last.epoch, last.loss))
        elif self.stopper.stop.tol is not None and not self.reason:
            self._warn(f"all {self.epochs} epochs are done and the training loss still falls by more than tol: raise epochs, "
                       "or tol")

    def _warn(self, line, event="warning", **fields):
        self.warnings.append(line)
        self._say(f"{event}: {line}")
        if self.report:
            self.report.event(event, text=line, **fields)

    def _order(self):
        """What is left of this epoch's permutation."""
        most = self.stopper.stop.max_steps
        order = self.problem.order(np.random.default_rng((self.seed, self.epoch)))[self.at:]
        return order if most is None else order[:max(most - self.t, 0)]

    def _one_epoch(self):
        while True:
            order = self._order()
            if not len(order):
                break
            before = self.t
            self._pass(order)
            if self.bad or not _finite(self.problem.parameters()):  # the last step may have spoilt what no loss has shown
                self._roll_back(f"the loss is no longer finite at {self._culprit()}")
                continue
            if self.checkpoint and self.checkpoint.due():
                self._remember()
                self.save()
            if self.reason or self.t - before == len(order):
                break
        self.partial = self.at < self.problem.examples
        if not self.reason and diverges([*(epoch.loss for epoch in self.history), self._loss()], self.reference):
            return self._roll_back(f"the mean loss grows to {self._loss():.4g}, that at the start was "
                                   f"{self.reference.start:.4g}")
        if self.partial and self.checkpoint:  # what closing the epoch does is not to be done twice
            self.save()
        self._close_epoch()

    def _pass(self, order):
        """Workers on the order, until it is done or something stops them; `done` grows by what they did."""
        self.team.reset()  # so that an interrupt before it begins counts nothing
        self.team.tally[:, :3] = 0  # sums over more than a pass would lose small losses behind a huge one
        start = time.perf_counter()
        try:
            self.team.run(self.rule, self.schedule, order, self.t, lambda: self._watch(start))
        finally:
            seconds = time.perf_counter() - start
            self.t, self.at = self.t + self.team.done, self.at + self.team.done
            total = self.team.tally[:, :3].sum(0)
            self.bad = not np.isfinite(total).all() or self.team.tally[:, BAD].any()
            if np.isfinite(total).all():
                self.done[:3] += total
            self.done[3] += seconds
            self.seconds += seconds

    def _watch(self, start):
        """Whether the workers should stop."""
        done = self.team.tally[:, :3].sum(0)
        if self.report:
            t = self.t + int(done[1])
            tally = (self.done[:3] + done) * (self.problem.of_loss, 1, 1)
            self.report.progress(t, self.problem.examples * self.epochs, tally, float(rate(self.schedule, t)))
        self.reason = self.stopper.spent(self.t + int(done[1]), self.seconds + time.perf_counter() - start) or self.reason
        return bool(self.reason) or bool(self.checkpoint and self.checkpoint.due())

    def _loss(self):
        """Mean loss of what the epoch has done."""
        return float(self.done[0] * self.problem.of_loss / max(self.done[1], 1))

    def _close_epoch(self):
        """Evaluate, ask the stopper, report."""
        self.problem.settle(self.rule, self.t)
        lr = float(rate(self.schedule, max(self.t - 1, 0)))
        epoch = self.problem.summary.of(self.epoch, self._loss(), lr, self.done, self.problem.evaluate(),
                                        self.problem.exchanged())
        # An interrupt up to here repeats this epoch's end when the run goes on.
        self.history.append(epoch)
        self.reason = self.stopper.observe(epoch.epoch, epoch.metrics, epoch.loss, self.t, self.seconds) or self.reason
        if self.stopper.improved:
            self.best = {name: x.copy() for name, x in self.problem.parameters().items()}
        watched = self.stopper.stop.metric or next(iter(epoch.metrics), None)
        self.schedule = observed(self.schedule, epoch.metrics[watched] if watched else epoch.loss)
        self.epoch, self.at, self.done = self.epoch + 1, 0, np.zeros(4)
        if self.report:
            self.report.epoch(epoch, self.epochs)
        if self.reason:
            self._say(f"stopped: {self.reason}")

    def _remember(self):
        """Take a snapshot to go back to, unless the run is going astray."""
        losses = [epoch.loss for epoch in self.history] + [self._loss()] * bool(self.done[1])
        if self.good and losses and far(losses[-1], losses, self.reference):
            return
        copied = np.copy if self.first else _start
        parameters = {name: copied(x) for name, x in self.problem.parameters().items()}
        if _finite(parameters):
            self.good = parameters, self.epoch, self.t, self.at, self.done.copy()
            self.first = self.first or self.good

    def _put(self, parameters):
        for name, x in self.problem.parameters().items():
            saved = parameters[name]
            if saved.shape == x.shape:
                x[...] = saved
            else:  # as `_start` kept it
                x[:-1], x[-1] = saved

    def back(self):
        """To the last snapshot."""
        parameters, self.epoch, self.t, self.at, done = self.good
        self._put(parameters)
        self.done, self.bad = done.copy(), False
        self.history = self.history[:self.epoch - 1]

    def _culprit(self):
        """The example whose loss was not finite, or whose step made the parameters so."""
        seen = self.team.tally[:, BAD].astype(np.int64)
        return self.problem.named(int(seen[seen > 0][0]) - 1) if seen.any() else self.problem.suspect()

    def _roll_back(self, trouble):
        """Back to the last snapshot, with half the learning rate."""
        self.team.tally[:, :BAD + 1] = 0
        lr, epoch = float(rate(self.schedule, self.t)), self.epoch
        self.failures += 1
        if self.good is self.failed:  # finite, but beyond rescue: to where the run began
            self.good = self.first
        self.failed = self.good
        self.back()
        if self.failures > self.retries:
            raise UserError(f"{trouble} (epoch {epoch}, learning rate {lr:g}, halved {self.retries} times before): use a "
                            "smaller lr, or scale the features or the rows")
        self.schedule = scaled(self.schedule, 0.5)
        new = float(rate(self.schedule, self.t))
        there = f", there {new:g} in place of {2 * new:g}" if new else ""
        self._warn(f"{trouble} (epoch {epoch}): back to step {self.t}, with half the learning rate{there}", "rollback",
                   epoch=epoch, step=self.t, failures=self.failures)

    def _say(self, line):
        if self.report:
            self.report.say(line)

    def save(self):
        """Write a checkpoint of all that the next step depends on."""
        best = {f"best.{name}": x for name, x in (self.best or {}).items()}
        self.checkpoint.save({**self.problem.parameters(), **best}, {
            "epoch": self.epoch, "t": self.t, "at": self.at, "done": self.done.tolist(), "failures": self.failures,
            "stopped": bool(self.reason) and not self.stopper.spent(self.t, self.seconds),
            "seconds": self.seconds, "schedule": plain(self.schedule), "stopper": self.stopper.state(),
            "history": [asdict(epoch) for epoch in self.history]})

    def restore(self, tensors, state):
        """Go on from a checkpoint."""
        if "at" not in state:
            raise UserError("the checkpoint is of an older version: finish its run with that, or start again with another "
                            "--checkpoint")
        with sound("the checkpoint", "state of a run", "start again with another --checkpoint"):
            best = {name.removeprefix("best."): x for name, x in tensors.items() if name.startswith("best.")}
            for name, x in self.problem.parameters().items():
                for saved in (tensors, best) if best else (tensors,):
                    demand((saved[name].shape, saved[name].dtype) == (x.shape, x.dtype), f"{name} is of another form")
            self._put(tensors)
            self.best = best or None
            self.epoch, self.t, self.at, self.failures = (state[name] for name in ("epoch", "t", "at", "failures"))
            demand(all(type(x) is int and 0 <= x < 2**53 for x in (self.epoch, self.t, self.at, self.failures))
                   and self.epoch >= 1 and self.at <= min(self.t, self.problem.examples), "the place where it is")
            self.done, self.seconds = np.array(state["done"], np.float64), float(state["seconds"])
            demand(self.done.shape == (4,) and np.isfinite([*self.done, self.seconds]).all(), "what it has done")
            self.schedule = checked(rebuilt(self.schedule, state["schedule"]))
            self.stopper.restore(state["stopper"])
            self.history = [self.problem.summary(**epoch) for epoch in state["history"]]
            demand(all(isinstance(each.loss, float) and isinstance(each.metrics, dict) for each in self.history), "history")
            self.reason = "it had stopped before" if state["stopped"] else self.stopper.spent(self.t, self.seconds)


def _start(x):
    """A copy of x; of its first and last row alone where all but the last are alike, as in a new run, which then keeps no
    second model."""
    if x.ndim < 2 or len(x) < 3 or not np.array_equal(x[:-1].min(0), x[:-1].max(0)):
        return x.copy()
    return x[[0, -1]]


def _finite(parameters):
    return all(np.isfinite(x).all() for x in parameters.values())


def plain(hp):
    """A NamedTuple of numbers as nested lists."""
    return [plain(x) if isinstance(x, tuple) else x for x in hp]


def rebuilt(hp, values):
    """`hp` with the numbers of `plain`."""
    new = [rebuilt(x, value) if isinstance(x, tuple) else value for x, value in zip(hp, values, strict=True)]
    return type(hp)(*new) if hasattr(hp, "_fields") else tuple(new)
