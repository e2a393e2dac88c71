"""Whether a study can be trained, and whether what is there is of it: asked before hours are spent, and before a table.

Every training asks the same of itself, but one that is finished is not run again, and the cells of a study wait hours.
"""

from __future__ import annotations

from collections.abc import Sequence

from easydict import EasyDict

from vargface.errors import InputError
from vargface.study.cells import Job
from vargface.training.plan import make_plan
from vargface.training.run_folder import RunFolder, generation_folder

__all__ = ["check_jobs"]


def check_jobs(jobs: Sequence[Job]) -> None:
    """Raise InputError where a cell of `jobs` cannot be trained, or its folder has a run of another recipe, data set,
    teacher or start. Writes nothing.
    """
    trained_on: dict[str, dict[str, str]] = {}
    for job in jobs:
        if job.cell not in trained_on:
            try:
                # the study makes the store, which may be to come
                trained_on[job.cell] = make_plan(EasyDict({**job.recipe, "teacher_store": ""})).trained_on
            except InputError as error:
                raise InputError(f"{job.cell}: {error}") from error
        for generation in range(1, job.generations + 1):
            folder = generation_folder(job.folder, generation)
            if any((folder / name).exists() for name in ("recipe.json", "result.json")):
                RunFolder(folder, job.recipe, trained_on[job.cell])
