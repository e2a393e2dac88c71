"""Finished runs as rows of the table of results."""

from __future__ import annotations

import math

from vargface.checkpoint import load_checkpoint
from vargface.eval.flops import network_cost
from vargface.eval.table import Result
from vargface.eval.verification import Verification
from vargface.training.run_folder import RunFolder

__all__ = ["result_of"]


def result_of(folder: RunFolder, name: str | None = None) -> Result:
    """Return the row of a finished run: figures of its best checkpoint, called `name` or by its folder."""
    result = folder.result
    model = folder.model(result["best"])
    cost = network_cost(load_checkpoint(model).symbol)
    return Result(name or folder.path.name, _packs(result["packs"]), cost.params, cost.flops, model)


def _packs(figures: dict[str, dict]) -> dict[str, Verification]:
    """Return what `Verification.as_dict` was made of; JSON has None for nan."""
    return {
        pack: Verification(**{key: math.nan if value is None else value for key, value in fields.items()})
        for pack, fields in figures.items()
    }
