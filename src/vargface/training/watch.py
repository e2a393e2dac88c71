"""What the log of a run says in words: distillation that stalls, a loss whose say over the backbone is negligible."""

from __future__ import annotations

import collections
from collections.abc import Mapping

import numpy as np
from easydict import EasyDict

__all__ = ["Watch"]

# the cosine to the teacher is looked at over a stretch of the run, this share of its steps or as many rows of the log
STRETCH, LEAST_ROWS = 0.1, 20
# it stalls if it surely (two standard errors) rises by less from the first half of a stretch to the second, far from
# the teacher, at a rate that should move it
STILL, NEAR, SLOW = 0.005, 0.9, 0.1
# gradients at the embedding this far apart are one loss alone; over so many rows, for a batch may be unlike the others
APART, ROWS = 100.0, 3
LEARNED = 0.9


class Watch:
    """Reads a run's log row by row; what it has to say is said once, a stall once a stretch."""

    def __init__(self, recipe: EasyDict) -> None:
        self._recipe = recipe
        stretch = max(LEAST_ROWS, int(STRETCH * recipe.steps / recipe.log_every))
        self._cosines: collections.deque = collections.deque(maxlen=stretch)
        self._gradients: collections.deque = collections.deque(maxlen=ROWS)
        self._said: dict[str, bool] = {}

    def __call__(self, row: Mapping[str, float]) -> list[str]:
        """Return what is new to say of `row`, the next one of log.csv; nothing of a run without a teacher."""
        if "teacher_cosine" not in row:
            return []
        found = {"stall": self._stall(row), "balance": self._balance(row)}
        new = [text for kind, text in found.items() if text and not self._said.get(kind)]
        self._said = {kind: bool(text) for kind, text in found.items()}
        return new

    def _stall(self, row: Mapping[str, float]) -> str:
        # no number: every step since the last row was left out
        if row["step"] <= self._recipe.warmup_steps or not np.isfinite(row["teacher_cosine"]):
            return ""
        self._cosines.append(row["teacher_cosine"])
        if len(self._cosines) < self._cosines.maxlen or row["lr"] < SLOW * self._recipe.lr:
            return ""
        values = np.array(self._cosines)
        halves = np.array_split(values, 2)
        before, now = (half.mean() for half in halves)
        error = np.sqrt(sum(half.var(ddof=1) / len(half) for half in halves))
        if now - before + 2 * error >= STILL or now >= NEAR:
            return ""
        self._cosines.clear()  # said once a stretch
        if now <= 0.1:
            advice = "the student does not follow the teacher: look at alpha, at lr, and at what the teacher is fed"
        else:
            advice = "a lower lr, a larger alpha or a wider student may go on from here"
        steps = len(values) * self._recipe.log_every
        return f"distillation stalls: cosine to the teacher {before:.3f}, then {now:.3f} in {steps} steps - {advice}"

    def _balance(self, row: Mapping[str, float]) -> str:
        if row["step"] <= max(self._recipe.margin_ramp[1], self._recipe.warmup_steps):
            return ""
        # a log from before they were logged has none
        self._gradients.append([row.get(name, np.nan) for name in ("margin_gradient", "distillation_gradient")])
        if len(self._gradients) < ROWS:
            return ""
        margin, distillation = np.median(np.array(self._gradients), axis=0)
        norms = f"(norms {margin:.2g} and {distillation:.2g} at the embedding)"
        alpha = self._recipe.alpha
        if distillation * APART < margin and row["teacher_cosine"] < NEAR:
            return (
                f"distillation teaches next to nothing: the margin loss's gradient is {_times(margin, distillation)} "
                f"its own {norms} - raise alpha = {alpha:g}; the paper's 7 is for a distance summed over the "
                "dimensions: where it was averaged, the weight is larger by their number"
            )
        if margin * APART < distillation and row["train_accuracy"] < LEARNED:
            return (
                f"the margin loss has next to no say: distillation's gradient is {_times(distillation, margin)} "
                f"its own {norms} - lower alpha = {alpha:g}"
            )
        return ""


def _times(larger: float, smaller: float) -> str:
    return f"{larger / smaller:,.0f} times" if smaller > 0 else "infinitely many times"
