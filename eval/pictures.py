"""Pictures of how well pairs are told apart: ROC, histograms of scores, and the pairs that are most wrong."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

__all__ = ["draw_pairs", "draw_roc", "draw_scores"]


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def draw_roc(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """Return a PNG of TAR by FAR, the latter in logarithmic scale; name -> (fars, tars), each (n,) in 0..1.

    A FAR of zero has no place on the scale and is left out.
    """
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axis = figure.subplots()
    for name, (fars, tars) in curves.items():
        shown = np.asarray(fars) > 0
        axis.plot(np.asarray(fars)[shown], np.asarray(tars)[shown], drawstyle="steps-post", label=name)
    axis.set_xscale("log")
    axis.set(xlabel="share of different pairs accepted (FAR)", ylabel="share of same pairs accepted (TAR)")
    axis.set_ylim(0, 1.01)
    axis.grid(alpha=0.3)
    axis.legend()
    return _png(figure)


def draw_scores(
    edges: np.ndarray, same: np.ndarray, different: np.ndarray, thresholds: Mapping[str, float] | None = None
) -> bytes:
    """Return a PNG of the histograms of the cosines of same and different pairs, each as shares of its kind.

    edges: (bins + 1,); same, different: (bins,) counts. thresholds: name -> cosine, a line each.
    """
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    for name, counts in (("different", different), ("same", same)):
        axis.stairs(counts / max(counts.sum(), 1), edges, fill=True, alpha=0.5, label=f"{name} ({counts.sum():,})")
    for number, (name, cosine) in enumerate((thresholds or {}).items()):
        axis.axvline(cosine, color=f"C{number + 2}", lw=1, label=f"{name}: {cosine:.4f}")
    axis.set(xlabel="cosine", ylabel="share of pairs a bin")
    axis.set_xlim(max(-1, edges[0]), min(1, edges[-1]))
    axis.legend(fontsize=8)
    return _png(figure)


def draw_pairs(pairs: Sequence[Sequence[np.ndarray | str]], captions: Sequence[str], *, columns: int = 6) -> bytes:
    """Return a PNG sheet of `pairs` of images, (H, W, 3) uint8 RGB each, side by side under their captions.

    A text in the place of an image, the name of one that cannot be read, is written on a grey tile.
    """
    size = next((image.shape for pair in pairs for image in pair if not isinstance(image, str)), (112, 112, 3))
    grey = np.full(size, 128, np.uint8)
    lines = max(1, -(-len(pairs) // columns))
    figure = Figure(figsize=(2.2 * columns, 1.55 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, pair, caption in zip(axes, pairs, captions):
        axis.imshow(np.hstack([grey if isinstance(image, str) else image for image in pair]))
        for number, image in enumerate(pair):
            if isinstance(image, str):
                axis.text((number + 0.5) * size[1], size[0] / 2, image[-24:], fontsize=5, ha="center", va="center")
        axis.set_title(caption, fontsize=7)
    return _png(figure)
