"""Training: one loop for teachers, plain students and distilled ones, through all generations.

Start-up of a generation, in this order: (1) a finished one is not run again; (2) one with a saved state resumes there;
(3) generation n > 1 starts from generation n - 1's last weights, class centres included, with a fresh optimiser and the
same teacher; (4) `init` gives the weights; (5) scratch.
"""

from __future__ import annotations

import logging
from pathlib import Path

from easydict import EasyDict

from vargface.checkpoint import Params, load_checkpoint, matching, tagged
from vargface.errors import InputError
from vargface.files import locked_folder, scratch_folder
from vargface.runtime import mx
from vargface.training.generation import Generation
from vargface.training.plan import make_plan
from vargface.training.run_folder import RunFolder, generation_folder
from vargface.training.space import check_space
from vargface.training.teacher import labels_of

__all__ = ["train"]

logger = logging.getLogger(__name__)


def train(recipe: EasyDict, generation: int | None = None) -> list[RunFolder]:
    """Train all generations of `recipe`, or `generation` alone, and return their finished folders: OUT, OUT/gen-2, ...

    With `generation` the folders up to that one are returned, and the ones before it must be finished. A worker of a
    team that does not lead it leaves nothing, and returns nothing.

    Raises InputError for anything in the recipe, the data, the teacher or the run folder that cannot be used, before
    anything is written where possible.
    """
    if not recipe.out:
        raise InputError("out is not given - add out=FOLDER")
    plan = make_plan(recipe)
    team = plan.team
    if team.leads:
        if generation is not None:
            _check_forerunners(Path(recipe.out), generation)
        check_space(plan)
    teacher = labels_of(plan.teacher, recipe, len(plan.records), plan.devices[0])
    folders: list[RunFolder] = []
    weights = None
    with locked_folder(recipe.out) if team.leads else scratch_folder() as out:
        team.join()
        for number in range(1, (generation or recipe.generations) + 1):
            folder = RunFolder(generation_folder(out, number), recipe, plan.trained_on)
            folders.append(folder)
            (finished,) = team.agreed(folder.result is not None)
            if not finished:
                before = folders[-2] if number > 1 else None
                generation_ = Generation(plan, folder, teacher, number)
                weights = generation_.fit(weights or plan.initial, _last_centres(before, recipe))
            elif team.leads:
                logger.info("%s: finished already, not run again", folder.path)
                weights = _last_weights(folder, plan.network)
    return folders if team.leads else []


def _check_forerunners(out: Path, generation: int) -> None:
    """Raise InputError where a generation before `generation` is not finished."""
    if generation < 1:
        raise InputError(f"--generation {generation}: the first one is 1")
    for number in range(1, generation):
        folder = generation_folder(out, number)
        if not (folder / "result.json").exists():
            raise InputError(f"{folder}: generation {number} is not finished - run it first: --generation {number}")


def _last_centres(folder: RunFolder | None, recipe: EasyDict) -> Path | None:
    """Return the file of sampled class centres that a finished generation ended with, None where there is none."""
    if folder is None or not recipe.class_share or folder.result is None:
        return None
    file = folder.centres(folder.result["step"])
    if not file.is_file():
        logger.warning("%s: lost, class centres begin anew", file)
        return None
    return file


def _last_weights(folder: RunFolder, network: mx.sym.Symbol) -> tuple[Params, Params]:
    """Return what a finished generation ended with: its last state or, where that is lost, its last checkpoint."""
    try:
        state = folder.load_state()
    except InputError as error:
        logger.warning("%s", error)
        state = None
    if state is not None and state[0]["step"] == folder.result["step"]:
        return state[1]
    model = folder.model(folder.result["last"])
    checkpoint = load_checkpoint(model)
    return matching(network, tagged(checkpoint.args, checkpoint.auxs), model)
