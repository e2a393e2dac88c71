"""`vargface synth`: a data set of synthetic faces, or a contact sheet of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from vargface.commands import add_command
from vargface.errors import InputError
from vargface.files import whole_file

__all__ = ["add_to"]

# the forms of a contact sheet
SHEETS = (".png", ".jpg", ".jpeg")


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    synth = add_command(commands, "synth", _synth, "draw a data set of synthetic faces: train.rec and three packs")
    synth.add_argument("out", nargs="?", metavar="OUT", help="the folder to make (with --sheet alone: none)")
    synth.add_argument("--identities", type=int, default=200)
    synth.add_argument("--images", type=int, default=50, help="images an identity")
    synth.add_argument("--pairs", type=int, default=600, help="pairs a pack")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--sheet", metavar="FILE", help="a contact sheet of the population, .png or .jpg")
    synth.epilog = "example: vargface synth data/synthetic --identities 200 --images 50"


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
