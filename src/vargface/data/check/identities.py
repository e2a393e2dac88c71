"""The labels of the images against property and the identity records."""

from __future__ import annotations

import bisect
from pathlib import Path

import numpy as np

from vargface.data.check.findings import AT_SOURCE, Findings
from vargface.data.check.index import Layout
from vargface.data.recordio import LEAVE_OUT
from vargface.data.records import EXACT

__all__ = ["Identities"]


class Identities:
    """What the labels met so far say of the identities.

    prop: the file `property`, which says `stated` identities, 0 where it cannot be read.
    """

    def __init__(self, prop: Path, stated: int, layout: Layout | None, findings: Findings) -> None:
        self._property, self._stated, self._layout, self._findings = prop, stated, layout, findings
        self._seen = np.zeros(stated, dtype=bool)
        # label of each identity record's images, as far as met
        self._labels = np.full(len(layout.starts) if layout else 0, np.nan, dtype=np.float32)

    @property
    def seen(self) -> int:
        """The number of property's identities that have an image."""
        return int(self._seen.sum())

    def check_label(self, key: int, label: float) -> None:
        """Take the label of image record `key`; say it where it is no identity or another than its record's."""
        if not (0 <= label < (self._stated or EXACT) and label == int(label)):
            allowed = f"one of property's {self._stated} identities (0..{self._stated - 1})"
            fix = f"correct the first number of {self._property}, or {LEAVE_OUT}"
            what = f"has label {label:.10g}, not {allowed if self._stated else 'a whole number'}"
            self._findings.say_record(key, what, fix)
            return
        if self._stated:
            self._seen[int(label)] = True
        layout = self._layout
        if layout is None:
            return
        identity = bisect.bisect_right(layout.starts, key) - 1
        if identity < 0 or key >= layout.ends[identity]:
            return  # a wrong range is said already
        known = self._labels[identity]
        if np.isnan(known):
            self._labels[identity] = label
        elif known != label:
            what = f"has label {label:.10g}, the others of identity record {layout.first + identity} have {known:.10g}"
            self._findings.say_record(key, what, AT_SOURCE)

    def check_all(self) -> None:
        """Say, with all labels taken, which identities have two records, and whether property's number is wrong."""
        known = self._labels[~np.isnan(self._labels)]
        for label in np.unique(known[np.isin(known, _repeated(known))]):
            records = (self._layout.first + np.flatnonzero(self._labels == label)).tolist()
            what = f"and record {records[1]} are both identity {label:.0f}'s"
            self._findings.say_record(records[0], what, AT_SOURCE)
        labelled = int(np.flatnonzero(self._seen).max(initial=-1)) + 1
        recorded = len(self._labels)
        # labels with gaps are usable, if they go up to where property says
        if not labelled or (recorded <= self._stated and self._stated in (recorded, labelled)):
            return
        what = f"says {self._stated} identities, "
        if recorded >= labelled:
            what += f"train.rec has {recorded}"
        else:
            what += f"the highest label in train.rec is {labelled - 1}"
        self._findings.say(self._property, what, f"write {max(recorded, labelled)} as its first number")


def _repeated(values: np.ndarray) -> np.ndarray:
    found, counts = np.unique(values, return_counts=True)
    return found[counts > 1]
