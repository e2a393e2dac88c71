"""One pass over train.rec from end to end: damage, images, and which are the same."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vargface.data.check.findings import AT_SOURCE, COPY, REINDEX, Finding, Findings
from vargface.data.check.identities import Identities
from vargface.data.check.index import Index
from vargface.data.decoding import cut_short, decode
from vargface.data.recordio import LEAVE_OUT, RecordFile, Scanned, unpack
from vargface.data.records import check_folder, read_property
from vargface.data.sorting import blocks_of, sorted_rows
from vargface.data.writer import IMAGES_INDEX
from vargface.errors import InputError

__all__ = ["Checked", "check"]

_CONTENT = np.dtype([("digest", "u8"), ("key", "i8"), ("offset", "i8"), ("label", "f4")])


class Checked(NamedTuple):
    """What was looked at."""

    records: int
    images: int
    identities: int
    findings: int


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
        self._folder, self._file, self._decode, self._on_bytes = folder, file, decode_images, on_bytes
        self._findings = Findings(report, file.path)
        self._index = Index(folder / "train.idx", file, self._findings)
        self._records = self._images = 0
        # of property, the second with the index's layout; `run` sets both
        self._image_size: tuple[int, int] | None = None
        self._identities: Identities

    def run(self) -> Checked:
        """Do all of it."""
        stated = 0
        try:
            stated, self._image_size = read_property(self._folder / "property")
        except InputError as error:
            self._findings.say_error(error)
        rows = self._check_index() if self._index.path.exists() else None
        self._identities = Identities(self._folder / "property", stated, self._index.layout, self._findings)
        contents = blocks_of(self._scan(rows), _CONTENT)
        for block in sorted_rows(contents, "digest", (1 << 64) - 1):
            self._check_duplicates(block)
        self._identities.check_all()
        return Checked(self._records, self._images, self._identities.seen, self._findings.count)

    def _check_index(self) -> Iterator[np.ndarray] | None:
        """Return the index by place; None where it cannot be read."""
        before, rows = self._findings.count, None
        try:
            self._index.check_keys()
            rows = self._index.rows_by_place()
            images_index = self._folder / IMAGES_INDEX
            if self._index.layout is not None and self._findings.count == before and images_index.exists():
                self._index.check_images_index(images_index)
        except InputError as error:
            self._findings.say_error(error)
        return rows

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
                    self._index.say_astray(*row, another_starts=row[1] == done)
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
            self._index.say_astray(*row, another_starts=row[1] == done)
            row = next(places, None)
        self._on_bytes(self._file.size - done)

    def _check_unlisted(self, item: Scanned) -> None:
        """Say that the index does not list a record, if there is an image in it to be lost."""
        where = f"{self._file.path}: the record at byte {item.offset}"
        try:
            _, image = _content(item)
        except ValueError as error:
            self._findings.say(where, f"is damaged ({error}) and the index does not list it", f"{COPY}, or {LEAVE_OUT}")
        else:
            if image:
                self._findings.say(where, "holds an image and the index does not list it", REINDEX)

    def _check_record(self, key: int, item: Scanned) -> Iterator[tuple[int, int, int, float]]:
        try:
            labels, image = _content(item)
        except ValueError as error:
            self._findings.say_record(key, f"is damaged ({error})", f"{COPY}, or {LEAVE_OUT}")
            return
        layout = self._index.layout
        if layout is not None and (key == 0 or layout.first <= key < layout.last):
            if image:
                self._findings.say_record(
                    key, f"holds an image and is no image's by record 0 ({layout.first - 1} images)", REINDEX
                )
            return
        if not image:
            if layout is not None or labels.size < 2:
                self._findings.say_record(key, "holds no image (0 bytes)", LEAVE_OUT)
            return
        self._images += 1
        label = float(labels[0])
        self._identities.check_label(key, label)
        if self._check_image(key, image):
            digest = int.from_bytes(hashlib.blake2b(image, digest_size=8).digest(), "little")
            yield digest, key, item.offset, label

    def _check_image(self, key: int, image: bytes) -> bool:
        if not self._decode:
            if cut_short(image):
                self._findings.say_record(
                    key, f"is a JPEG that is cut short ({len(image)} bytes and no end)", LEAVE_OUT
                )
            return True
        try:
            size = decode(image).shape[:2]
        except ValueError as error:
            self._findings.say_record(key, str(error), LEAVE_OUT)
            return False
        if self._image_size is not None and size != self._image_size:
            found, wanted = ("{}x{}".format(*each) for each in (size, self._image_size))
            fix = f"correct {self._folder / 'property'}, or {LEAVE_OUT}"
            self._findings.say_record(key, f"is {found} and property says {wanted}", fix)
        return True

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
                    self._findings.say_record(int(other["key"]), what, "harmless: it is only trained on twice")
                else:
                    what += f" under another identity ({other['label']:.0f} and {first['label']:.0f})"
                    self._findings.say_record(int(other["key"]), what, AT_SOURCE)


def _content(item: Scanned) -> tuple[np.ndarray, bytes]:
    """Return labels and image of a record; raises ValueError, its text the damage."""
    if item.damage:
        raise ValueError(item.damage)
    return unpack(item.payload)


def _pairs(blocks: Iterator[np.ndarray]) -> Iterator[tuple[int, int]]:
    for rows in blocks:
        yield from rows.tolist()
