"""Ctrl-C between steps: the step under way is finished and the state saved before training stops."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace

__all__ = ["interrupt_after_step"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def interrupt_after_step() -> Iterator[SimpleNamespace]:
    """Yield an object whose `asked` turns True at the first Ctrl-C; a second one raises KeyboardInterrupt at once.

    Outside the main thread, which alone gets signals, `asked` stays False.
    """
    stop = SimpleNamespace(asked=False)

    def ask(*_) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        logger.info("finishing this step and saving; Ctrl-C again leaves at once")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
