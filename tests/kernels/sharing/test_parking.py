"""Where workers wait for their next order, in the kernel: who is woken, what is said there, and that they go in the end."""

import contextlib
import gc
import os
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest
from teams import within

from hogwild.data.dataset import from_arrays
from hogwild.families import linear
from hogwild.kernels.losses import Hinge
from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.optim.rules import SGD
from hogwild.kernels.optim.schedules import Constant
from hogwild.kernels.sharing.parking import (
    ASLEEP,
    AT,
    BELL,
    DOOR,
    EXPECTED,
    FINISHED,
    HEARD,
    OVER,
    OWN,
    PATIENCE,
    back_at,
    summon,
    wait_at,
)
from hogwild.kernels.sharing.work_queue import BEGUN, ORDER
from hogwild.training.workers import Workers

N, TINY = 3000, 2.0**-20  # so small a rate that a hinge stays on its slope, and sums of it are exact
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.choice([-1.0, 0.0, 1.0], (N, 5)), RANDOM.choice([-1.0, 1.0], N, p=[0.3, 0.7])
STEP = TINY * np.append(Y @ X, Y.sum())  # of all examples


def until(condition):
    def wait():
        while not condition():
            time.sleep(0.01)
    within(60, wait)


@pytest.fixture
def bells():
    pipes = [os.pipe() for _ in range(5)]
    yield pipes
    for pipe in sum(pipes, ()):
        with contextlib.suppress(OSError):
            os.close(pipe)


class Row:
    """Five workers' doors; 1 waits at its own, in a thread, and 3 and 4, which it wakes, are said to sleep."""

    def __init__(self, bells, expected=4, patience=0):
        self.all, self.queue, self.bells, self.said = np.zeros(5 * DOOR, np.int64), np.zeros(16, np.int64), bells, []
        self.doors = self.all.reshape(5, DOOR)
        self.doors[:, OWN], self.doors[:, BELL] = np.transpose(bells)
        self.doors[3:, ASLEEP], self.queue[BEGUN] = 1, 7
        assert wait_at(self.all, 1, self.queue, 3) == 3  # not at the door
        self.doors[1, [AT, EXPECTED, PATIENCE]] = 1, expected, patience
        self.thread = threading.Thread(target=lambda: self.said.append(wait_at(self.all, 1, self.queue, 3)), daemon=True)
        self.thread.start()
        until(lambda: self.doors[1, ASLEEP])

    def call(self, order):
        self.queue[ORDER] = order
        summon(self.all, self.queue, 1)
        self.thread.join(60)

    def rung(self, k):
        """How often somebody has rung at k's door since."""
        read, write = self.bells[k]
        os.write(write, b"!")
        return os.read(read, 9).index(b"!")


@pytest.mark.parametrize("order, expected, says", [(4, 4, 7), (5, 4, -1), (OVER, 4, -1)])
def test_who_is_woken_wakes_two_and_is_told_of_the_order(order, expected, says, bells):
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        row = Row(bells, expected)
        signal.pthread_kill(row.thread.ident, signal.SIGUSR1)  # interrupts a read
        time.sleep(0.05)
        assert not row.said
        row.call(order)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert row.said == [says] and row.doors[1, EXPECTED] == order and row.doors[1, HEARD] == 1
    assert not row.doors[:, ASLEEP].any() and [row.rung(k) for k in range(5)] == [0, 0, 0, 1, 1]
    assert back_at(row.all, 1) == (order == expected)
    assert list(row.doors[1, [AT, FINISHED]]) == ([1, 1] if order == expected else [0, 0])


@pytest.mark.parametrize("patient", [False, True])
def test_who_is_to_look_out_sleeps_no_more_until_its_patience_ends(patient, bells):
    row = Row(bells, patience=patient << 40)
    summon(row.all, row.queue, 0)
    until(lambda: not row.doors[3:, ASLEEP].any())  # and has the others look out
    if patient:
        assert not row.doors[1, ASLEEP]
    else:
        until(lambda: row.doors[1, ASLEEP])
    assert not row.said
    row.call(4)
    assert row.said == [7] and [row.rung(k) for k in (3, 4)] == [1, 1]


@pytest.mark.parametrize("how", ["ended", "closed"])
def test_who_cannot_be_rung_looks_for_a_call_now_and_then(how, bells):
    """Programs that become daemons close all files of a process, pipes too; reading returns at once then."""
    row = Row(bells)
    read, write = bells[1]
    if how == "ended":
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, read)
        os.close(nothing)
    else:
        os.close(read)
    os.write(write, b"!")  # it may be in a read of the pipe itself, once more
    clock = time.pthread_getcpuclockid(row.thread.ident)
    before = time.clock_gettime(clock)
    time.sleep(0.3)
    assert time.clock_gettime(clock) - before < 0.1 and not row.said
    row.call(4)
    assert row.said == [7]


class Called(linear.Linear):
    """Notes which worker calls the kernel at its door."""

    def __init__(self, workers, fails):
        super().__init__(from_arrays(X, Y), None, Hinge(), SGD(), workers=workers, replicas="all")
        self.model, self.calls, self.fails = self.model._replace(intercept=1.0), [], fails

    def work(self, rule, schedule, own, order, *rest):
        if self.doors[DOOR * (k := own[0]) + AT]:
            fails = k in self.fails
            self.calls.append(k)
            if fails:
                self.fails.remove(k)
                raise ZeroDivisionError("at the door")
        return super().work(rule, schedule, own, order, *rest)

    def at_the_door(self, times):
        """Wait until each worker but the caller has come from Python to its door so often."""
        until(lambda: sorted(self.calls) == sorted(times * [*range(1, self.workers)]))


def crew(workers, fails=()):
    """A problem and its workers, which have worked once and wait."""
    problem, order, rate = Called(workers, set(fails)), np.arange(N), checked(Constant(TINY))
    team = Workers(problem, workers)
    team.chunk = [1 << 20] * workers  # none has to leave the kernel for more
    team.compile(checked(SGD()), rate, 0)
    within(60, lambda: team.run(checked(SGD()), rate, order, 0))
    problem.at_the_door(1)
    return problem, team, order, rate


def learnt(problem, times):
    return np.array_equal(problem.w, (times * STEP).astype(np.float32))


@pytest.mark.parametrize("workers", [2, 3, 8])
@pytest.mark.parametrize("told", [False, True])
def test_workers_stay_in_the_kernel_and_nothing_is_lost(workers, told):
    problem, team, order, rate = crew(workers)
    rule = team.order.rule
    for times in range(1, 25):
        assert learnt(problem, times)
        if told:
            team.ready()
        RANDOM.shuffle(order)
        within(60, partial(team.run, rule, rate, order, times * N))
    problem.at_the_door(1)
    assert team.tally[:, 1].sum() == 25 * N


@pytest.mark.parametrize("workers", [2, 4])
def test_who_waits_at_the_door_takes_another_order(workers):
    problem, team, order, rate = crew(workers)
    rule, none, times, orders = team.order.rule, checked(Constant(0.0)), 1, 1
    for rate_now, order_now in ((none, order), (none, order), (rate, order), (rate, order[::-1].copy()), (rate, order)):
        new = rate_now is not team.order.schedule or order_now is not team.order.examples
        within(60, partial(team.run, rule, rate_now, order_now, 0))
        times += rate_now is rate
        assert learnt(problem, times)
        orders += new
        problem.at_the_door(orders)
    before = team.tally[:, 1].sum()
    within(60, lambda: team.run(rule, rate, order[:N // 3], 0))
    assert orders == 5 and team.tally[:, 1].sum() == before + N // 3


def test_who_has_left_the_others_because_it_does_not_pay_comes_again_when_it_does():
    problem, team, order, rate = crew(3)
    rule, answers = team.order.rule, iter([True, False, False, True, True])
    for now, pays in enumerate(answers):
        problem.pays = lambda pays=pays: pays
        before = team.tally[1:, 1].sum()
        within(60, lambda: team.run(rule, rate, order, 0))
        assert learnt(problem, now + 2)
        assert pays or team.tally[1:, 1].sum() == before
        until(lambda pays=pays: all((helper.most > 0) == pays for helper in team.helpers))


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


def test_a_thread_that_ends_is_told():
    problem, team, order, rate = crew(3)
    rule, none = team.order.rule, checked(Constant(0.0))

    def helped(*_):
        raise SystemExit("from outside")
    team.helped = helped
    with pytest.raises(SystemExit, match="from outside"):
        within(60, lambda: team.run(rule, none, order, N))  # another order: they leave the kernel
    team.failure = None  # one that ended without a word
    with pytest.raises(RuntimeError, match="worker [12] has ended"):
        within(60, lambda: team.run(rule, rate, order, N))


def test_what_a_worker_raises_on_its_way_to_the_door_is_raised_with_the_next_order():
    problem, team, order, rate = crew(3, fails=[2])
    with pytest.raises(ZeroDivisionError, match="at the door"):
        within(60, lambda: team.run(team.order.rule, rate, order, N))
    before = team.tally[:, 1].sum()
    within(60, lambda: team.run(team.order.rule, rate, order, N))
    assert team.tally[:, 1].sum() == before + N
