"""Where workers wait for their next order, in the kernel: who is woken, what is said there, and that they go in the end."""

import gc
import os
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest
from teams import within

from hogwild import linear
from hogwild.data import from_arrays
from hogwild.workers import Workers
from kernels.chunks import BEGUN, ORDER
from kernels.doors import AT, EXPECTED, LEFT, OVER, OWN, RIGHT, wait_at
from kernels.hyper import checked
from kernels.losses import Hinge
from kernels.rules import SGD
from kernels.schedules import Constant

N, TINY = 3000, 2.0**-20  # so small a rate that a hinge stays on its slope, and sums of it are exact
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.choice([-1.0, 0.0, 1.0], (N, 5)), RANDOM.choice([-1.0, 1.0], N, p=[0.3, 0.7])
STEP = TINY * np.append(Y @ X, Y.sum())  # of all examples


def until(condition):
    def wait():
        while not condition():
            time.sleep(0.01)
    within(60, wait)


@pytest.mark.parametrize("order, expected, woken, says", [(4, 4, 2, 7), (5, 4, 2, -1), (OVER, 4, 0, -1)])
def test_who_is_woken_wakes_two_and_is_told_of_the_order(order, expected, woken, says):
    pipes, door, queue, said = [os.pipe() for _ in range(3)], np.zeros(8, np.int64), np.zeros(16, np.int64), []
    queue[BEGUN] = 7
    assert wait_at(door, queue, 3) == 3  # not at the door
    door[[AT, OWN, LEFT, RIGHT, EXPECTED]] = 1, pipes[0][0], pipes[1][1], pipes[2][1], expected
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    thread = threading.Thread(target=lambda: said.append(wait_at(door, queue, 3)), daemon=True)
    try:
        thread.start()
        until(lambda: door[AT] == 0)
        signal.pthread_kill(thread.ident, signal.SIGUSR1)  # interrupts a read
        time.sleep(0.05)
        assert not said
        queue[ORDER] = order
        os.write(pipes[0][1], b".")
        thread.join(60)
        assert said == [says] and door[EXPECTED] == order
        for read, write in pipes[1:]:
            os.write(write, b"!")
            assert os.read(read, 2) == (b"\0!" if woken else b"!")
    finally:
        signal.signal(signal.SIGUSR1, before)
        for pipe in sum(pipes, ()):
            os.close(pipe)


class Called(linear.Linear):
    """Notes which worker calls the kernel at its door."""

    def __init__(self, workers):
        super().__init__(from_arrays(X, Y), None, Hinge(), SGD(), workers=workers, copies=True)
        self.model, self.calls, self.fails = self.model._replace(intercept=1.0), [], set()

    def work(self, rule, schedule, own, order, *rest):
        if self.kept[k := own[0]].door[AT]:
            fails = k in self.fails
            self.calls.append(k)
            if fails:
                self.fails.remove(k)
                raise ZeroDivisionError("at the door")
        return super().work(rule, schedule, own, order, *rest)

    def at_the_door(self, times):
        """Wait until each worker but the caller has come to its door so often."""
        until(lambda: sorted(self.calls) == sorted(times * [*range(1, self.workers)]))


def crew(workers):
    """A problem and its workers, which have worked once and wait."""
    problem, order, rate = Called(workers), np.arange(N), checked(Constant(TINY))
    team = Workers(problem, workers)
    team.compile(checked(SGD()), rate, 0)
    until(lambda: all(helper.door[EXPECTED] == OVER and helper.door[AT] == 0 for helper in team.helpers))  # all wait
    within(60, lambda: team.run(checked(SGD()), rate, order, 0))
    problem.at_the_door(1)
    return problem, team, order, rate


def learnt(problem, times):
    return np.array_equal(problem.w, (times * STEP).astype(np.float32))


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_workers_go_to_the_door_before_there_is_an_order_and_nothing_is_lost(workers):
    problem, team, order, rate = crew(workers)
    rule = team.order.rule
    for times in range(1, 5):
        assert learnt(problem, times)
        RANDOM.shuffle(order)
        within(60, partial(team.run, rule, rate, order, times * N))
        problem.at_the_door(times + 1)
    assert team.tally[:, 1].sum() == 5 * N


@pytest.mark.parametrize("workers", [2, 4])
def test_who_waits_at_the_door_takes_another_order(workers):
    problem, team, order, rate = crew(workers)
    rule, none, times, orders = team.order.rule, checked(Constant(0.0)), 1, 1
    for rate_now, order_now in ((none, order), (none, order), (rate, order), (rate, order[::-1].copy()), (rate, order)):
        within(60, partial(team.run, rule, rate_now, order_now, 0))
        times += rate_now is rate
        assert learnt(problem, times)
        orders += 1
        problem.at_the_door(orders)
    before = team.tally[:, 1].sum()
    within(60, lambda: team.run(rule, rate, order[:N // 3], 0))
    assert team.tally[:, 1].sum() == before + N // 3


def test_threads_and_pipes_go_with_the_workers_but_not_with_a_forked_process():
    def waiting():
        return sum(thread.name.startswith("worker") for thread in threading.enumerate())

    gc.collect()
    until(lambda: not waiting())  # of other tests
    files = len(os.listdir("/dev/fd"))
    problem, team, order, rate = crew(4)
    assert waiting() == 3 and len(os.listdir("/dev/fd")) == files + 6
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
    assert len(os.listdir("/dev/fd")) == files


def test_what_a_worker_raises_on_its_way_to_the_door_is_raised_with_the_next_order():
    problem, team, order, rate = crew(3)
    problem.fails.add(2)
    within(60, lambda: team.run(team.order.rule, rate, order, N))  # 2 is at the door already
    problem.at_the_door(2)
    with pytest.raises(ZeroDivisionError, match="at the door"):
        within(60, lambda: team.run(team.order.rule, rate, order, N))
    before = team.tally[:, 1].sum()
    within(60, lambda: team.run(team.order.rule, rate, order, N))
    assert team.tally[:, 1].sum() == before + N
