"""Going back from a loss that is not finite, and the reasons to stop."""

import re

import numpy as np
import pytest
from log import Log

from hogwild.data.dataset import from_arrays, read
from hogwild.errors import UserError
from hogwild.families import linear as family
from hogwild.kernels.losses import Logistic, Squared
from hogwild.kernels.optim.rules import SGD, Momentum
from hogwild.kernels.optim.schedules import Constant, Plateau, Warmup
from hogwild.training.loop import train
from hogwild.training.stopping import Stop


def made(n=500, d=6, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)).round(2)
    return x, x @ np.arange(1.0, d + 1)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("mode", ["wild", "round-robin", "deterministic"])
def test_back_half_the_rate_and_on_to_a_good_end(tmp_path, mode, workers):
    """Rows so large that least squares explodes on them, until the rate has been halved a few times."""
    x, y = made()
    x[::50] *= 8
    y[::50] *= 8
    path = tmp_path / "a.svm"
    rows = (" ".join(f"{j + 1}:{v:.2f}" for j, v in enumerate(row)) for row in x)
    path.write_text("# a comment\n" + "\n".join(f"{t:.4f} {row}" for t, row in zip(y, rows)) + "\n")
    data, rule, schedule, log = read(path, cache=False), SGD(), Constant(1.0), Log()
    linear = family.Linear(data, from_arrays(*made(seed=1)), Squared(), rule, workers=workers, mode=mode)
    # A rate at the edge of stability may still swing at the end: the best epoch is what counts.
    history = train(linear, rule, schedule, epochs=120, workers=workers, report=log, retries=12,
                    stop=Stop(metric="rmse", patience=1000))
    assert 2 <= len(log.events) <= 12 and {name for name, _ in log.events} == {"rollback"}
    trouble = "a.svm, line|finite at an example|mean loss grows"  # the second where it is the intercept that exploded
    assert all(re.search(trouble, fields["text"]) for _, fields in log.events)
    assert sum("half the learning rate" in line for line in log.lines) == len(log.events)
    assert [epoch.epoch for epoch in history] == list(range(1, 121)) and sum(e.examples for e in history) == 120 * 500
    assert history[-1].lr == pytest.approx(schedule.lr / 2 ** len(log.events))
    assert linear.evaluate()["rmse"] < 0.5 and np.isfinite(linear.shared).all()


def test_the_line_of_the_example_that_explodes(tmp_path):
    x, y = made(50)
    path = tmp_path / "b.svm"
    rows = [f"{t:.3f} " + " ".join(f"{j + 1}:{v:.2f}" for j, v in enumerate(row)) for row, t in zip(x, y)]
    rows[30] = "1e30 1:3e38"
    path.write_text("\n".join(["# two lines", "# of comments", *rows]) + "\n")
    linear = family.Linear(read(path, cache=False), None, Squared(), SGD())
    with pytest.raises(UserError, match=r"b\.svm, line \d+ .*halved 2 times before.*smaller lr"):
        train(linear, SGD(), Constant(1e-3), epochs=2, retries=2)
    assert np.isfinite(linear.w).all()
    linear.shared[:, 0, 0] = 2  # finite weights, but its own score is not: no other row can be named
    with pytest.raises(UserError, match=r"b\.svm, line 33 "):
        train(linear, SGD(), Constant(0.0), epochs=1, retries=0)


@pytest.mark.parametrize("head", ["", "a,b,y\n", "\n \na,b,y\n\n"])
def test_the_line_of_a_csv_file(tmp_path, head):
    """Of the one row that explodes: headers and blank lines are counted, as an editor does."""
    rows = ["0.5,1,0.25"] * 30
    rows[12], rows[20] = "3e38,3e38,1e30", "\n0.5,1,0.25"
    path = tmp_path / "b.csv"
    for at in (12, 25):
        rows[12], rows[at] = rows[at], rows[12]
        text = head + "\n".join(rows) + "\n"
        path.write_text(text)
        line = next(i for i, row in enumerate(text.split("\n"), 1) if row.startswith("3e38"))
        linear = family.Linear(read(path, cache=False), None, Squared(), SGD())
        linear.shared[:, 0, 0] = 2
        with pytest.raises(UserError, match=rf"b\.csv, line {line} "):
            train(linear, SGD(), Constant(0.0), epochs=1, retries=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_back_to_where_the_run_began(workers):
    """From weights that are all alike, kept as one row, and from others: to the same bits."""
    x, y = made()
    for start in (None, np.random.default_rng(1).standard_normal((7, 1, 2)).astype(np.float32)):
        linear = family.Linear(from_arrays(x, y), None, Squared(), Momentum(), workers=workers)
        if start is not None:
            linear.shared[...] = start
        before = linear.shared.copy()
        with pytest.raises(UserError):
            train(linear, Momentum(), Constant(1e30), epochs=3, workers=workers, retries=3)
        assert np.array_equal(linear.shared.view(np.uint32), before.view(np.uint32))


@pytest.mark.parametrize("retries", [0, 3])
def test_after_so_many_retries_it_gives_up(retries):
    x, y = made()
    linear, log = family.Linear(from_arrays(x, y, "mine"), None, Squared(), SGD()), Log()
    with pytest.raises(UserError, match=rf"mine, row \d+ .*learning rate .*halved {retries} times before"):
        train(linear, SGD(), Constant(1e30), epochs=3, report=log, retries=retries)
    assert len(log.events) == retries and not linear.w.any()  # back at the beginning


@pytest.mark.parametrize("part", [False, True])
def test_weights_that_the_last_step_has_spoilt_are_not_kept(part):
    """Every loss is finite, each before its own step; the last step's weights are not, and it names the row that has them."""
    order = np.random.default_rng((0, 1)).permutation(2)
    x, y, rows = np.full((3, 2), [0.0, 1e25]), np.ones(3), np.array([0, 2])
    x[rows[order]], y[rows[order]] = [[0.0, 1.0], [1e20, 0.0]], [1.0, -1e19]
    data = from_arrays(x, y, "mine") if part else from_arrays(x[rows], y[rows], "mine")
    linear, log = family.Linear(data, None, Squared(), SGD(), rows=rows if part else None), Log()
    row = (rows if part else np.arange(2))[order[-1]] + 1
    with pytest.raises(UserError, match=f"no longer finite at an example, most likely mine, row {row} "):
        train(linear, SGD(), Constant(1.0), epochs=1, report=log, retries=1)
    assert np.isfinite(linear.shared).all() and len(log.events) == 1


def test_a_rate_behind_a_warm_up_is_halved_too():
    x, y = made()
    schedule, log = Warmup(Constant(30.0), 1000.0), Log()
    linear = family.Linear(from_arrays(x, y), None, Squared(), Momentum())
    history = train(linear, Momentum(), schedule, epochs=6, report=log, retries=20)
    assert log.events and history[-1].lr == pytest.approx(30 / 2 ** len(log.events)) and np.isfinite(linear.w).all()


# Stopping.


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("mode", ["wild", "round-robin", "deterministic"])
@pytest.mark.parametrize("steps", [1, 499, 1234])
def test_max_steps_to_the_step(mode, workers, steps):
    x, y = made()
    linear = family.Linear(from_arrays(x, y), None, Squared(), SGD(), workers=workers, mode=mode)
    log = Log()
    history = train(linear, SGD(), Constant(0.01), epochs=9, workers=workers, stop=Stop(max_steps=steps), report=log)
    assert sum(epoch.examples for epoch in history) == steps == linear.steps
    assert [epoch.examples for epoch in history] == [500] * (steps // 500) + [steps % 500]
    assert f"stopped: {steps:,} steps are done" in log.lines[-1]


@pytest.mark.parametrize("workers", [1, 3])
def test_max_seconds(workers):
    x, y = made(20_000)
    linear, log = family.Linear(from_arrays(x, y), None, Squared(), SGD(), workers=workers), Log()
    history = train(linear, SGD(), Constant(1e-3), epochs=10**6, workers=workers, stop=Stop(max_seconds=0.3), report=log)
    assert 0.29 <= sum(epoch.seconds for epoch in history) < 5 and "max_seconds 0.3" in log.lines[-1]


@pytest.mark.parametrize("restore", [True, False])
def test_early_stopping_restores_the_best(restore):
    """A rule too fast for its noise: the watched metric is the best somewhere in the middle."""
    x, y = made()
    seen = []

    class Watched(family.Linear):
        def evaluate(self):
            seen.append(self.w.copy())
            return {"accuracy": [0.5, 0.8, 0.7, 0.75, 0.6][len(seen) - 1]}
    linear = Watched(from_arrays(x, y), None, Squared(), SGD())
    history = train(linear, SGD(), Constant(0.01), epochs=9,
                    stop=Stop(metric="accuracy", patience=3, restore_best=restore))
    assert len(history) == 5 and np.array_equal(linear.w, seen[1] if restore else seen[4])
    assert not np.array_equal(seen[1], seen[4])


def test_plateau_watches_the_metric_that_stops():
    x, y = made()

    class Watched(family.Linear):
        def evaluate(self):
            return {"rmse": 1.0, "mae": 1.0 / (len(seen) + 1)}
    seen, log = [], Log()
    log.epoch = lambda *args: seen.append(args)
    schedule = Plateau(0.01, factor=0.5, patience=1)
    make = lambda: Watched(from_arrays(x, y), None, Squared(), SGD())  # noqa: E731
    history = train(make(), SGD(), schedule, epochs=6, report=log, stop=Stop(metric="mae"))
    assert [epoch.lr for epoch in history] == [0.01] * 6
    history = train(make(), SGD(), schedule, epochs=6, stop=Stop(metric="rmse", patience=9))
    assert [epoch.lr for epoch in history] == [0.01, 0.01, 0.01, 0.005, 0.005, 0.0025]


def test_an_interrupt_leaves_finite_weights_that_have_learnt():
    x, y = made(3000)

    class Impatient(Log):
        def progress(self, done, *args):
            if done > 3000:
                raise KeyboardInterrupt
    linear = family.Linear(from_arrays(x, np.sign(y) + (y == 0)), None, Logistic(), SGD(), l1=1e-3, average=0)
    with pytest.raises(KeyboardInterrupt):
        train(linear, SGD(), Constant(0.1), epochs=10**6, report=Impatient())
    accuracy = np.mean((x @ linear.w[:-1] + linear.w[-1] > 0) == (y > 0))
    assert accuracy > 0.95 and linear.steps > 3000 and not linear.lasso.applied.any()
