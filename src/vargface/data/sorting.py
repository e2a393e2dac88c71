"""Sorting more rows than memory should hold: they are parted by key into temporary files, and each is sorted alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

__all__ = ["blocks_of", "sorted_rows"]

_PARTS = 64
_BLOCK_ROWS = 1 << 16
# bytes of a part that are not worth a file
_IN_MEMORY = 1 << 14


def sorted_rows(blocks: Iterable[np.ndarray], key: str, highest: int) -> Iterator[np.ndarray]:
    """Yield the rows of all `blocks` by ascending `key`, in blocks: rows of equal keys are together, in their order.

    blocks: structured arrays of one type; key: the name of a field of whole numbers 0..highest, about evenly spread
    over these, for a block is 1/64 of the range. Memory is that of a block; all rows are on the disk meanwhile, in
    files without a name, so that nothing of them stays, however the process ends.
    """
    width = max(highest // _PARTS + 1, 1)
    parts = [tempfile.SpooledTemporaryFile(_IN_MEMORY) for _ in range(_PARTS)]  # noqa: SIM115 - closed below
    try:
        kind = None
        for rows in blocks:
            kind = rows.dtype
            part = (rows[key] // rows[key].dtype.type(width)).astype(np.int64)
            order = np.argsort(part, kind="stable")
            edges = np.searchsorted(part[order], np.arange(_PARTS + 1))
            for number, file in enumerate(parts):
                chosen = order[edges[number] : edges[number + 1]]
                if chosen.size:
                    file.write(rows[chosen].tobytes())
        for file in parts:
            file.seek(0)
            rows = np.frombuffer(file.read(), dtype=kind) if kind is not None else np.empty(0)
            file.close()
            if rows.size:
                yield rows[np.argsort(rows[key], kind="stable")]
    finally:
        for file in parts:
            file.close()


def blocks_of(rows: Iterable[tuple], kind: np.dtype) -> Iterator[np.ndarray]:
    """Yield `rows`, tuples, as structured arrays of `kind`, some 65,000 at a time."""
    held = []
    for row in rows:
        held.append(row)
        if len(held) == _BLOCK_ROWS:
            yield np.array(held, dtype=kind)
            held = []
    if held:
        yield np.array(held, dtype=kind)
