"""The norms of embeddings before normalising, and what may explain a mean (xnorm) that is out of the ordinary.

The same network gave cfp_fp an xnorm of 270 and the other packs 11 in a public report that nobody explained. A mean
alone cannot: it may be a few images, one dimension of the embedding, or every image of a pack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

__all__ = ["Norms", "explain_norms"]

# a norm that is so many times the median, or the median so many times it, is an outlier
FAR_OFF = 3.0
# one dimension that holds so much of the squared norms is the embedding's, whatever the others say
DOMINANT = 0.25
NAMED = 5


@dataclasses.dataclass(frozen=True)
class Norms:
    """Spread of the norms of all images of a pack, in both views."""

    median: float
    low: float  # 5th percentile
    high: float  # 95th percentile
    smallest: float
    largest: float
    outliers: int  # images of which a view is an outlier
    farthest: tuple[tuple[int, float], ...]  # (image, norm) of the outliers that are farthest off
    mean_without: float  # mean norm of the images that are no outliers
    dimension: int  # that holds most of the squared norms
    dimension_share: float  # of all, 0..1

    @classmethod
    def of(cls, plain: np.ndarray, mirrored: np.ndarray, energy: np.ndarray) -> Norms:
        """Return the spread of the norms (n,) of n images and of their mirror images.

        energy: (D,) the sum over both views of the squared embeddings.
        """
        both = np.stack([plain, mirrored])
        low, median, high = np.percentile(both, [5, 50, 95])
        tiny = np.finfo(np.float64).tiny
        off = np.abs(np.log(np.maximum(both, tiny)) - np.log(max(median, tiny)))
        view, off = off.argmax(axis=0), off.max(axis=0)
        is_off = off > np.log(FAR_OFF)
        named = [int(image) for image in np.argsort(-off, kind="stable")[:NAMED] if is_off[image]]
        others = both[:, ~is_off]
        total = energy.sum()
        strongest = int(energy.argmax())
        return cls(
            median=float(median),
            low=float(low),
            high=float(high),
            smallest=float(both.min()),
            largest=float(both.max()),
            outliers=int(is_off.sum()),
            farthest=tuple((image, float(both[view[image], image])) for image in named),
            mean_without=float(others.mean()) if others.size else float(median),
            dimension=strongest,
            dimension_share=float(energy[strongest] / total) if total else 0.0,
        )


def explain_norms(packs: Mapping[str, Norms]) -> list[str]:
    """Return a line for everything about the norms of `packs` (name -> norms) that is out of the ordinary."""
    lines = []
    least = min(packs, key=lambda name: packs[name].median, default=None)
    for name, norms in packs.items():
        if norms.outliers:
            named = ", ".join(f"image {image} (pair {image // 2}) {norm:.4g}" for image, norm in norms.farthest)
            lines.append(
                f"{name}: {norms.outliers} images have norms {FAR_OFF:g} times off the median {norms.median:.4g}: "
                f"{named} - look at them (--pictures); without them xnorm is {norms.mean_without:.4g}"
            )
        if norms.dimension_share > DOMINANT:
            lines.append(
                f"{name}: dimension {norms.dimension} of the embedding holds {norms.dimension_share:.0%} of the "
                "squared norms: look at its moving variance and gamma in fc1's batch norm"
            )
        if norms.median > FAR_OFF * packs[least].median:
            lines.append(
                f"{name}: the median norm {norms.median:.4g} is {norms.median / max(packs[least].median, 1e-12):.3g} "
                f"times that of {least}: all its images, not a few - are they aligned, scaled and coloured as the "
                "others? do moving means and variances belong to these weights?"
            )
    return lines
