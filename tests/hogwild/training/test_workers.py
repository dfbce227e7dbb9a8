"""Threads that share work whose result the caller needs whole."""

import threading

import pytest

from hogwild.errors import UserError
from hogwild.training.workers import spread


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
