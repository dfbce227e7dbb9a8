"""Exceptions that the command line turns into one line and an exit code."""


class UserError(Exception):
    """The user's mistake: says in one line what was needed, what was got, where, and what to do. Exit code 2."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, but the exit code is 143."""
