"""Families of commands, a module each, that `cli` registers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from vargface.errors import InputError

__all__ = ["add_command", "check_out", "parsed", "takes_overrides", "whole"]

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


def parsed(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Return what `parser` makes of `words` (None: the command line's).

    KEY=VALUE may stand on both sides of an option, which argparse alone does not take.
    """
    arguments, left = parser.parse_known_args(words)
    if left and not (hasattr(arguments, "overrides") and all("=" in word and word[0] != "-" for word in left)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.overrides = [*arguments.overrides, *left]
    return arguments


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return what argparse takes as the type of a whole number in least..most."""

    def number(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be at least {least}" + (f" and at most {most}" if most else ""))
        return value

    return number


def check_out(out: str, suffix: str, what: str) -> None:
    """Raise InputError, before any work, where file `out` is not called *`suffix`, as `what` is, or cannot be there."""
    if Path(out).suffix != suffix:
        raise InputError(f"{out}: {what} - give it a name in {suffix}")
    if not Path(out).resolve().parent.is_dir():
        raise InputError(f"{out}: no such folder - make it first")
    if Path(out).is_dir():
        raise InputError(f"{out}: is a folder - give the file to write")
