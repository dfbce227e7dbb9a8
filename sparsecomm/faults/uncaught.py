"""An exception that nothing catches ends all ranks, from the import of this package on: before any has started MPI."""

import functools
import os
import sys

from sparsecomm.wire import launch


def end_all_on_exception():
    """Set sys.excepthook in a process that a launcher has started as one of several ranks, not in its workers."""
    started = sys.modules.get("multiprocessing.process")
    if launch.size() > 1 and not (started and started.parent_process()):
        sys.excepthook = functools.partial(_uncaught, os.getpid(), sys.excepthook)


def _uncaught(pid, before, kind, error, trace):
    """The hook of the process `pid`; before: the hook that was there."""
    if os.getpid() == pid:  # not of a process that it has forked
        from sparsecomm import guard  # loads slowly
        guard.uncaught(error)
    before(kind, error, trace)
