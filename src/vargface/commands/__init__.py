"""Families of commands, a module each, that `cli` registers."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["add_command", "takes_overrides"]

KEY_VALUE = "overrides of the recipe's keys, e.g. lr=0.05 (recipes/base.py lists all)"


def add_command(
    commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int | None], help_line: str
) -> argparse.ArgumentParser:
    """Return the parser of a new command `name` among `commands`, which calls `run` with what was given.

    `run` may return an exit code; None is 0.
    """
    parser = commands.add_parser(name, help=help_line, description=help_line)
    parser.set_defaults(run=run)
    return parser


def takes_overrides(command: argparse.ArgumentParser, before: str = "") -> None:
    """Give `command` the argument `overrides`, KEY=VALUE...; `before` comes first in its help."""
    # without a default, argparse calls it required where another argument is missing
    command.add_argument("overrides", nargs="*", default=(), metavar="KEY=VALUE", help=f"{before}{KEY_VALUE}")
