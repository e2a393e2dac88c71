"""Runs as rows of the table of results, as histories to draw, as a page to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from easydict import EasyDict

from vargface.checkpoint import load_checkpoint
from vargface.errors import InputError
from vargface.eval.curves import History
from vargface.eval.flops import network_cost
from vargface.eval.page import Run, report_page
from vargface.eval.table import Result
from vargface.eval.verification import Verification
from vargface.files import whole_file
from vargface.recipes import base
from vargface.training.log import CsvLog
from vargface.training.run_folder import RunFolder, best_of, distances_of, read_json
from vargface.training.watch import Watch

__all__ = ["history_of", "page_of", "result_of", "write_report"]


def result_of(folder: RunFolder, name: str | None = None) -> Result:
    """Return the row of a finished run: figures of its best checkpoint, called `name` or by its folder."""
    result = folder.result
    model = folder.model(result["best"])
    cost = network_cost(load_checkpoint(model).symbol)
    return Result(name or folder.path.name, _packs(result["packs"]), cost.params, cost.flops, model)


def history_of(folder: str | Path) -> History:
    """Return what the run in `folder`, finished or not, has logged. Raises InputError where there is no such run."""
    folder = Path(folder)
    log = CsvLog(folder / "log.csv").rows()
    if not log:
        raise InputError(f"{folder}: no run that has logged a step - give the run folder, where log.csv is")
    try:
        columns = {name: np.array([float(row[name] or "nan") for row in log]) for name in log[0]}
        packs: dict[str, list[tuple[float, float]]] = {}
        xnorms: dict[str, list[tuple[float, float]]] = {}
        for row in CsvLog(folder / "verification.csv").rows():
            packs.setdefault(row["pack"], []).append((float(row["step"]), float(row["accuracy"])))
            if row.get("xnorm"):
                xnorms.setdefault(row["pack"], []).append((float(row["step"]), float(row["xnorm"])))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: its log is not what training wrote ({error}) - choose another run") from error
    by_pack = ({pack: tuple(np.array(rows).T) for pack, rows in found.items()} for found in (packs, xnorms))
    return History(folder.name, columns, *by_pack)


def page_of(folders: Sequence[str | Path]) -> str:
    """Return the HTML page of the runs in `folders`, finished or not. Raises InputError where there is no such run."""
    return report_page([_run_of(Path(folder)) for folder in folders])


def write_report(folder: RunFolder) -> None:
    """Write report.html of a run that has logged something."""
    if folder.log.rows():
        with whole_file(folder.path / "report.html", "w") as file:
            file.write(page_of([folder.path]))


def _run_of(path: Path) -> Run:
    history = history_of(path)
    recipe = read_json(path / "recipe.json") or {}
    number, packs = best_of(path)
    return Run(
        name=path.name,
        history=history,
        step=int(history.log["step"][-1]),
        steps=int(recipe.get("steps", history.log["step"][-1])),
        packs=_packs(packs),
        distances=distances_of(path),
        recipe=recipe,
        defaults=base.recipe,
        machine=read_json(path / "machine.json") or {},
        warnings=_warnings(history, recipe),
        model=f"{path / recipe.get('role', 'student')},{number}" if number else "",
    )


def _warnings(history: History, recipe: dict) -> list[str]:
    """Return what `Watch` says of the log, as the run said it."""
    watch = Watch(EasyDict({**base.recipe, **recipe}))
    rows = (dict(zip(history.log, values)) for values in zip(*history.log.values()))
    return [f"step {row['step']:.0f}: {text}" for row in rows for text in watch(row)]


def _packs(figures: dict[str, dict]) -> dict[str, Verification]:
    """Return what `Verification.as_dict` was made of."""
    return {pack: Verification.of(fields) for pack, fields in figures.items()}
