"""What is wrong with an InsightFace data folder: every fault by record number, with what to do.

One pass over train.rec from end to end. What is held meanwhile is a few bytes an identity; what has to be sorted (the
index by key and by place, the images by content) is sorted on the disk.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vargface.data.decoding import cut_short, decode
from vargface.data.index import ROW, index_blocks
from vargface.data.recordio import LEAVE_OUT, RecordFile, Scanned, unpack
from vargface.data.records import EXACT, check_folder, first_without_image, read_property
from vargface.data.sorting import blocks_of, sorted_rows
from vargface.data.writer import IMAGES_INDEX
from vargface.errors import InputError

__all__ = ["Checked", "Finding", "check"]

_COPY = "copy the data set anew"
_REINDEX = "copy it anew, or index the images anew: vargface rec shuffle DIR OUT --skip-bad"
_AT_SOURCE = "correct it where the data set was made, and build it anew"
_MARKED = np.dtype([*ROW.descr, ("of_images", "?")])
_CONTENT = np.dtype([("digest", "u8"), ("key", "i8"), ("offset", "i8"), ("label", "f4")])


class Finding(NamedTuple):
    """A fault: where (file and record), what, and what to do."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} - {self.fix}"


class Checked(NamedTuple):
    """What was looked at."""

    records: int
    images: int
    identities: int
    findings: int


class _Layout(NamedTuple):
    """What record 0 says: images are records 1..first-1, identity records first..last-1 with [start, end) each."""

    first: int
    last: int
    starts: list[int]
    ends: list[int]
    labels: np.ndarray  # (last - first,) float32, of the images met so far; nan: none


def check(
    folder: str | Path,
    report: Callable[[Finding], object],
    *,
    decode_images: bool = False,
    on_bytes: Callable[[int], object] = lambda _: None,
) -> Checked:
    """Tell `report` the faults of an InsightFace folder: property, index, structure, labels, images, duplicates.

    decode_images: decode every image, too; without it a JPEG is only looked at for its end. on_bytes: called with the
    bytes of train.rec done since its last call. Raises InputError where there is no such folder or no train.rec in it.
    """
    folder = Path(folder)
    check_folder(folder, ("train.rec",))
    with contextlib.closing(RecordFile(folder / "train.rec")) as file:
        return _Check(folder, file, report, decode_images, on_bytes).run()


class _Check:
    def __init__(
        self,
        folder: Path,
        file: RecordFile,
        report: Callable[[Finding], object],
        decode_images: bool,
        on_bytes: Callable[[int], object],
    ) -> None:
        self._property, self._index, self._file = folder / "property", folder / "train.idx", file
        self._images_index = folder / IMAGES_INDEX
        self._report, self._decode, self._on_bytes = report, decode_images, on_bytes
        self._num_identities, self._image_size = 0, None
        self._layout: _Layout | None = None
        self._seen = np.zeros(0, dtype=bool)
        self._records = self._images = self._findings = 0

    def run(self) -> Checked:
        """Do all of it."""
        try:
            self._num_identities, self._image_size = read_property(self._property)
        except InputError as error:
            self._say_error(error)
        self._seen = np.zeros(self._num_identities, dtype=bool)
        rows: Iterator[np.ndarray] | None = None
        if self._index.exists():
            try:
                before = self._findings
                self._check_keys()
                rows = sorted_rows(self._rows_within(), "offset", self._file.size)
                if self._layout is not None and self._findings == before and self._images_index.exists():
                    self._check_images_index()
            except InputError as error:
                self._say_error(error)
        contents = blocks_of(self._scan(rows), _CONTENT)
        for block in sorted_rows(contents, "digest", (1 << 64) - 1):
            self._check_duplicates(block)
        self._check_identities()
        return Checked(self._records, self._images, int(self._seen.sum()), self._findings)

    # --- saying

    def _say(self, where: str, what: str, fix: str) -> None:
        self._findings += 1
        self._report(Finding(where, what, fix))

    def _say_record(self, key: int, what: str, fix: str) -> None:
        self._say(f"{self._file.path}: record {key}", what, fix)

    def _say_error(self, error: InputError) -> None:
        where, _, rest = str(error).partition(": ")
        what, _, fix = rest.rpartition(" - ")
        self._say(where, what, fix)

    # --- the index and record 0

    def _check_keys(self) -> None:
        """Look for keys listed twice or not at all, and read what record 0 and the identity records say."""
        highest, at_zero = -1, None
        for rows in index_blocks(self._index):
            highest = max(highest, int(rows["key"].max()))
            zero = np.flatnonzero(rows["key"] == 0)
            if zero.size:
                at_zero = int(rows["offset"][zero[0]])
        last = self._read_record_0(at_zero) if at_zero is not None else 0
        expected = 0
        for rows in sorted_rows(index_blocks(self._index), "key", highest):
            keys = rows["key"]
            before = np.concatenate([[expected - 1], keys[:-1]])
            for key in keys[keys == before].tolist():
                self._say(str(self._index), f"record {key} is listed twice", _REINDEX)
            for key, former in zip(keys[keys > before + 1].tolist(), before[keys > before + 1].tolist()):
                self._say_missing(former + 1, min(key, last))
            expected = int(keys[-1]) + 1
        self._say_missing(expected, last)

    def _say_missing(self, start: int, stop: int) -> None:
        # without record 0 any numbers will do
        if start < stop:
            which = f"record {start} is" if stop == start + 1 else f"records {start}..{stop - 1} are"
            self._say(str(self._index), f"{which} missing", _REINDEX)

    def _check_images_index(self) -> None:
        """Hold images.idx against train.idx's images, record by record: `mx.io.ImageRecordIter` trusts it."""
        first = self._layout.first
        differ, example = 0, None
        highest = max(int(rows["key"].max()) for rows in index_blocks(self._images_index))
        for rows in sorted_rows(self._image_rows(), "key", max(first, highest)):
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
            self._say(str(self._images_index), what, "write train.idx's lines of these images to it, or remove it")

    def _image_rows(self) -> Iterator[np.ndarray]:
        for of_images, path in enumerate((self._index, self._images_index)):
            for rows in index_blocks(path):
                if not of_images:
                    rows = rows[(rows["key"] > 0) & (rows["key"] < self._layout.first)]
                marked = np.empty(len(rows), dtype=_MARKED)
                marked["key"], marked["offset"], marked["of_images"] = rows["key"], rows["offset"], of_images
                yield marked

    def _read_record_0(self, offset: int) -> int:
        """Set the layout that record 0 gives, if it does, and return the number of records."""
        try:
            labels, image = self._file.read(0, offset)
        except InputError:
            return 0  # the scan says it
        if image or labels.size < 2:
            return 0
        if not (np.all(np.isfinite(labels[:2])) and 1 <= labels[0] <= labels[1]):
            self._say_record(0, f"gives the image range {labels[:2].tolist()}", _REINDEX)
            return 0
        first, last = int(labels[0]), int(labels[1])
        slack = int(np.spacing(labels[1])) if last >= EXACT else 0
        near = [
            rows[(rows["key"] >= first - slack) & (rows["key"] <= last + slack)] for rows in index_blocks(self._index)
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
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        self._layout = _Layout(first, last, starts, ends, np.full(len(ranges), np.nan, dtype=np.float32))
        if not slack:
            self._check_ranges(rows["key"], [1, *ends[:-1]])
        return last

    def _identity_range(self, key: int, offset: int) -> tuple[int, int]:
        """Return [start, end) of an identity record; of one that cannot be read, nothing: the scan says why."""
        try:
            labels, image = self._file.read(key, offset)
        except InputError:
            return 0, 0
        if image or labels.size < 2 or not np.all(np.isfinite(labels[:2])):
            self._say_record(key, "should give an identity's range of images, and does not", _REINDEX)
            return 0, 0
        return int(labels[0]), int(labels[1])

    def _check_ranges(self, keys: np.ndarray, due: list[int]) -> None:
        layout = self._layout
        for key, start, end, begins in zip(keys.tolist(), layout.starts, layout.ends, due):
            unread = (start, end) == (0, 0)
            if not unread and not (begins in (0, start) and start <= end <= layout.first):
                what = f"gives {start}..{end - 1} as its identity's images, should begin at {begins}"
                self._say_record(key, f"{what} and end before {layout.first}", _REINDEX)
        if layout.ends and layout.ends[-1] not in (0, layout.first):
            what = f"is the last identity's and ends at {layout.ends[-1] - 1}, the images at {layout.first - 1}"
            self._say_record(int(keys[-1]), what, _REINDEX)

    def _rows_within(self) -> Iterator[np.ndarray]:
        """Yield the index's rows that point into the file; say the others."""
        for rows in index_blocks(self._index):
            outside = (rows["offset"] < 0) | (rows["offset"] >= self._file.size)
            for key, offset in rows[outside].tolist():
                what = f"record {key} is at byte {offset} and train.rec has {self._file.size}"
                self._say(str(self._index), what, "one of the two is cut short or of another data set: copy both anew")
            yield rows[~outside]

    # --- the records

    def _scan(self, rows: Iterator[np.ndarray] | None) -> Iterator[tuple[int, int, int, float]]:
        """Go through train.rec and yield (digest, key, offset, label) of every usable image.

        rows: the index by place; None: records have the numbers in which they come.
        """
        places = _pairs(rows) if rows is not None else None
        row = next(places, None) if places is not None else None
        done = 0  # where the last record started
        for ordinal, item in enumerate(self._file.scan()):
            self._records += 1
            key: int | None = ordinal
            if places is not None:
                while row is not None and row[1] < item.offset:
                    self._say_astray(*row, "another one starts" if row[1] == done else "no record starts")
                    row = next(places, None)
                key = None
                if row is not None and row[1] == item.offset:
                    key = row[0]
                    row = next(places, None)
            if key is None:
                self._check_unlisted(item)
            else:
                yield from self._check_record(key, item)
            self._on_bytes(item.offset - done)
            done = item.offset
        while row is not None:
            self._say_astray(*row, "another one starts" if row[1] == done else "no record starts")
            row = next(places, None)
        self._on_bytes(self._file.size - done)

    def _say_astray(self, key: int, offset: int, there: str) -> None:
        self._say(str(self._index), f"record {key} is at byte {offset}, where {there}", _REINDEX)

    def _check_unlisted(self, item: Scanned) -> None:
        """Say that the index does not list a record, if there is an image in it to be lost."""
        where = f"{self._file.path}: the record at byte {item.offset}"
        try:
            _, image = _content(item)
        except ValueError as error:
            self._say(where, f"is damaged ({error}) and the index does not list it", f"{_COPY}, or {LEAVE_OUT}")
        else:
            if image:
                self._say(where, "holds an image and the index does not list it", _REINDEX)

    def _check_record(self, key: int, item: Scanned) -> Iterator[tuple[int, int, int, float]]:
        try:
            labels, image = _content(item)
        except ValueError as error:
            self._say_record(key, f"is damaged ({error})", f"{_COPY}, or {LEAVE_OUT}")
            return
        layout = self._layout
        if layout is not None and (key == 0 or layout.first <= key < layout.last):
            if image:
                self._say_record(
                    key, f"holds an image and is no image's by record 0 ({layout.first - 1} images)", _REINDEX
                )
            return
        if not image:
            if layout is not None or labels.size < 2:
                self._say_record(key, "holds no image (0 bytes)", LEAVE_OUT)
            return
        self._images += 1
        label = float(labels[0])
        self._check_label(key, label)
        if self._check_image(key, image):
            digest = int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "little")
            yield digest, key, item.offset, label

    def _check_label(self, key: int, label: float) -> None:
        most = self._num_identities or EXACT
        if not (0 <= label < most and label == int(label)):
            allowed = (
                f"one of property's {most} identities (0..{most - 1})" if self._num_identities else "a whole number"
            )
            fix = f"correct the first number of {self._property}, or {LEAVE_OUT}"
            self._say_record(key, f"has label {label:.10g}, not {allowed}", fix)
            return
        if self._num_identities:
            self._seen[int(label)] = True
        layout = self._layout
        if layout is None:
            return
        identity = bisect.bisect_right(layout.starts, key) - 1
        if identity < 0 or key >= layout.ends[identity]:
            return  # a wrong range is said already
        known = layout.labels[identity]
        if np.isnan(known):
            layout.labels[identity] = label
        elif known != label:
            what = f"has label {label:.10g}, the others of identity record {layout.first + identity} have {known:.10g}"
            self._say_record(key, what, _AT_SOURCE)

    def _check_image(self, key: int, image: bytes) -> bool:
        if not self._decode:
            if cut_short(image):
                self._say_record(key, f"is a JPEG that is cut short ({len(image)} bytes and no end)", LEAVE_OUT)
            return True
        try:
            size = decode(image).shape[:2]
        except ValueError as error:
            self._say_record(key, str(error), LEAVE_OUT)
            return False
        if self._image_size is not None and size != self._image_size:
            found, wanted = ("{}x{}".format(*each) for each in (size, self._image_size))
            fix = f"correct {self._property}, or {LEAVE_OUT}"
            self._say_record(key, f"is {found} and property says {wanted}", fix)
        return True

    # --- after the pass

    def _check_duplicates(self, block: np.ndarray) -> None:
        """Say which images of `block`, sorted by digest, are the same bytes as one before."""
        edges = np.flatnonzero(np.diff(block["digest"], prepend=block["digest"][:1] - np.uint64(1)))
        sizes = np.diff(edges, append=len(block))
        for start, size in zip(edges[sizes > 1].tolist(), sizes[sizes > 1].tolist()):
            first, *others = block[start : start + size]
            content = self._file.read(int(first["key"]), int(first["offset"]))[1]
            for other in others:
                if self._file.read(int(other["key"]), int(other["offset"]))[1] != content:
                    continue  # the digests alone are equal
                what = f"holds the same image as record {first['key']}"
                if other["label"] == first["label"]:
                    self._say_record(int(other["key"]), what, "harmless: it is only trained on twice")
                else:
                    what += f" under another identity ({other['label']:.0f} and {first['label']:.0f})"
                    self._say_record(int(other["key"]), what, _AT_SOURCE)

    def _check_identities(self) -> None:
        if self._layout is not None:
            labels = self._layout.labels
            known = labels[~np.isnan(labels)]
            for label in np.unique(known[np.isin(known, _repeated(known))]):
                records = (self._layout.first + np.flatnonzero(labels == label)).tolist()
                what = f"and record {records[1]} are both identity {label:.0f}'s"
                self._say_record(records[0], what, _AT_SOURCE)
        labelled = int(np.flatnonzero(self._seen).max(initial=-1)) + 1
        recorded = 0 if self._layout is None else len(self._layout.starts)
        # labels with gaps are usable, if they go up to where property says
        if not labelled or (recorded <= self._num_identities and self._num_identities in (recorded, labelled)):
            return
        what = f"says {self._num_identities} identities, "
        if recorded >= labelled:
            what += f"train.rec has {recorded}"
        else:
            what += f"the highest label in train.rec is {labelled - 1}"
        fix = f"write {max(recorded, labelled)} as its first number"
        self._say(str(self._property), what, fix)


def _content(item: Scanned) -> tuple[np.ndarray, bytes]:
    """Return labels and image of a record; raises ValueError, its text the damage."""
    if item.damage:
        raise ValueError(item.damage)
    return unpack(item.payload)


def _pairs(blocks: Iterator[np.ndarray]) -> Iterator[tuple[int, int]]:
    for rows in blocks:
        yield from rows.tolist()


def _repeated(values: np.ndarray) -> np.ndarray:
    found, counts = np.unique(values, return_counts=True)
    return found[counts > 1]
