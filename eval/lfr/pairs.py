"""All pairs of a test set, tile by tile: the scores of the highest negatives, and counts around given scores.

A tile of scores is a float32 matrix product; only tiles on and above the diagonal are computed. A score in float32 is
within `score_error` of the exact one whatever the order of summation, so whatever is decided by less than that is
decided by `exact_scores`, in float64, on the few pairs concerned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vargface.errors import InputError
from vargface.eval.lfr.features import TestSet, open_test_set

__all__ = [
    "Found",
    "Task",
    "Top",
    "Window",
    "exact_scores",
    "positive_scores",
    "scan",
    "score_error",
    "unit_pairs",
    "unit_rows",
]

# side of a tile: its 4 MB stay in the last-level cache between the product and what is done with it
TILE = 1024
# what stands in a tile for a pair that is none (the lower half) or is of one person: below every score
EXCLUDED = np.float32(-2)
# pairs scored in float64, or histogrammed, at a time
CHUNK_PAIRS = 4096
CHUNK_SCORES = 1 << 20
# pairs kept before the lowest are let go, at least
SPARE = 1 << 16


def score_error(dimensions: int, greatest_norm: float = 1.0) -> float:
    """Return how far a float32 score can be from the exact one: D u / (1 - D u) times the norms, u = 2^-24.

    That is the classic bound of a sum of D products in any order (Higham, Accuracy and Stability, 3.1), with
    Cauchy-Schwarz for the sum of the absolute products: 3.1e-5 for D = 512.
    """
    rounding = dimensions * 2.0**-24
    return rounding / (1 - rounding) * greatest_norm**2 + 1e-9


def exact_scores(test_set: TestSet, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Return the scores (n,) float64 of the pairs of rows i, j: exact products, summed in numpy's pairwise order."""
    scores = np.empty(len(i))
    features, order = test_set.features, test_set.order
    for start in range(0, len(i), CHUNK_PAIRS):
        part = slice(start, start + CHUNK_PAIRS)
        products = features[order[i[part]]].astype(np.float64) * features[order[j[part]]]
        products.sum(axis=1, out=scores[part])
    return scores


class Window(NamedTuple):
    """Scores low..high in `bins` equal bins; counted apart from those at `high` and above."""

    low: float
    high: float
    bins: int

    @property
    def step(self) -> float:
        """Width of a bin."""
        return (self.high - self.low) / self.bins

    def counts(self, scores: np.ndarray) -> np.ndarray:
        """Return how many of `scores`, all in low..high, are in each bin."""
        bins = ((scores.astype(np.float64) - self.low) * (self.bins / (self.high - self.low))).astype(np.int64)
        return np.bincount(np.minimum(bins, self.bins - 1), minlength=self.bins)


class Top:
    """The pairs of highest score seen so far: `keep` of them and whatever is within `slack` of the last of those."""

    def __init__(self, keep: int, level: float, slack: float, limit: int) -> None:
        """Keep pairs from score `level` on; more than `limit` that are equal but for `slack` is an InputError."""
        self.keep, self.level, self.slack, self.limit = keep, np.float32(level), slack, limit
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._size = 0
        self._room = self._least_room = max(2 * keep, SPARE)

    def add(self, scores: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
        """Add pairs: scores (n,) float32, rows i and j (n,) uint32."""
        if not len(scores):
            return
        self._parts.append((scores, i, j))
        self._size += len(scores)
        if self._size > self._room:
            self.pairs()
            # where many are alike they stay: looking through them at every tile would take for ever
            self._room = max(self._least_room, self._size * 3 // 2)
            if self._size > self.limit:
                raise InputError(
                    f"more than {self.limit:,} pairs of different people score {float(self.level):.6f} alike, to "
                    "float32 rounding - many rows are (nearly) equal: is the checkpoint trained?"
                )

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (scores, i, j) of what is kept, the rest let go, in no order."""
        empty = np.empty(0, np.float32), np.empty(0, np.uint32), np.empty(0, np.uint32)
        scores, i, j = (np.concatenate(column) for column in zip(empty, *self._parts))
        if len(scores) > self.keep:
            last = np.partition(scores, len(scores) - self.keep)[len(scores) - self.keep]
            # the bound is rounded down: a pair at the edge must not be lost to float32
            self.level = max(self.level, np.nextafter(np.float32(last - self.slack), np.float32(-3)))
            stays = scores >= self.level
            scores, i, j = scores[stays], i[stays], j[stays]
        self._parts, self._size = [(scores, i, j)], len(scores)
        return scores, i, j


class Task(NamedTuple):
    """A unit of the scan: rows start..stop-1 against all rows from `start` on."""

    features: str
    labels: str
    start: int
    stop: int
    windows: tuple[Window, ...]  # of ascending scores
    keep: int  # of the highest negatives; 0: none
    level: float  # below it none is wanted
    slack: float
    limit: int


@dataclasses.dataclass
class Found:
    """What a scan has found among negative pairs."""

    top: tuple[np.ndarray, np.ndarray, np.ndarray]  # scores float32, rows i < j uint32
    above: np.ndarray  # (windows,) int64: scores at the window's end and above
    inside: list[np.ndarray]  # of each window: (bins,) int64


def unit_rows(rows: int) -> int:
    """Return how many of `rows` are one unit of work, the same on every machine.

    Columns are gathered once a unit, so more rows cost less of it; fewer are shared out more evenly.
    """
    return int(np.clip(rows // (32 * TILE), 1, 4)) * TILE


def unit_pairs(rows: int, start: int, stop: int) -> int:
    """Return how many pairs the unit of rows start..stop-1 has among `rows`."""
    return sum(rows - 1 - row for row in (start, stop - 1)) * (stop - start) // 2


def _mask_same_identity(scores: np.ndarray, test_set: TestSet, i0: int, j0: int) -> None:
    """Exclude the pairs of one person from the tile of rows i0.. and columns j0...

    Rows are sorted by identity, so `ends` ascends and only the last rows of the block reach column j0.
    """
    i1, j1 = i0 + scores.shape[0], j0 + scores.shape[1]
    row = max(i0 + int(np.searchsorted(test_set.ends[i0:i1], j0, side="right")), i0)
    while row < i1:
        start, end = int(test_set.starts[row]), int(test_set.ends[row])
        if end - start > 1:
            scores[row - i0 : end - i0, max(start, j0) - j0 : min(end, j1) - j0] = EXCLUDED
        row = end


def _tiles(test_set: TestSet, start: int, stop: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (i0, j0, scores float32) of every tile of rows start..stop-1; pairs that do not count are EXCLUDED.

    The array is used again for the next tile.
    """
    rows = np.ascontiguousarray(test_set.rows(start, stop))
    room = np.empty(TILE * TILE, np.float32)
    lower = np.tri(TILE, dtype=bool)
    for j0 in range(start, len(test_set), TILE):
        j1 = min(j0 + TILE, len(test_set))
        columns = test_set.rows(j0, j1)
        for i0 in range(start, min(stop, j0 + 1), TILE):
            block = rows[i0 - start : min(i0 + TILE, stop) - start]
            scores = room[: len(block) * len(columns)].reshape(len(block), len(columns))
            np.dot(block, columns.T, out=scores)
            if i0 == j0:
                np.copyto(scores, EXCLUDED, where=lower[: len(block), : len(columns)])
            _mask_same_identity(scores, test_set, i0, j0)
            yield i0, j0, scores


class _Counter:
    """Counts scores around windows; those inside are gathered first, a histogram being dear for a few."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = windows
        self.above = np.zeros(len(windows), np.int64)
        self.inside = [np.zeros(window.bins, np.int64) for window in windows]
        self._waiting: list[list[np.ndarray]] = [[] for _ in windows]
        self._sizes = [0] * len(windows)

    def add(self, number: int, values: np.ndarray) -> None:
        """Count `values`, of which those below the window are let go."""
        low, high = np.float32(self.windows[number].low), np.float32(self.windows[number].high)
        from_low_on = values >= low
        found = values[np.flatnonzero(from_low_on & (values < high))]
        self.above[number] += np.count_nonzero(from_low_on) - len(found)
        self._waiting[number].append(found)
        self._sizes[number] += len(found)
        if self._sizes[number] > CHUNK_SCORES:
            self._count(number)

    def _count(self, number: int) -> None:
        if self._waiting[number]:
            self.inside[number] += self.windows[number].counts(np.concatenate(self._waiting[number]))
        self._waiting[number], self._sizes[number] = [], 0

    def finish(self) -> None:
        """Count what waits."""
        for number in range(len(self.windows)):
            self._count(number)


def scan(task: Task) -> Found:
    """Return what is found among the negative pairs of one unit; at home in another process."""
    test_set = open_test_set(task.features, task.labels)
    top, counter = Top(task.keep, task.level, task.slack, task.limit), _Counter(task.windows)
    for i0, j0, scores in _tiles(test_set, task.start, task.stop):
        values, place = scores.ravel(), None
        for number, window in enumerate(task.windows):
            if number > 0:  # the first window's scores are too many to be worth gathering
                values, place = _narrowed(values, place, min(np.float32(window.low), top.level))
            counter.add(number, values)
        if task.keep:
            values, place = _narrowed(values, place, top.level)
            width = scores.shape[1]
            top.add(values, (i0 + place // width).astype(np.uint32), (j0 + place % width).astype(np.uint32))
    counter.finish()
    return Found(top.pairs(), counter.above, counter.inside)


def _narrowed(values: np.ndarray, place: np.ndarray | None, level: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Return the `values` from `level` on and their places in the tile."""
    stays = np.flatnonzero(values >= level)
    return values[stays], stays if place is None else place[stays]


def positive_scores(test_set: TestSet) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (scores float32, i, j) of all pairs of one person, about a million at a time."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    size = 0
    firsts = np.flatnonzero((test_set.starts == np.arange(len(test_set))) & (test_set.ends - test_set.starts > 1))
    for start in firsts:
        end = int(test_set.ends[start])
        for i0 in range(int(start), end, TILE):
            rows = test_set.rows(i0, min(i0 + TILE, end))
            for j0 in range(i0, end, TILE):
                columns = rows if j0 == i0 else test_set.rows(j0, min(j0 + TILE, end))
                scores = np.dot(rows, columns.T)
                i, j = np.triu_indices(len(rows), 1) if j0 == i0 else np.indices(scores.shape).reshape(2, -1)
                parts.append((scores[i, j], i + i0, j + j0))
                size += len(i)
                if size >= CHUNK_SCORES:
                    yield tuple(np.concatenate(column) for column in zip(*parts))
                    parts, size = [], 0
    if parts:
        yield tuple(np.concatenate(column) for column in zip(*parts))
