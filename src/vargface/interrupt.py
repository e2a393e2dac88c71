"""Ctrl-C and SIGTERM: a command cleans up after either; training finishes its step and saves the state before.

SIGUSR1 has training save its state and go on; it ends no command.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

__all__ = ["Terminated", "handled", "interrupt_after_step", "terminated_by", "unharmed_by_sigusr1"]

logger = logging.getLogger(__name__)


class Terminated(KeyboardInterrupt):
    """SIGTERM (a batch system's end of time, a shutdown): the same as Ctrl-C but for the exit code."""


REASONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@contextlib.contextmanager
def handled(handler: Callable, *numbers: int) -> Iterator[None]:
    """Let `handler` have these signals in this block; outside the main thread, which alone gets signals, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextlib.contextmanager
def terminated_by(*numbers: int) -> Iterator[None]:
    """Raise Terminated at the first of these signals in this block, and at no later one: nothing cuts clean-up short.

    Some senders, timeout(1) for one, send SIGTERM twice in a row; shell and kernel both send SIGHUP. Ctrl-C still
    raises.
    """
    heard = False

    def terminate(_number: int, _frame: object) -> None:
        nonlocal heard
        if not heard:
            heard = True
            raise Terminated

    with handled(terminate, *numbers):
        yield


@contextlib.contextmanager
def unharmed_by_sigusr1() -> Iterator[None]:
    """Say of a SIGUSR1 in this block, which would end the process, that there is nothing to save.

    For what lies around the steps of a training: start-up, between generations, the report. What was trained is saved.
    """

    def say(_number: int, _frame: object) -> None:
        logger.info("SIGUSR1: no step since the last save, nothing to do")

    with handled(say, signal.SIGUSR1):
        yield


@contextlib.contextmanager
def interrupt_after_step() -> Iterator[SimpleNamespace]:
    """Yield an object whose `asked`, None, turns at the first signal into the exception to raise after saving.

    Its `save`, False, turns True at each SIGUSR1; who has saved sets it back. A Ctrl-C after the first signal raises at
    once; a SIGTERM does not, for some senders repeat it. Outside the main thread, which alone gets signals, nothing is
    ever asked.
    """
    stop = SimpleNamespace(asked=None, save=False)

    def ask(number: int, _frame: object) -> None:
        if stop.asked is None:
            stop.asked = REASONS[number]
            logger.info("finishing this step and saving; Ctrl-C (again) leaves at once")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def save(_number: int, _frame: object) -> None:
        stop.save = True

    with handled(ask, *REASONS), handled(save, signal.SIGUSR1):
        yield stop
