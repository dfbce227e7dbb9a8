"""Copies that are brought together now and then: nothing is lost, whoever comes, merges, leaves or ends when."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hogwild import copies, linear
from hogwild.data import from_arrays
from kernels import linear as kernel
from kernels.hyper import checked
from kernels.losses import Hinge
from kernels.rules import SGD, AdaGrad
from kernels.schedules import Constant

N, D, TINY = 400, 7, 2.0**-20  # so small a rate that a hinge stays on its slope, and sums of it are exact
rng = np.random.default_rng(0)
X = rng.choice([-1.0, 0.0, 1.0], (N, D), p=[0.2, 0.2, 0.6]) * (rng.random((N, D)) < 2.0 ** -np.arange(D))
Y = np.where(np.arange(N) % 2, 1.0, -1.0)


def problem(rule, mode, workers, **options):
    made = linear.Linear(from_arrays(X, Y), None, Hinge(), rule, workers=workers, mode=mode, **options)
    made.model = made.model._replace(intercept=1.0)
    made.most = 2.0
    return made


@pytest.mark.parametrize("rule, mode, options", [
    (SGD(), "wild", {"copies": True}), (AdaGrad(G0=1.0), "wild", {"copies": True}),
    (AdaGrad(G0=1.0), "wild", {"copies": True, "average": 0}), (SGD(), "atomic", {})])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_nothing_is_lost(rule, mode, options, data):
    """Rounds in which each worker comes or not, trains in turn with the others, and leaves early or ends, which some do
    long before others; then the sums are those of all examples: SGD's weights, AdaGrad's squares.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "ROWS", data.draw(st.integers(1, 3), "rows of a block"))
        made = problem(rule, mode, workers := data.draw(st.integers(2, 4), "workers"), **options)
    random, t = np.random.default_rng(data.draw(st.integers(0, 99), "seed")), 0
    rule, lr = checked(rule), checked(Constant(TINY))
    own, count = [made.private(k) for k in range(workers)], np.zeros(N)
    for _ in range(data.draw(st.integers(1, 3), "rounds")):
        made.begin(t)
        late = set(range(workers))
        came = set()
        for k in data.draw(st.lists(st.integers(0, workers - 1), min_size=1, max_size=30), "turns"):
            if k not in late:
                continue
            if k in came and data.draw(st.integers(0, 3), "ends") == 0:
                late.remove(k)
                kernel.leave_round(made.model, own[k][1], t, data.draw(st.booleans(), "early"))
                continue
            part = random.integers(0, N, data.draw(st.integers(1, 40), "examples"))
            if k not in came:  # a call that takes the first of them, and no more than that
                queue = np.zeros(16, np.int64)
                assert not made.work(rule, lr, own[k], part[:1], t, queue, 1, True, np.zeros(8))
                made.run(rule, lr, own[k], part[1:], t + 1, 1, np.zeros(8))
                came.add(k)
            else:
                made.run(rule, lr, own[k], part, t, 1, np.zeros(8))
            np.add.at(count, part, 1)
            t += len(part)
        for k in late:
            kernel.leave_round(made.model, own[k][1], t, False)
        made.end()
    if type(rule).__name__ == "SGD":
        want = TINY * np.append((count * Y) @ X, count @ Y)
        assert np.array_equal(made.shared[:, 0, 0], want.astype(np.float32))
    else:
        assert np.array_equal(made.shared[:, 0, 1], 1 + np.append(count @ X**2, count.sum()))
