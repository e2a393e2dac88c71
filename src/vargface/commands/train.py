"""`vargface demo` and `vargface train`: the whole job on synthetic faces, or one recipe."""

from __future__ import annotations

import argparse

from vargface import runtime
from vargface.commands import add_command, takes_overrides

__all__ = ["add_to"]


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the commands to the command line."""
    demo = add_command(commands, "demo", _demo, "the whole job on synthetic faces: data, teacher, students, table")
    takes_overrides(demo, "out=, teacher=, and ")
    demo.add_argument("--data-only", action="store_true", help="draw the data set into OUT/data, no more")
    demo.set_defaults(goes_on=True)
    demo.epilog = "example: vargface demo out=runs/demo"

    train = add_command(commands, "train", _train, "train a teacher or a student by a recipe")
    train.add_argument("recipe", help="a recipe file, or the name of one of this package's")
    takes_overrides(train)
    train.add_argument("--generation", type=int, metavar="N", help="this one alone; the ones before it are finished")
    train.add_argument("--dry-run", action="store_true", help="go a few steps, say what a run takes, leave nothing")
    train.add_argument("--test-io", action="store_true", help="read batches for some seconds, say how many a second")
    train.set_defaults(goes_on=True)
    train.epilog = "example: vargface train recipes/lfr_student.py data=ms1m teacher=r100/model,0 out=runs/lfr"


def _demo(arguments: argparse.Namespace) -> None:
    runtime.prepare_for_training("cpu(0),cpu(1)")
    from vargface.demo import draw_data, run_demo
    from vargface.recipe import load_recipe

    if arguments.data_only:
        draw_data(load_recipe("demo_student", arguments.overrides).out)
    else:
        print(run_demo(arguments.overrides))


def _train(arguments: argparse.Namespace) -> None:
    from vargface.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    runtime.prepare_for_training(recipe.context)
    if arguments.dry_run or arguments.test_io:
        _rehearse(recipe, arguments)
        return
    from vargface.eval.table import results_table
    from vargface.training.fit import train
    from vargface.training.report import result_of

    folders = train(recipe, arguments.generation)
    if folders:
        print(results_table([result_of(folder) for folder in folders]))


def _rehearse(recipe: dict, arguments: argparse.Namespace) -> None:
    from vargface.training.rehearsal import rehearse, time_input

    arguments.goes_on = False
    if arguments.test_io:
        print(time_input(recipe))
    if arguments.dry_run:
        print(rehearse(recipe))
