"""Writing InsightFace data folders: train.rec, train.idx and property appear together, whole, or not at all."""

from __future__ import annotations

import abc
import contextlib
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from vargface.data.recordio import pack, part_bytes
from vargface.errors import InputError
from vargface.files import make_folder, whole_file

__all__ = ["IMAGES_INDEX", "PlainWriter", "RecordWriter", "refuse_used"]

# an index of the images alone, which `mx.io.ImageRecordIter` takes as path_imgidx
IMAGES_INDEX = "images.idx"
# bytes of a record with two labels and no image
_OF_IDENTITY = len(part_bytes(pack((0, 0))))


def refuse_used(folder: Path) -> None:
    """Raise InputError where there is a data set in `folder`."""
    for name in ("train.rec", "train.idx", IMAGES_INDEX, "property"):
        if (folder / name).exists():
            raise InputError(f"{folder}: has a {name} already - choose another folder, or remove it")


class _Abandoned(Exception):
    """Makes `whole_file` drop what was written."""


class _FolderWriter(abc.ABC):
    """Context manager that writes train.rec, train.idx and property into `folder`: `add` takes the images.

    They have temporary names until the block ends without an exception; after one nothing is left of them. Memory does
    not grow with the images. Raises InputError where the folder cannot be written to, or nothing was added.
    """

    _names = ("property", "train.idx", "train.rec")

    def __init__(self, folder: str | Path, image_size: tuple[int, int]) -> None:
        self.folder = Path(folder)
        self.image_size = image_size
        self._records = 0  # images so far
        self._offset = 0

    def __enter__(self) -> _FolderWriter:
        make_folder(self.folder)
        with contextlib.ExitStack() as stack:
            # renamed in the opposite order: a folder without property counts as no data set
            self._open = [stack.enter_context(whole_file(self.folder / name)) for name in self._names]
            self._property, self._idx, self._rec = self._open[:3]
            self._files = stack.pop_all()
        return self

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
        """Add what belongs to the images, and bring all files to the disk before any is renamed."""
        if not self._records:
            raise InputError(f"{self.folder}: no image to write - give at least one identity with one image")
        with self._refusals():
            num_identities = self._write_identities()
            self._property.write(f"{num_identities},{self.image_size[0]},{self.image_size[1]}".encode())
            for file in self._open:
                file.flush()
                os.fsync(file.fileno())

    @abc.abstractmethod
    def _write_identities(self) -> int:
        """Write the records that are no images and return the number of identities."""

    def _append(self, key: int, payload: bytes) -> None:
        record = part_bytes(payload)
        with self._refusals():
            self._rec.write(record)
            self._list(key, self._offset)
        self._offset += len(record)
        self._records += 1

    def _list(self, key: int, offset: int) -> None:
        self._idx.write(b"%d\t%d\n" % (key, offset))

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self.folder}: cannot write ({reason}) - free space or choose another place") from error

    def _abandon(self) -> None:
        # with an exception of our own: `whole_file` would report an OSError of the caller's block as one of writing
        self._files.__exit__(_Abandoned, _Abandoned(), None)


class RecordWriter(_FolderWriter):
    """Writes the layout that InsightFace trains on: images by identity, identity records and record 0.

    The records have InsightFace's numbers; in the file those without an image come first. So an index of the images
    alone, images.idx, points at nothing else, and `mx.io.ImageRecordIter` can read them by it: it takes what lies
    between a place and the next, or the file's end, for that image's. (InsightFace's face2rec2 has them last.)

    most_identities: no more than so many will come. Room is kept for these; what is left of it holds records that no
    index lists.
    """

    _names = (*_FolderWriter._names, IMAGES_INDEX)

    def __init__(self, folder: str | Path, most_identities: int, image_size: tuple[int, int] = (112, 112)) -> None:
        super().__init__(folder, image_size)
        self._most = most_identities
        self._starts = array("q")

    def __enter__(self) -> RecordWriter:
        super().__enter__()
        self._images_idx = self._open[3]
        self._offset = _OF_IDENTITY * (1 + self._most)
        self._rec.seek(self._offset)
        return self

    @property
    def num_identities(self) -> int:
        """Return how many identities there are so far; the next new one has this number."""
        return len(self._starts)

    def add(self, identity: int, jpeg: bytes) -> None:
        """Append an image; identities start at 0, ascend without gaps, and have their images together."""
        known = len(self._starts)
        if not (jpeg and max(0, known - 1) <= identity <= known and identity < self._most):
            raise ValueError(f"identity {identity} of {self._most} with {len(jpeg)} bytes after identity {known - 1}")
        key = self._records + 1
        if identity == known:
            self._starts.append(key)
        self._append(key, pack(float(identity), jpeg, key))

    def _list(self, key: int, offset: int) -> None:
        super()._list(key, offset)
        self._images_idx.write(b"%d\t%d\n" % (key, offset))

    def _write_identities(self) -> int:
        first = self._records + 1
        last = first + len(self._starts)
        self._rec.seek(0)
        self._rec.write(part_bytes(pack((first, last))))
        ranges = zip(range(first, last), self._starts, self._starts[1:] + array("q", [first]))
        for number, (key, start, end) in enumerate(ranges, start=1):
            self._rec.write(part_bytes(pack((start, end), record=key)))
            super()._list(key, number * _OF_IDENTITY)
        self._rec.write(part_bytes(pack((0, 0))) * (self._most - len(self._starts)))
        super()._list(0, 0)
        return last - first


class PlainWriter(_FolderWriter):
    """Writes images alone, in any order, as `mx.io.ImageRecordIter` wants them ('shuffled'), with an index."""

    def __init__(self, folder: str | Path, num_identities: int, image_size: tuple[int, int]) -> None:
        super().__init__(folder, image_size)
        self._num_identities = num_identities

    def add(self, payload: bytes) -> None:
        """Append the payload of an image record as it is."""
        self._append(self._records, payload)

    def _write_identities(self) -> int:
        return self._num_identities
