"""The challenge's figure: TPR at a FPR of 1e-8 over all pairs of the test set, and the curve around it.

One pass over all pairs finds what the thresholds depend on. A FPR that admits no more than KEPT negative pairs has its
highest negatives kept, and its threshold is exact: that of the ordering of the float64 scores. For a greater one the
negatives are counted in bins of 2.4e-7 around where a sample says the threshold lies; float32 scores being within
`score_error`, its TPR is given as the bounds between which the exact one lies (they nearly always agree).

The pass is made of units, so it can be stopped, gone on with, and shared by machines: a `Part` holds which units are
done and what was found. Everything that parts must agree on follows from the files and the plan's few numbers by exact
integer arithmetic, so it is the same on machines of different makes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from vargface.errors import InputError
from vargface.eval.lfr.features import TestSet, open_test_set
from vargface.eval.lfr.pairs import (
    Found,
    Task,
    Top,
    Window,
    exact_scores,
    positive_scores,
    scan,
    score_error,
    unit_pairs,
    unit_rows,
)

__all__ = ["CURVE", "HEADLINE", "Part", "Plan", "Point", "Score", "finish", "make_plan", "merge", "run"]

HEADLINE = "1e-8"  # of the image tracks; the video tracks have 1e-4
CURVE = ("1e-9", "1e-8", "1e-7", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1")
# negative pairs kept for exact thresholds, 12 bytes each, twice in the worst case: enough for the 1e-4 of the videos
KEPT = 2_500_000
# so many pairs that float32 cannot tell apart are no ordinary test set
TOO_MANY = 16_000_000
# the sample: blocks of disjoint random rows; the chance that all of them err to one side is 2^-31
SAMPLE_BLOCKS, SAMPLE_ROWS = 32, (64, 1024)
# features become integers of this unit in the sample: sums of products are then exact in float64, in any order
QUANTUM = 2.0**-24
# the narrowest bin: scores closer than this are one to float32 anyway
BIN = 2.0**-22
MOST_BINS = 1 << 16
HISTOGRAM = np.linspace(-1, 1, 201)  # bin edges of what is drawn
# the most wrong pairs of either kind, for a person to look at
SHOWN = 24


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a scan looks for; the same for all its parts."""

    features: str
    labels: str
    fingerprint: str  # of what the files hold
    rows: int
    dimensions: int
    negatives: int
    zeros: int  # rows of zeros
    headline: str  # one of `fprs`
    seed: int
    fprs: tuple[str, ...]  # ascending; those that admit a pair at least
    keep: int  # of the highest negatives, 0 for none
    level: float
    windows: tuple[Window, ...]  # one for each FPR that admits more than are kept, in descending order of FPR
    slack: float
    histogram: np.ndarray  # (200,) of the sample's negatives

    def admitted(self, fpr: str) -> int:
        """Return how many negative pairs a FPR of `fpr` admits."""
        return math.floor(Fraction(fpr) * self.negatives)

    @property
    def units(self) -> list[tuple[int, int]]:
        """(start, stop) of the rows of each unit of work."""
        step = unit_rows(self.rows)
        return [(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]

    def agrees(self, other: Plan) -> bool:
        """Return whether parts of both plans can be merged."""
        mine, theirs = ((p.fingerprint, p.rows, p.headline, p.fprs, p.keep, p.level, p.windows) for p in (self, other))
        return mine == theirs


@dataclasses.dataclass
class Part:
    """What the units of one part have found so far.

    done: (units,) bool; a unit of another part is never done here. index, parts: which part this is, from 1.
    """

    plan: Plan
    index: int
    parts: int
    done: np.ndarray
    top: Top
    above: np.ndarray
    inside: list[np.ndarray]
    seconds: float = 0.0

    @classmethod
    def empty(cls, plan: Plan, index: int = 1, parts: int = 1) -> Part:
        """Return part `index` of `parts` before any work."""
        return cls(
            plan,
            index,
            parts,
            np.zeros(len(plan.units), bool),
            Top(plan.keep, plan.level, plan.slack, TOO_MANY),
            np.zeros(len(plan.windows), np.int64),
            [np.zeros(window.bins, np.int64) for window in plan.windows],
        )

    @property
    def mine(self) -> np.ndarray:
        """(n,) the units of this part: dealt forwards and backwards in turn, as the first ones are the largest."""
        numbers = np.arange(len(self.done))
        turn = numbers % (2 * self.parts)
        return numbers[np.minimum(turn, 2 * self.parts - 1 - turn) == self.index - 1]

    def pairs(self, units: Iterable[int]) -> int:
        """Return how many pairs `units` have."""
        bounds = self.plan.units
        return sum(unit_pairs(self.plan.rows, *bounds[unit]) for unit in units)

    def add(self, found: Found) -> None:
        """Add what a unit, or all of another part, has found."""
        self.top.add(*found.top)
        self.above += found.above
        for mine, theirs in zip(self.inside, found.inside):
            mine += theirs

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it as arrays, for a file."""
        scores, i, j = self.top.pairs()
        plan = {**dataclasses.asdict(self.plan), "windows": self.plan.windows}
        del plan["histogram"]
        text = json.dumps({"plan": plan, "index": self.index, "parts": self.parts, "seconds": self.seconds})
        inside = {f"inside_{number}": counts for number, counts in enumerate(self.inside)}
        level = np.float32(self.top.level)
        return {
            "about": np.array(text),
            "done": self.done,
            "level": level,
            "scores": scores,
            "i": i,
            "j": j,
            "above": self.above,
            "histogram": self.plan.histogram,
            **inside,
        }

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> Part:
        """Return the part that `arrays` gave. Raises KeyError, TypeError or ValueError for arrays of something else."""
        about = json.loads(str(arrays["about"]))
        plan = about["plan"]
        plan["windows"] = tuple(Window(*window) for window in plan["windows"])
        plan["fprs"] = tuple(plan["fprs"])
        part = cls.empty(Plan(**plan, histogram=arrays["histogram"]), about["index"], about["parts"])
        inside = [arrays[f"inside_{number}"] for number in range(len(part.plan.windows))]
        if arrays["done"].shape != part.done.shape or [c.shape for c in inside] != [c.shape for c in part.inside]:
            raise ValueError("arrays of another shape")
        part.done, part.seconds = arrays["done"], about["seconds"]
        part.add(Found((arrays["scores"], arrays["i"], arrays["j"]), arrays["above"], inside))
        part.top.level = np.float32(arrays["level"])
        return part


def _fingerprint(test_set: TestSet) -> str:
    """Return a digest of the labels, the order and some thousand rows, the first and the last among them."""
    rows = np.unique(np.linspace(0, len(test_set) - 1, 4096).astype(np.int64))
    digest = hashlib.sha256(f"{len(test_set)} {test_set.dimensions}".encode())
    for array in (test_set.labels, test_set.order, test_set.features[rows]):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _sampled(test_set: TestSet, seed: int) -> Iterator[np.ndarray]:
    """Yield the exact scores (n,) float64 of negative pairs, a block of random rows against another at a time."""
    rng = np.random.default_rng(seed)
    rows = int(np.clip(len(test_set) // 192, *SAMPLE_ROWS))
    for _ in range(SAMPLE_BLOCKS):
        i, j = rng.integers(len(test_set), size=(2, rows))
        first, second = (np.rint(test_set.features[test_set.order[k]] / QUANTUM).astype(np.float64) for k in (i, j))
        scores = np.dot(first, second.T) * QUANTUM**2
        labels = test_set.labels[i][:, None], test_set.labels[j]
        negative = (labels[0] != labels[1]) | (labels[0] < 0)
        yield scores[negative & (i[:, None] != j)]


def make_plan(
    features: str,
    labels: str,
    *,
    fprs: Sequence[str] = CURVE,
    headline: str = HEADLINE,
    kept: int = KEPT,
    seed: int = 0,
) -> Plan:
    """Return the plan to score feature file `features` with `labels` at `headline` and at `fprs`.

    A FPR is a string such as "1e-8" or "0.001", above 0 and below 1; those of `fprs` that admit no pair are left out.
    kept: how many negative pairs are kept for exact thresholds. Raises InputError where there is no pair of one person,
    where the headline admits no negative pair, and as `open_test_set` and `TestSet.check` do.
    """
    for fpr in (headline, *fprs):
        _check_fpr(fpr)
    test_set = open_test_set(features, labels)
    greatest, zeros = test_set.check(features)
    if not test_set.positives:
        raise InputError(f"{labels}: no two images of one person - there is no TPR without")
    negatives = test_set.negatives
    if Fraction(headline) * negatives < 1:
        raise InputError(
            f"{negatives:,} pairs of different people are too few for a FPR of {headline}: it admits "
            f"{float(headline) * negatives:.2g} of them - give --fpr {_coarser(negatives)} or more rows"
        )
    written = {Fraction(fpr): fpr for fpr in (*fprs, headline)}  # "0.001" and "1e-3" are one
    wanted = [written[fpr] for fpr in sorted(written) if fpr * negatives >= 1]
    admitted = [math.floor(Fraction(fpr) * negatives) for fpr in wanted]
    keep = min(max((count + 1 for count in admitted if count < kept), default=0), negatives)
    slack = 2 * score_error(test_set.dimensions, greatest)
    margin = 4 * score_error(test_set.dimensions)  # not of `greatest`, in which machines may differ in the last bit
    counted = [fpr for fpr, count in zip(wanted, admitted) if count >= kept][::-1]
    shares = [float(fpr) for fpr in counted]
    histogram = np.zeros(len(HISTOGRAM) - 1, np.int64)
    quantiles = []
    for scores in _sampled(test_set, seed):
        histogram += _histogram(scores)
        if not len(scores):
            continue
        # where the sample is too small to have seen the level of the kept, a lower one of which it has seen 16 pairs
        lowest_kept = max(2 * keep / negatives, min(16 / len(scores), 1.0))
        places = [min(int(share * len(scores)), len(scores) - 1) for share in (*shares, lowest_kept)]
        quantiles.append(np.partition(scores, [len(scores) - 1 - place for place in places])[[-1 - p for p in places]])
    whole = negatives <= kept or not quantiles
    level = -1.5 if whole else float(np.min(quantiles, axis=0)[-1] - margin)
    windows = [_window(column, margin) for column in np.transpose(quantiles)[: len(counted)]]
    return Plan(
        str(features),
        str(labels),
        _fingerprint(test_set),
        len(test_set),
        test_set.dimensions,
        negatives,
        zeros,
        headline,
        seed,
        tuple(wanted),
        keep,
        float(np.float32(level)),
        tuple(windows),
        slack,
        histogram,
    )


def _check_fpr(fpr: str) -> None:
    try:
        if 0 < Fraction(fpr) < 1:
            return
    except (ValueError, ZeroDivisionError):
        pass
    raise InputError(f"FPR {fpr!r}: give a share above 0 and below 1, such as 1e-8")


def _coarser(negatives: int) -> str:
    """Return the smallest power of ten that admits a hundred of `negatives`, or one."""
    exponent = next((e for e in range(9, 0, -1) if negatives >= 100 * 10**e), 1)
    return f"1e-{exponent}"


def _window(quantiles: np.ndarray, margin: float) -> Window:
    """Return the window in which every block of the sample places a threshold, both ends numbers of float32."""
    low, high = float(np.float32(quantiles.min() - margin)), float(np.float32(quantiles.max() + margin))
    return Window(low, high, int(np.clip(math.ceil((high - low) / BIN), 1, MOST_BINS)))


def run(
    part: Part,
    *,
    mapped: Callable[[Callable[[Task], Found], Iterable[Task]], Iterable[Found]] = map,
    on_unit: Callable[[int], object] | None = None,
) -> None:
    """Do the units of `part` that are not done.

    mapped: gives the results of a function on each task, in order (a pool's, to use several processes); it must draw
    the tasks as it needs them, as later ones profit from what earlier ones found. on_unit: called with the number of
    pairs after each unit, when `part` is whole; what it raises stops the scan.
    """
    plan, bounds = part.plan, part.plan.units
    todo = [int(unit) for unit in part.mine if not part.done[unit]]

    def tasks() -> Iterator[Task]:
        for unit in todo:
            level = float(part.top.level)
            yield Task(plan.features, plan.labels, *bounds[unit], plan.windows, plan.keep, level, plan.slack, TOO_MANY)

    for unit, found in zip(todo, mapped(scan, tasks())):
        part.add(found)
        part.done[unit] = True
        if on_unit is not None:
            on_unit(part.pairs([unit]))


def merge(parts: Sequence[Part]) -> Part:
    """Return all of `parts` as one. Raises InputError where they are of different scans, overlap or lack units."""
    first = parts[0]
    whole = Part.empty(first.plan)
    for part in parts:
        if not part.plan.agrees(first.plan):
            raise InputError(f"part {part.index}/{part.parts} is of another scan - run its command anew, as the others")
        if (whole.done & part.done).any():
            raise InputError(f"part {part.index}/{part.parts} is there twice, or parts overlap - give each part once")
        missing = part.mine[~part.done[part.mine]]
        if len(missing):
            raise InputError(
                f"part {part.index}/{part.parts} has {len(missing)} of its {len(part.mine)} units still to do - run "
                "its command again, it goes on"
            )
        whole.done |= part.done
        whole.seconds += part.seconds
        whole.add(Found(part.top.pairs(), part.above, part.inside))
    if not whole.done.all():
        given = ", ".join(f"{part.index}/{part.parts}" for part in parts)
        raise InputError(f"parts {given} are not all of the pairs - give the others, too")
    return whole


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of the curve: TPR at the lowest threshold that admits no more than `fpr` of the negative pairs.

    A pair is accepted when its score is GREATER than the threshold. tpr is a lower bound and tpr_high an upper one;
    they are equal where `exact`, and elsewhere nearly always.
    """

    fpr: str
    admitted: int  # negative pairs that the FPR allows
    threshold: float  # cosine
    accepted: int  # negative pairs accepted, no more than `admitted`
    tpr: float
    tpr_high: float
    exact: bool


@dataclasses.dataclass(frozen=True)
class Score:
    """The result: the curve, and what is drawn of it."""

    rows: int
    positives: int
    negatives: int
    distractors: int
    curve: tuple[Point, ...]  # of ascending FPR
    score_error: float  # bound of a float32 score's error
    seconds: float  # of the pass, all parts together
    histograms: tuple[np.ndarray, np.ndarray]  # (200,) of all positives; of a sample of negatives
    # rows of the feature file and the score (n,) of the highest negatives and the lowest positives
    false_accepts: tuple[np.ndarray, np.ndarray, np.ndarray]
    false_rejects: tuple[np.ndarray, np.ndarray, np.ndarray]

    def at(self, fpr: str) -> Point:
        """Return the point at `fpr`."""
        return next(point for point in self.curve if Fraction(point.fpr) == Fraction(fpr))

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        fields = {name: getattr(self, name) for name in ("rows", "positives", "negatives", "distractors", "seconds")}
        return {**fields, "float32_error": self.score_error, "curve": [dataclasses.asdict(p) for p in self.curve]}


def _kept_threshold(part: Part, test_set: TestSet, admitted: int) -> tuple[float, int]:
    """Return the score of the negative of rank `admitted` + 1, and how many are above it, in the order of float64.

    That pair's exact score T is within the error e of the float32 score t of that rank, so who is above t + 2e in
    float32 is above T, who is below t - 2e is below it, and those between are looked at.
    """
    scores, i, j = part.top.pairs()
    if len(scores) <= admitted:
        raise _misjudged()
    scores = scores.astype(np.float64)  # compared in float32, `middle` and the margin would be rounded
    place = len(scores) - 1 - admitted
    middle = np.partition(scores, place)[place]
    surely = scores > middle + part.plan.slack
    open_ = np.flatnonzero(~surely & (scores >= middle - part.plan.slack))
    exact = np.sort(exact_scores(test_set, i[open_], j[open_]))[::-1]
    above = int(surely.sum())
    threshold = exact[admitted - above]
    return float(threshold), above + int((exact > threshold).sum())


def _counted_bounds(part: Part, number: int, admitted: int) -> tuple[float, float, int]:
    """Return low and high between which the score of rank `admitted` + 1 lies, and how many are surely from high on."""
    window, above, counts = part.plan.windows[number], int(part.above[number]), part.inside[number]
    from_bin_on = above + np.cumsum(counts[::-1])[::-1]
    if above > admitted or from_bin_on[0] <= admitted:
        raise _misjudged()
    found = int(np.flatnonzero(from_bin_on > admitted)[-1])
    edge = window.low + found * window.step
    error = part.plan.slack / 2
    return edge - error, edge + window.step + error, int(from_bin_on[found] - counts[found])


def _misjudged() -> InputError:
    return InputError("the sample of pairs misjudged where a threshold lies - score again with another --seed")


def _histogram(scores: np.ndarray) -> np.ndarray:
    """Return how many of `scores` are in each bin of HISTOGRAM; np.histogram takes ten times as long."""
    bins = len(HISTOGRAM) - 1
    places = ((scores + 1) * (bins / 2)).astype(np.int64)
    return np.bincount(np.clip(places, 0, bins - 1), minlength=bins)


def _lowest(scores: np.ndarray, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chosen = np.argsort(scores, kind="stable")[:SHOWN]
    return scores[chosen], i[chosen], j[chosen]


def _positives_above(
    test_set: TestSet, thresholds: np.ndarray, error: float
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return how many positives score above each of `thresholds` in float64, their histogram, the lowest of them."""
    hits, histogram = np.zeros(len(thresholds), np.int64), np.zeros(len(HISTOGRAM) - 1, np.int64)
    lowest = np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
    for scores, i, j in positive_scores(test_set):
        histogram += _histogram(scores)
        lowest = _lowest(*(np.concatenate(columns) for columns in zip(lowest, (scores, i, j))))
        scores = scores.astype(np.float64)  # compared in float32, the margin would be rounded
        for number, threshold in enumerate(thresholds):
            hits[number] += np.count_nonzero(scores > threshold + error)
            near = np.flatnonzero((scores <= threshold + error) & (scores >= threshold - error))
            hits[number] += np.count_nonzero(exact_scores(test_set, i[near], j[near]) > threshold)
    return hits, histogram, lowest


def finish(part: Part) -> Score:
    """Return the result of a part that is whole (a merged one, or the only one).

    Raises InputError where the sample misjudged where a threshold lies, ValueError where units are missing.
    """
    if not part.done.all():
        raise ValueError("units of the scan are missing")
    plan = part.plan
    test_set = open_test_set(plan.features, plan.labels)
    error = plan.slack / 2
    drafts, thresholds = [], []
    for fpr in plan.fprs:
        admitted, number = plan.admitted(fpr), len(plan.fprs) - 1 - plan.fprs.index(fpr)
        if number < len(plan.windows):
            low, high, accepted = _counted_bounds(part, number, admitted)
        else:
            low, accepted = _kept_threshold(part, test_set, admitted)
            high = low
        drafts.append((fpr, admitted, high, accepted, number >= len(plan.windows)))
        thresholds += [high, low]
    hits, histogram, lowest = _positives_above(test_set, np.array(thresholds, np.float64), error)
    shares = (hits / test_set.positives).reshape(-1, 2)
    curve = [
        Point(fpr, admitted, threshold, accepted, float(tpr), float(tpr_high), exact)
        for (fpr, admitted, threshold, accepted, exact), (tpr, tpr_high) in zip(drafts, shares)
    ]
    scores, i, j = part.top.pairs()
    highest = _lowest(-scores, i, j)
    return Score(
        plan.rows,
        test_set.positives,
        plan.negatives,
        int((test_set.labels < 0).sum()),
        tuple(curve),
        error,
        part.seconds,
        (histogram, plan.histogram),
        (test_set.order[highest[1]], test_set.order[highest[2]], -highest[0]),
        (test_set.order[lowest[1]], test_set.order[lowest[2]], lowest[0]),
    )
