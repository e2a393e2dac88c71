"""The RecordIO file format and the image record header, in plain Python: reading needs no MXNet.

A record is one part or several. A part is two little-endian words (the magic word; the part's kind in 3 bits and its
length in 29) and its bytes, padded to a multiple of four. A payload that holds the magic word at a multiple of four is
cut there and the word left out, so that a reader can find a record's start anywhere in a file (dmlc-core, recordio.h).
The payload of an image record is a header ('IfQQ': number of labels, label, id, id2), the labels where they are an
array, and the encoded image.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import struct
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vargface.errors import InputError

__all__ = ["LEAVE_OUT", "RecordFile", "Scanned", "pack", "part_bytes", "unpack"]

# what to do about an image that cannot be used
LEAVE_OUT = "leave it out: vargface rec shuffle DIR OUT --skip-bad"

logger = logging.getLogger(__name__)

_MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", _MAGIC)
_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_LABEL = struct.Struct("<f")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_LENGTH_BITS = 29
# one read takes header and bytes of an ordinary 112x112 JPEG
_FIRST_READ = 12 * 1024
# one read of a file that is gone through from end to end
_SCAN_READ = 1 << 20
# places that tell a file that was only touched from one that was written anew
_PROBES, _PROBE_BYTES = 8, 4096


def pack(labels: float | Sequence[float], body: bytes = b"", record: int = 0) -> bytes:
    """Return the payload of an image record: a single label goes into the header, a sequence after it as float32."""
    if isinstance(labels, (int, float)):
        return _HEADER.pack(0, labels, record, 0) + body
    array = np.asarray(labels, dtype="<f4")
    return _HEADER.pack(array.size, 0.0, record, 0) + array.tobytes() + body


def unpack(payload: bytes | memoryview) -> tuple[np.ndarray, bytes]:
    """Return the labels (n,) float32, n >= 1, and the encoded image (empty in a record without one).

    Raises ValueError where the payload is shorter than its header says.
    """
    if len(payload) < _HEADER.size:
        raise ValueError(f"{len(payload)} bytes are fewer than a record's header")
    count, label, _, _ = _HEADER.unpack_from(payload)
    if count == 0:
        return np.array([label], dtype=np.float32), bytes(payload[_HEADER.size :])
    end = _HEADER.size + 4 * count
    if len(payload) < end:
        raise ValueError(f"{count} labels are announced in a record of {len(payload)} bytes")
    return np.frombuffer(payload[_HEADER.size : end], dtype="<f4"), bytes(payload[end:])


def part_bytes(payload: bytes) -> bytes:
    """Return the bytes of `payload` as one record of a file; raises ValueError past the format's 512 MiB."""
    if len(payload) >= 1 << _LENGTH_BITS:
        raise ValueError(f"a record of {len(payload)} bytes is too long for RecordIO")
    cuts = list(_aligned_magic(payload))
    starts = [0] + [cut + 4 for cut in cuts]
    ends = cuts + [len(payload)]
    kinds = [_FIRST] + [_MIDDLE] * (len(cuts) - 1) + [_LAST] if cuts else [_WHOLE]
    pieces = []
    for start, end, kind in zip(starts, ends, kinds):
        length = end - start
        pieces += [_PART.pack(_MAGIC, kind << _LENGTH_BITS | length), payload[start:end], bytes(-length % 4)]
    return b"".join(pieces)


class Scanned(NamedTuple):
    """What `RecordFile.scan` meets at byte `offset`: a record or, where `damage` is not empty, none."""

    offset: int
    payload: bytes | memoryview
    damage: str


class RecordFile:
    """A RecordIO file read at any offset. It may be used by several threads, by forked processes, and be pickled.

    Raises InputError, naming file and record, where the file is missing, empty, cut short or not RecordIO.
    """

    def __init__(self, path: str | Path, handle: int | None = None) -> None:
        """Open `path`, or take over an open `handle` of it, which was inherited."""
        self.path = Path(path)
        try:
            self._handle = os.open(self.path, os.O_RDONLY) if handle is None else handle
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot read ({error.strerror}) - give an InsightFace data folder"
            ) from error
        self._close = weakref.finalize(self, os.close, self._handle)
        self._state = self._state_now()
        self.size = self._state[0]
        self._probed = self._probe()
        if not self.size:
            raise InputError(f"{self.path}: is empty (0 bytes) - copy the data set anew, or give another data folder")

    def fileno(self) -> int:
        """Return the file's handle, for a process that is to inherit it."""
        return self._handle

    def check_unchanged(self) -> None:
        """Raise InputError where the file was written to since it was opened (one that was replaced is still here).

        Of a new time with the same size and the same bytes in places spread over the file, a warning is all.
        """
        state = self._state_now()
        if state == self._state:
            return
        if state[0] != self.size or self._probe() != self._probed:
            raise InputError(
                f"{self.path}: was written to while it was being read - restore it, then run the same command again"
            )
        self._state = state
        logger.warning(
            "%s: has a new time of modification; its size and %d x %d bytes looked at are as they were: going on",
            self.path,
            _PROBES,
            _PROBE_BYTES,
        )

    def _probe(self) -> int:
        """Return a checksum of a few places from the first byte to the last."""
        last = max(0, self.size - _PROBE_BYTES)
        found = 0
        for number in range(_PROBES):
            try:
                found = zlib.crc32(self._bytes(_PROBE_BYTES, last * number // (_PROBES - 1)), found)
            except ValueError:  # a place that the disk cannot read is as it was if it still cannot
                found = zlib.crc32(b"unreadable", found)
        return found

    def _state_now(self) -> tuple[int, int]:
        state = os.fstat(self._handle)
        return state.st_size, state.st_mtime_ns

    def __getstate__(self) -> tuple[Path, int]:
        return self.path, self.size

    def __setstate__(self, state: tuple[Path, int]) -> None:
        path, size = state
        self.__init__(path)
        if self.size != size:
            raise InputError(f"{path}: has {self.size} bytes and had {size} when it was opened - start anew")

    def close(self) -> None:
        """Give the file back to the system; further reads fail."""
        self._close()
        # the system may give the old number to another file
        self._handle = -1

    def payload(self, offset: int) -> bytes | memoryview:
        """Return the bytes of the record that starts at `offset`, for another file: it has swallowed no other one."""
        try:
            payload = self._record(offset)[0]
            if _starts_inside(payload):
                raise ValueError("another record starts inside of it")
            return payload
        except ValueError as error:
            raise self._damaged(f"the record at byte {offset}", str(error)) from error

    def read(self, record: int, offset: int) -> tuple[np.ndarray, bytes]:
        """Return labels (n,) float32 and encoded image of the record that starts at `offset`."""
        try:
            return unpack(self._record(offset)[0])
        except ValueError as error:
            raise self._damaged(f"record {record}", str(error)) from error

    def images(self) -> Iterator[tuple[int, int, float, bool]]:
        """Yield (ordinal number, offset, first label, whether it is empty) of every image, hopping through the file.

        A record with one label is an image's even where the image has no bytes; one with more and no image is not.
        """
        offset = record = 0
        within = False  # a record that goes on in the next part
        while offset < self.size:
            try:
                kind, length, label, empty = self._first_label(offset)
                if within != (kind in (_MIDDLE, _LAST)):
                    raise ValueError("a part of another record is missing")
            except ValueError as error:
                raise self._damaged(f"the record at byte {offset}", str(error)) from error
            if label is not None:
                yield record, offset, label, empty
            within = kind in (_FIRST, _MIDDLE)
            record += not within
            offset += _PART.size + length + -length % 4

    def label(self, record: int, offset: int) -> float:
        """Return the first label of the record that starts at `offset`; nan where it is no image's."""
        try:
            label = self._first_label(offset)[2]
        except ValueError as error:
            raise self._damaged(f"record {record}", str(error)) from error
        return math.nan if label is None else label

    def scan(self) -> Iterator[Scanned]:
        """Yield every record from the first byte to the last, and what is damaged in between.

        Behind a damaged place it goes on at the next start of a record, which the format lets be found.
        """
        offset = 0
        while offset < self.size:
            try:
                payload, end = self._record(offset)
                if _starts_inside(payload):
                    raise ValueError("another record starts inside of it")
                yield Scanned(offset, payload, "")
            except ValueError as error:
                yield Scanned(offset, b"", str(error))
                end = self._next_start(offset + 4)
            offset = end

    def _next_start(self, offset: int) -> int:
        """Return where, from `offset`, a multiple of four, on, the next record starts, or the file ends."""
        while offset < self.size:
            block = self._bytes(_SCAN_READ, offset)
            for at in _aligned_magic(block):
                if block[at + 7 : at + 8] and block[at + 7] >> 5 in (_WHOLE, _FIRST):
                    return offset + at
            # a start may lie across the end of the block
            offset += len(block) - 8 if len(block) == _SCAN_READ else _SCAN_READ
        return self.size

    def _record(self, offset: int) -> tuple[bytes | memoryview, int]:
        """Return the payload of the record at `offset` and where it ends; raises ValueError where there is none."""
        part, kind, end = self._part(offset)
        if kind == _WHOLE:
            return part, end
        if kind != _FIRST:
            raise ValueError(f"byte {offset} is inside another record")
        parts = [bytes(part)]
        while kind != _LAST:
            part, kind, end = self._part(end)
            if kind not in (_MIDDLE, _LAST):
                raise ValueError("its last part is missing")
            parts.append(bytes(part))
        return _MAGIC_BYTES.join(parts), end

    def _first_label(self, offset: int) -> tuple[int, int, float | None, bool]:
        """Return kind and length of the part at `offset`, the first label of an image's record, whether it is empty."""
        head = self._bytes(_PART.size + _HEADER.size + _LABEL.size, offset)
        kind, length = self._check_head(offset, head)
        if kind not in (_WHOLE, _FIRST):
            return kind, length, None, False
        if min(length, len(head) - _PART.size) < _HEADER.size:
            raise ValueError(f"{length} bytes are fewer than a record's header")
        labels, label, _, _ = _HEADER.unpack_from(head, _PART.size)
        empty = kind == _WHOLE and length <= _HEADER.size + 4 * labels
        if empty and labels > 1:
            return kind, length, None, True
        if labels:
            if length < _HEADER.size + _LABEL.size:
                raise ValueError(f"{labels} labels are announced in a part of {length} bytes")
            (label,) = _LABEL.unpack_from(head, _PART.size + _HEADER.size)
        return kind, length, label, empty

    def _part(self, offset: int) -> tuple[memoryview, int, int]:
        """Return the bytes of the part at `offset`, its kind and where the next one starts."""
        piece = self._bytes(_FIRST_READ, offset)
        kind, length = self._check_head(offset, piece)
        end = _PART.size + length
        if len(piece) < end:
            piece += self._bytes(end - len(piece), offset + len(piece))
        if len(piece) < end:
            raise ValueError("the file became shorter since it was opened")
        return memoryview(piece)[_PART.size : end], kind, offset + end + -length % 4

    def _check_head(self, offset: int, head: bytes) -> tuple[int, int]:
        """Return kind and length of the part whose first bytes are `head`."""
        if len(head) < _PART.size:
            raise ValueError(f"the file ends at byte {self.size}")
        magic, word = _PART.unpack_from(head)
        if magic != _MAGIC:
            raise ValueError(f"no record starts at byte {offset}")
        kind, length = word >> _LENGTH_BITS, word & ((1 << _LENGTH_BITS) - 1)
        if kind > _LAST:
            raise ValueError(f"part kind {kind} at byte {offset} is unknown")
        if offset + _PART.size + length > self.size:
            raise ValueError(f"it needs {length} bytes and the file ends at byte {self.size}")
        return kind, length

    def _bytes(self, count: int, offset: int) -> bytes:
        if self._handle < 0:
            raise OSError(errno.EBADF, f"{self.path} was closed")
        try:
            return os.pread(self._handle, count, offset)
        except OSError as error:
            # a disk that fails, a network that is gone
            raise ValueError(f"the system cannot read byte {offset}: {error.strerror}") from error

    def _damaged(self, which: str, reason: str) -> InputError:
        return InputError(f"{self.path}: {which} is damaged ({reason}) - copy the data set anew, or {LEAVE_OUT}")


def _aligned_magic(content: bytes) -> Iterator[int]:
    """Yield where the magic word stands at a multiple of four."""
    at = content.find(_MAGIC_BYTES)
    while at >= 0:
        if at % 4 == 0:
            yield at
        at = content.find(_MAGIC_BYTES, at + (4 if at % 4 == 0 else 1))


def _starts_inside(payload: bytes | memoryview) -> bool:
    """Return whether a part as the file holds it has another one's start in it: those of a payload are cut out."""
    return isinstance(payload, memoryview) and any(True for _ in _aligned_magic(bytes(payload)))
