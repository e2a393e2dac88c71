"""The process of one member of a job: `python -m vargface.member ROLE [ARGUMENT...]`, started by the launcher.

ROLE is scheduler, server or worker; a worker runs the command `vargface ARGUMENT...`. Its standard input is the
launcher's hold on it, on this machine and through ssh alike: a line of NAMES there is that signal, and its end is the
launcher's own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

from vargface.interrupt import Terminated, terminated_by
from vargface.jobs.orders import NAMES, STOP_SECONDS

__all__ = ["main"]

# seconds for a worker that has nothing to save to end at a signal
UNBEGUN_SECONDS = 3.0
# what is to live as long as this process (see `_end_with`)
_held: list[Any] = []
# whether the launcher is gone
_orphaned = threading.Event()


def main() -> None:
    """Be what the command line says, until the launcher ends it or, for a worker, the command has ended."""
    role, arguments = sys.argv[1], sys.argv[2:]
    with contextlib.suppress(OSError):  # started by ssh, it may lead a session already
        os.setpgid(0, 0)
    # it saves at once, and ends nobody: not one either that has yet to import the command (cli.py)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    with terminated_by(signal.SIGTERM):
        _end_with(_code_of(role, arguments))


def _code_of(role: str, arguments: list[str]) -> int:
    """Return the exit code of `vargface ARGUMENT...` or, of one that serves, 1 where it cannot."""
    try:
        # not before: what it passes on is met here
        threading.Thread(target=_obey, args=(role,), daemon=True).start()
        if role != "worker":
            return _serve(role)
        os.environ["DMLC_ROLE"] = role
        from vargface.cli import main as command

        try:
            return command(arguments)
        finally:
            if _orphaned.is_set():
                from vargface.training.team import leave

                leave()
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt as stop:
        return 143 if isinstance(stop, Terminated) else 130
    except BaseException:
        traceback.print_exc()
        return 1


def _serve(role: str) -> int:
    from vargface.runtime import mx

    # not before: MXNet serves while it is imported where it finds this set, and pickles then meet a half of it
    os.environ["DMLC_ROLE"] = role
    sys.unraisablehook = _fail
    _held.append(mx.kv.create("dist"))
    mx.kvstore.kvstore_server.KVStoreServer(_held[0]).run()
    return 0


def _fail(met: Any) -> None:
    """End a server whose update failed: MXNet would go on as if it had been done."""
    traceback.print_exception(met.exc_type, met.exc_value, met.exc_traceback)
    _end_with(1)


def _end_with(code: int) -> None:
    """End this process, at once: MXNet's store, as it goes, waits for all others, and one that failed for ever.

    So a store is held until here (also in team.py): where an exception goes up, nothing else may.
    """
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _obey(role: str) -> None:
    """Do what the launcher says, in a thread: the main one may be waiting in MXNet, where it hears nothing."""
    with open(0, closefd=False) as orders:
        for line in orders:
            _signal(line.strip(), role)
    _orphaned.set()
    # who read what is said here is gone, too
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _signal("TERM", role)
    time.sleep(STOP_SECONDS)  # servers, too: workers that save ask them for the tables
    _signal("KILL", role)


def _signal(name: str, role: str) -> None:
    if name == "KILL":
        os.killpg(os.getpgrp(), signal.SIGKILL)  # decoders too
    elif name in NAMES and role == "worker":  # a server serves until the workers have gone
        # set by who has steps to finish and to save
        begun = signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN)
        os.kill(os.getpid(), NAMES[name])
        if not begun and name != "USR1":
            time.sleep(UNBEGUN_SECONDS)
            # it may wait in MXNet for others that have ended
            os._exit(128 + NAMES[name])


if __name__ == "__main__":
    main()
