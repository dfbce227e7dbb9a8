"""Ctrl-C and SIGTERM in a run: exceptions between two chunks, while workers compute."""

import contextlib
import signal
import threading
from functools import partial

from hogwild.errors import Terminated


def interrupt(number):
    """Raise the exception of signal `number`: Terminated of SIGTERM, else KeyboardInterrupt."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def stop_on_signals(first=interrupt):
    """The first Ctrl-C or SIGTERM raises, between two chunks, or calls `first`; the second one ends the process at once."""
    def stop(number, frame):
        for each in old:
            signal.signal(each, signal.SIG_DFL)
        first(number)
    old = {}
    try:
        for each in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(each) is not signal.SIG_IGN:  # as in a background job
                old[each] = signal.signal(each, stop)
    except ValueError:  # not the main thread: no signals arrive here
        pass
    try:
        yield
    finally:
        for each, handler in old.items():
            signal.signal(each, handler)


class Flag:
    """An event like threading.Event, in an element of an array that kernels read."""

    def __init__(self, array, at):
        self.array, self.at = array, at

    def set(self):
        self.array[self.at] = 1

    def clear(self):
        self.array[self.at] = 0

    def is_set(self):
        return bool(self.array[self.at])


class Postponed:
    """A context in which Ctrl-C and SIGTERM, while `held`, set `stop` (a Flag) at once; `let_go` raises the exceptions of
    their handlers.

    Raised at once in a thread that is a worker, they would end a chunk that is counted but not finished. Setting the
    handlers anew for each epoch would cost 3% of an epoch of 3 ms.
    """

    def __init__(self, stop):
        self.stop, self.held, self.raised, self.ours = stop, False, [], {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    later = partial(self._signalled, handler)
                    signal.signal(number, later)
                    self.ours[number] = handler, later

    def _signalled(self, handler, number, frame):
        if not self.held:
            return handler(number, frame)
        try:
            handler(number, frame)
        except BaseException as error:
            self.raised.append(error)
            self.stop.set()

    def let_go(self):
        """Raise the exception that a handler has raised while held."""
        self.held = False
        if self.raised:
            error, self.raised = self.raised[0], []
            raise error

    def __exit__(self, *raised):
        for number, (handler, later) in self.ours.items():
            if signal.getsignal(number) is later:  # the handler may have set another
                signal.signal(number, handler)
        self.ours = {}
