"""Threads that share work whose result the caller needs whole: what they raise, and that they end with their owner."""

import gc
import os
import threading
import time
from functools import partial

import numpy as np
import pytest
from teams import within

from hogwild.data.dataset import from_arrays
from hogwild.errors import UserError
from hogwild.families import linear
from hogwild.kernels.losses import Hinge
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import SGD
from hogwild.kernels.optim.schedules import Constant
from hogwild.training.workers import Workers, spread

N, TINY = 3000, 2.0**-20  # so small a rate that a hinge stays on its slope, and sums of it are exact
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.choice([-1.0, 0.0, 1.0], (N, 5)), RANDOM.choice([-1.0, 1.0], N, p=[0.3, 0.7])
STEP = TINY * np.append(Y @ X, Y.sum())  # of all examples


@pytest.mark.parametrize("step", [None, 1])
def test_what_a_thread_raises_is_raised(step):
    """Else predictions and metrics would be of zeros."""
    done = []

    def part(start, stop):
        done.append(start)
        if stop == 8:  # in the last thread
            raise MemoryError("a thread")
    with pytest.raises(MemoryError, match="a thread"):
        spread(part, 8, 4, step)
    done.clear()
    spread(lambda start, stop: done.extend(range(start, stop)), 8, 4, step)
    assert sorted(done) == list(range(8))


def test_threads_that_the_system_does_not_allow_are_told_in_a_line(monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(UserError, match=r"cannot be started \(can't start new thread\): use fewer workers"):
        spread(lambda start, stop: None, 8, 4)


def until(condition):
    def wait():
        while not condition():
            time.sleep(0.01)
    within(60, wait)


def crew(workers):
    """A problem and its workers, which have worked once."""
    problem = linear.Linear(from_arrays(X, Y), None, Hinge(), SGD(), workers=workers, replicas="all")
    problem.model = problem.model._replace(intercept=1.0)
    team, order, rate = Workers(problem, workers), np.arange(N), checked(Constant(TINY))
    team.compile(checked(SGD()), rate, 0)
    within(60, lambda: team.run(checked(SGD()), rate, order, 0))
    return problem, team, order, rate


def learnt(problem, times):
    return np.array_equal(problem.w, (times * STEP).astype(np.float32))


@pytest.mark.parametrize("workers", [2, 8])
def test_order_after_order_nothing_is_lost(workers):
    problem, team, order, rate = crew(workers)
    for times in range(1, 25):
        assert learnt(problem, times)
        RANDOM.shuffle(order)
        within(60, partial(team.run, team.order.rule, rate, order, times * N))
    assert team.tally[:, 1].sum() == 25 * N
    within(60, lambda: team.run(team.order.rule, checked(Constant(0.0)), order[:N // 3].copy(), 0))
    assert learnt(problem, 25) and team.tally[:, 1].sum() == 25 * N + N // 3


def test_threads_end_with_the_workers_but_not_with_a_forked_process():
    def waiting():
        return sum(thread.name.startswith("worker") for thread in threading.enumerate())

    gc.collect()
    until(lambda: not waiting())  # of other tests
    problem, team, order, rate = crew(4)
    assert waiting() == 3
    if not (child := os.fork()):
        team = None
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    within(60, lambda: team.run(team.order.rule, rate, order, N))
    assert learnt(problem, 2)
    team = None
    gc.collect()
    until(lambda: not waiting())


def test_a_thread_that_has_ended_is_named():
    problem, team, order, rate = crew(3)
    team.helpers[1].calls.put(False)
    until(lambda: not team.helpers[1].thread.is_alive())
    with pytest.raises(RuntimeError, match="worker 2 has ended"):
        within(60, lambda: team.run(team.order.rule, rate, order, N))
