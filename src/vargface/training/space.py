"""The disk that a run takes: said and checked before it begins, not when the first state does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vargface.errors import InputError
from vargface.training.plan import Plan
from vargface.training.teacher import LABEL

__all__ = ["Space", "check_space", "space_of"]

# kept of each, and one more while it is written
STATES, CHECKPOINTS, WRITING = 2, 2, 1
# arrays of a weight's size that the optimiser keeps
OPTIMIZER_ARRAYS = {"sgd": 1, "adam": 2}


class Space(NamedTuple):
    """Bytes of one state (weights with class centres, optimiser) and of one checkpoint."""

    state: int
    checkpoint: int

    def of_run(self, generations: int) -> int:
        """Return the most that a run has on disk at a time, logs aside."""
        kept = STATES * self.state + CHECKPOINTS * self.checkpoint
        return generations * kept + WRITING * (self.state + self.checkpoint)


def space_of(plan: Plan) -> Space:
    """Return what a state and a checkpoint of `plan` take."""
    symbol, data = plan.objective.symbol, (1, 3, *plan.records.image_size)
    labels: dict[str, tuple[int, ...]] = dict.fromkeys(plan.objective.label_names, (1,))
    if plan.teacher is not None:
        labels[LABEL] = (1, plan.teacher.embedding_size)
    shapes, _, auxs = symbol.infer_shape(data=data, **labels)
    inputs = {"data", *labels, *plan.objective.states}
    learnt = sum(4 * int(np.prod(s)) for name, s in zip(symbol.list_arguments(), shapes) if name not in inputs)
    statistics = sum(4 * int(np.prod(shape)) for shape in auxs)
    weights, _, _ = plan.network.infer_shape(data=data)
    network = sum(4 * int(np.prod(s)) for name, s in zip(plan.network.list_arguments(), weights) if name != "data")
    state = learnt * (1 + OPTIMIZER_ARRAYS[plan.recipe.optimizer]) + statistics
    if plan.recipe.class_share:  # of each class the centre, its momentum, and the update that it is at
        state += 4 * plan.records.num_identities * (2 * plan.recipe.embedding_size + 1)
    return Space(state, network + statistics)


def check_space(plan: Plan) -> None:
    """Raise InputError where the disk of `recipe.out` has less free than the run may still take."""
    out = Path(plan.recipe.out)
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    there = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) if out.is_dir() else 0
    space = space_of(plan)
    needed = space.of_run(plan.recipe.generations) - there
    total, _, free = shutil.disk_usage(existing)
    # what has no size at all (/proc) is no disk: writing there says what is wrong
    if total and free < needed:
        raise InputError(
            f"{out}: {free / 1e6:,.0f} MB free, the run takes up to {needed / 1e6:,.0f} MB (a state is "
            f"{space.state / 1e6:,.0f} MB, a checkpoint {space.checkpoint / 1e6:,.0f} MB) - free space or choose "
            "another out"
        )
