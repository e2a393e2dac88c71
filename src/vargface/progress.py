"""How far long work has come, said where no terminal shows a progress bar."""

from __future__ import annotations

import logging
import time

__all__ = ["LoggedProgress", "duration"]

logger = logging.getLogger(__name__)

# seconds between two lines at least
EVERY = 60.0


class LoggedProgress:
    """Logs how much is done and what time is left, a line a minute at most: for a batch job's log."""

    def __init__(self, name: str, unit: str, total: int, done: int = 0) -> None:
        """Take what a line begins with, what is counted, how much there is of it, and how much is done before."""
        self._name, self._unit, self._total, self._first = name, unit, total, done
        self._start = self._said = time.monotonic()

    def __call__(self, done: int, more: str = "") -> None:
        """Say that `done` of the total are done, if the last line is old enough, and `more`."""
        now = time.monotonic()
        if now - self._said < EVERY or done <= self._first:
            return
        self._said = now
        left = (now - self._start) / (done - self._first) * (self._total - done)
        said = [f"{self._name}: {self._unit} {done:,} of {self._total:,}", *([more] if more else [])]
        logger.info("%s, %s left", ", ".join(said), duration(left))


def duration(seconds: float) -> str:
    """Return `seconds` for people: "3.2 s", "4 min 10 s", "2 h 05 min", "3 d 4 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
