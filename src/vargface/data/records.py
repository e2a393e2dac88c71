"""InsightFace data folders: train.rec, train.idx and property ('num_classes,height,width').

Record 0 holds [first, last] and no image; the images are records 1..first-1, each with its identity as first label;
records first..last-1, one an identity, hold [start, end) of that identity's images. Origin of the layout: InsightFace's
face2rec2.py. Read too: a 'shuffled' file of images only, with or without an index.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from vargface.data.recordio import RecordFile, pack, part_bytes
from vargface.errors import InputError
from vargface.files import make_folder, whole_file

__all__ = ["FaceRecords", "RecordWriter"]

# header labels are float32: every whole number up to here is exact
_EXACT = 1 << 24
# images looked at when a folder is opened, so that a property of another data set is found before training
_LOOK_AT = 16


class FaceRecords:
    """The images of an InsightFace folder, read one by one in any order.

    Opening reads the index and a few records, whatever the size of the data set. Threads and forked processes may
    share one; a pickled one opens the file anew.

    num_identities: classes by `property`; image_size: (height, width) by `property`;
    image_keys: (len,) int64, record numbers of the images, ascending.

    Raises InputError where files are missing, empty, damaged or do not agree with each other.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        _check_folder(self.folder)
        self.num_identities, self.image_size = _read_property(self.folder / "property")
        self._file = RecordFile(self.folder / "train.rec")
        index = self.folder / "train.idx"
        identity_records = None
        if index.exists():
            self.image_keys, self._offsets, identity_records = _indexed_images(self._file, index)
        else:
            found = np.array(list(self._file.image_offsets()), dtype=np.int64).reshape(-1, 2)
            self.image_keys, self._offsets = found[:, 0].copy(), found[:, 1].copy()
        if not len(self):
            raise InputError(f"{self._file.path}: holds no image - give another data folder")
        self._check_labels(identity_records)

    def __len__(self) -> int:
        return len(self.image_keys)

    def read(self, position: int) -> tuple[int, bytes]:
        """Return identity and encoded image of the image at `image_keys[position]`.

        Raises InputError, naming the record, where it is damaged, empty, or its label is not an identity.
        """
        labels, image = self._file.read(self.image_keys[position], self._offsets[position])
        label = float(labels[0])
        if not (0 <= label < self.num_identities and label.is_integer()):
            raise InputError(
                f"{self.name(position)} has label {label:.10g}, not one of property's {self.num_identities} identities "
                f"(0..{self.num_identities - 1}) - correct the first number of {self.folder / 'property'}"
            )
        if not image:
            raise InputError(f"{self.name(position)} of identity {int(label)} is not an image (0 bytes) - remove it")
        return int(label), image

    def name(self, position: int) -> str:
        """Return how messages call the image at `image_keys[position]`: file and record number."""
        return f"{self._file.path}: record {self.image_keys[position]}"

    def close(self) -> None:
        """Give the file back to the system; further reads fail."""
        self._file.close()

    def _check_labels(self, identity_records: int | None) -> None:
        """Look at images spread over the file, and hold the number of identity records against `property`."""
        for position in np.unique(np.linspace(0, len(self) - 1, _LOOK_AT, dtype=np.int64)):
            identity, _ = self.read(position)
        if identity_records is None or identity_records == self.num_identities:
            return
        # labels with gaps are usable as long as they are below num_classes; a whole range that ends elsewhere is a
        # property of another data set
        if identity_records > self.num_identities or identity == identity_records - 1:
            raise InputError(
                f"{self.folder / 'property'}: says {self.num_identities} identities, {self._file.path} has "
                f"{identity_records} (its last image is of identity {identity}) - correct the first number of property"
            )


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder - give an InsightFace folder (train.rec, train.idx, property)")
    for name in ("train.rec", "property"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name} in it - give an InsightFace folder (train.rec, train.idx, property)")


def _read_property(path: Path) -> tuple[int, tuple[int, int]]:
    """Return the number of identities and (height, width)."""
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}) - give an InsightFace data folder") from error
    try:
        identities, height, width = (int(word) for word in text.split(","))
    except ValueError:
        identities = height = width = 0
    if min(identities, height, width) < 1:
        raise InputError(f"{path}: {text[:40]!r} is not 'num_classes,height,width' - write e.g. '93431,112,112'")
    return identities, (height, width)


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and offsets, int64, in the order of the keys."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}) - give an InsightFace data folder") from error
    with warnings.catch_warnings():
        # numpy up to 2 only warns of text that is no number
        warnings.simplefilter("error")
        try:
            numbers = np.fromstring(text, dtype=np.int64, sep=" ")
        except (ValueError, DeprecationWarning):
            numbers = np.empty(0, dtype=np.int64)
    if not numbers.size or numbers.size % 2 or numbers.size // 2 != text.count(b"\t"):
        raise InputError(f"{path}: is not lines of 'key<TAB>offset' - copy the data set anew")
    keys, offsets = numbers[0::2], numbers[1::2]
    order = np.argsort(keys, kind="stable")
    keys, offsets = keys[order], offsets[order]
    repeated = np.flatnonzero(keys[1:] == keys[:-1])
    if repeated.size:
        raise InputError(f"{path}: record {keys[repeated[0]]} is listed twice - copy the data set anew")
    return keys, offsets


def _indexed_images(file: RecordFile, index: Path) -> tuple[np.ndarray, np.ndarray, int | None]:
    """Return keys and offsets of the images and, where record 0 tells, the number of identity records."""
    keys, offsets = _read_index(index)
    outside = np.flatnonzero((offsets < 0) | (offsets >= file.size))
    if outside.size:
        key, offset = keys[outside[0]], offsets[outside[0]]
        raise InputError(
            f"{index}: record {key} is at byte {offset} and {file.path} has {file.size} - one of the two is cut short "
            "or of another data set: copy both anew"
        )
    farthest = int(np.argmax(offsets))
    file.read(keys[farthest], offsets[farthest])
    if keys[0] != 0:
        return keys, offsets, None
    labels, image = file.read(0, offsets[0])
    if image or labels.size < 2:
        return keys, offsets, None
    if not (np.all(np.isfinite(labels[:2])) and 1 <= labels[0] <= labels[1]):
        raise InputError(f"{file.path}: record 0 gives the image range {labels[:2].tolist()} - copy the data set anew")
    first, last = int(labels[0]), int(labels[1])
    if last >= _EXACT:
        slack = int(np.spacing(labels[1]))
        last = len(keys) if abs(len(keys) - last) <= slack else last
    present = int(np.argmin(keys == np.arange(len(keys)))) or len(keys)
    if present < last:
        raise InputError(f"{index}: record {present} of 0..{last - 1} is missing - copy the data set anew")
    if first >= _EXACT:
        first = first_without_image(first, last, lambda key: bool(file.read(key, offsets[key])[1]))
    return keys[1:first].copy(), offsets[1:first].copy(), last - first


def first_without_image(near: int, last: int, has_image: Callable[[int], bool]) -> int:
    """Return the first record without an image, for `near` which is that number rounded to float32."""
    slack = int(np.spacing(np.float32(near)))
    candidates = range(max(1, near - slack), min(last, near + slack))
    return next((key for key in candidates if not has_image(key)), near)


class _Abandoned(Exception):
    """Makes `whole_file` drop what was written."""


class RecordWriter:
    """Context manager that writes train.rec, train.idx and property into `folder`.

    They have temporary names until the block ends without an exception; after one nothing is left of them. Memory does
    not grow with the images. Raises InputError where the folder cannot be written to, or nothing was added.
    """

    def __init__(self, folder: str | Path, image_size: tuple[int, int] = (112, 112)) -> None:
        self.folder = Path(folder)
        self.image_size = image_size
        self._starts: list[int] = []
        self._records = 1
        self._offset = 0

    def __enter__(self) -> RecordWriter:
        make_folder(self.folder)
        with contextlib.ExitStack() as stack:
            # renamed in the opposite order: a folder without property counts as no data set
            self._property = stack.enter_context(whole_file(self.folder / "property"))
            self._idx = stack.enter_context(whole_file(self.folder / "train.idx"))
            self._rec = stack.enter_context(whole_file(self.folder / "train.rec"))
            self._files = stack.pop_all()
        return self

    def add(self, identity: int, jpeg: bytes) -> None:
        """Append an image; identities start at 0, ascend without gaps, and have their images together."""
        known = len(self._starts)
        if not (jpeg and max(0, known - 1) <= identity <= known):
            raise ValueError(f"identity {identity} with {len(jpeg)} bytes after identity {known - 1}")
        if identity == known:
            self._starts.append(self._records)
        self._append(self._records, float(identity), jpeg)
        self._records += 1

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            try:
                self._finish()
            except BaseException:
                self._abandon()
                raise
            self._files.close()
        else:
            self._abandon()

    def _finish(self) -> None:
        """Append the identity records and record 0, and bring all three files to the disk before any is renamed."""
        if not self._starts:
            raise InputError(f"{self.folder}: no image to write - give at least one identity with one image")
        first = self._records
        last = first + len(self._starts)
        for key, start, end in zip(range(first, last), self._starts, self._starts[1:] + [first]):
            self._append(key, (start, end))
        self._append(0, (first, last))
        with self._refusals():
            self._property.write(f"{last - first},{self.image_size[0]},{self.image_size[1]}".encode())
            for file in (self._rec, self._idx, self._property):
                file.flush()
                os.fsync(file.fileno())

    def _append(self, key: int, labels: float | tuple[int, int], image: bytes = b"") -> None:
        record = part_bytes(pack(labels, image, key))
        with self._refusals():
            self._rec.write(record)
            self._idx.write(b"%d\t%d\n" % (key, self._offset))
        self._offset += len(record)

    @contextlib.contextmanager
    def _refusals(self):
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.folder}: cannot write ({reason}) - free space or choose another place") from error

    def _abandon(self) -> None:
        # with an exception of our own: `whole_file` would report an OSError of the caller's block as one of writing
        self._files.__exit__(_Abandoned, _Abandoned(), None)
