"""`vargface study`: many small trainings, their means, deviations and differences."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from vargface.commands import add_command, takes_overrides, whole

__all__ = ["add_to"]

logger = logging.getLogger(__name__)

HELP = "train the cells of a study (recipes/study/) with several seeds each, and say what differs"


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    study = add_command(commands, "study", _study, HELP)
    study.add_argument("study", metavar="STUDY", help="a study's file: a recipe with `cells`")
    takes_overrides(study, "data=, teacher= and out=, and ")
    study.add_argument("--other", default="", metavar="TEACHER", help="a second teacher, for the cells that have one")
    study.add_argument("--seeds", type=whole(1), default=3, metavar="N", help="trainings of each cell; default: 3")
    study.add_argument("--jobs", type=whole(1), metavar="N", help="trainings at a time; default: one a core")
    study.add_argument("--summary", action="store_true", help="train nothing, tell of what is finished")
    study.set_defaults(goes_on=True)
    study.epilog = (
        "example: vargface study recipes/study/real_mini.py data=faces/real-mini teacher=y1/model,0 out=runs/study"
    )


def _study(arguments: argparse.Namespace) -> None:
    from vargface.errors import InputError
    from vargface.files import locked_folder, make_folder, whole_file
    from vargface.recipe import load_recipe
    from vargface.runtime import cores
    from vargface.study.cells import load_study
    from vargface.study.checks import check_jobs
    from vargface.study.picture import draw_study
    from vargface.study.runner import make_store, run_jobs
    from vargface.study.summary import HeldOut, collect, tables

    study = load_study(arguments.study)
    recipe = load_recipe(arguments.study, arguments.overrides)
    for key in ("data", "teacher", "out"):
        if not recipe[key]:
            raise InputError(f"{key} is not given - add {key}=...")
    keys = [override for override in arguments.overrides if not override.startswith("out=")]
    out = Path(recipe.out)
    jobs = study.jobs(out, keys, arguments.seeds, arguments.other)
    for cell in () if arguments.other else filter(study.needs_other, study.cells):
        logger.warning("%s: left out, here and in the tables - it needs --other TEACHER", cell)
    # what is wrong with a cell, the data or a teacher is said before anything is written
    check_jobs(jobs)
    held_out = HeldOut(recipe.data, recipe.packs)
    failed = []
    if not arguments.summary:
        make_folder(out)
        with locked_folder(out):
            make_store(recipe.teacher, recipe.data, out / "store")
            failed = run_jobs(study.path, jobs, arguments.jobs or cores())
    found = collect(study, jobs, held_out)
    if found:
        text = tables(study, found)
        print(text)
        with whole_file(out / "study.md", "w") as file:
            file.write(f"{text}\n")
        with whole_file(out / "study.png", "wb") as file:
            file.write(draw_study(found))
    elif not failed:
        raise InputError("nothing of the study is finished yet - run it without --summary")
    if failed:  # a cell that diverges is a result, too: the others are told of first
        raise InputError(f"{len(failed)} of {len(jobs)} trainings failed - see {', '.join(map(str, failed))}")
