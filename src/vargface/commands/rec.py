"""`vargface rec build|check|info|shuffle|pack`: InsightFace data folders and verification packs."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from vargface.commands import add_command, whole

__all__ = ["add_to"]

logger = logging.getLogger(__name__)

ALIGNED = "images are taken as aligned (InsightFace's 112x112 template): nothing is detected, turned or cropped"


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add `rec` and its commands to those of the parser."""
    line = "make, check and convert InsightFace data: train.rec, train.idx, property, packs"
    rec = commands.add_parser("rec", help=line, description=line)
    rec.epilog = "example: vargface rec check faces_ms1m-retinaface --decode"
    tools = rec.add_subparsers(dest="tool", required=True, metavar="TOOL")

    build = _tool(tools, "build", _build, "from a folder an identity to train.rec, train.idx, property", ALIGNED)
    build.add_argument("dir", metavar="DIR", help="holds a folder an identity")
    build.add_argument("out", metavar="OUT")
    build.add_argument("--size", type=_size, default=(112, 112), metavar="HxW", help="of the images (default 112x112)")
    build.add_argument(
        "--quality", type=whole(1, 100), default=95, help="of JPEGs encoded anew; those of the right size are copied"
    )
    build.add_argument(
        "--resize",
        choices=("scale", "crop", "never"),
        default="scale",
        help="images of another size: scale one of the same shape (default); crop: cut the middle out, too; never",
    )
    build.add_argument("--min-images", type=whole(1), default=1, help="leave out identities of fewer images")
    build.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be used, and list them")
    build.epilog = "example: vargface rec build photos/aligned data/mine --min-images 5"

    check = _tool(tools, "check", _check, "list what is wrong with a data folder; exit code 1 if anything is")
    check.add_argument("dir", metavar="DIR")
    check.add_argument("--decode", action="store_true", help="decode every image, too")
    check.epilog = "example: vargface rec check data/mine --decode"

    info = _tool(tools, "info", _info, "images, identities, sizes of a data folder")
    info.add_argument("dir", metavar="DIR")
    info.epilog = "example: vargface rec info data/mine"

    shuffle = _tool(
        tools, "shuffle", _shuffle, "write the images alone in random order, as mx.io.ImageRecordIter wants them"
    )
    shuffle.add_argument("dir", metavar="DIR")
    shuffle.add_argument("out", metavar="OUT")
    shuffle.add_argument("--seed", type=whole(0), default=0)
    shuffle.add_argument("--skip-bad", action="store_true", help="leave out what cannot be trained on, and list it")
    shuffle.epilog = "example: vargface rec shuffle data/mine data/mine-shuffled"

    pack = _tool(
        tools, "pack", _pack, "a verification pack (.bin) from a list of pairs, or from a folder an identity", ALIGNED
    )
    pack.add_argument("source", metavar="PAIRS|DIR", help="'IMAGE IMAGE 0|1' a line, LFW's pairs.txt, or a folder")
    pack.add_argument("out", metavar="OUT.bin")
    pack.add_argument("--root", metavar="DIR", help="of the images in a list (default: where the list is)")
    pack.add_argument("--pairs", type=whole(1), default=6000, help="drawn from a folder, half of them of one person")
    pack.add_argument("--seed", type=whole(0), default=0, help="of the pairs drawn from a folder")
    pack.epilog = "example: vargface rec pack photos/aligned-others others.bin --pairs 600"


def _tool(tools, name: str, run: Callable, line: str, more: str = "") -> argparse.ArgumentParser:
    parser = add_command(tools, name, run, line)
    if more:
        parser.description = f"{line}. {more[:1].upper()}{more[1:]}"
    return parser


def _size(text: str) -> tuple[int, int]:
    """Return (height, width) of 'HEIGHTxWIDTH', for argparse."""
    found = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, each 1..9999, e.g. 112x112")
    return int(found[1]), int(found[2])


def _say(line: str) -> None:
    """Print a line of output without tearing a progress bar apart."""
    tqdm.write(line)


def _build(arguments: argparse.Namespace) -> None:
    from vargface.data.build import build, identity_folders

    with tqdm(total=len(identity_folders(Path(arguments.dir))), unit="identity", desc="build", disable=None) as bar:
        built = build(
            arguments.dir,
            arguments.out,
            image_size=arguments.size,
            quality=arguments.quality,
            resize=arguments.resize,
            min_images=arguments.min_images,
            on_bad=_say if arguments.skip_bad else None,
            on_identity=bar.update,
        )
    print(
        f"{arguments.out}: {built.images:,} images of {built.identities:,} identities; identities.txt has their names"
    )
    if built.small_identities or built.left_out:
        few = f"{built.small_identities:,} identities of fewer than {arguments.min_images} images"
        print(f"left out: {few}; {built.left_out:,} unusable images")
    print(ALIGNED)


def _check(arguments: argparse.Namespace) -> int:
    from vargface.data.check import check

    with _byte_bar(arguments.dir, "check") as bar:
        done = check(
            arguments.dir,
            lambda finding: _say(str(finding)),
            decode_images=arguments.decode,
            on_bytes=bar.update,
        )
    looked = "every image decoded" if arguments.decode else "images not decoded (--decode)"
    print(f"{arguments.dir}: {done.records:,} records, {done.images:,} images, {looked}: {done.findings:,} faults")
    return 1 if done.findings else 0


def _info(arguments: argparse.Namespace) -> None:
    from vargface.data.info import info

    print(info(arguments.dir).text())


def _shuffle(arguments: argparse.Namespace) -> None:
    from vargface.data.shuffle import shuffle

    with tqdm(unit="img", desc="shuffle", disable=None) as bar:
        done = shuffle(
            arguments.dir,
            arguments.out,
            seed=arguments.seed,
            on_bad=_say if arguments.skip_bad else None,
            on_image=bar.update,
        )
    left_out = f"; left out: {done.left_out:,}" if arguments.skip_bad else ""
    print(f"{arguments.out}: {done.images:,} images, without identity records{left_out}")


def _pack(arguments: argparse.Namespace) -> None:
    from vargface.data.pairs import drawn_pairs, listed_pairs, make_pack

    source = Path(arguments.source)
    if source.is_dir():
        pairs = drawn_pairs(source, arguments.pairs, arguments.seed)
    else:
        pairs = listed_pairs(source, arguments.root or source.parent)
    with tqdm(total=2 * len(pairs), unit="img", desc="pack", disable=None) as bar:
        make_pack(pairs, arguments.out, bar.update)
    print(f"{arguments.out}: {len(pairs):,} pairs, {sum(pair.same for pair in pairs):,} of one person")
    print(ALIGNED)


def _byte_bar(folder: str, what: str) -> tqdm:
    file = Path(folder) / "train.rec"
    size = file.stat().st_size if file.is_file() else None
    return tqdm(total=size, unit="B", unit_scale=True, desc=what, disable=None)
