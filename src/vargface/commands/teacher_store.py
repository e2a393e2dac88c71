"""`vargface teacher-store`: what a teacher says of a data set, computed once."""

from __future__ import annotations

import argparse

from vargface.commands import add_command
from vargface.recipes import base

__all__ = ["add_to"]

# as in training
MAX_BAD = base.recipe.max_bad
HELP = "embed both views of every image by a teacher, once, for training to look up (teacher_store=OUT)"


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command's parser."""
    command = add_command(commands, "teacher-store", _run, HELP)
    command.add_argument(
        "--model",
        required=True,
        metavar="TEACHER",
        help="PREFIX,EPOCH or FILE.onnx, or several joined by +: their mean",
    )
    command.add_argument("--workers", type=int, metavar="N", help="processes; default: one a GPU, else one a core")
    command.add_argument("--context", default="auto", help="auto, cpu, gpu, or a list such as gpu(0),gpu(1)")
    command.add_argument(
        "--max-bad",
        type=float,
        metavar="SHARE",
        default=MAX_BAD,
        help="of the images may be unusable (default %(default)s)",
    )
    command.add_argument("data", metavar="DATA", help="an InsightFace folder: train.rec, train.idx, property")
    command.add_argument("out", metavar="OUT", help="the store; run again, the command goes on with what is missing")
    command.set_defaults(goes_on=True)
    command.epilog = "example: vargface teacher-store --model r100/model,0 faces_ms1m-retinaface stores/r100-ms1m"


def _run(arguments: argparse.Namespace) -> None:
    from vargface.teachers.writer import make_store

    make_store(
        arguments.model,
        arguments.data,
        arguments.out,
        context=arguments.context,
        workers=arguments.workers,
        max_bad=arguments.max_bad,
    )
