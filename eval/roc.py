"""The ROC of all pairs at once: what does not depend on folds or on a grid of thresholds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Roc", "roc"]


class Roc(NamedTuple):
    """Shares accepted when a pair is accepted up to and at each distance that occurs; first comes no pair at all."""

    distances: np.ndarray  # (n,) float64, ascending from -inf on
    tars: np.ndarray  # (n,) of the same pairs
    fars: np.ndarray  # (n,) of the different pairs

    @property
    def auc(self) -> float:
        """Area under the curve: the chance that a same pair is nearer than a different one, a tie counting half."""
        return float(np.sum(np.diff(self.fars) * (self.tars[1:] + self.tars[:-1])) / 2)

    @property
    def eer(self) -> float:
        """Equal error rate: where FAR = 1 - TAR, on straight lines between the points."""
        surplus = self.fars + self.tars - 1  # ascends from -1 to 1
        after = int(np.searchsorted(surplus, 0))
        step = surplus[after] - surplus[after - 1]
        return float(self.fars[after - 1] - surplus[after - 1] / step * (self.fars[after] - self.fars[after - 1]))


def roc(distances: np.ndarray, same: np.ndarray) -> Roc | None:
    """Return the ROC of (P,) distances, same (P,) bool; None where one kind of pair is missing."""
    num_same = int(np.count_nonzero(same))
    if num_same in (0, len(same)):
        return None
    order = np.argsort(distances, kind="stable")
    ascending, kind = distances[order], same[order]
    last = np.flatnonzero(np.append(ascending[1:] > ascending[:-1], True))  # of each run of equal distances
    accepted_same = np.cumsum(kind)[last]
    tars = accepted_same / num_same
    fars = (last + 1 - accepted_same) / (len(same) - num_same)
    return Roc(np.append(-np.inf, ascending[last]), np.append(0.0, tars), np.append(0.0, fars))
