"""`vargface` and `python -m vargface`: the command line."""

from __future__ import annotations

import sys

__all__ = ["run"]


def run() -> int:
    """Run the command line and return its exit code, also where Ctrl-C comes before it is loaded, or it cannot be."""
    try:
        try:
            from vargface.cli import main
        except ImportError:
            from vargface.packages import broken

            faults = broken()
            if not faults:
                raise
            print(*(f"vargface: error: {fault}" for fault in faults), sep="\n", file=sys.stderr)
            return 1 if sys.argv[1:2] == ["doctor"] else 2
        return main()
    except KeyboardInterrupt:
        print("vargface: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
