"""The one training loop. It knows nothing of any problem family: see `Problem`."""

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hogwild.errors import UserError
from hogwild.workers import TALLIES, Workers
from kernels.hyper import checked
from kernels.schedules import observed, rate


class Problem(Protocol):
    """What a problem family tells the loop: its size, one call of its kernel, and how to measure itself."""

    examples: int

    def private(self) -> Any:
        """What one worker owns alone (buffers, private copies); passed back to `run`."""

    def run(self, rule, schedule, own, order, t, stride, tally) -> None:
        """One kernel call without the GIL on the examples `order`; t: steps done before, raised by stride an example.

        Adds to tally[0:3]: loss, examples, non-zeros (or whatever the family's work is counted in).
        """

    def evaluate(self) -> dict[str, float]:
        """Metrics by name on the held-out part; empty where there is none."""


@dataclass
class Epoch:
    """What one epoch did."""

    epoch: int  # from 1
    loss: float  # mean over the examples, each before its own update
    lr: float  # at the end of the epoch
    examples: int
    seconds: float  # training alone, without evaluation
    examples_per_s: float
    nonzeros_per_s: float
    metrics: dict[str, float]


def train(problem: Problem, rule, schedule, *, epochs=5, workers=1, seed=0, report=None) -> list[Epoch]:
    """Lock-free training: every epoch a fresh permutation, a contiguous slice of it for each worker.

    Step t of the schedule is an example; with W workers, worker k's examples are steps k, k + W, … of the epoch.
    report: an object with `progress(done, total, tally, lr)` and `epoch(Epoch, total)`, see hogwild/record.py. Ctrl-C ends
    the run between two chunks and raises KeyboardInterrupt; the parameters then hold what was learnt so far.
    Raises UserError when the loss is no longer finite.
    """
    rule, schedule = checked(rule), checked(schedule)
    team, rng, history, t = Workers(problem, workers), np.random.default_rng(seed), [], 0
    n = problem.examples
    # Compile before the clock starts: on no examples, into a tally that nobody reads.
    problem.run(rule, schedule, team.own[0], np.zeros(0, np.int64), 0, workers, np.zeros(TALLIES))
    for epoch in range(1, epochs + 1):
        order = rng.permutation(n)
        before, start = team.tally[:, :3].sum(0), time.perf_counter()

        def watch(before=before, epoch=epoch, schedule=schedule):
            if report:
                done = team.tally[:, :3].sum(0)
                report.progress(int(done[1]), n * epochs, done - before, float(rate(schedule, int(done[1]))))

        team.run(rule, schedule, order, t, watch)
        seconds = time.perf_counter() - start
        loss, examples, nonzeros = team.tally[:, :3].sum(0) - before
        t += n
        lr = float(rate(schedule, t - 1))
        if not math.isfinite(loss):
            raise UserError(f"the loss is no longer finite in epoch {epoch} (learning rate {lr:g}): use a smaller --lr, "
                            "or a --transform that scales the rows, such as log,l2")
        done = Epoch(epoch, float(loss / max(examples, 1)), lr, int(examples), seconds, examples / seconds,
                     nonzeros / seconds, problem.evaluate())
        history.append(done)
        if report:
            report.epoch(done, epochs)
        if done.metrics:
            schedule = observed(schedule, next(iter(done.metrics.values())))
    return history
