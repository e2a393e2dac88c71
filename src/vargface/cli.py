"""The command line: parses, calls, prints. Bad input ends with one line and exit code 2, Ctrl-C 130, SIGTERM 143."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from vargface.commands import add_command as _command
from vargface.commands import embed, export, lfr, rec, runs, takes_overrides, teacher_store, train, verify
from vargface.errors import InputError
from vargface.files import whole_file
from vargface.training.interrupt import Terminated, terminated_by_sigterm

__all__ = ["main"]

# the forms of a contact sheet
SHEETS = (".png", ".jpg", ".jpeg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vargface ARGV...` and return its exit code: 0, 2 for bad input, 130 after Ctrl-C, 143 after SIGTERM.

    A command that finds what it was asked to look for (`rec check`) returns 1.
    """
    handler = _AboveTheBar()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its fonts
    arguments = _parser().parse_args(argv)
    try:
        with terminated_by_sigterm():
            return arguments.run(arguments) or 0
    except InputError as error:
        print(f"vargface: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        goes_on = "; the same command goes on from the last saved state" if arguments.goes_on else ""
        print(f"vargface: stopped{goes_on}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130


class _AboveTheBar(logging.Handler):
    """Prints log lines on stderr without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vargface", description="VarGFaceNet: training with angular and recursive distillation, on MXNet."
    )
    parser.set_defaults(goes_on=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train.add_to(commands)

    verify.add_to(commands)

    runs.add_to(commands)

    synth = _command(commands, "synth", _synth, "draw a data set of synthetic faces: train.rec and three packs")
    synth.add_argument("out", nargs="?", metavar="OUT", help="the folder to make (with --sheet alone: none)")
    synth.add_argument("--identities", type=int, default=200)
    synth.add_argument("--images", type=int, default=50, help="images an identity")
    synth.add_argument("--pairs", type=int, default=600, help="pairs a pack")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--sheet", metavar="FILE", help="a contact sheet of the population, .png or .jpg")
    synth.epilog = "example: vargface synth data/synthetic --identities 200 --images 50"

    flops = _command(commands, "flops", _flops, "operations as the LFR challenge counts them, parameters, bytes")
    flops.add_argument("--model", metavar="PREFIX,EPOCH", help="a checkpoint; without it: of the recipe's network")
    flops.add_argument("--recipe", default="base", help="a recipe (default: base, the paper's VarGFaceNet)")
    flops.add_argument("--layers", action="store_true", help="by layer")
    takes_overrides(flops)
    flops.epilog = "example: vargface flops network=resnet num_layers=50"

    lfr.add_to(commands)
    teacher_store.add_to(commands)
    embed.add_to(commands)
    export.add_to(commands)
    rec.add_to(commands)
    return parser


def _synth(arguments: argparse.Namespace) -> None:
    import cv2

    from vargface.data.synthetic import contact_sheet, make_dataset, progress_bar

    if not arguments.out and not arguments.sheet:
        raise InputError("nothing to draw - give the folder to make, or --sheet FILE")
    if arguments.sheet:
        kind = Path(arguments.sheet).suffix.lower()
        if kind not in SHEETS:
            raise InputError(f"{arguments.sheet}: a contact sheet is a picture - give it a name in .png, .jpg or .jpeg")
        sheet = cv2.cvtColor(contact_sheet(seed=arguments.seed), cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode(kind, sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])
        with whole_file(arguments.sheet) as file:
            file.write(encoded.tobytes())
    if not arguments.out:
        return
    with progress_bar() as progress:
        make_dataset(
            arguments.out,
            identities=arguments.identities,
            images_per_identity=arguments.images,
            pairs=arguments.pairs,
            seed=arguments.seed,
            progress=progress,
        )


def _flops(arguments: argparse.Namespace) -> None:
    from vargface.checkpoint import load_checkpoint
    from vargface.eval.flops import network_cost
    from vargface.eval.table import layer_table
    from vargface.recipe import load_recipe, network_symbol

    if arguments.model:
        symbol = load_checkpoint(arguments.model).symbol
    else:
        symbol = network_symbol(load_recipe(arguments.recipe, arguments.overrides))
    cost = network_cost(symbol)
    if arguments.layers:
        print(layer_table(cost))
    print(f"challenge FLOPs {cost.flops:,}   MACs {cost.macs:,}")
    print(
        f"learnable parameters {cost.params:,}   payload {cost.payload_bytes:,} bytes   file {cost.file_bytes:,} bytes"
    )
