"""`train.idx`: a line 'key<TAB>offset' a record, read block by block, whatever its length."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vargface.errors import InputError
from vargface.files import open_file

__all__ = ["ROW", "index_blocks", "read_index"]

# what numpy makes of every number past int64, whatever its sign
_PAST = np.iinfo(np.int64).max
# a line of the index
ROW = np.dtype([("key", "i8"), ("offset", "i8")])
_BLOCK = 1 << 20


def index_blocks(path: Path) -> Iterator[np.ndarray]:
    """Yield the lines of `path`, in order, as arrays of `ROW`, some 100,000 at a time.

    Raises InputError where the file cannot be read, has no line, one that is not 'key<TAB>offset', or a key that is
    negative or past int64.
    """
    found = 0
    try:
        with open_file(path) as file:
            rest = b""
            while True:
                block = file.read(_BLOCK)
                if block:
                    text, newline, rest = (rest + block).rpartition(b"\n")
                    if not newline:
                        if len(rest) > _BLOCK:
                            raise _foreign(path, found + 1)
                        continue
                else:
                    text = rest
                if text.strip():
                    rows = _rows(path, text, found)
                    found += len(rows)
                    yield rows
                if not block:
                    break
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}) - give an InsightFace data folder") from error
    if not found:
        raise _foreign(path, 1)


def read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and offsets, int64, in the order of the keys; raises as `index_blocks`, and on a key twice."""
    rows = np.concatenate(list(index_blocks(path)))
    keys, offsets = rows["key"].copy(), rows["offset"].copy()
    if np.any(keys[1:] <= keys[:-1]):
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        repeated = np.flatnonzero(keys[1:] == keys[:-1])
        if repeated.size:
            raise InputError(f"{path}: record {keys[repeated[0]]} is listed twice - copy the data set anew")
    return keys, offsets


def _rows(path: Path, text: bytes, before: int) -> np.ndarray:
    with warnings.catch_warnings():
        # numpy up to 2 only warns of text that is no number
        warnings.simplefilter("error")
        try:
            numbers = np.fromstring(text, dtype=np.int64, sep=" ")
        except (ValueError, DeprecationWarning):
            numbers = np.empty(0, dtype=np.int64)
    # a line may lack its second number and the next one have three
    if not numbers.size or numbers.size % 2 or numbers.size // 2 != text.count(b"\t"):
        raise _foreign(path, before + 1)
    rows = numbers.view(ROW)
    wrong = (rows["key"] < 0) | (rows["key"] == _PAST)
    if wrong.any():
        line = int(wrong.argmax())
        key = text.split(maxsplit=2 * line + 1)[2 * line].decode("ascii")[:40]
        raise InputError(
            f"{path}: record number {key} in line {before + line + 1} is not in 0..{_PAST - 1} - copy the data set anew"
        )
    return rows


def _foreign(path: Path, line: int) -> InputError:
    return InputError(f"{path}: is not lines of 'key<TAB>offset' from line {line} on - copy the data set anew")
