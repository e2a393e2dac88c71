"""`vargface` and `python -m vargface`: the command line."""

from __future__ import annotations

import sys

__all__ = ["run"]


def run() -> int:
    """Run the command line and return its exit code, also where Ctrl-C comes before it is loaded."""
    try:
        from vargface.cli import main

        return main()
    except KeyboardInterrupt:
        print("vargface: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
