"""A study's figures in one picture: a row a cell and generation, a dot a seed."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from vargface.study.summary import Figures

__all__ = ["draw_study"]

PANELS = {
    "accuracy, mean of the packs, %": lambda figures: 100 * figures.mean_accuracy,
    "TAR, mean of the packs, %": lambda figures: 100 * figures.mean_tar,
    "cosine to its teacher on the packs' faces": lambda figures: figures.cosine,
}


def draw_study(found: Mapping[str, Mapping[int, Figures]]) -> bytes:
    """Return a PNG of what `collect` found: row -> seed -> figures. A dot is a seed, a line the mean of a row's."""
    figure = Figure(figsize=(12, 1.2 + 0.24 * len(found)), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    places = {name: place for place, name in enumerate(found)}
    for axis, (title, value_of) in zip(axes, PANELS.items()):
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        for name, of_seed in found.items():
            values = [value_of(figures) for figures in of_seed.values()]
            axis.plot(values, [places[name]] * len(values), "o", ms=4, color="C0", alpha=0.8)
            axis.plot(np.mean(values), places[name], "|", ms=12, mew=2, color="C1", zorder=1)
    axes[0].set_yticks(list(places.values()), list(places))
    axes[0].invert_yaxis()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
