"""The challenge's feature file and its labels: one row an image of the test set, in the order of its filelist.

Layout, little-endian: four int32 (rows, columns, bytes a row, 5 for float32), then rows x columns float32.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import hashlib
import struct
from pathlib import Path

import numpy as np

from vargface.errors import InputError
from vargface.files import open_file

__all__ = ["DISTRACTOR", "HEADER", "TestSet", "header", "normalised", "open_features", "open_test_set", "read_labels"]

HEADER = struct.Struct("<4i")
# OpenCV's number for float32
FLOAT32 = 5
# label of an image whose person is nobody else's
DISTRACTOR = -1
GREATEST = 2**63 - 1
# how far from 1 the norm of a row may be: float32 rounding is 1e-7, rows that nobody normalised are far off
NORM_TOLERANCE = 1e-3
BLOCK_ROWS = 8192


def header(rows: int, columns: int) -> bytes:
    """Return the 16 bytes that a feature file begins with."""
    return HEADER.pack(rows, columns, 4 * columns, FLOAT32)


def normalised(rows: np.ndarray) -> np.ndarray:
    """Return the (n, D) float32 `rows` with unit norm as scikit-learn's `normalize` does; a row of zeros stays zero."""
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    norms[norms < 10 * np.finfo(norms.dtype).eps] = 1.0
    return rows / norms[:, None]


def open_features(path: str | Path) -> np.ndarray:
    """Return the rows of feature file `path`, (N, D) float32, mapped into memory and read-only.

    Raises InputError where it cannot be read, has another header or is not as long as its header says.
    """
    try:
        with open_file(path) as file:
            head = file.read(HEADER.size)
            size = file.seek(0, 2)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot read ({reason}) - give the file of 'vargface lfr submit'") from error
    rows, columns, stride, kind = HEADER.unpack(head) if len(head) == HEADER.size else (0, 0, 0, 0)
    if kind != FLOAT32 or rows < 1 or columns < 1 or stride != 4 * columns:
        raise InputError(f"{path}: does not begin as a feature file does - give the file of 'vargface lfr submit'")
    expected = HEADER.size + 4 * rows * columns
    if size != expected:
        raise InputError(f"{path}: {size:,} bytes, its header ({rows:,} x {columns}) says {expected:,} - write it anew")
    # a plain array over the map: a memmap's own indexing is slower
    return np.asarray(np.memmap(path, np.dtype("<f4"), "r", HEADER.size, (rows, columns)))


def read_labels(path: str | Path) -> np.ndarray:
    """Return the identities (N,) int64 in `path`: a number a line, or a .npy file; -1 is a distractor.

    Raises InputError where it cannot be read or holds anything but integers from -1 on.
    """
    path = Path(path)
    try:
        labels = np.load(path) if path.suffix == ".npy" else _text_labels(path)
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error}) - give a label a line") from error
    except (ValueError, EOFError) as error:  # the second of an empty file
        raise InputError(f"{path}: is no .npy file of integers - write it anew, or give text") from error
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: labels are integers, one a row - write it anew")
    wrong = (labels < DISTRACTOR) | (labels > GREATEST)
    if wrong.any():
        raise _no_label(path, int(wrong.argmax()), labels[wrong][0])
    return labels.astype(np.int64)


def _text_labels(path: Path) -> np.ndarray:
    """Return the integers (N,) int64 of a text, a megabyte at a time: as words they take seven times the memory."""
    parts, count = [np.empty(0, np.int64)], 0
    with open(path, "rb") as file:
        for lines in iter(lambda: file.readlines(1 << 20), []):
            text = b"".join(lines)
            # as filelist.txt, it may begin with a mark of its encoding
            marked = not count and text.startswith(codecs.BOM_UTF8)
            words = text[len(codecs.BOM_UTF8) * marked :].split()
            try:
                parts.append(np.array(words or np.empty(0)).astype(np.int64))
            except (ValueError, OverflowError):
                place = next(place for place, word in enumerate(words) if not _is_label(word))
                raise _no_label(path, count + place, words[place].decode(errors="replace")) from None
            count += len(words)
    return np.concatenate(parts)


def _is_label(word: bytes) -> bool:
    try:
        return DISTRACTOR <= int(word) <= GREATEST
    except ValueError:
        return False


def _no_label(path: Path, place: int, label: object) -> InputError:
    return InputError(
        f"{path}: label {place + 1} is {str(label)[:40]} - give an integer from 0 to 2^63 - 1, or -1 for a distractor"
    )


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Unit rows in the order of their labels, distractors last: the pairs of one person lie next to the diagonal.

    features: (N, D) float32, in file order. order: (N,) int64, the file's row of each row here. labels: (N,) int64.
    starts, ends: (N,) int64, the rows start..end-1 of the same person as each row; a distractor is alone.
    """

    __test__ = False  # pytest would take it for a test

    features: np.ndarray
    order: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, labels: np.ndarray) -> TestSet:
        """Return the test set of `features` (N, D) float32 and their `labels` (N,), both in file order."""
        order = np.argsort(labels.astype(np.uint64), kind="stable")  # in which -1 is the greatest
        labels = labels[order]
        rows = np.arange(len(labels))
        known = labels >= 0
        starts = np.where(known, np.searchsorted(labels[known], labels, side="left"), rows)
        ends = np.where(known, np.searchsorted(labels[known], labels, side="right"), rows + 1)
        return cls(features, order, labels, starts, ends)

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    @property
    def dimensions(self) -> int:
        """Return D."""
        return self.features.shape[1]

    @functools.cached_property
    def positives(self) -> int:
        """Number of pairs of one person."""
        return int((self.ends - 1 - np.arange(len(self))).sum())

    @property
    def negatives(self) -> int:
        """Number of all other pairs."""
        return len(self) * (len(self) - 1) // 2 - self.positives

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the labels, the order and every row."""
        digest = hashlib.sha256(f"{len(self)} {self.dimensions}".encode())
        for array in (self.labels, self.order):
            digest.update(np.ascontiguousarray(array))
        for start in range(0, len(self), BLOCK_ROWS):
            digest.update(np.ascontiguousarray(self.features[start : start + BLOCK_ROWS]))
        return digest.hexdigest()

    @functools.cached_property
    def _as_in_file(self) -> bool:
        return bool((self.order == np.arange(len(self))).all())

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows start..stop-1, (n, D) float32."""
        if self._as_in_file:
            return self.features[start:stop]
        return self.features[self.order[start:stop]]

    def check(self, name: str | Path) -> tuple[float, int]:
        """Return the greatest norm of a row and the number of rows that are zero.

        Raises InputError, with the file's `name`, for a row that is not finite and one that has another norm than 1.
        """
        greatest, zeros = 0.0, 0
        for start in range(0, len(self), BLOCK_ROWS):
            block = self.features[start : start + BLOCK_ROWS]
            norms = np.sqrt(np.einsum("ij,ij->i", block, block))
            wrong = ~(np.abs(norms - 1) <= NORM_TOLERANCE) & (norms != 0)
            if wrong.any():
                row = int(wrong.argmax())
                raise InputError(
                    f"{name}: row {start + row} has norm {norms[row]:g}, the challenge's rows have 1 - normalise them"
                )
            greatest, zeros = max(greatest, float(norms.max())), zeros + int((norms == 0).sum())
        return greatest * (1 + 1e-6), zeros  # the norms themselves are sums in float32


@functools.lru_cache(maxsize=1)
def open_test_set(features: str, labels: str) -> TestSet:
    """Return the test set of two files; every process that scans it opens them once. Raises InputError as both do."""
    rows, found = open_features(features), read_labels(labels)
    if len(found) != len(rows):
        raise InputError(f"{labels}: {len(found):,} labels, {features} has {len(rows):,} rows - give one a row")
    return TestSet.of(rows, found)
