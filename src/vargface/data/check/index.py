"""train.idx against record 0, the identity records and images.idx: keys, ranges and places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vargface.data.check.findings import REINDEX, Findings
from vargface.data.index_file import ROW, index_blocks
from vargface.data.recordio import RecordFile
from vargface.data.records import EXACT, first_without_image
from vargface.data.sorting import sorted_rows
from vargface.errors import InputError

__all__ = ["Index", "Layout"]

_MARKED = np.dtype([*ROW.descr, ("of_images", "?")])


class Layout(NamedTuple):
    """What record 0 says: images are records 1..first-1, identity records first..last-1 with [start, end) each."""

    first: int
    last: int
    starts: list[int]
    ends: list[int]


class Index:
    """The index at `path` of `file`.

    layout: what record 0 gives, once `check_keys` has read it; None: it gives none.
    """

    def __init__(self, path: Path, file: RecordFile, findings: Findings) -> None:
        self.path = path
        self.layout: Layout | None = None
        self._file, self._findings = file, findings

    def check_keys(self) -> None:
        """Look for keys listed twice or not at all, and read what record 0 and the identity records say.

        Raises InputError where the index cannot be read.
        """
        highest, at_zero = -1, None
        for rows in index_blocks(self.path):
            highest = max(highest, int(rows["key"].max()))
            zero = np.flatnonzero(rows["key"] == 0)
            if zero.size:
                at_zero = int(rows["offset"][zero[0]])
        last = self._read_record_0(at_zero) if at_zero is not None else 0
        expected = 0
        for rows in sorted_rows(index_blocks(self.path), "key", highest):
            keys = rows["key"]
            before = np.concatenate([[expected - 1], keys[:-1]])
            for key in keys[keys == before].tolist():
                self._findings.say(self.path, f"record {key} is listed twice", REINDEX)
            for key, former in zip(keys[keys > before + 1].tolist(), before[keys > before + 1].tolist()):
                self._say_missing(former + 1, min(key, last))
            expected = int(keys[-1]) + 1
        self._say_missing(expected, last)

    def check_images_index(self, path: Path) -> None:
        """Hold images.idx against train.idx's images, record by record: `mx.io.ImageRecordIter` trusts it.

        Only with a layout. Raises InputError where images.idx cannot be read.
        """
        first = self.layout.first
        differ, example = 0, None
        highest = max(int(rows["key"].max()) for rows in index_blocks(path))
        for rows in sorted_rows(self._image_rows(path), "key", max(first, highest)):
            edges = np.flatnonzero(np.diff(rows["key"], prepend=-1))
            sizes = np.diff(edges, append=len(rows))
            # a record is right with two rows, one of each file, and one place
            second = np.minimum(edges + 1, len(rows) - 1)
            right = (sizes == 2) & (rows["of_images"][edges] != rows["of_images"][second])
            right &= rows["offset"][edges] == rows["offset"][second]
            differ += int((~right).sum())
            if example is None and not right.all():
                example = int(rows["key"][edges[~right][0]])
        if differ:
            what = f"{differ} records differ from train.idx's images (1..{first - 1}), the first is {example}"
            self._findings.say(path, what, "write train.idx's lines of these images to it, or remove it")

    def rows_by_place(self) -> Iterator[np.ndarray]:
        """Yield the rows that point into the file by ascending offset, in blocks; say the others."""
        return sorted_rows(self._rows_within(), "offset", self._file.size)

    def say_astray(self, key: int, offset: int, another_starts: bool) -> None:
        """Say that the index has record `key` where none starts, or another one does."""
        there = "another one starts" if another_starts else "no record starts"
        self._findings.say(self.path, f"record {key} is at byte {offset}, where {there}", REINDEX)

    def _say_missing(self, start: int, stop: int) -> None:
        # without record 0 any numbers will do
        if start < stop:
            which = f"record {start} is" if stop == start + 1 else f"records {start}..{stop - 1} are"
            self._findings.say(self.path, f"{which} missing", REINDEX)

    def _image_rows(self, images_index: Path) -> Iterator[np.ndarray]:
        for of_images, path in enumerate((self.path, images_index)):
            for rows in index_blocks(path):
                if not of_images:
                    rows = rows[(rows["key"] > 0) & (rows["key"] < self.layout.first)]
                marked = np.empty(len(rows), dtype=_MARKED)
                marked["key"], marked["offset"], marked["of_images"] = rows["key"], rows["offset"], of_images
                yield marked

    def _rows_within(self) -> Iterator[np.ndarray]:
        for rows in index_blocks(self.path):
            outside = (rows["offset"] < 0) | (rows["offset"] >= self._file.size)
            for key, offset in rows[outside].tolist():
                what = f"record {key} is at byte {offset} and train.rec has {self._file.size}"
                fix = "one of the two is cut short or of another data set: copy both anew"
                self._findings.say(self.path, what, fix)
            yield rows[~outside]

    # --- record 0 and the identity records

    def _read_record_0(self, offset: int) -> int:
        """Set the layout that record 0 gives, if it does, and return the number of records."""
        try:
            labels, image = self._file.read(0, offset)
        except InputError:
            return 0  # the scan says it
        if image or labels.size < 2:
            return 0
        if not (np.all(np.isfinite(labels[:2])) and 1 <= labels[0] <= labels[1]):
            self._findings.say_record(0, f"gives the image range {labels[:2].tolist()}", REINDEX)
            return 0
        first, last = int(labels[0]), int(labels[1])
        slack = int(np.spacing(labels[1])) if last >= EXACT else 0
        near = [
            rows[(rows["key"] >= first - slack) & (rows["key"] <= last + slack)] for rows in index_blocks(self.path)
        ]
        rows = np.sort(np.concatenate(near), order="key")
        if slack:
            offsets = dict(zip(rows["key"].tolist(), rows["offset"].tolist()))
            last = max(offsets, default=last - 1) + 1
            first = first_without_image(
                first, last, lambda key: key in offsets and bool(self._file.read(key, offsets[key])[1])
            )
        rows = rows[(rows["key"] >= first) & (rows["key"] < last)]
        ranges = [self._identity_range(int(row["key"]), int(row["offset"])) for row in rows]
        self.layout = Layout(first, last, [start for start, _ in ranges], [end for _, end in ranges])
        if not slack:
            self._check_ranges(rows["key"])
        return last

    def _identity_range(self, key: int, offset: int) -> tuple[int, int]:
        """Return [start, end) of an identity record; of one that cannot be read, nothing: the scan says why."""
        try:
            labels, image = self._file.read(key, offset)
        except InputError:
            return 0, 0
        if image or labels.size < 2 or not np.all(np.isfinite(labels[:2])):
            self._findings.say_record(key, "should give an identity's range of images, and does not", REINDEX)
            return 0, 0
        return int(labels[0]), int(labels[1])

    def _check_ranges(self, keys: np.ndarray) -> None:
        """Say which identity records do not begin where the one before ends, and whether the last ends too soon."""
        layout = self.layout
        for key, start, end, begins in zip(keys.tolist(), layout.starts, layout.ends, [1, *layout.ends[:-1]]):
            unread = (start, end) == (0, 0)
            if not unread and not (begins in (0, start) and start <= end <= layout.first):
                what = f"gives {start}..{end - 1} as its identity's images, should begin at {begins}"
                self._findings.say_record(key, f"{what} and end before {layout.first}", REINDEX)
        if layout.ends and layout.ends[-1] not in (0, layout.first):
            what = f"is the last identity's and ends at {layout.ends[-1] - 1}, the images at {layout.first - 1}"
            self._findings.say_record(int(keys[-1]), what, REINDEX)
