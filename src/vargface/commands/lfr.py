"""`vargface lfr ...`: the LFR challenge of ICCV 2019 - its limits and its submission file; lfr_score.py: its score."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vargface.commands import add_command, lfr_score, whole
from vargface.files import make_folder

__all__ = ["add_to"]

logger = logging.getLogger(__name__)


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the family to the command line."""
    family = commands.add_parser("lfr", help="the LFR challenge: check, submit, score, merge, identify")
    family.epilog = "example: vargface lfr score feat.bin labels.txt"
    steps = family.add_subparsers(dest="step", required=True, metavar="STEP")

    check = add_command(steps, "check", _check, "operations, bytes, dtype and embedding size against the four tracks")
    check.add_argument("--model", required=True, metavar="PREFIX,EPOCH")
    check.add_argument("--layers", action="store_true", help="the table by layer, too")
    check.description = (
        "Operations, bytes, dtype and embedding size against the four tracks; exit status 1 where none is passed."
    )
    check.epilog = "example: vargface lfr check --model runs/lfr-student/gen-2/student,120"

    submit = add_command(steps, "submit", _submit, "the feature file of a test set, a row a line of its filelist.txt")
    submit.add_argument("--model", required=True, metavar="PREFIX,EPOCH")
    submit.add_argument("--images", required=True, metavar="DIR", help="the folder with filelist.txt and the images")
    submit.add_argument("--out", required=True, metavar="FILE.bin")
    submit.add_argument("--video", action="store_true", help="filelist.txt names folders of frames (*.jpg)")
    submit.add_argument("--on-error", choices=("stop", "zero"), default="stop", help="for images that cannot be read")
    submit.add_argument("--batch-size", type=whole(1), default=32)
    submit.add_argument("--context", default="auto", help="auto, cpu, gpu or gpu(0)")
    submit.set_defaults(goes_on=True)
    submit.epilog = "example: vargface lfr submit --model student,120 --images lfr_images --out feat.bin"

    lfr_score.add_to(steps)


def _check(arguments: argparse.Namespace) -> int:
    from vargface.checkpoint import load_checkpoint, load_params, matching, parse_model, value_bytes
    from vargface.eval.flops import network_cost
    from vargface.eval.lfr.tracks import Network, compliance
    from vargface.eval.table import format_table, layer_table

    checkpoint = load_checkpoint(arguments.model)
    prefix, epoch = parse_model(arguments.model)
    cost = network_cost(checkpoint.symbol)
    path = Path(f"{prefix}-{epoch:04d}.params")
    saved = load_params(path)
    used = [value for params in matching(checkpoint.symbol, saved, str(path)) for value in params.values()]
    dtypes = sorted({np.dtype(value.dtype).name for value in used})
    file_bytes, payload = path.stat().st_size, sum(map(value_bytes, saved.values()))
    network = Network(cost.flops, file_bytes, payload, dtypes, checkpoint.embedding_size)
    if arguments.layers:
        print(layer_table(cost), end="\n\n")
    if cost.warning:
        logger.warning("%s", cost.warning)
    print(f"FLOPs     {cost.flops:>13,}   {cost.flops / 1e6:,.1f} M")
    for name, size in (("file", file_bytes), ("payload", payload)):
        print(f"{name:<8} {size:>14,}   {size / 1e6:.2f} MB = {size / 2**20:.2f} MiB")
    unused = payload - sum(map(value_bytes, used))
    if unused:
        print(f"unused    {unused:>13,}   of the payload by what is not the network: {_unused(saved, used)}")
    print(f"dtype     {', '.join(dtypes)}   embedding {checkpoint.embedding_size}-d\n")
    header = ["track", "reading", "FLOPs", "size", "float32", "<= 512-d", "verdict"]
    words = {True: "ok", False: "no"}
    found = compliance(network)
    rows = [
        [c.track, c.reading, words[c.flops], words[c.size], words[c.float32], words[c.dimensions]]
        + ["PASS" if c.passed else "FAIL"]
        for c in found
    ]
    print(format_table(header, rows, left=tuple(range(len(header)))))
    print(
        "\nto the letter: 1 G = 1000 M operations, 20 MB = 20,000,000 bytes of the .params file"
        "\nas the winner's (1022.9 M, 21.0 MB, stood): 1 G = 1024 M, 20 MB = 20 MiB of values (the payload)"
        "\nlarge tracks: 30 G, no limit of size"
    )
    return 0 if any(c.passed for c in found) else 1


def _unused(saved: dict, used: list) -> str:
    """Return the names of what is in `saved` and not `used`, the largest first."""
    known = set(map(id, used))
    names = sorted((name for name in saved if id(saved[name]) not in known), key=lambda name: -saved[name].size)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


def _submit(arguments: argparse.Namespace) -> None:
    from vargface.checkpoint import load_checkpoint, model_digest
    from vargface.data.faces import read_face
    from vargface.eval.lfr.submission import ROWS, Submission, read_filelist, submit
    from vargface.inference import FrozenNetwork
    from vargface.runtime import contexts

    checkpoint = load_checkpoint(arguments.model)
    names = read_filelist(arguments.images, arguments.video)
    make_folder(Path(arguments.out).absolute().parent)
    job = Submission(
        Path(arguments.images),
        Path(arguments.out),
        model_digest(arguments.model),
        checkpoint.embedding_size,
        arguments.video,
        arguments.on_error,
        arguments.batch_size,
    )
    network = FrozenNetwork(checkpoint, arguments.batch_size, contexts(arguments.context)[0])
    with tqdm(total=len(names), unit="row", desc="submit", disable=None) as bar:
        zeros, unreadable, first = submit(job, network, read_face, on_rows=bar.update)
    if unreadable:
        logger.warning("%d images could not be read, the first: %s", unreadable, first)
    if zeros:
        logger.warning("%d rows are zero, as if their faces were like none", zeros)
    if len(names) != ROWS[arguments.video]:
        kind = "videos" if arguments.video else "images"
        logger.warning(
            "%s rows; the challenge's test set has %s %s: its server takes no other number",
            f"{len(names):,}",
            f"{ROWS[arguments.video]:,}",
            kind,
        )
    print(f"{arguments.out}: {len(names):,} x {checkpoint.embedding_size} float32, one row a line of filelist.txt")
