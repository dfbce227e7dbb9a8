"""The sampled count of lost updates: exact where nothing can be lost, near the truth where much is, elsewhere silent."""

import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hogwild.cli import main
from hogwild.data.dataset import from_arrays
from hogwild.families import linear
from hogwild.kernels.losses import Hinge, Logistic
from hogwild.kernels.optim.rules import SGD, AdaGrad
from hogwild.kernels.optim.schedules import Constant
from hogwild.training import lost_updates, replicated

rng = np.random.default_rng(0)


@pytest.mark.parametrize("rule, columns, l1", [(SGD(), 1, 0.0), (AdaGrad(), 2, 0.0), (AdaGrad(), 2, 0.01)])
def test_one_worker_at_a_time_loses_nothing(rule, columns, l1):
    """Counted, the same weights come out; each change is counted in both places, as often as there are entries."""
    x = (rng.random((300, 40)) < 0.2) * rng.choice([-1.0, 1.0], (300, 40))
    data = from_arrays(x, rng.integers(0, 2, 300))
    results = []
    for counted in (False, True):
        problem = linear.Linear(data, None, Logistic(), rule, workers=2, replicas="none", l1=l1)
        if counted:
            problem.shadow.every = 1
        else:
            problem.shadow.due = lambda: False
        problem.begin(0)
        own = problem.private(0)
        queue = np.zeros(16, np.int64)
        problem.work(rule, Constant(0.1), own, np.arange(300), 0, queue, 300, True, np.zeros(8))
        made, seen = problem.shadow.made[0, 0], problem.shadow.shadow.sum()
        assert made == seen and (made >= (np.count_nonzero(x) + 300) * columns if counted else made == 0)
        assert l1 or not counted or made == (np.count_nonzero(x) + 300) * columns
        assert problem.shadow.lost() is None  # nobody else counted
        results.append(problem.flat.copy())
    assert np.array_equal(*results)


@pytest.mark.parametrize("undone", [0, 1, 3])
def test_the_estimate_is_what_was_lost(undone):
    """Of four chunks as many are undone, as by a worker that stores what it had loaded before: parameters and counters."""
    n, lr = 1000, 2.0**-20
    problem = linear.Linear(from_arrays(np.ones((n, 2)), np.ones(n)), None, Hinge(), SGD(), intercept=False, workers=2,
                            replicas="none", classes=np.array([-1.0, 1.0]))
    problem.shadow.every, queue, own = 1, np.zeros(16, np.int64), [problem.private(k) for k in range(2)]
    problem.begin(0)
    for chunk in range(4):
        before = problem.flat.copy(), problem.shadow.shadow.copy()
        problem.work(SGD(), Constant(lr), own[chunk % 2], np.arange(n), 0, queue, n // 4, chunk < 2, np.zeros(8))
        if chunk < undone:
            problem.flat[:], problem.shadow.shadow[:] = before
    problem.end()
    assert float(problem.shared[:2].sum()) / lr == 2 * n * (1 - undone / 4)
    problem.shadow.spans = [(0, k, 0.0, 1.0) for k in range(2)]  # all the time beside each other
    assert problem.shadow.lost() == min(undone / 4, 0.5)


@given(st.integers(2, 5), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_overlap_of_spans(workers, windows, seed):
    """Against seconds laid out on a line of small steps."""
    draw = np.random.default_rng(seed)
    line = np.zeros((windows, workers, 100), bool)
    spans = []
    for window in range(windows):
        for k in draw.permutation(workers)[:draw.integers(1, workers + 1)]:
            start, end = sorted(draw.integers(0, 101, 2))
            line[window, k, start:end] = True
            spans.append((window, k, start / 100, end / 100))
    together = line.sum(1)
    want = line.sum() / 100, (together * (together - 1)).sum() / 100
    assert lost_updates.overlap(spans) == pytest.approx(want)


class Meeting(lost_updates.Shadow):
    """Counts all, and the workers' first chunks wait for each other, so that they are counted at the same time."""

    def __init__(self, workers):
        super().__init__(workers, every=1)
        self.together, self.met = threading.Barrier(workers), set()

    @contextmanager
    def watch(self, k):
        with super().watch(k):
            if k not in self.met:
                self.met.add(k)
                self.together.wait(60)
            yield


def test_the_record_says_it_where_parameters_are_shared(tmp_path, monkeypatch):
    """Many weights, few entries: no copies. With copies nothing is lost; alone nobody is asked."""
    monkeypatch.setattr(replicated, "Shadow", Meeting)
    monkeypatch.setattr(lost_updates, "STRETCH", 1e6)  # all in one stretch of time
    rows, exchange = tmp_path / "a.svm", {}
    for name, features, options in (("shared", 60_000, []), ("copies", 11, []), ("alone", 11, ["--workers", "1"])):
        rows.write_text("".join(f"{2 * (i % 2) - 1} {i % 7 + 1}:1 {i % features + 10}:1\n" for i in range(60_000)))
        main.main(["train", "linear", str(rows), "--workers", "2", "--epochs", "4", *options, "--record",
                  str(tmp_path / name), "--no-cache"])
        epochs = [e for e in map(json.loads, (tmp_path / name).read_text().splitlines()) if e["event"] == "epoch"]
        exchange[name] = epochs[-1]["exchange"]
    assert exchange["alone"] == {} and exchange["shared"].keys() == {"stale_examples", "lost_updates"}
    assert 0 <= exchange["shared"]["lost_updates"] <= 0.5  # two workers lose no more; None, had it not been counted
    shared, copied = exchange["shared"], exchange["copies"]
    assert copied["lost_updates"] == 0 < shared["stale_examples"] < copied["stale_examples"]
    assert exchange["copies"].keys() == {"stale_examples", "stale_updates", "lost_updates"}
