"""1:1 verification on a pack of pairs, number for number as InsightFace's `verification.py` (protocol of LFW).

Each of ten consecutive folds is judged by what the other nine chose: the threshold of best accuracy, and the threshold
that accepts a share `far` of their different pairs. Distances are squared L2 between unit embeddings (0..4), which is
2 - 2 cosine. AUC and EER are of all pairs at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from vargface.errors import InputError
from vargface.eval.norms import Norms
from vargface.eval.roc import roc

__all__ = ["Pack", "Verification", "pair_distances", "verify", "verify_pack"]

# made by arange as InsightFace makes them: k * .01 is not always the float nearest to it, and edges must be its edges
ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)
FAR_THRESHOLDS = np.arange(0, 4, 0.001)
# TAR is given at these FARs, as far as a pack has the different pairs to tell
FARS = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6")
# pairs normalised at a time: the block of float64 embeddings stays in the second-level cache
BLOCK_PAIRS = 32


class Pack(Protocol):
    """What `verify_pack` asks of a verification pack (`vargface.data.packs.Pack` has it)."""

    name: str
    issame: np.ndarray

    def decode(self, start: int, stop: int) -> np.ndarray:
        """Return images start..stop-1 as (stop - start, 3, H, W) uint8 RGB."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """How well a pack's pairs are told apart; nan where the pack does not have the pairs to say.

    Shares are 0..1. A fold without same pairs says nothing about TAR, one without different pairs nothing about FAR,
    and neither can be said of a fold if the other folds have no different pair to choose its threshold by. Such folds
    are left out of `tar`, `tar_std` and `far` (InsightFace divides by zero there). Accuracy takes every fold.
    """

    pairs: int
    folds: int
    accuracy: float
    accuracy_std: float
    threshold: float  # mean over folds of the threshold of best accuracy, squared L2
    far_target: float
    tar: float  # mean share of same pairs accepted; InsightFace's `val`
    tar_std: float
    far: float  # mean share of different pairs accepted in truth
    tar_threshold: float  # mean over folds of the threshold at `far_target`, squared L2
    xnorm: float = math.nan  # mean norm of the embeddings of both views before normalising
    name: str | None = None
    # TAR at each of FARS, and at `far_target`, that admits a different pair of those that choose the threshold
    tars: dict[str, float] = dataclasses.field(default_factory=dict)
    auc: float = math.nan
    eer: float = math.nan
    norms: Norms | None = None
    # (P,) float64, squared L2 of each pair; not part of the figures
    distances: np.ndarray | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def cosine_threshold(self) -> float:
        """The threshold of best accuracy as a cosine."""
        return 1 - self.threshold / 2

    @property
    def tells_tar(self) -> bool:
        """Whether the pack has 1 / `far_target` different pairs to choose a threshold by, as `tars` has it."""
        return any(float(told) <= self.far_target for told in self.tars)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON, which has no nan: None stands for it."""
        fields = dataclasses.asdict(dataclasses.replace(self, distances=None))
        del fields["distances"]
        fields["cosine_threshold"] = self.cosine_threshold
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in fields.items()}

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Verification:
        """Return the result that `as_dict` made `fields` of, by this version or an older one."""
        known = {
            key: math.nan if value is None else value for key, value in fields.items() if key != "cosine_threshold"
        }
        norms = fields.get("norms")
        # JSON has no tuples
        return cls(**{**known, "norms": norms and Norms(**{**norms, "farthest": tuple(map(tuple, norms["farthest"]))})})


def _norms(embeddings: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings))


def pair_distances(embeddings: np.ndarray, *, name: str | None = None, first: int = 0) -> np.ndarray:
    """Return the squared L2 distances (P,) float64, 0..4, between the normalised rows 2i and 2i + 1 of (2P, D).

    Rows are normalised in float64 as scikit-learn does: a row of zeros stays zero. Raises InputError, with the pack's
    `name` and the image's number, `first` for row 0, for a row that is not finite.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or len(embeddings) % 2:
        raise ValueError(f"embeddings of shape {embeddings.shape}: must be (2P, D), the two of a pair in turn")
    distances = np.empty(len(embeddings) // 2)
    rows = np.empty((2 * BLOCK_PAIRS, embeddings.shape[1]))
    for start in range(0, len(distances), BLOCK_PAIRS):
        block = rows[: 2 * (len(distances) - start)]
        block[:] = embeddings[2 * start : 2 * (start + BLOCK_PAIRS)]
        norms = _norms(block)
        if not np.isfinite(norms).all():
            image = first + 2 * start + int(np.argmin(np.isfinite(norms)))
            raise InputError(
                f"{name or 'pack'}: embedding of image {image} is not finite - the checkpoint is damaged or diverged"
            )
        norms[norms < 10 * np.finfo(norms.dtype).eps] = 1.0
        block /= norms[:, None]
        difference = block[0::2]
        difference -= block[1::2]
        np.square(difference, out=difference)
        difference.sum(axis=1, out=distances[start : start + BLOCK_PAIRS])
    return distances


def _check_split(pairs: int, folds: int, name: str | None) -> None:
    if folds < 1:
        raise ValueError(f"folds {folds}: must be at least 1")
    if pairs == 0:
        raise InputError(f"{name or 'pack'}: has no pairs - build it again with at least {folds}")
    if pairs < folds:
        raise InputError(f"{name or 'pack'}: {pairs} pairs cannot be split into {folds} folds - add pairs or fold less")


def _fold_of_pair(pairs: int, folds: int) -> np.ndarray:
    """Return the fold (P,) of each pair: consecutive folds, the first `pairs % folds` one pair longer."""
    sizes = np.full(folds, pairs // folds)
    sizes[: pairs % folds] += 1
    return np.repeat(np.arange(folds), sizes)


def _of_training(counts: np.ndarray) -> np.ndarray:
    """Return for each fold (axis 0) the sum of `counts` over the other folds; a single fold is its own training set."""
    return counts.sum(axis=0) - counts if len(counts) > 1 else counts


def _accepted(distances: np.ndarray, fold: np.ndarray, folds: int, thresholds: np.ndarray) -> np.ndarray:
    """Return how many `distances` of each fold are below each threshold: (folds, T) int64."""
    first = np.searchsorted(thresholds, distances, side="right")  # the first threshold greater than the distance
    width = len(thresholds) + 1
    counts = np.bincount(fold * width + first, minlength=folds * width).reshape(folds, width)
    return counts[:, :-1].cumsum(axis=1)


def _threshold_at(far: float, fars: np.ndarray, thresholds: np.ndarray) -> float:
    """Return the threshold at which the false accept rate is `far`, linear between `thresholds`; 0 if never reached.

    `fars` (T,) ascends with long runs of equal values. As in the linear B-spline of scipy up to 1.8 (`slinear`; later
    ones refuse such runs), the LAST threshold of the run at or below `far` and the FIRST of the next run decide, in
    this order of operations. If `far` is the greatest value and several thresholds reach it, that spline is 0: so here.
    """
    if fars[-1] < far:
        return 0.0
    left = min(int(np.searchsorted(fars, far, side="right")) - 1, len(fars) - 2)
    low, high = fars[left : left + 2]
    if low == high:
        return 0.0
    weight = 1.0 / (high - low)
    return float(thresholds[left] * (weight * (high - far)) + thresholds[left + 1] * (weight * (far - low)))


def _mean_std(values: np.ndarray) -> tuple[float, float]:
    values = values[~np.isnan(values)]
    return (float(values.mean()), float(values.std())) if len(values) else (math.nan, math.nan)


class _Rates:
    """TAR and FAR of every fold at thresholds that the other folds choose."""

    def __init__(self, distances: np.ndarray, same: np.ndarray, fold: np.ndarray) -> None:
        self.distances, self.same, self.fold = distances, same, fold
        self.folds = int(fold[-1]) + 1
        self.train_diff = _of_training(np.bincount(fold[~same], minlength=self.folds))
        self.train_accepted = _of_training(_accepted(distances[~same], fold[~same], self.folds, FAR_THRESHOLDS))

    def thresholds(self, far: float) -> np.ndarray:
        """Return each fold's threshold (folds,) for `far`; nan where the others have no different pair."""
        found = np.full(self.folds, math.nan)
        for index in np.flatnonzero(self.train_diff):
            fars = self.train_accepted[index] / self.train_diff[index]
            found[index] = _threshold_at(far, fars, FAR_THRESHOLDS)
        return found

    def accepted(self, kind: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
        """Return the share (folds,) of the pairs of one `kind` (P,) bool that each fold accepts at its threshold."""
        total = np.bincount(self.fold[kind], minlength=self.folds)
        accept = (self.distances < thresholds[self.fold]) & kind
        accepted = np.bincount(self.fold[accept], minlength=self.folds)
        return np.where((total > 0) & (self.train_diff > 0), accepted / np.maximum(total, 1), math.nan)


def verify(
    embeddings: np.ndarray, issame: np.ndarray, folds: int = 10, *, far: float = 1e-3, name: str | None = None
) -> Verification:
    """Return accuracy and TAR at `far` of (2P, D) embeddings, one view or the sum of two, not normalised.

    issame: (P,) bool, whether rows 2i and 2i + 1 are one person. folds: 1 chooses and judges on all pairs.
    Equals InsightFace's `evaluate` on the same embeddings normalised in float64. `name` goes into the result and into
    messages. Raises InputError for no pairs, fewer pairs than folds or an embedding that is not finite, ValueError for
    shapes that do not fit.
    """
    issame = np.asarray(issame, dtype=bool)
    if len(embeddings) != 2 * len(issame):
        raise ValueError(f"{len(embeddings)} embeddings for {len(issame)} pairs: must be two a pair")
    _check_split(len(issame), folds, name)
    return _judged(pair_distances(embeddings, name=name), issame, folds, far, name)


def _judged(distances: np.ndarray, issame: np.ndarray, folds: int, far: float, name: str | None) -> Verification:
    """Return the verification of the pairs that are `distances` (P,), squared, apart."""
    if not 0 <= far <= 1:
        raise ValueError(f"far {far}: must be in 0..1")
    pairs = len(issame)
    fold = _fold_of_pair(pairs, folds)
    hits, false_hits = (_accepted(distances[k], fold[k], folds, ACCURACY_THRESHOLDS) for k in (issame, ~issame))
    correct = hits + np.bincount(fold[~issame], minlength=folds)[:, None] - false_hits
    best = _of_training(correct).argmax(axis=1)
    accuracy, accuracy_std = _mean_std(correct[np.arange(folds), best] / np.bincount(fold))

    rates = _Rates(distances, issame, fold)
    far_thresholds = rates.thresholds(far)
    tar, tar_std = _mean_std(rates.accepted(issame, far_thresholds))
    targets = FARS if far in map(float, FARS) else (*FARS, f"{far:g}")
    told = [target for target in targets if issame.any() and float(target) * rates.train_diff.min() >= 1]
    tars = {target: _mean_std(rates.accepted(issame, rates.thresholds(float(target))))[0] for target in told}
    curve = roc(distances, issame)
    return Verification(
        pairs=pairs,
        folds=folds,
        accuracy=accuracy,
        accuracy_std=accuracy_std,
        threshold=float(ACCURACY_THRESHOLDS[best].mean()),
        far_target=far,
        tar=tar,
        tar_std=tar_std,
        far=_mean_std(rates.accepted(~issame, far_thresholds))[0],
        tar_threshold=_mean_std(far_thresholds)[0],
        name=name,
        tars=tars,
        auc=curve.auc if curve else math.nan,
        eer=curve.eer if curve else math.nan,
        distances=distances,
    )


def verify_pack(
    embed: Callable[[np.ndarray], np.ndarray],
    pack: Pack,
    folds: int = 10,
    *,
    far: float = 1e-3,
    batch_size: int = 32,
    flip: bool = True,
    on_batch: Callable[[int], object] | None = None,
) -> Verification:
    """Return the verification of `pack` by the mirror-summed embeddings f(x) + f(mirror x), with norms and name.

    flip: False judges pairs by f(x) alone, as software that embeds one view does; norms are of both views all the same.
    embed: (n, 3, H, W) uint8 RGB -> (n, D) float, not normalised; called twice a batch, n <= batch_size.
    on_batch: called with the number of images done in each batch (a progress bar's `update`). Images are decoded batch
    by batch; of the embeddings only distances and norms are kept. Raises as `verify`.
    """
    issame = np.asarray(pack.issame, dtype=bool)
    images = 2 * len(issame)
    _check_split(len(issame), folds, pack.name)
    distances, norms, energy = np.empty(len(issame)), np.empty((2, images)), 0.0
    first, sums = 0, []  # of the pair that the last batch may have cut
    for start in range(0, images, batch_size):
        stop = min(start + batch_size, images)
        view = pack.decode(start, stop)
        plain = np.asarray(embed(view), dtype=np.float64)
        mirrored = np.asarray(embed(np.ascontiguousarray(view[..., ::-1])), dtype=np.float64)
        if plain.ndim != 2 or len(plain) != stop - start or mirrored.shape != plain.shape:
            raise ValueError(f"embed gave {plain.shape} and {mirrored.shape} for {stop - start} images: must be (n, D)")
        sums = np.concatenate([*sums, plain + mirrored if flip else plain]).reshape(-1, plain.shape[1])
        pairs = len(sums) // 2
        distances[first // 2 : first // 2 + pairs] = pair_distances(sums[: 2 * pairs], name=pack.name, first=first)
        first, sums = first + 2 * pairs, [sums[2 * pairs :]]
        norms[:, start:stop] = _norms(plain), _norms(mirrored)
        energy = energy + np.einsum("ij,ij->j", plain, plain) + np.einsum("ij,ij->j", mirrored, mirrored)
        if on_batch is not None:
            on_batch(stop - start)
    result = _judged(distances, issame, folds, far, pack.name)
    return dataclasses.replace(result, xnorm=float(norms.mean()), norms=Norms.of(*norms, energy))
