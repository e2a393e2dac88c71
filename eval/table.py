"""Tables for people: what was trained and how well it verifies, as plain text or Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from vargface.eval.flops import NetworkCost
from vargface.eval.verification import FARS, Verification

__all__ = ["Result", "details_table", "few_pairs_note", "format_table", "layer_table", "results_table", "tar_mark"]

MISSING = "-"
FEW_PAIRS = "fewer than 1 / FAR pairs of different people choose the threshold: the rate is that of a handful of pairs"


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of the table of results; what is None or not in `packs` is shown as `-`."""

    name: str
    packs: Mapping[str, Verification] = dataclasses.field(default_factory=dict)
    params: int | None = None
    flops: int | None = None
    checkpoint: str | None = None


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,), markdown: bool = False
) -> str:
    """Return `rows` under `header` in columns as wide as their content, without a last line break.

    left: the columns that are aligned to the left; the others (numbers) to the right.
    """
    if markdown:
        header, *rows = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[column]) for row in (header, *rows))) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    if markdown:
        rule = [":" + "-" * (w - 1) if i in left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    else:
        rule = ["-" * width for width in widths]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def _percent(share: float) -> str:
    return MISSING if math.isnan(share) else f"{100 * share:.2f}"


def _far(share: float) -> str:
    """Return 0.001 as `1e-3`, 0.0025 as `2.5e-3`."""
    digits, exponent = f"{share:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def tar_mark(found: Verification) -> str:
    """Return "*" for a TAR that the pack has too few different pairs to tell, else "" (also where it has no TAR)."""
    return "" if math.isnan(found.tar) or found.tells_tar else "*"


def few_pairs_note(packs: Iterable[Verification], *, markdown: bool = False) -> str:
    """Return the line that says what `tar_mark` marks, "" where it marks none of `packs`."""
    mark = "\\*" if markdown else "*"
    return f"{mark} {FEW_PAIRS}" if any(map(tar_mark, packs)) else ""


def results_table(results: Sequence[Result], *, markdown: bool = False) -> str:
    """Return a row a result: accuracy ± std and TAR@FAR of each pack in per cent, parameters, MFLOPs, checkpoint.

    A TAR that a pack has too few different pairs to tell is given as InsightFace gives it, with a mark and a last line.
    """
    columns = list(dict.fromkeys((pack, v.far_target) for result in results for pack, v in result.packs.items()))
    header = ["model"]
    for pack, far in columns:
        header += [f"{pack} %", f"{pack} TAR@{_far(far)} %"]
    header += ["params", "MFLOPs", "checkpoint"]
    rows = []
    for result in results:
        row = [result.name]
        for pack, far in columns:
            found = result.packs.get(pack)
            if found is None or found.far_target != far:
                row += [MISSING, MISSING]
            else:
                row.append(f"{_percent(found.accuracy)} ± {_percent(found.accuracy_std)}")
                row.append(_percent(found.tar) + tar_mark(found))
        row.append(MISSING if result.params is None else f"{result.params:,}")
        row.append(MISSING if result.flops is None else f"{result.flops / 1e6:,.1f}")
        rows.append([*row, result.checkpoint or MISSING])
    table = format_table(header, rows, left=(0, len(header) - 1), markdown=markdown)
    note = few_pairs_note((v for result in results for v in result.packs.values()), markdown=markdown)
    return f"{table}\n\n{note}" if note else table


def details_table(packs: Mapping[str, Verification]) -> str:
    """Return a column a pack: thresholds, AUC, EER, TAR at each FAR that the pack can tell, and the norms' spread."""

    def number(value: float, form: str = ".4f") -> str:
        return MISSING if math.isnan(value) else format(value, form)

    found = list(packs.values())
    rows = [
        ["best threshold, squared L2", *(number(v.threshold) for v in found)],
        ["best threshold, cosine", *(number(v.cosine_threshold) for v in found)],
        ["AUC", *(number(v.auc, ".6f") for v in found)],
        ["EER %", *(_percent(v.eer) for v in found)],
    ]
    for far in FARS:
        rows.append([f"TAR@{far} %", *(_percent(v.tars.get(far, math.nan)) for v in found)])
    rows.append(["xnorm, both views", *(number(v.xnorm, ".4g") for v in found)])
    for name, field in (
        ("median", "median"),
        ("5 %", "low"),
        ("95 %", "high"),
        ("least", "smallest"),
        ("most", "largest"),
    ):
        rows.append([f"norm, {name}", *(number(getattr(v.norms, field), ".4g") if v.norms else MISSING for v in found)])
    return format_table(["", *packs], rows)


def layer_table(cost: NetworkCost, *, markdown: bool = False) -> str:
    """Return a row a layer: output shape, FLOPs, MACs and parameters, and the totals in the last row."""
    rows = [
        [layer.name, layer.op, "x".join(map(str, layer.output_shape))]
        + [f"{count:,}" for count in (layer.flops, layer.macs, layer.params, layer.aux_params)]
        for layer in cost.layers
    ]
    totals = [f"{count:,}" for count in (cost.flops, cost.macs, cost.params, cost.aux_params)]
    header = ["layer", "operator", "output", "FLOPs", "MACs", "params", "aux"]
    return format_table(header, [*rows, ["total", MISSING, MISSING, *totals]], left=(0, 1), markdown=markdown)
