"""The report of one run or of several side by side: one HTML page with everything in it."""

from __future__ import annotations

import base64
import dataclasses
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vargface.eval.curves import History, draw_curves
from vargface.eval.pictures import draw_roc, draw_scores
from vargface.eval.roc import roc
from vargface.eval.table import few_pairs_note, tar_mark
from vargface.eval.verification import Verification

__all__ = ["Run", "report_page"]

EDGES = np.linspace(-1, 1, 101)

STYLE = """
:root { --ink: #1c2430; --soft: #5c6675; --line: #dde2e9; --ground: #f5f7fa; --accent: #1f77b4; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 0 0 12px; }
p { margin: 0 0 8px; color: var(--soft); }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px; margin-top: 20px;
  overflow-x: auto; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; margin-top: 18px; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 12px 18px; min-width: 150px; }
.card b { display: block; font-size: 22px; } .card span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; font-size: 14px; width: 100%; }
th, td { text-align: right; padding: 5px 12px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
table.keys td, table.keys th { text-align: left; } table.keys tr.set td { font-weight: 600; }
.row { display: flex; flex-wrap: wrap; gap: 12px; } .row img { flex: 1 1 320px; max-width: 520px; min-width: 0; }
img { max-width: 100%; height: auto; } code { font: 13px/1.4 ui-monospace, monospace; }
"""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a page says of one run.

    step, steps: how far it is and is to go; packs: figures of the best checkpoint; distances: pack -> (squared L2 (P,),
    whether same (P,)) of it; recipe and defaults: every key; machine: what it ran on; model: the best, "PREFIX,EPOCH";
    warnings: what its log says in words.
    """

    name: str
    history: History
    step: int
    steps: int
    packs: Mapping[str, Verification]
    distances: Mapping[str, tuple[np.ndarray, np.ndarray]]
    recipe: Mapping[str, Any]
    defaults: Mapping[str, Any]
    machine: Mapping[str, str]
    model: str = ""
    warnings: Sequence[str] = ()


def report_page(runs: Sequence[Run]) -> str:
    """Return the HTML page of `runs`, pictures and style included: nothing of it lies elsewhere."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    parts = [f"<h1>{_text(title)}</h1>"]
    parts += [f"<p>{_text(_progress(run))}</p>" for run in runs]
    if len(runs) == 1:
        parts.append(_cards(runs[0]))
    parts.append(_section("Verification, best checkpoint", _verification(runs)))
    parts.append(_section("Warnings", _warnings(runs)))
    parts.append(_section("Training", _picture(draw_curves([run.history for run in runs]), "curves by step")))
    parts.append(_section("Pairs told apart", _pairs(runs)))
    parts.append(_section("Recipe", _recipe(runs)))
    parts.append(_section("Machine", _machine(runs)))
    body = "\n".join(part for part in parts if part)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>\n{content}\n</section>" if content else ""


def _picture(png: bytes, what: str) -> str:
    return f'<img alt="{_text(what)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = "") -> str:
    def line(tag: str, cells: Sequence[Any]) -> str:
        return "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells)

    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<table class="{kind}"><tr>{line("th", head)}</tr>\n{body}</table>'


def _progress(run: Run) -> str:
    recipe = run.recipe
    how = f"distilled from {recipe['teacher']}" if recipe.get("teacher") else "without a teacher"
    where = "finished" if run.step >= run.steps else "not finished"
    return (
        f"{run.name}: {recipe.get('network')} {recipe.get('variant') or ''} {how}; step {run.step:,} of {run.steps:,}, "
        f"{where}{f'; best checkpoint {run.model}' if run.model else ''}"
    )


def _cards(run: Run) -> str:
    figures = {f"accuracy on {name}": f"{100 * result.accuracy:.2f} %" for name, result in run.packs.items()}
    log = run.history.log
    for column, label, form in (
        ("teacher_cosine", "cosine to the teacher, training", "{:.3f}"),
        ("margin_loss", "margin loss", "{:.3g}"),
        ("images_per_second", "images a second", "{:.3g}"),
    ):
        if column in log and len(log[column]):
            figures[label] = form.format(log[column][-1])
    cards = "".join(
        f'<div class="card"><b>{_text(value)}</b><span>{_text(label)}</span></div>' for label, value in figures.items()
    )
    return f'<div class="cards">{cards}</div>'


def _warnings(runs: Sequence[Run]) -> str:
    return "\n".join(f"<p>{_text(f'{run.name}, {text}')}</p>" for run in runs for text in run.warnings)


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:.2f}"


def _verification(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        for name, result in run.packs.items():
            accuracy = f"{_percent(result.accuracy)} ± {_percent(result.accuracy_std)}"
            tar = f"{_percent(result.tar)}{tar_mark(result)} at FAR {result.far_target:g}"
            rows.append(
                [
                    *([run.name] if len(runs) > 1 else []),
                    name,
                    accuracy,
                    tar,
                    _percent(result.auc),
                    _percent(result.eer),
                    f"{result.cosine_threshold:.3f}",
                    f"{result.xnorm:.2f}",
                    f"{result.pairs:,}",
                ]
            )
    head = ["pack", "accuracy %", "TAR %", "AUC %", "EER %", "cosine threshold", "xnorm", "pairs"]
    if not rows:
        return ""
    note = few_pairs_note(result for run in runs for result in run.packs.values())
    return _table(["run", *head] if len(runs) > 1 else head, rows) + (f"<p>{_text(note)}</p>" if note else "")


def _pairs(runs: Sequence[Run]) -> str:
    """ROC of each pack, a line a run, and the histograms of the cosines."""
    parts = []
    for name in dict.fromkeys(pack for run in runs for pack in run.distances):
        found = {run.name: (run, *run.distances[name]) for run in runs if name in run.distances}
        curves = {label: roc(distances, same) for label, (_, distances, same) in found.items()}
        curves = {label: (curve.fars, curve.tars) for label, curve in curves.items() if curve is not None}
        if not curves:
            continue
        pictures = [_picture(draw_roc(curves), f"ROC on {name}")]
        for label in curves:
            run, distances, same = found[label]
            cosines = 1 - distances / 2
            counts = [np.histogram(cosines[kind], EDGES)[0] for kind in (same, ~same)]
            threshold = {"threshold": run.packs[name].cosine_threshold} if name in run.packs else {}
            pictures.append(_picture(draw_scores(EDGES, *counts, threshold), f"cosines on {name}, {label}"))
        parts.append(f'<h2>{_text(name)}</h2><div class="row">{"".join(pictures)}</div>')
    return "\n".join(parts)


def _recipe(runs: Sequence[Run]) -> str:
    """Every key of one run, those set first; of several the keys in which they differ from the defaults."""
    keys = [key for key in runs[0].defaults if any(run.recipe.get(key) != run.defaults[key] for run in runs)]
    rest = [key for key in runs[0].defaults if key not in keys] if len(runs) == 1 else []
    head = ["key", *(run.name for run in runs), "default"]
    rows = [[key, *(run.recipe.get(key) for run in runs), runs[0].defaults[key]] for key in keys]
    table = _table(head, rows, "keys")
    if rest:
        as_default = ", ".join(f"{key} = {runs[0].recipe.get(key)}" for key in rest)
        table += f"<p></p><p>As by default: <code>{_text(as_default)}</code></p>"
    return table


def _machine(runs: Sequence[Run]) -> str:
    facts = dict.fromkeys(fact for run in runs for fact in run.machine)
    return _table(
        ["", *(run.name for run in runs)],
        [[fact, *(run.machine.get(fact, "") for run in runs)] for fact in facts],
        "keys",
    )
