"""Families of commands, a module each, that `cli` registers."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["add_command"]


def add_command(
    commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int | None], help_line: str
) -> argparse.ArgumentParser:
    """Return the parser of a new command `name` among `commands`, which calls `run` with what was given.

    `run` may return an exit code; None is 0.
    """
    parser = commands.add_parser(name, help=help_line, description=help_line)
    parser.set_defaults(run=run)
    return parser
