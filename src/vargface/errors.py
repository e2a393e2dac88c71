"""The one exception for bad input; every other exception is a bug of ours and keeps its traceback."""

__all__ = ["InputError"]


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what is wrong, where, and what to do. The command line prints it and exits with code 2.
    """
