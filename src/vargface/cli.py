"""The command line: parses, calls, prints. Bad input ends with one line and exit code 2, Ctrl-C 130, SIGTERM 143."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from tqdm import tqdm

from vargface import __version__
from vargface.commands import (
    doctor,
    embed,
    export,
    flops,
    launch,
    lfr,
    parsed,
    rec,
    runs,
    study,
    synth,
    teacher_store,
    train,
    verify,
)
from vargface.errors import InputError
from vargface.interrupt import Terminated, terminated_by, unharmed_by_sigusr1
from vargface.jobs.orders import RANK
from vargface.runtime import check_numpy

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vargface ARGV...` and return its exit code: 0, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM.

    141 where nobody reads its output any more, 1 of a command that finds the faults it looks for (`rec check`).
    """
    handler = _AboveTheBar()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its fonts
    arguments = parsed(_parser(), argv)
    try:
        if arguments.command != "doctor":  # which says it, and what else there is to say
            check_numpy()
        with terminated_by(signal.SIGTERM), unharmed_by_sigusr1():
            code = arguments.run(arguments) or 0
            sys.stdout.flush()
            return code
    except InputError as error:
        print(f"vargface: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        # of a worker's run its launcher knows whether something was saved
        says = arguments.goes_on and RANK not in os.environ
        goes_on = "; the same command goes on from the last saved state" if says else ""
        print(f"vargface: stopped{goes_on}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except OSError as error:
        if not _output_is_lost():
            raise
        if isinstance(error, BrokenPipeError):  # after `| head` nothing is wrong
            return 141
        print(f"vargface: error: the output: cannot write ({error.strerror}) - free space", file=sys.stderr)
        return 2


def _output_is_lost() -> bool:
    """Return whether standard output takes no more, and if so let nothing more go there."""
    try:
        print(flush=True)  # flushing alone says nothing where Python holds nothing back
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


class _AboveTheBar(logging.Handler):
    """Prints log lines on stderr without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vargface", description="VarGFaceNet: training with angular and recursive distillation, on MXNet."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(goes_on=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train.add_to(commands)
    launch.add_to(commands)
    verify.add_to(commands)
    runs.add_to(commands)
    study.add_to(commands)
    synth.add_to(commands)
    flops.add_to(commands)
    lfr.add_to(commands)
    teacher_store.add_to(commands)
    embed.add_to(commands)
    export.add_to(commands)
    rec.add_to(commands)
    doctor.add_to(commands)
    return parser
