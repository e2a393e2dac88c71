"""What a scan of all pairs looks for: which thresholds, which negatives to keep, and where to count the others.

A sample of pairs says where the thresholds lie; it decides nothing. All that machines which share a scan must agree on
follows from the files and a few numbers by exact integer arithmetic, so it is the same on those of different makes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from vargface.errors import InputError
from vargface.eval.lfr.features import TestSet, open_test_set
from vargface.eval.lfr.pairs import Window, score_error, unit_rows

__all__ = ["BIN", "CURVE", "HEADLINE", "HISTOGRAM", "KEPT", "MOST_BINS", "WIDEST", "Plan", "histogram_of", "make_plan"]

HEADLINE = "1e-8"  # of the image tracks; the video tracks have 1e-4
CURVE = ("1e-9", "1e-8", "1e-7", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2", "1e-1")
# negative pairs kept for exact thresholds, 12 bytes each, twice in the worst case: enough for the 1e-4 of the videos
KEPT = 2_500_000
# the sample: blocks of disjoint random rows; the chance that all of them err to one side is 2^-31
SAMPLE_BLOCKS, SAMPLE_ROWS = 32, (64, 1024)
# features become integers of this unit in the sample: sums of products are then exact in float64, in any order
QUANTUM = 2.0**-24
# the narrowest bin: scores closer than this are one to float32 anyway
BIN = 2.0**-22
MOST_BINS = 1 << 16
# beyond every score, rows having norm 1 within NORM_TOLERANCE; EXCLUDED is farther off
WIDEST = float(np.float32(1.01))
HISTOGRAM = np.linspace(-1, 1, 201)  # bin edges of what is drawn


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

    def asks_the_same(self, other: Plan) -> bool:
        """Return whether both plans have the same result: they may look for it in different places."""
        mine, theirs = ((p.fingerprint, p.rows, p.headline, p.fprs, p.keep) for p in (self, other))
        return mine == theirs

    def agrees(self, other: Plan) -> bool:
        """Return whether parts of both plans can be merged: they look in the same places, too."""
        return self.asks_the_same(other) and (self.level, self.windows) == (other.level, other.windows)

    def of_files(self, features: str, labels: str) -> Plan:
        """Return this plan for the same files under other names."""
        return dataclasses.replace(self, features=str(features), labels=str(labels))


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


def _quantiles(test_set: TestSet, shares: Sequence[float], keep: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the sample sees the scores of `shares` of all negatives and of those kept, and its histogram.

    (blocks, len(shares) + 1) float64, the last column that of the `keep` highest; (200,) int64.
    """
    histogram = np.zeros(len(HISTOGRAM) - 1, np.int64)
    quantiles = []
    for scores in _sampled(test_set, seed):
        histogram += histogram_of(scores)
        if not len(scores):
            continue
        # where the sample is too small to have seen the level of the kept, a lower one of which it has seen 16 pairs
        lowest_kept = max(2 * keep / test_set.negatives, min(16 / len(scores), 1.0))
        places = [min(int(share * len(scores)), len(scores) - 1) for share in (*shares, lowest_kept)]
        quantiles.append(np.partition(scores, [len(scores) - 1 - place for place in places])[[-1 - p for p in places]])
    if not quantiles:  # no negative pair was drawn: look everywhere
        quantiles = [np.full(len(shares) + 1, score) for score in (-WIDEST, WIDEST)]
    return np.stack(quantiles), histogram


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

    A FPR is a decimal number as a string, such as "1e-8" or "0.001", above 0 and below 1; those of `fprs` that admit no
    pair are left out. kept: how many negative pairs are kept for exact thresholds. Raises InputError where there is no
    pair of one person, where the headline admits no negative pair, and as `open_test_set` and `TestSet.check` do.
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
    quantiles, histogram = _quantiles(test_set, shares, keep, seed)
    level = -WIDEST if negatives <= kept else float(quantiles[:, -1].min() - margin)
    windows = [_window(column, margin) for column in quantiles.T[: len(counted)]]
    return Plan(
        str(features),
        str(labels),
        test_set.fingerprint,
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
    # as a float first: exactly, 1e-300000000 is a number of 300 million digits
    with contextlib.suppress(ValueError):
        if 0 < float(fpr) < 1 and 0 < Fraction(fpr) < 1:
            return
    raise InputError(f"FPR {fpr[:40]!r}: give a decimal number above 0 and below 1, such as 1e-8")


def _coarser(negatives: int) -> str:
    """Return the smallest power of ten that admits a hundred of `negatives`, or one."""
    exponent = next((e for e in range(9, 0, -1) if negatives >= 100 * 10**e), 1)
    return f"1e-{exponent}"


def _window(quantiles: np.ndarray, margin: float) -> Window:
    """Return the window in which every block of the sample places a threshold, both ends numbers of float32."""
    low, high = float(np.float32(quantiles.min() - margin)), float(np.float32(quantiles.max() + margin))
    return Window(low, high, int(np.clip(math.ceil((high - low) / BIN), 1, MOST_BINS)))


def histogram_of(scores: np.ndarray) -> np.ndarray:
    """Return how many of `scores` are in each bin of HISTOGRAM; np.histogram takes ten times as long."""
    bins = len(HISTOGRAM) - 1
    places = ((scores + 1) * (bins / 2)).astype(np.int64)
    return np.bincount(np.clip(places, 0, bins - 1), minlength=bins)
