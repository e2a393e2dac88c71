"""The challenge's figure: TPR at a FPR of 1e-8 over all pairs of the test set, and the curve around it.

One pass over all pairs finds what the thresholds depend on. A FPR that admits no more than KEPT negative pairs has its
highest negatives kept, and its threshold is exact: that of the ordering of the float64 scores. For a greater one the
negatives are counted in bins of 2.4e-7 around where a sample says the threshold lies; float32 scores being within
`score_error`, its TPR is given as the bounds between which the exact one lies (they nearly always agree). Where the
sample `misjudged`, a second pass looks in the right places: `corrected`.

The pass is made of units, so it can be stopped, gone on with, and shared by machines: a `Part` holds which units are
done and what was found.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from vargface.errors import InputError
from vargface.eval.lfr.features import TestSet, open_test_set
from vargface.eval.lfr.pairs import Found, Task, Top, Window, exact_scores, positive_scores, scan, unit_pairs
from vargface.eval.lfr.plan import HISTOGRAM, MOST_BINS, WIDEST, Plan, histogram_of
from vargface.eval.lfr.units import do_units

__all__ = ["Part", "Point", "Score", "corrected", "finish", "merge", "misjudged", "run"]

# so many pairs that float32 cannot tell apart are no ordinary test set
TOO_MANY = 8_000_000
# the most wrong pairs of either kind, for a person to look at
SHOWN = 24


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
    whole: bool = True  # False while a unit is being added

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


def run(
    part: Part,
    *,
    mapped: Callable[[Callable[[Task], Found], Iterable[Task]], Iterable[Found]] = map,
    on_unit: Callable[[int], object] | None = None,
) -> None:
    """Do the units of `part` that are not done; `mapped` and `on_unit` are those of `do_units`."""
    plan, bounds = part.plan, part.plan.units

    def task(unit: int) -> Task:
        level = float(part.top.level)
        return Task(plan.features, plan.labels, *bounds[unit], plan.windows, plan.keep, level, plan.slack, TOO_MANY)

    do_units(part, part.mine, scan, task, lambda _, found: part.add(found), mapped=mapped, on_unit=on_unit)


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

    A pair is accepted when its score is GREATER than the threshold. Each figure is given as a lower bound and an upper
    one, equal where `exact`. Of TPR, they nearly always are elsewhere, too.
    """

    fpr: str
    admitted: int  # negative pairs that the FPR allows
    threshold: float  # cosine
    threshold_high: float
    accepted: int  # negative pairs above the exact threshold: fewer than admitted where scores are equal
    accepted_high: int  # no more than `admitted`
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
    scores = scores.astype(np.float64)  # compared in float32, `middle` and the margin would be rounded
    place = len(scores) - 1 - admitted
    middle = np.partition(scores, place)[place]
    surely = scores > middle + part.plan.slack
    open_ = np.flatnonzero(~surely & (scores >= middle - part.plan.slack))
    exact = np.sort(exact_scores(test_set, i[open_], j[open_]))[::-1]
    above = int(surely.sum())
    threshold = exact[admitted - above]
    return float(threshold), above + int((exact > threshold).sum())


def _from_bin_on(part: Part, number: int) -> np.ndarray:
    """Return how many negatives have a float32 score in each bin (bins,) of a window, or a higher one."""
    return part.above[number] + np.cumsum(part.inside[number][::-1])[::-1]


def _counted_bounds(part: Part, number: int, admitted: int) -> tuple[float, float, int]:
    """Return low and high between which the score of rank `admitted` + 1 lies, and how many are surely above high."""
    window, from_bin_on = part.plan.windows[number], _from_bin_on(part, number)
    found = int(np.flatnonzero(from_bin_on > admitted)[-1])
    edge, error = window.low + found * window.step, part.plan.slack / 2
    low, high = edge - error, edge + window.step + error
    surely = math.floor((high + error - window.low) / window.step) + 1  # the first bin all of which is above high
    above = (*from_bin_on[surely : surely + 1], part.above[number])[0] if surely <= window.bins else 0
    return low, high, int(above)


def misjudged(part: Part) -> tuple[str, ...]:
    """Return the FPRs whose thresholds are not where the sample of a part that is whole says: in descending order.

    Also those so near to the lowest score kept that pairs which may belong above it were let go.
    """
    plan = part.plan
    scores, level = np.sort(part.top.pairs()[0])[::-1], float(part.top.level)
    wrong = []
    for number, fpr in enumerate(plan.fprs[::-1]):
        admitted = plan.admitted(fpr)
        if number < len(plan.windows):
            right = part.above[number] <= admitted < _from_bin_on(part, number)[0]
        elif len(scores) <= admitted:
            right = False
        else:
            right = level <= -WIDEST or float(scores[admitted]) - plan.slack >= level
        if not right:
            wrong.append(fpr)
    return tuple(wrong)


def corrected(part: Part) -> Plan:
    """Return the plan of a second pass that finds what the sample of `part`, which is whole, `misjudged`.

    Windows are replaced by all that is above, or below, where no threshold was; their bins are wider for it.
    """
    plan, wrong = part.plan, misjudged(part)
    windows = list(plan.windows)
    for number, window in enumerate(windows):
        if plan.fprs[-1 - number] in wrong:
            # a lower FPR has no lower threshold; and windows must ascend
            if part.above[number] > plan.admitted(plan.fprs[-1 - number]):
                low, high = min([window.high, *(later.low for later in windows[number + 1 :])]), WIDEST
            else:
                low, high = windows[number - 1].low if number else -WIDEST, window.low
            windows[number] = Window(low, high, MOST_BINS)
    kept_wrong = any(fpr in wrong for fpr in plan.fprs[: len(plan.fprs) - len(windows)])
    return dataclasses.replace(plan, windows=tuple(windows), level=-WIDEST if kept_wrong else plan.level)


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
        histogram += histogram_of(scores)
        lowest = _lowest(*(np.concatenate(columns) for columns in zip(lowest, (scores, i, j))))
        scores = scores.astype(np.float64)  # compared in float32, the margin would be rounded
        for number, threshold in enumerate(thresholds):
            hits[number] += np.count_nonzero(scores > threshold + error)
            near = np.flatnonzero((scores <= threshold + error) & (scores >= threshold - error))
            hits[number] += np.count_nonzero(exact_scores(test_set, i[near], j[near]) > threshold)
    return hits, histogram, lowest


def finish(part: Part) -> Score:
    """Return the result of a part that is whole (a merged one, or the only one).

    Raises ValueError where units are missing, and where the sample `misjudged`.
    """
    if not part.done.all():
        raise ValueError("units of the scan are missing")
    if misjudged(part):
        raise ValueError("thresholds lie elsewhere: a second pass is needed")
    plan = part.plan
    test_set = open_test_set(plan.features, plan.labels)
    error = plan.slack / 2
    drafts, thresholds = [], []
    for fpr in plan.fprs:
        admitted, number = plan.admitted(fpr), len(plan.fprs) - 1 - plan.fprs.index(fpr)
        if number < len(plan.windows):
            low, high, accepted = _counted_bounds(part, number, admitted)
            drafts.append((fpr, admitted, low, high, accepted, admitted))
        else:
            low, accepted = _kept_threshold(part, test_set, admitted)
            high = low
            drafts.append((fpr, admitted, low, high, accepted, accepted))
        thresholds += [high, low]
    hits, histogram, lowest = _positives_above(test_set, np.array(thresholds, np.float64), error)
    shares = (hits / test_set.positives).reshape(-1, 2)
    curve = [
        Point(*draft, float(tpr), float(tpr_high), number < len(plan.fprs) - len(plan.windows))
        for number, (draft, (tpr, tpr_high)) in enumerate(zip(drafts, shares))
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
