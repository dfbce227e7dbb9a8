"""Worker processes: spawned, asked one thing at a time over a pipe, and gone when the process that started them is."""

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.reduction import ForkingPickler

from hogwild.errors import UserError

POLL = 0.1  # seconds between two looks at whether a worker is alive
PATIENCE = 3.0  # seconds that a worker has to end what it does, once another has failed
START = 300.0  # seconds that a worker has to import what it needs
PR_SET_PDEATHSIG = 1  # linux/prctl.h
UNGUARDED = 99  # exit code of a worker whose import of the main script would start workers
SIGNALS = {signal.SIGINT, signal.SIGTERM}  # reach all processes of a terminal: the first one decides what they mean


class Ended(UserError):
    """A worker's process has ended before its work."""


class Reported(Exception):
    """The traceback of an exception in a worker, as its cause."""

    def __str__(self):
        return f"\n{self.args[0]}"


def demand_importable(what, function):
    """Raise UserError unless a spawned process can import `function`, which is called `what` in messages."""
    name, module = getattr(function, "__qualname__", repr(function)), getattr(function, "__module__", None)
    main = sys.modules["__main__"]
    if module == "__main__" and not getattr(main, "__file__", None):
        raise UserError(f"{what}: workers are processes that import it, got {name} of an interactive session: put it into a "
                        "file, and import it from there")
    try:
        ForkingPickler.dumps(function)
    except Exception as error:  # whatever an object's own methods raise
        reason = "" if "lambda" in name or "<locals>" in name else f" ({type(error).__name__}: {str(error).splitlines()[0]})"
        raise UserError(f"{what}: workers are processes that import it, so it must be at the top level of a module, got "
                        f"{name}{reason}") from None


def demand_guard():
    """End this process where it is a worker that imports the main script, which has no guard."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(UNGUARDED)


class Process:
    """One worker process, in which `make(*arguments)` gives the function that answers each `ask`.

    k: its number, from 0. Use by one thread at a time: under `lock` where several may.
    """

    def __init__(self, k, make, *arguments):
        self.k, self.lock, self.dead = k, threading.Lock(), False
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        target = f"{make.__module__}:{make.__qualname__}"
        self.process = context.Process(target=_serve, args=(os.getpid(), theirs, target, arguments), name=f"worker {k}")
        held = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # the new process has the same mask until it ignores them
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            theirs.close()

    @property
    def pid(self):
        return self.process.pid

    def ready(self, halt):
        """Wait until it has imported and made all that it needs. Raises as `ask`."""
        self._answer(halt, START)

    def ask(self, message, halt):
        """What the worker answers to `message`. halt: int64[8]; once halt[0] is 1, it has PATIENCE to do so.

        Raises Ended where its process has ended, and UserError, with the traceback as its cause, for an exception in it.
        """
        with contextlib.suppress(OSError):
            self.pipe.send(message)
        return self._answer(halt)

    def _answer(self, halt, patience=float("inf")):
        since = time.monotonic()
        try:
            while not self.pipe.poll(POLL):
                if not self.process.is_alive() and not self.pipe.poll():  # a child of its own may hold the pipe open
                    raise EOFError
                patience = min(patience, time.monotonic() - since + PATIENCE) if halt[0] else patience
                if time.monotonic() - since > patience:
                    self.kill()
                    raise UserError(f"worker {self.k} (process {self.pid}) did not answer in {patience:.0f} s, and was ended")
            good, answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(PATIENCE)
            raise self._ended() from None
        if good:
            return answer
        raise UserError(f"worker {self.k}: {answer[0]}") from Reported(answer[1])

    def _ended(self):
        self.dead, code = True, self.process.exitcode
        if code == UNGUARDED:
            return UserError("workers are processes that import the main script, which then would train again: put what it "
                             'does under if __name__ == "__main__":')
        if code is not None and code < 0:
            why = f"was killed by {signal.Signals(-code).name}" + " (by someone, or by the system for want of memory)" * (
                -code == signal.SIGKILL)
        else:
            why = f"has ended with exit code {code} in the middle of its work"
        return Ended(f"worker {self.k} (process {self.pid}) {why}")

    def kill(self):
        """End it at once."""
        self.dead = True
        self.process.kill()
        self.process.join(PATIENCE)

    def close(self):
        """Let it end, or end it where it does not."""
        with contextlib.suppress(OSError):
            self.pipe.close()
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.kill()


def _serve(parent, pipe, target, arguments):
    """A worker process: answer until the pipe is closed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:  # elsewhere the pipe's end tells, after the step
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    try:
        module, _, name = target.partition(":")
        answer = getattr(importlib.import_module(module), name)(*arguments)
        pipe.send((True, None))
        while True:
            pipe.send((True, answer(pipe.recv())))
    except (EOFError, BrokenPipeError):
        pass
    except BaseException as error:  # SystemExit of a library too
        with contextlib.suppress(OSError):
            pipe.send((False, (line_of(error), traceback.format_exc())))


def line_of(error) -> str:
    """An exception in a line, with the place in the code that raised it."""
    if isinstance(error, UserError):
        return str(error)
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    inside = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
    own = [frame for frame in frames if not frame.filename.startswith((inside, "<"))
           and f"{os.sep}site-packages{os.sep}" not in frame.filename and not frame.filename.startswith(sys.base_prefix)]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {text or 'no message'}{place}"


def packed(value) -> bytes:
    """A value for `unpacked` in a worker, where an import that fails is then an exception of its own."""
    return bytes(ForkingPickler.dumps(value))


def unpacked(data):
    """The inverse of `packed`."""
    return pickle.loads(data)
