"""Exceptions that the command line turns into one line and an exit code."""

import contextlib


class UserError(Exception):
    """The user's mistake: says in one line what was needed, what was got, where, and what to do. Exit code 2."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, but the exit code is 143."""


ABSURD = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@contextlib.contextmanager
def sound(path, what, remedy):
    """Inside, what a file says is used: where it makes no sense, whatever goes wrong is a UserError.

    A checksum tells only that the file is as it was written.
    """
    try:
        yield
    except ABSURD as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: is no {what} that can be used ({reason[:200]}); {remedy}") from None


def demand(good, message):
    """Raise ValueError unless `good`: for use in `sound`."""
    if not good:
        raise ValueError(message)
