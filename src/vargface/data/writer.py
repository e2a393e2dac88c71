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

__all__ = ["PlainWriter", "RecordWriter", "refuse_used"]


def refuse_used(folder: Path) -> None:
    """Raise InputError where there is a data set in `folder`."""
    for name in ("train.rec", "train.idx", "property"):
        if (folder / name).exists():
            raise InputError(f"{folder}: has a {name} already - choose another folder, or remove it")


class _Abandoned(Exception):
    """Makes `whole_file` drop what was written."""


class _FolderWriter(abc.ABC):
    """Context manager that writes train.rec, train.idx and property into `folder`.

    They have temporary names until the block ends without an exception; after one nothing is left of them. Memory does
    not grow with the images. Raises InputError where the folder cannot be written to, or nothing was added.
    """

    def __init__(self, folder: str | Path, image_size: tuple[int, int]) -> None:
        self.folder = Path(folder)
        self.image_size = image_size
        self._records = 0
        self._offset = 0

    def __enter__(self) -> _FolderWriter:
        make_folder(self.folder)
        with contextlib.ExitStack() as stack:
            # renamed in the opposite order: a folder without property counts as no data set
            self._property = stack.enter_context(whole_file(self.folder / "property"))
            self._idx = stack.enter_context(whole_file(self.folder / "train.idx"))
            self._rec = stack.enter_context(whole_file(self.folder / "train.rec"))
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
        """Append what belongs at the end, and bring all three files to the disk before any is renamed."""
        if not self._offset:
            raise InputError(f"{self.folder}: no image to write - give at least one identity with one image")
        num_identities = self._append_last()
        with self._refusals():
            self._property.write(f"{num_identities},{self.image_size[0]},{self.image_size[1]}".encode())
            for file in (self._rec, self._idx, self._property):
                file.flush()
                os.fsync(file.fileno())

    @abc.abstractmethod
    def _append_last(self) -> int:
        """Append the records behind the images and return the number of identities."""

    def _append(self, key: int, payload: bytes) -> None:
        record = part_bytes(payload)
        with self._refusals():
            self._rec.write(record)
            self._idx.write(b"%d\t%d\n" % (key, self._offset))
        self._offset += len(record)

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
    """Writes the layout that InsightFace trains on: images by identity, then the identity records and record 0."""

    def __init__(self, folder: str | Path, image_size: tuple[int, int] = (112, 112)) -> None:
        super().__init__(folder, image_size)
        self._starts = array("q")
        self._records = 1

    @property
    def num_identities(self) -> int:
        """Return how many identities there are so far; the next new one has this number."""
        return len(self._starts)

    def add(self, identity: int, jpeg: bytes) -> None:
        """Append an image; identities start at 0, ascend without gaps, and have their images together."""
        known = len(self._starts)
        if not (jpeg and max(0, known - 1) <= identity <= known):
            raise ValueError(f"identity {identity} with {len(jpeg)} bytes after identity {known - 1}")
        if identity == known:
            self._starts.append(self._records)
        self._append(self._records, pack(float(identity), jpeg, self._records))
        self._records += 1

    def _append_last(self) -> int:
        first = self._records
        last = first + len(self._starts)
        for key, start, end in zip(range(first, last), self._starts, self._starts[1:] + array("q", [first])):
            self._append(key, pack((start, end), record=key))
        self._append(0, pack((first, last)))
        return last - first


class PlainWriter(_FolderWriter):
    """Writes images alone, in any order, as `mx.io.ImageRecordIter` wants them ('shuffled'), with an index."""

    def __init__(self, folder: str | Path, num_identities: int, image_size: tuple[int, int]) -> None:
        super().__init__(folder, image_size)
        self._num_identities = num_identities

    def add(self, payload: bytes) -> None:
        """Append the payload of an image record as it is."""
        self._append(self._records, payload)
        self._records += 1

    def _append_last(self) -> int:
        return self._num_identities
