"""Faults as they are told, and what to do about the kinds that there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vargface.errors import InputError

__all__ = ["AT_SOURCE", "COPY", "REINDEX", "Finding", "Findings"]

COPY = "copy the data set anew"
REINDEX = "copy it anew, or index the images anew: vargface rec shuffle DIR OUT --skip-bad"
AT_SOURCE = "correct it where the data set was made, and build it anew"


class Finding(NamedTuple):
    """A fault: where (file and record), what, and what to do."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} - {self.fix}"


class Findings:
    """Tells `report` each fault and counts them; `records` is the file whose records are meant by their numbers."""

    def __init__(self, report: Callable[[Finding], object], records: Path) -> None:
        self.count = 0
        self._report, self._records = report, records

    def say(self, where: object, what: str, fix: str) -> None:
        """Tell a fault of a file, or of a place in it."""
        self.count += 1
        self._report(Finding(str(where), what, fix))

    def say_record(self, key: int, what: str, fix: str) -> None:
        """Tell a fault of record `key`."""
        self.say(f"{self._records}: record {key}", what, fix)

    def say_error(self, error: InputError) -> None:
        """Tell what a reader refused, 'where: what - fix'."""
        where, _, rest = str(error).partition(": ")
        what, _, fix = rest.rpartition(" - ")
        self.say(where, what, fix)
