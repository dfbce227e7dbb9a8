"""The one exception for a user's mistake: the command line prints it as one line and exits with 2."""


class UserError(Exception):
    """Says in one line what was needed, what was got, where, and what to do."""
