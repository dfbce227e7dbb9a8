"""Exceptions that the command line turns into one line and an exit code."""

import contextlib
import os


class UserError(Exception):
    """The user's mistake: says in one line what was needed, what was got, where, and what to do. Exit code 2."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, but the exit code is 143."""


ABSURD = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


def reason(error, path) -> str:
    """What an OSError at `path` means: also that not the file but its folder is missing."""
    folder = os.path.dirname(path) or "."
    if isinstance(error, FileNotFoundError) and not os.path.isdir(folder):
        return f"there is no folder {folder}"
    return getattr(error, "strerror", None) or str(error)


def demand_folder(path, what, option):
    """Raise UserError now where the folder of a file that is to be written later is missing."""
    if not os.path.isdir(folder := os.path.dirname(path) or "."):
        raise UserError(f"{path}: cannot write the {what}: there is no folder {folder}; make it, or choose another {option}")


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
