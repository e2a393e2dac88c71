"""InsightFace data folders: train.rec, train.idx and property ('num_classes,height,width').

Record 0 holds [first, last] and no image; the images are records 1..first-1, each with its identity as first label;
records first..last-1, one an identity, hold [start, end) of that identity's images. Origin of the layout: InsightFace's
face2rec2.py. Read too: a 'shuffled' file of images only, with or without an index.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vargface.data.index_file import read_index
from vargface.data.recordio import LEAVE_OUT, RecordFile
from vargface.errors import InputError
from vargface.files import open_file

__all__ = ["EXACT", "FaceRecords", "Records", "check_folder", "first_without_image", "join", "read_property"]

logger = logging.getLogger(__name__)

# header labels are float32: every whole number up to here is exact
EXACT = 1 << 24
# a JPEG's side
_LARGEST = 65_535
# images looked at when a folder is opened, so that a property of another data set is found before training: a few where
# the number of identities is known from record 0, more where the labels alone tell of it
_LOOK_AT = 16
_LOOK_AT_UNCOUNTED = 1000


class Records:
    """The images of a data set, read one by one in any order.

    num_identities: classes by `property`; image_size: (height, width) by `property`;
    image_keys, offsets: (len,) int64, record numbers of the images, ascending, and where these start.
    """

    def __init__(
        self,
        file: RecordFile,
        image_keys: np.ndarray,
        offsets: np.ndarray,
        num_identities: int,
        image_size: tuple[int, int],
    ) -> None:
        self.file, self.image_keys, self.offsets = file, image_keys, offsets
        self.num_identities, self.image_size = num_identities, image_size
        self.folder = file.path.parent

    def __len__(self) -> int:
        return len(self.image_keys)

    def read(self, position: int) -> tuple[int, bytes]:
        """Return identity and encoded image of the image at `image_keys[position]`.

        Raises InputError, naming the record, where it is damaged, empty, or its label is not an identity.
        """
        labels, image = self.file.read(self.image_keys[position], self.offsets[position])
        label = float(labels[0])
        # as `_is_identity`, twenty times as fast for one
        if not (0 <= label < self.num_identities and label == int(label)):
            raise self._no_identity(position, label)
        if not image:
            raise InputError(f"{self.name(position)} of identity {int(label)} is not an image (0 bytes) - {LEAVE_OUT}")
        return int(label), image

    def name(self, position: int) -> str:
        """Return how messages call the image at `image_keys[position]`: file and record number."""
        return f"{self.file.path}: record {self.image_keys[position]}"

    def index_digest(self) -> str:
        """Return what tells this order of images from others: a SHA-256 of the record numbers and their places."""
        places = np.stack([self.image_keys, self.offsets]).astype("<i8")
        return f"sha256 {hashlib.sha256(places.tobytes()).hexdigest()[:16]}"

    def close(self) -> None:
        """Give the file back to the system; further reads fail."""
        self.file.close()

    def _is_identity(self, label: float | np.ndarray) -> bool | np.ndarray:
        """Return whether `label`, or which of them, is one of the identities that `property` allows."""
        return (label >= 0) & (label < self.num_identities) & (label == np.floor(label))

    def _no_identity(self, position: int, label: float) -> InputError:
        return InputError(
            f"{self.name(position)} has label {label:.10g}, not one of property's {self.num_identities} identities "
            f"(0..{self.num_identities - 1}) - correct the first number of {self.folder / 'property'}"
        )


class FaceRecords(Records):
    """The images of an InsightFace folder, which is checked.

    Threads and forked processes may share one; a pickled one opens the file anew.

    Opening reads the index and a few records, whatever the size of the data set, and holds `property` against them:
    - with record 0, against the number of identity records, and 16 labels spread over the file;
    - with an index but no record 0, against 1,000 labels spread over the file: all of them, if there are no more;
    - without an index, against all labels: the file has to be gone through.
    A label must be below `property`'s number. Where all identities are known and are 0..n-1, n must be that number;
    labels with gaps, of a data set that was thinned out, are usable. Labels not looked at are checked by `read`, so in
    training. Not found is a number too large for more than 1,000 images with an index alone: it costs unused classes.

    Raises InputError where files are missing, empty, damaged or do not agree with each other.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        check_folder(folder)
        num_identities, image_size = read_property(folder / "property")
        file = RecordFile(folder / "train.rec")
        index = folder / "train.idx"
        labels = self._identity_offsets = None
        if index.exists():
            keys, offsets, self._identity_offsets = _indexed_images(file, index)
        else:
            found = np.fromiter(file.images(), dtype=[("key", "i8"), ("offset", "i8"), ("label", "f4"), ("empty", "?")])
            keys, offsets, labels = (found[name].copy() for name in ("key", "offset", "label"))
        super().__init__(file, keys, offsets, num_identities, image_size)
        if not len(self):
            raise InputError(f"{file.path}: holds no image - give another data folder")
        self._check_identities(labels, self._identity_offsets)

    def of_identities_with(self, min_images: int) -> np.ndarray:
        """Return the positions (n,) int64, ascending, of the images whose identity has at least `min_images`.

        Reads the identity records or, where there are none, or these do not give every image to one identity, all
        images' labels (on 2 cores some 10 s a million). An image without a readable label counts for nobody and is
        among them: whoever reads it is told.
        """
        last = len(self) + 1 + len(self._identity_offsets) if self._identity_offsets is not None else EXACT
        if last < EXACT:
            try:
                starts, ends = self._ranges()
                kept = [np.arange(start - 1, end - 1) for start, end in zip(starts, ends) if end - start >= min_images]
                return np.sort(np.concatenate([np.empty(0, np.int64), *kept]))
            except InputError as error:
                logger.warning("%s; until then the images' own labels count", error)
        # headers are float32: past 2^24 ranges are near only, labels are not
        labels = np.array([self._label_if_any(position) for position in range(len(self))])
        unknown = np.isnan(labels)
        _, of_image, counts = np.unique(labels, return_inverse=True, return_counts=True)
        return np.flatnonzero(unknown | (counts[of_image] >= min_images))

    def _ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Return starts and ends (identities,) int64 of the image records by the identity records."""
        ranges = np.empty((len(self._identity_offsets), 2), dtype=np.int64)
        for number, offset in enumerate(self._identity_offsets):
            record = len(self) + 1 + number
            labels, _ = self.file.read(record, offset)
            if labels.size < 2 or not (1 <= labels[0] <= labels[1] <= len(self) + 1):
                raise InputError(
                    f"{self.file.path}: record {record} gives {labels[:2].tolist()} as an identity's images, of "
                    f"{len(self)} - copy the data set anew"
                )
            ranges[number] = labels[:2]
        starts, ends = ranges.T
        if not join(starts, ends, len(self)):
            raise InputError(
                f"{self.file.path}: its identity records overlap or leave out some of {len(self)} images - 'vargface "
                "rec check' names them: copy the data set anew"
            )
        return starts, ends

    def _check_identities(self, labels: np.ndarray | None, identity_offsets: np.ndarray | None) -> None:
        """Hold `property` against the labels of all images or, where these are None, of some, and their number.

        identity_offsets: where the identity records are, if record 0 tells.
        """
        if labels is None:
            count = _LOOK_AT_UNCOUNTED if identity_offsets is None else _LOOK_AT
            spread = np.unique(np.linspace(0, len(self) - 1, count, dtype=np.int64))
            labels = np.array([self._label_if_any(position) for position in spread])
            spread, labels = spread[~np.isnan(labels)], labels[~np.isnan(labels)]
        else:
            spread = np.arange(len(self))
        wrong = np.flatnonzero(~self._is_identity(labels))
        if wrong.size:
            raise self._no_identity(spread[wrong[0]], float(labels[wrong[0]]))
        if identity_offsets is not None:
            identities = len(identity_offsets)
            if identities < self.num_identities:
                labels = np.array([self._first_label(number, offset) for number, offset in enumerate(identity_offsets)])
        elif len(labels) == len(self):
            identities = len(np.unique(labels))
        else:
            return
        # labels with gaps are usable as long as they are below num_classes; a whole range that ends elsewhere is a
        # property of another data set
        if identities > self.num_identities or (
            identities < self.num_identities and np.max(labels, initial=-1) < identities
        ):
            raise InputError(
                f"{self.folder / 'property'}: says {self.num_identities} identities, {self.file.path} has "
                f"{identities} - write {identities} as the first number of property"
            )

    def _label_if_any(self, position: int) -> float:
        """Return the label of an image; nan where its record is damaged, which training will meet, and skip."""
        try:
            return self.file.label(self.image_keys[position], self.offsets[position])
        except InputError:
            return math.nan

    def _first_label(self, number: int, offset: int) -> int:
        """Return the label of the first image of identity record `number`, which starts at `offset`."""
        (start, *_), _ = self.file.read(len(self) + 1 + number, offset)
        if not 1 <= start <= len(self):
            raise InputError(
                f"{self.file.path}: record {len(self) + 1 + number} gives {start:.10g} as an identity's first image, "
                f"of {len(self)} - copy the data set anew"
            )
        return self.read(int(start) - 1)[0]


def join(starts: np.ndarray, ends: np.ndarray, images: int) -> bool:
    """Return whether ranges [start, end), each (n,) int64 and in any order, hold each of 1..`images` once."""
    order = np.lexsort((ends, starts))
    edges = np.concatenate([[1], ends[order]])
    return np.array_equal(edges[:-1], starts[order]) and edges[-1] == images + 1


def check_folder(folder: Path, names: tuple[str, ...] = ("train.rec", "property")) -> None:
    """Raise InputError where `folder` is none, or has not all the files `names`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder - give an InsightFace folder (train.rec, train.idx, property)")
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name} in it - give an InsightFace folder (train.rec, train.idx, property)")


def read_property(path: Path) -> tuple[int, tuple[int, int]]:
    """Return the number of identities and (height, width)."""
    try:
        with open_file(path) as file:
            text = file.read().decode("ascii", errors="replace").strip()
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}) - give an InsightFace data folder") from error
    try:
        identities, height, width = (int(word) for word in text.split(","))
    except ValueError:
        identities = height = width = 0
    if min(identities, height, width) < 1 or max(height, width) > _LARGEST:
        raise InputError(f"{path}: {text[:40]!r} is not 'num_classes,height,width' - write e.g. '93431,112,112'")
    if identities > EXACT:
        raise InputError(
            f"{path}: says {identities} identities, and labels (float32) tell {EXACT} apart - write their number as "
            "its first number"
        )
    return identities, (height, width)


def _indexed_images(file: RecordFile, index: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return keys and offsets of the images and, where record 0 tells, the offsets of the identity records."""
    keys, offsets = read_index(index)
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
    if last >= EXACT:
        slack = int(np.spacing(labels[1]))
        last = len(keys) if abs(len(keys) - last) <= slack else last
    present = int(np.argmin(keys == np.arange(len(keys)))) or len(keys)
    if present < last:
        raise InputError(f"{index}: record {present} of 0..{last - 1} is missing - copy the data set anew")
    if first >= EXACT:
        first = first_without_image(first, last, lambda key: bool(file.read(key, offsets[key])[1]))
    return keys[1:first].copy(), offsets[1:first].copy(), offsets[first:last].copy()


def first_without_image(near: int, last: int, has_image: Callable[[int], bool]) -> int:
    """Return the first record without an image, for `near` which is that number rounded to float32."""
    slack = int(np.spacing(np.float32(near)))
    candidates = range(max(1, near - slack), min(last, near + slack))
    return next((key for key in candidates if not has_image(key)), near)
