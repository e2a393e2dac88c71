"""`vargface embed`: faces in files to a .npy of embeddings."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from vargface import runtime
from vargface.commands import add_command, check_out
from vargface.errors import InputError
from vargface.files import save_whole, whole_file

__all__ = ["add_to"]

logger = logging.getLogger(__name__)


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    embed = add_command(commands, "embed", _embed, "embeddings of aligned faces, or of photos with landmarks")
    embed.add_argument("--model", required=True, metavar="PREFIX,EPOCH", help="any checkpoint of the InsightFace stack")
    embed.add_argument(
        "--out", required=True, metavar="FILE.npy", help="(n, D) float32, unit norm, in input order; paths in OUT.txt"
    )
    embed.add_argument(
        "--no-flip", action="store_true", help="without the mirror image's embedding added, twice as fast"
    )
    embed.add_argument("--resize", action="store_true", help="resize square images that are not 112x112")
    embed.add_argument(
        "--on-error",
        choices=("stop", "zero"),
        default="stop",
        help="for images that cannot be read, have another size or landmarks of no face: stop, or a row of zeros",
    )
    embed.add_argument(
        "faces",
        nargs="+",
        metavar="IMAGE|DIR|LIST.txt|ARRAY.npy",
        help="LIST: a path a line; behind that of a photo ten numbers, x and y of eyes, nose, corners of the mouth",
    )
    embed.epilog = "example: vargface embed --model runs/demo/student/student,1 --out faces.npy aligned/"


def _embed(arguments: argparse.Namespace) -> None:
    runtime.prepare_for_embedding()
    from vargface.deploy.embedder import Embedder
    from vargface.deploy.face_files import find_faces

    check_out(arguments.out, ".npy", "embeddings are a numpy array")
    names = f"{arguments.out}.txt"
    for written in (arguments.out, names):
        _check_no_source(written, arguments.faces)
    faces = find_faces(arguments.faces)
    embedder = Embedder(arguments.model)
    unusable: list[InputError] = []
    with tqdm(total=len(faces), unit="img", desc="embed", leave=False, disable=None) as bar:
        embeddings = embedder.embed_faces(
            faces,
            flip=not arguments.no_flip,
            resize=arguments.resize,
            on_batch=bar.update,
            on_unusable=unusable.append if arguments.on_error == "zero" else None,
        )
    if unusable:
        logger.warning("%d rows are zero, their faces cannot be used, the first: %s", len(unusable), unusable[0])
    with whole_file(names) as file:
        file.write("".join(f"{_one_line(face.name)}\n" for face in faces).encode("utf-8", "surrogateescape"))
    save_whole(arguments.out, lambda file: np.save(file, embeddings))
    print(f"{arguments.out}: {len(embeddings)} embeddings of {embedder.embedding_size} numbers, unit norm")


def _check_no_source(written: str, sources: Sequence[str]) -> None:
    """Raise InputError where the file that is to be `written` is one of `sources`."""
    for source in sources:
        if os.path.exists(written) and os.path.exists(source) and os.path.samefile(written, source):
            raise InputError(f"{source}: would be written over by {written} - give --out another name")


def _one_line(name: str) -> str:
    r"""Return `name`, what would break the line in it as Python writes it: \n, \r, \x85, \u2028."""
    return "".join(repr(letter)[1:-1] if letter.splitlines() == [""] else letter for letter in name)
