"""Runs as rows of the table of results, and as histories to draw."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from vargface.checkpoint import load_checkpoint
from vargface.errors import InputError
from vargface.eval.curves import History
from vargface.eval.flops import network_cost
from vargface.eval.table import Result
from vargface.eval.verification import Verification
from vargface.training.run_folder import RunFolder

__all__ = ["history_of", "result_of"]


def result_of(folder: RunFolder, name: str | None = None) -> Result:
    """Return the row of a finished run: figures of its best checkpoint, called `name` or by its folder."""
    result = folder.result
    model = folder.model(result["best"])
    cost = network_cost(load_checkpoint(model).symbol)
    return Result(name or folder.path.name, _packs(result["packs"]), cost.params, cost.flops, model)


def history_of(folder: str | Path) -> History:
    """Return what the run in `folder`, finished or not, has logged. Raises InputError where there is no such run."""
    folder = Path(folder)
    log = _rows(folder / "log.csv")
    if not log:
        raise InputError(f"{folder}: no run that has logged a step - give the run folder, where log.csv is")
    try:
        columns = {name: np.array([float(row[name] or "nan") for row in log]) for name in log[0]}
        packs: dict[str, list[tuple[float, float]]] = {}
        for row in _rows(folder / "verification.csv"):
            packs.setdefault(row["pack"], []).append((float(row["step"]), float(row["accuracy"])))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: its log is not what training wrote ({error}) - choose another run") from error
    return History(folder.name, columns, {pack: tuple(np.array(found).T) for pack, found in packs.items()})


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def _packs(figures: dict[str, dict]) -> dict[str, Verification]:
    """Return what `Verification.as_dict` was made of."""
    return {pack: Verification.of(fields) for pack, fields in figures.items()}
