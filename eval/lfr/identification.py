"""Identification, 1:N, on the tiles of the same engine: rank-k and TPIR at FPIR.

The gallery is the first image of every person in the order of the filelist; the probes are the others. A probe's rank
is 1 plus the number of others in the gallery that score as high as its mate or higher, a tie counting against it; once
among the gallery alone, once with the distractors enrolled too (as MegaFace does). For the open set the distractors are
the probes without a mate: FPIR is the share of them whose highest score in the gallery is above the threshold, TPIR the
share of the probes whose mate is first in the gallery and above it. All in the order of the float64 scores.

The rows are probed in units, so it can be stopped and gone on with: `Probing` holds which are done and what was found.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from vargface.errors import InputError
from vargface.eval.lfr.features import TestSet, open_test_set
from vargface.eval.lfr.pairs import CHUNK_SCORES, TILE, exact_scores, score_error
from vargface.eval.lfr.units import do_units

__all__ = ["FPIRS", "RANKS", "Identification", "Probing", "finish", "run"]

RANKS = (1, 5, 10, 100)
FPIRS = ("1e-4", "1e-3", "1e-2", "1e-1")


@dataclasses.dataclass(frozen=True)
class Identification:
    """Shares 0..1; nan where there are no distractors, or too few for the FPIR."""

    gallery: int
    probes: int
    distractors: int
    rank: dict[int, float]  # k -> share of probes of rank k or better, among the gallery
    rank_with_distractors: dict[int, float]
    tpir: dict[str, float]  # FPIR -> TPIR
    thresholds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, which has no nan: None stands for it."""
        fields = dataclasses.asdict(self)
        for name in ("rank", "rank_with_distractors", "tpir", "thresholds"):
            fields[name] = {str(k): None if math.isnan(v) else v for k, v in fields[name].items()}
        return fields


class ProbeTask(NamedTuple):
    """Rows start..stop-1 as probes."""

    features: str
    labels: str
    start: int
    stop: int
    error: float  # of a float32 score


class Probed(NamedTuple):
    """What is found of the rows of a task: (n,) each; 0 where it says nothing."""

    scores: np.ndarray  # float64: a probe's with its mate, a distractor's highest in the gallery
    ahead: np.ndarray  # int64, of the gallery
    ahead_distractors: np.ndarray  # int64


@dataclasses.dataclass
class Probing:
    """What the units have found so far; rows are those of the `TestSet`.

    done: (units,) bool. scores, ahead, ahead_distractors: (N,), as `Probed` has them.
    """

    features: str
    labels: str
    fingerprint: str  # of what the files hold
    error: float  # of a float32 score
    done: np.ndarray
    scores: np.ndarray
    ahead: np.ndarray
    ahead_distractors: np.ndarray
    seconds: float = 0.0
    whole: bool = True  # False while a unit is being added

    @classmethod
    def begun(cls, features: str, labels: str) -> Probing:
        """Return the identification of feature file `features` with `labels` before any work.

        Raises InputError where nobody has two images, and as `open_test_set` and `TestSet.check` do.
        """
        test_set = open_test_set(features, labels)
        greatest, _ = test_set.check(features)
        if not test_set.positives:
            raise InputError(f"{labels}: no two images of one person - nobody can be identified")
        error, rows = score_error(test_set.dimensions, greatest), len(test_set)
        done = np.zeros(-(-rows // TILE), bool)
        return cls(features, labels, test_set.fingerprint, error, done, *_nothing(rows))

    def task(self, unit: int) -> ProbeTask:
        """Return the rows of a unit."""
        stop = min((unit + 1) * TILE, len(self.scores))
        return ProbeTask(self.features, self.labels, unit * TILE, stop, self.error)

    def pairs(self, units: Iterable[int]) -> int:
        """Return how many pairs `units` have: probes with all that is enrolled, distractors with the gallery."""
        test_set = open_test_set(self.features, self.labels)
        first, known = _first(test_set), test_set.labels >= 0
        gallery, distractors = int((first & known).sum()), int((~known).sum())
        each = np.where(known, np.where(first, 0, gallery + distractors), gallery)
        return sum(int(each[unit * TILE : (unit + 1) * TILE].sum()) for unit in units)

    def add(self, unit: int, found: Probed) -> None:
        """Put what a unit has found in its place."""
        rows = slice(unit * TILE, unit * TILE + len(found.scores))
        self.scores[rows], self.ahead[rows], self.ahead_distractors[rows] = found

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it as arrays, for a file."""
        text = json.dumps({"fingerprint": self.fingerprint, "seconds": self.seconds})
        arrays = {name: getattr(self, name) for name in ("done", "scores", "ahead", "ahead_distractors")}
        return {"about": np.array(text), **arrays}

    def go_on(self, arrays: dict[str, np.ndarray]) -> bool:
        """Take over what `arrays` of an earlier run say; return whether they are of the same files.

        Raises KeyError, TypeError or ValueError for arrays of something else.
        """
        about = json.loads(str(arrays["about"]))
        if about["fingerprint"] != self.fingerprint:
            return False
        for name in ("done", "scores", "ahead", "ahead_distractors"):
            mine, theirs = getattr(self, name), arrays[name]
            if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
                raise ValueError("arrays of another shape")
            mine[:] = theirs
        self.seconds = about["seconds"]
        return True


def _nothing(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(rows), np.zeros(rows, np.int64), np.zeros(rows, np.int64)


def _first(test_set: TestSet) -> np.ndarray:
    """Return whether each row (N,) is the first of its person; a distractor is."""
    return test_set.starts == np.arange(len(test_set))


def _count_ahead(
    test_set: TestSet, probes: np.ndarray, mates: np.ndarray, own: np.ndarray, others: np.ndarray, error: float
) -> np.ndarray:
    """Return for each of `probes` (p,) how many of `others`, but its `own` mate, score `mates` (p,) or higher.

    `others` are rows in ascending order.
    """
    ahead = np.zeros(len(probes), np.int64)
    features, order = test_set.features, test_set.order
    rows = features[order[probes]]
    # rounded outwards, so that comparing in float32 takes nothing from the margin
    sure = np.nextafter(np.float32(mates + error), np.float32(3))[:, None]
    open_ = np.nextafter(np.float32(mates - error), np.float32(-3))[:, None]
    place = np.searchsorted(others, own)
    for start in range(0, len(others), TILE):
        some = others[start : start + TILE]
        scores = np.dot(rows, features[order[some]].T)
        here = np.flatnonzero((place >= start) & (place < start + len(some)))
        here = here[others[place[here]] == own[here]]
        scores[here, place[here] - start] = -2
        above = scores > sure
        ahead += np.count_nonzero(above, axis=1)
        i, j = np.nonzero((scores >= open_) & (scores <= sure))
        tied = exact_scores(test_set, probes[i], some[j]) >= mates[i]
        np.add.at(ahead, i[tied], 1)
    return ahead


def _highest(test_set: TestSet, probes: np.ndarray, gallery: np.ndarray, error: float) -> np.ndarray:
    """Return the highest score (p,) float64 of each of `probes` in the `gallery`, both rows."""
    best, highest = np.full(len(probes), -np.inf, np.float32), np.full(len(probes), -np.inf)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    features, order = test_set.features, test_set.order
    rows = features[order[probes]]

    def lowest() -> np.ndarray:  # rounded down, so that comparing in float32 takes nothing from the margin
        return np.nextafter(best - np.float32(2 * error), np.float32(-3))

    def decide() -> None:
        i, j, scores = (np.concatenate(column) for column in zip(*found))
        near = np.flatnonzero(scores >= lowest()[i])
        np.maximum.at(highest, i[near], exact_scores(test_set, probes[i[near]], j[near]))
        found.clear()

    for start in range(0, len(gallery), TILE):
        some = gallery[start : start + TILE]
        scores = np.dot(rows, features[order[some]].T)
        np.maximum(best, scores.max(axis=1), out=best)
        i, j = np.nonzero(scores >= lowest()[:, None])
        found.append((i, some[j], scores[i, j]))
        if sum(len(column) for column, _, _ in found) > CHUNK_SCORES:  # where many are alike
            decide()
    if found:
        decide()
    return highest


def _probe(task: ProbeTask) -> Probed:
    """Return what is found of the rows of one task."""
    test_set = open_test_set(task.features, task.labels)
    first, known = _first(test_set), test_set.labels >= 0
    gallery, distractors = np.flatnonzero(first & known), np.flatnonzero(~known)
    rows = np.arange(task.start, task.stop)
    probes, strangers = rows[~first[rows]], rows[~known[rows]]
    found = Probed(*_nothing(len(rows)))
    own = test_set.starts[probes]
    mates = exact_scores(test_set, probes, own)
    found.scores[probes - task.start] = mates
    for ahead, others in ((found.ahead, gallery), (found.ahead_distractors, distractors)):
        ahead[probes - task.start] = _count_ahead(test_set, probes, mates, own, others, task.error)
    found.scores[strangers - task.start] = _highest(test_set, strangers, gallery, task.error)
    return found


def run(
    probing: Probing,
    *,
    mapped: Callable[[Callable[[ProbeTask], Probed], Iterable[ProbeTask]], Iterable[Probed]] = map,
    on_unit: Callable[[int], object] | None = None,
) -> None:
    """Do the units of `probing` that are not done; `mapped` and `on_unit` are those of `do_units`."""
    units = range(len(probing.done))
    do_units(probing, units, _probe, probing.task, probing.add, mapped=mapped, on_unit=on_unit)


def finish(probing: Probing, *, ranks: Sequence[int] = RANKS, fpirs: Sequence[str] = FPIRS) -> Identification:
    """Return the figures. Raises ValueError where units are missing."""
    if not probing.done.all():
        raise ValueError("units are missing")
    test_set = open_test_set(probing.features, probing.labels)
    first, known = _first(test_set), test_set.labels >= 0
    probes = ~first
    mates, ahead = probing.scores[probes], probing.ahead[probes]
    strangers = np.sort(probing.scores[~known])[::-1]
    tpir, thresholds = {}, {}
    for fpir in fpirs:
        admitted = math.floor(Fraction(fpir) * len(strangers))
        enough = 1 <= admitted < len(strangers)
        thresholds[fpir] = float(strangers[admitted]) if enough else math.nan
        tpir[fpir] = float(np.mean((ahead == 0) & (mates > thresholds[fpir]))) if enough else math.nan
    enrolled = ahead + probing.ahead_distractors[probes]
    return Identification(
        gallery=int((first & known).sum()),
        probes=len(mates),
        distractors=len(strangers),
        rank={k: float(np.mean(ahead < k)) for k in ranks},
        rank_with_distractors={k: float(np.mean(enrolled < k)) if len(strangers) else math.nan for k in ranks},
        tpir=tpir,
        thresholds=thresholds,
    )
