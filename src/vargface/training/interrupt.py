"""Ctrl-C and SIGTERM: the step under way is finished and the state saved before training stops."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace

__all__ = ["Terminated", "interrupt_after_step"]

logger = logging.getLogger(__name__)


class Terminated(KeyboardInterrupt):
    """SIGTERM (a batch system's end of time, a shutdown): the same as Ctrl-C but for the exit code."""


REASONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@contextlib.contextmanager
def interrupt_after_step() -> Iterator[SimpleNamespace]:
    """Yield an object whose `asked`, None, turns at the first signal into the exception to raise after saving.

    A second signal raises its exception at once. Outside the main thread, which alone gets signals, `asked` stays None.
    """
    stop = SimpleNamespace(asked=None)

    def ask(number: int, _frame: object) -> None:
        if stop.asked:
            raise REASONS[number]
        stop.asked = REASONS[number]
        logger.info("finishing this step and saving; the same again leaves at once")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, ask) for number in REASONS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
