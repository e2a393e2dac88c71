"""Identification, 1:N, on the tiles of the same engine: rank-k and TPIR at FPIR.

The gallery is the first image of every person in the order of the filelist; the probes are the others. A probe's rank
is 1 plus the number of others in the gallery that score as high as its mate or higher, a tie counting against it; once
among the gallery alone, once with the distractors enrolled too (as MegaFace does). For the open set the distractors are
the probes without a mate: FPIR is the share of them whose highest score in the gallery is above the threshold, TPIR the
share of the probes whose mate is first in the gallery and above it. All in the order of the float64 scores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from vargface.errors import InputError
from vargface.eval.lfr.features import TestSet, open_test_set
from vargface.eval.lfr.pairs import TILE, exact_scores, score_error

__all__ = ["FPIRS", "RANKS", "Identification", "identify"]

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
    """What is found of the probes of a task."""

    mates: np.ndarray  # (p,) float64 scores of the probes that have a mate
    ahead: np.ndarray  # (p,) int64, of the gallery
    ahead_distractors: np.ndarray  # (p,) int64
    strangers: np.ndarray  # (d,) float64, each distractor's highest score in the gallery


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
    best = np.full(len(probes), -np.inf, np.float32)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    features, order = test_set.features, test_set.order
    rows = features[order[probes]]
    for start in range(0, len(gallery), TILE):
        some = gallery[start : start + TILE]
        scores = np.dot(rows, features[order[some]].T)
        np.maximum(best, scores.max(axis=1), out=best)
        i, j = np.nonzero(scores >= (best - np.float32(2 * error))[:, None])
        found.append((i, some[j], scores[i, j]))
    i, j, scores = (np.concatenate(column) for column in zip(*found))
    near = np.flatnonzero(scores >= (best - np.float32(2 * error))[i])
    highest = np.full(len(probes), -np.inf)
    np.maximum.at(highest, i[near], exact_scores(test_set, probes[i[near]], j[near]))
    return highest


def _probe(task: ProbeTask) -> Probed:
    """Return what is found of the probes of one task."""
    test_set = open_test_set(task.features, task.labels)
    everyone = np.arange(len(test_set))
    first = test_set.starts == everyone
    gallery = np.flatnonzero(first & (test_set.labels >= 0))
    distractors = np.flatnonzero(test_set.labels < 0)
    rows = everyone[task.start : task.stop]
    probes = rows[~first[rows]]
    own = test_set.starts[probes]
    mates = exact_scores(test_set, probes, own)
    ahead = [_count_ahead(test_set, probes, mates, own, others, task.error) for others in (gallery, distractors)]
    strangers = rows[test_set.labels[rows] < 0]
    return Probed(mates, *ahead, _highest(test_set, strangers, gallery, task.error))


def identify(
    features: str,
    labels: str,
    *,
    ranks: Sequence[int] = RANKS,
    fpirs: Sequence[str] = FPIRS,
    mapped: Callable[[Callable[[ProbeTask], Probed], Iterable[ProbeTask]], Iterable[Probed]] = map,
    on_rows: Callable[[int], object] | None = None,
) -> Identification:
    """Return the identification figures of feature file `features` with `labels`.

    mapped: as of `scoring.run`. on_rows: called with the number of rows done. Raises InputError where nobody has two
    images, and as `open_test_set` and `TestSet.check` do.
    """
    test_set = open_test_set(features, labels)
    greatest, _ = test_set.check(features)
    if not test_set.positives:
        raise InputError(f"{labels}: no two images of one person - nobody can be identified")
    error = score_error(test_set.dimensions, greatest)
    tasks = [
        ProbeTask(features, labels, start, min(start + TILE, len(test_set)), error)
        for start in range(0, len(test_set), TILE)
    ]
    results = []
    for task, found in zip(tasks, mapped(_probe, tasks)):
        results.append(found)
        if on_rows is not None:
            on_rows(task.stop - task.start)
    mates, ahead, ahead_distractors, strangers = (np.concatenate(column) for column in zip(*results))
    strangers = np.sort(strangers)[::-1]
    tpir, thresholds = {}, {}
    for fpir in fpirs:
        admitted = math.floor(Fraction(fpir) * len(strangers))
        enough = 1 <= admitted < len(strangers)
        thresholds[fpir] = float(strangers[admitted]) if enough else math.nan
        tpir[fpir] = float(np.mean((ahead == 0) & (mates > thresholds[fpir]))) if enough else math.nan
    with_distractors = ahead + ahead_distractors
    return Identification(
        gallery=int(((test_set.starts == np.arange(len(test_set))) & (test_set.labels >= 0)).sum()),
        probes=len(mates),
        distractors=len(strangers),
        rank={k: float(np.mean(ahead < k)) for k in ranks},
        rank_with_distractors={k: float(np.mean(with_distractors < k)) if len(strangers) else math.nan for k in ranks},
        tpir=tpir,
        thresholds=thresholds,
    )
