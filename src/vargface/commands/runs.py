"""`vargface curves` and `vargface report`: what runs have logged, to look at."""

from __future__ import annotations

import argparse

from vargface.commands import add_command
from vargface.files import whole_file

__all__ = ["add_to"]


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the commands to the command line."""
    curves = add_command(commands, "curves", _curves, "losses, accuracy and rate of runs by step, in one picture")
    curves.add_argument("runs", nargs="+", metavar="RUN", help="run folders, finished or not")
    curves.add_argument("--out", required=True, metavar="FILE.png")
    curves.epilog = "example: vargface curves runs/demo/student runs/demo/student-undistilled --out curves.png"

    report = add_command(commands, "report", _report, "one page of one run or of several: curves, ROC, recipe, machine")
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders, finished or not")
    report.add_argument("--out", required=True, metavar="FILE.html")
    report.epilog = "example: vargface report runs/demo/student runs/demo/student/gen-2 --out generations.html"


def _curves(arguments: argparse.Namespace) -> None:
    from vargface.eval.curves import draw_curves
    from vargface.training.report import history_of

    picture = draw_curves([history_of(run) for run in arguments.runs])
    with whole_file(arguments.out) as file:
        file.write(picture)


def _report(arguments: argparse.Namespace) -> None:
    from vargface.training.report import page_of

    page = page_of(arguments.runs)
    with whole_file(arguments.out, "w") as file:
        file.write(page)
