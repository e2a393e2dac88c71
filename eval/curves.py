"""Training curves: what runs logged, side by side in one picture."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

__all__ = ["History", "draw_curves"]

# column of a run's log -> title of its panel; a panel that no run has a column for is left out
PANELS = {
    "margin_loss": "margin softmax loss",
    "distillation_loss": "distillation loss, weight included",
    "teacher_cosine": "cosine to the teacher (training images)",
    "lr": "learning rate",
}
ACCURACY = "verification accuracy"
LINES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")


@dataclasses.dataclass(frozen=True)
class History:
    """What one run logged.

    log: column -> values (n,), `step` among them. packs: pack -> (steps, accuracies in 0..1), a value a verification.
    """

    name: str
    log: Mapping[str, np.ndarray]
    packs: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)


def draw_curves(histories: Sequence[History]) -> bytes:
    """Return a PNG of the losses, the cosine to the teacher, the rate and the packs' accuracy of every run by step.

    A colour is a run, a line style a pack.
    """
    panels = [column for column in PANELS if any(column in history.log for history in histories)]
    if any(history.packs for history in histories):
        panels.insert(0, ACCURACY)
    figure = Figure(figsize=(11, 3.1 * -(-len(panels) // 2)), layout="constrained")
    axes = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).ravel()
    for axis, panel in zip(axes, panels):
        axis.set_title(PANELS.get(panel, panel), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        for number, history in enumerate(histories):
            colour = f"C{number}"
            if panel == ACCURACY:
                for style, (pack, (steps, accuracies)) in enumerate(history.packs.items()):
                    line, marker = LINES[style % len(LINES)], MARKERS[style % len(MARKERS)]
                    label = f"{history.name}: {pack} {100 * accuracies[-1]:.2f} %"
                    axis.plot(steps, 100 * accuracies, line, marker=marker, ms=4, color=colour, label=label)
            elif panel in history.log:
                axis.plot(history.log["step"], history.log[panel], color=colour, lw=1.2, label=history.name)
        axis.legend(fontsize=7)
    for axis in axes[len(panels) :]:
        axis.remove()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
