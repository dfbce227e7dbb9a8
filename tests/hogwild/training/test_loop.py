"""The loop and the workers, driven by a problem family of ten lines."""

import json
import signal
import threading
import time

import numpy as np
import pytest
from teams import team

from hogwild.errors import UserError
from hogwild.kernels.compiler.jit import kernel
from hogwild.kernels.optim.rules import SGD
from hogwild.kernels.optim.schedules import Constant, Plateau, rate
from hogwild.kernels.optim.steps import aligned
from hogwild.kernels.sharing.work_queue import LEAST, NEXT, STOP, WORKERS, claim
from hogwild.training import record, workers
from hogwild.training.loop import Problem, train
from hogwild.training.record import Report
from hogwild.training.stopping import Stop


@kernel
def pull(schedule, theta, targets, order, t, stride, tally):
    """A toy family: coordinate i is pulled to target i."""
    for i in order:
        r = theta[i] - targets[i]
        theta[i] -= rate(schedule, t) * r
        t += stride
        tally[0] += r * r / 2
        tally[1] += 1


class Toy(Problem):
    def __init__(self, n):
        self.examples, self.theta, self.targets = n, aligned((n,), np.float64), np.arange(n, dtype=float)
        self.seen = []

    def private(self, k):
        return k

    def run(self, rule, schedule, own, order, t, stride, tally):
        if len(order):
            self.seen.append((order.copy(), t, stride))
        if own == 0 or not self.whole:
            pull(schedule, self.theta, self.targets, order, t, stride, tally)

    def evaluate(self):
        return {"error": float(np.abs(self.theta - self.targets).max())}


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [1, 5, 1000])
def test_toy_family_follows_its_closed_form(workers, n):
    toy = Toy(n)
    history = train(toy, SGD(), Constant(0.5), epochs=3, workers=workers)
    assert np.allclose(toy.theta, toy.targets * (1 - 0.5**3))
    for e, epoch in enumerate(history):
        assert epoch.examples == n
        assert epoch.loss == pytest.approx((toy.targets**2 / 2 * 0.25**e).mean())
        assert epoch.metrics["error"] == pytest.approx((n - 1) * 0.5 ** (e + 1))


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("lockstep, whole", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("n, most_steps", [(1, None), (501, None), (3000, 4501)])
def test_every_step_is_the_example_at_its_place_of_a_fresh_permutation(workers, lockstep, whole, n, most_steps):
    toy = Toy(n)
    toy.lockstep, toy.whole = lockstep, whole
    train(toy, SGD(), Constant(0.1), epochs=2, workers=workers, seed=5, stop=Stop(max_steps=most_steps))
    orders = [np.random.default_rng((5, epoch)).permutation(n) for epoch in (1, 2)]
    expected = np.concatenate(orders)[:most_steps]
    steps = np.concatenate([t + stride * np.arange(len(part)) for part, t, stride in toy.seen])
    seen = np.concatenate([part for part, _, _ in toy.seen])
    at = np.argsort(steps)
    assert np.array_equal(steps[at], np.repeat(np.arange(len(expected)), workers if whole else 1))
    assert np.array_equal(seen[at], np.repeat(expected, workers if whole else 1))
    assert {stride for _, _, stride in toy.seen} == {workers if lockstep and not whole else 1}
    assert n == 1 or not np.array_equal(*orders)


def test_a_worker_that_is_held_up_holds_up_no_other():
    """Worker 0 stays in its chunk until the other has done the rest: with shares fixed beforehand it would not end."""
    class Held(Toy):
        def run(self, rule, schedule, own, order, t, stride, tally):
            if len(order) and own == 0:
                assert others.acquire(timeout=60)
            super().run(rule, schedule, own, order, t, stride, tally)
            if len(order) and own == 1:
                done.append(len(order))
                if sum(done) >= 10_000 - LEAST:
                    others.release()
    others, done = threading.Semaphore(0), []
    toy = Held(10_000)
    crew = workers.Workers(toy, 2)
    crew.chunk = [LEAST, 512]
    crew.run(SGD(), Constant(0.5), np.random.default_rng(0).permutation(10_000), 0)
    assert crew.done == 10_000 and sum(done) >= 10_000 - LEAST and np.allclose(toy.theta, toy.targets / 2)


@pytest.mark.parametrize("count, n, most", [(1, 0, 9), (1, 1000, 300), (2, 5, 100), (3, 10_000, 1 << 20), (7, 10_000, 100)])
def test_a_queue_gives_every_example_to_one_worker(count, n, most):
    queue, taken, sizes = np.zeros(16, np.int64), np.zeros(n, np.int64), []
    queue[WORKERS] = count

    def worker(k):
        while (part := claim(queue, n, most))[0] < part[1]:
            taken[slice(*part)] += 1
            sizes.append(part[1] - part[0])
    team(count, worker)
    assert (taken == 1).all() and max(sizes, default=0) <= most and queue[NEXT] == n
    queue[NEXT], queue[STOP] = 0, 1
    assert claim(queue, n, most) == (0, 0)


def test_chunks_become_shorter_towards_the_end():
    queue = np.zeros(16, np.int64)
    queue[WORKERS] = 4
    sizes = [stop - start for start, stop in iter(lambda: claim(queue, 10_000, 2000), (10_000, 10_000))]
    assert sizes[:2] == [1250, 1093] and sizes == sorted(sizes, reverse=True) and sizes[-2] == LEAST


def test_a_checkpoint_of_the_time_of_slices_is_refused():
    with pytest.raises(UserError, match="older version"):
        train(Toy(4), SGD(), Constant(0.5), resume=({}, {"epoch": 1, "t": 2, "cuts": [[4, [1, 1]]]}))


def test_plateau_reads_the_first_metric():
    class Stuck(Toy):
        def evaluate(self):
            return {"error": 1.0}
    history = train(Stuck(4), SGD(), Plateau(1.0, factor=0.5, patience=1), epochs=6)
    assert [e.lr for e in history] == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("count", [1, 2])
def test_an_interrupt_waits_for_the_chunk_that_the_callers_own_thread_is_at(count):
    class Interrupted(Toy):
        def run(self, rule, schedule, own, order, t, stride, tally):
            if len(order) and threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGINT)
                at_work.append(len(order))
            super().run(rule, schedule, own, order, t, stride, tally)
            if own == 0:
                done.append(len(order))
    at_work, done = [], []
    crew = workers.Workers(Interrupted(1 << 22), count)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(KeyboardInterrupt), crew.signals:
            crew.run(SGD(), Constant(0.5), np.arange(1 << 22), 0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(at_work) == 1 and done == at_work  # one chunk, whole
    assert crew.tally[:, 1].sum() == crew.done < 1 << 22


def test_where_several_do_not_pay_the_first_goes_on_alone():
    class Crowded(Toy):
        def run(self, rule, schedule, own, order, t, stride, tally):
            if len(order):
                time.sleep(0.01)
            super().run(rule, schedule, own, order, t, stride, tally)
            self.by.append((own, len(order)))

        def pays(self):
            return len(self.by) < 4
    toy = Crowded(100_000)
    toy.by = []
    train(toy, SGD(), Constant(0.5), epochs=3, workers=3)
    assert np.allclose(toy.theta, toy.targets * (1 - 0.5**3))
    assert sum(n for own, n in toy.by if own) < 100_000 and {own for own, n in toy.by[-3:]} == {0}


def test_chunks_grow_where_a_call_takes_long_whatever_it_does():
    """After an epoch whose last chunk was a single example, too."""
    class Slow(Toy):
        def run(self, rule, schedule, own, order, t, stride, tally):
            time.sleep(0.011 * bool(len(order)))
            super().run(rule, schedule, own, order, t, stride, tally)
    toy = Slow(300)
    crew = workers.Workers(toy, 1)
    crew.chunk[0] = 1
    crew.run(SGD(), Constant(0.5), np.arange(300), 0)
    sizes = [len(order) for order, _, _ in toy.seen]
    assert sum(sizes) == 300 and len(sizes) < 100 and max(sizes) > 20


def test_what_the_caller_is_shown_can_stop_the_workers_and_its_mistakes_do():
    class Slow(Toy):
        def run(self, *call):
            time.sleep(0.01)
            super().run(*call)

    def shown():
        raise ZeroDivisionError("shown")
    crew = workers.Workers(Slow(1 << 20), 2)
    with pytest.raises(ZeroDivisionError, match="shown"):
        crew.run(SGD(), Constant(0.5), np.arange(1 << 20), 0, shown)
    assert 0 < crew.done < 1 << 20
    crew = workers.Workers(Slow(1 << 20), 2)
    crew.run(SGD(), Constant(0.5), np.arange(1 << 20), 0, lambda: True)
    assert 0 < crew.done < 1 << 20


def test_an_exception_in_a_worker_is_raised_and_stops_the_others():
    class Broken(Toy):
        def run(self, rule, schedule, own, order, t, stride, tally):
            if 0 in order:
                raise ZeroDivisionError("worker")
            super().run(rule, schedule, own, order, t, stride, tally)
    with pytest.raises(ZeroDivisionError, match="worker"):
        train(Broken(5000), SGD(), Constant(0.1), epochs=1000, workers=2)


def test_a_loss_that_is_not_finite_ends_the_run_with_advice():
    toy = Toy(10)
    with pytest.raises(UserError, match="no longer finite .*halved 5 times before.*smaller lr"):
        train(toy, SGD(), Constant(1e200), epochs=10)


def test_record_has_a_line_for_each_event(tmp_path, capsys):
    path = tmp_path / "run.jsonl"
    report = Report(path)
    report.start(seed=3)
    history = train(Toy(100), SGD(), Constant(0.5), epochs=2, workers=2, report=report)
    report.close(metrics=history[-1].metrics)
    start, *epochs, end = [json.loads(line) for line in path.read_text().splitlines()]
    assert (start["event"], start["seed"], end["event"]) == ("start", 3, "end") and "numba" in start["versions"]
    assert [e["epoch"] for e in epochs] == [1, 2] and epochs[1]["loss"] == history[1].loss
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "examples/s" in lines[0] and "ETA" in lines[0] and "lr 0.5" in lines[0]


def test_without_a_terminal_a_long_epoch_says_how_far_it_is(monkeypatch, capsys):
    report = Report(unit="steps")
    report.progress(10, 100, [3.0, 4], 0.1)
    monkeypatch.setattr(record, "LINE_SECONDS", 0.0)
    report.progress(10, 100, [3.0, 4], 0.1)  # nothing new
    report.progress(1050, 3000, [3.0, 4], 0.1)
    assert capsys.readouterr().out == "1,050 of 3,000 steps  loss 0.7500  lr 0.1  ETA 0 s\n"
    Report(quiet=True).progress(1050, 3000, [3.0, 4], 0.1)
    assert capsys.readouterr().out == ""
