"""Training curves: what runs logged, side by side in one picture."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["History", "draw_curves"]

# column of a run's log -> title of its panel; a panel that no run has a column for is left out
PANELS = {
    "margin_loss": "margin softmax loss",
    "distillation_loss": "distillation loss, weight included",
    "teacher_cosine": "cosine to the teacher (training images; 5th to 95th percentile)",
    "lr": "learning rate",
    "margin_gradient": "gradient at the embedding: margin (full), distillation (dashed)",
}
ACCURACY = "verification accuracy"
XNORM = "norm of the embedding: training images (full line), packs"
LINES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")


@dataclasses.dataclass(frozen=True)
class History:
    """What one run logged.

    log: column -> values (n,), `step` among them. packs: pack -> (steps, accuracies in 0..1), a value a verification;
    xnorms: the same of the norms.
    """

    name: str
    log: Mapping[str, np.ndarray]
    packs: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    xnorms: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)


def draw_curves(histories: Sequence[History]) -> bytes:
    """Return a PNG of the losses, their gradients, the cosine to the teacher, the rate, the packs' accuracy and norms.

    A colour is a run, a line style a pack.
    """
    panels = [column for column in PANELS if any(column in history.log for history in histories)]
    if any(history.packs for history in histories):
        panels.insert(0, ACCURACY)
    if any(history.xnorms for history in histories):
        panels.append(XNORM)
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
            elif panel == XNORM:
                _draw_norms(axis, history, colour)
            elif panel in history.log:
                axis.plot(history.log["step"], history.log[panel], color=colour, lw=1.2, label=history.name)
                _draw_beside(axis, panel, history, colour)
        axis.legend(fontsize=7)
    for axis in axes[len(panels) :]:
        axis.remove()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _draw_beside(axis: Axes, panel: str, history: History, colour: str) -> None:
    """Draw what else belongs to a panel: percentiles around their mean, the other loss's gradient on one scale."""
    steps, log = history.log["step"], history.log
    if f"{panel}_p5" in log:
        axis.fill_between(steps, log[f"{panel}_p5"], log[f"{panel}_p95"], color=colour, alpha=0.15, lw=0)
    if panel == "margin_gradient":
        axis.set_yscale("log", nonpositive="mask")
        if "distillation_gradient" in log:
            axis.plot(steps, log["distillation_gradient"], "--", color=colour, lw=1.2)


def _draw_norms(axis: Axes, history: History, colour: str) -> None:
    if "embedding_norm" in history.log:
        axis.plot(history.log["step"], history.log["embedding_norm"], color=colour, lw=1.2, label=history.name)
    for style, (pack, (steps, norms)) in enumerate(history.xnorms.items()):
        line, marker = LINES[(style + 1) % len(LINES)], MARKERS[style % len(MARKERS)]
        label = f"{history.name}: {pack} {norms[-1]:.3g}"
        axis.plot(steps, norms, line, marker=marker, ms=4, color=colour, label=label)
