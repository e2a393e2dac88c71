"""The process of one member of a job: `python -m vargface.jobs.member ROLE [ARGUMENT...]`, started by the launcher.

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

from vargface.jobs.orders import NAMES

__all__ = ["ORPHAN_SECONDS"]

# seconds in which a worker may save its state once the launcher was killed
ORPHAN_SECONDS = 60.0


def main() -> None:
    """Be what the command line says, until the launcher ends it or, for a worker, the command has ended."""
    role, arguments = sys.argv[1], sys.argv[2:]
    with contextlib.suppress(OSError):  # started by ssh, it may lead a session already
        os.setpgid(0, 0)
    threading.Thread(target=_obey, args=(role,), daemon=True).start()
    if role == "worker":
        os.environ["DMLC_ROLE"] = role
        _end_with(_code_of(arguments))
    from vargface.runtime import mx

    # not before: MXNet serves while it is imported where it finds this set, and pickles then meet a half of it
    os.environ["DMLC_ROLE"] = role
    mx.kvstore.kvstore_server.KVStoreServer(mx.kv.create("dist")).run()


def _code_of(arguments: list[str]) -> int:
    """Return the exit code of `vargface ARGUMENT...`."""
    try:
        from vargface.cli import main as command

        return command(arguments)
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1


def _end_with(code: int) -> None:
    """End this process, at once: MXNet's store says farewell to all others, and one that failed would wait there."""
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
    # the launcher is gone, and who read what is said here
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    _signal("TERM", role)
    time.sleep(ORPHAN_SECONDS)
    _signal("KILL", role)


def _signal(name: str, role: str) -> None:
    if name == "KILL":
        os.killpg(os.getpgrp(), signal.SIGKILL)  # decoders too
    elif name in NAMES and role == "worker":  # a server serves until the workers have gone
        os.kill(os.getpid(), NAMES[name])


if __name__ == "__main__":
    main()
