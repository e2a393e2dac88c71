"""What is in an InsightFace folder, without opening its images."""

from __future__ import annotations

import contextlib
import logging
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vargface.data.index_file import index_blocks
from vargface.data.recordio import RecordFile
from vargface.data.records import EXACT, check_folder, join, read_property
from vargface.errors import InputError

__all__ = ["Info", "info"]

logger = logging.getLogger(__name__)


class Info(NamedTuple):
    """What a folder holds.

    layout: which records there are, in words; counts: (identities,) int64, images of each identity that has any.
    """

    folder: Path
    layout: str
    indexed: bool
    num_identities: int
    image_size: tuple[int, int]
    images: int
    counts: np.ndarray
    bytes: int

    def text(self) -> str:
        """Return it as lines."""
        low, median, high = np.percentile(self.counts, [0, 50, 100])
        kept = [
            f"  {least:>4} or more images: {int((self.counts >= least).sum()):,} identities, "
            f"{int(self.counts[self.counts >= least].sum()):,} images"
            for least in (2, 5, 10, 20, 50, 100)
            if low < least <= high
        ]
        index = "with index" if self.indexed else "no index: 'vargface rec shuffle' writes one"
        return "\n".join(
            [
                f"{self.folder}: {self.layout}, {index}",
                f"images {self.images:,}   identities {len(self.counts):,} (property: {self.num_identities:,})   "
                "size {}x{}".format(*self.image_size),
                f"images an identity: {low:.0f} to {high:.0f}, median {median:g}",
                *kept,
                f"train.rec {self.bytes:,} bytes, {self.bytes / max(self.images, 1):,.0f} an image",
            ]
        )


def info(folder: str | Path) -> Info:
    """Return what an InsightFace folder holds.

    With record 0 the identity records alone are read; without it the first label of every image, hopping through the
    file. Memory does not grow with the images. Raises InputError where the folder is damaged or none.
    """
    folder = Path(folder)
    check_folder(folder)
    num_identities, image_size = read_property(folder / "property")
    index = folder / "train.idx"
    with contextlib.closing(RecordFile(folder / "train.rec")) as file:
        identity_records = _identity_records(file, index) if index.exists() else None
        layout = "images alone" if identity_records is None else "identities (record 0, identity records)"
        # headers are float32: past 2^24 ranges are near only, labels are not
        if identity_records is None or identity_records[1] >= EXACT:
            counts = _of_labels(file)
        else:
            counts = _of_identity_records(file, index, *identity_records)
    counts = counts[counts > 0]
    if not counts.size:
        raise InputError(f"{file.path}: holds no image - give another data folder")
    return Info(folder, layout, index.exists(), num_identities, image_size, int(counts.sum()), counts, file.size)


def _identity_records(file: RecordFile, index: Path) -> tuple[int, int] | None:
    """Return which records are the identities', [first, last), as record 0 tells; None where it does not."""
    for rows in index_blocks(index):
        zero = np.flatnonzero(rows["key"] == 0)
        if zero.size:
            labels, image = file.read(0, int(rows["offset"][zero[0]]))
            if image or labels.size < 2 or not np.all(np.isfinite(labels[:2])):
                return None
            return int(labels[0]), int(labels[1])
    return None


def _of_identity_records(file: RecordFile, index: Path, first: int, last: int) -> np.ndarray:
    """Return the images of each identity record, (n,) int64; by their labels where these records do not join."""
    starts, ends = array("q"), array("q")
    for rows in index_blocks(index):
        for key, offset in rows[(rows["key"] >= first) & (rows["key"] < last)].tolist():
            labels, _ = file.read(key, offset)
            if labels.size < 2 or not np.all(np.isfinite(labels[:2])):
                raise InputError(f"{file.path}: record {key} gives no range of images - run 'vargface rec check'")
            starts.append(int(labels[0]))
            ends.append(int(labels[1]))
    if not join(np.array(starts), np.array(ends), first - 1):
        logger.warning(
            "%s: its identity records overlap or leave out images, which are counted by their labels - 'vargface rec "
            "check' names them",
            file.path,
        )
        return _of_labels(file)
    return np.array(ends) - np.array(starts)


def _of_labels(file: RecordFile) -> np.ndarray:
    counts = np.zeros(0, dtype=np.int64)
    for record, _, label, _ in file.images():
        if not 0 <= label < EXACT:
            raise InputError(f"{file.path}: record {record} has label {label:.10g} - run 'vargface rec check'")
        if label >= len(counts):
            counts = np.concatenate([counts, np.zeros(int(label) + 1 - len(counts) + len(counts) // 4, dtype=np.int64)])
        counts[int(label)] += 1
    return counts
