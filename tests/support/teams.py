"""For tests of threads: run them against the clock, and the rows that they work on."""

import threading

import numpy as np

from hogwild.kernels.optim.hyperparameters import checked
from hogwild.kernels.sharing.work_queue import NEXT
from hogwild.training.workers import TALLIES

COUNTS = 1, 2, 3, 7  # of workers


def within(seconds, function):
    """`function()` in a thread that may not take longer, so that a deadlock is a failure; what it raises is raised."""
    result = []

    def call():
        try:
            result.append((function(), None))
        except BaseException as error:  # KeyboardInterrupt too
            result.append((None, error))
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    assert result, f"still at work after {seconds} s"
    if result[0][1] is not None:
        raise result[0][1]
    return result[0][0]


def team(count, function):
    """function(k) in `count` threads at once; what one raises is raised."""
    errors = []

    def call(k):
        try:
            function(k)
        except BaseException as error:
            errors.append(error)
    threads = [threading.Thread(target=call, args=(k,), daemon=True) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def sparse(n, d, seed, density=0.3):
    """Rows of a common feature, of rare ones and of none."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * (rng.random((n, d)) < density * np.linspace(2, 0.05, d))
    x[:, 0] = rng.choice([-1.0, 1.0], n)
    x[::9] = 0
    return x.round(3), np.where(x @ rng.standard_normal(d) + 0.2 * rng.standard_normal(n) > 0, 1.0, -1.0)


def in_turn(linear, rule, schedule, epochs, burst):
    """Each epoch's training loss when the workers take `burst` examples each in turn: as if each had a core of its own."""
    own, queue, losses, t = [linear.private(k) for k in range(linear.workers)], np.zeros(16, np.int64), [], 0
    for epoch in range(epochs):
        order, tally, turn = np.random.default_rng(epoch).permutation(linear.examples), np.zeros(TALLIES), 0
        linear.begin(t)
        queue[NEXT], left = 0, set()
        while len(left) < len(own):
            k = turn % len(own)
            if k not in left and linear.work(checked(rule), checked(schedule), own[k], order, t, queue, burst,
                                             turn == k, tally):
                left.add(k)
            turn += 1
        t += len(order)
        linear.end()
        linear.settle(checked(rule), t)
        losses.append(tally[0] / max(tally[1], 1))
    return np.array(losses)
