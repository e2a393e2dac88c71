"""`vargface export onnx|int8`: a checkpoint as a file for ONNX Runtime."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from tqdm import tqdm

from vargface.commands import add_command, check_out
from vargface.errors import InputError

__all__ = ["add_to"]

logger = logging.getLogger(__name__)

KIND = "an exported network is an ONNX file"


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the family to the command line."""
    line = "a checkpoint as ONNX, for ONNX Runtime and insightface 0.2 and later"
    export = commands.add_parser("export", help=line, description=line)
    export.epilog = "example: vargface export onnx --model runs/demo/student/student,1 --out student.onnx"
    forms = export.add_subparsers(dest="form", required=True, metavar="FORM")

    onnx = add_command(forms, "onnx", _onnx, "float32, dynamic batch, RGB 0..255 in, batch norms folded")
    _takes_model(onnx)
    onnx.add_argument(
        "--avx512", action="store_true", help="groups in pairs: faster on CPUs with AVX-512, slower without"
    )
    onnx.epilog = "example: vargface export onnx --model runs/demo/student/student,1 --out student.onnx"

    int8 = add_command(forms, "int8", _int8, "8-bit weights and activations, calibrated on aligned faces")
    _takes_model(int8)
    int8.add_argument(
        "--calibrate",
        required=True,
        nargs="+",
        metavar="DATA|PACK.bin|DIR|...",
        help="aligned faces: a data folder (train.rec), a pack, or what `vargface embed` takes",
    )
    int8.add_argument("--resize", action="store_true", help="of the images, resize square ones that are not 112x112")
    int8.add_argument(
        "--vnni", action="store_true", help="weights of 8 bits, not 7: nearer to float on CPUs with VNNI, wrong without"
    )
    int8.add_argument("--images", type=int, default=256, help="calibrate on so many, spread over all (default 256)")
    int8.epilog = (
        "example: vargface export int8 --model runs/demo/student/student,1 --out student-int8.onnx --calibrate lfw.bin"
    )


def _takes_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, metavar="PREFIX,EPOCH")
    command.add_argument("--out", required=True, metavar="FILE.onnx")


def _onnx(arguments: argparse.Namespace) -> None:
    from vargface.checkpoint import load_checkpoint
    from vargface.deploy.network import fold
    from vargface.deploy.onnx_file import OPSET, export_onnx

    check_out(arguments.out, ".onnx", KIND)
    network = fold(load_checkpoint(arguments.model))
    export_onnx(network, arguments.out, wide_groups=arguments.avx512)
    print(f"{arguments.out}: {Path(arguments.out).stat().st_size:,} bytes, opset {OPSET}")


def _int8(arguments: argparse.Namespace) -> None:
    from vargface.checkpoint import load_checkpoint
    from vargface.deploy.int8 import FEW, LEAST_COSINE, calibration_faces, export_int8
    from vargface.deploy.network import fold
    from vargface.deploy.onnx_file import OPSET

    check_out(arguments.out, ".onnx", KIND)
    if arguments.images < 1:
        raise InputError(f"--images {arguments.images}: must be at least 1")
    network = fold(load_checkpoint(arguments.model))
    faces = calibration_faces(arguments.calibrate, arguments.images, resize=arguments.resize)
    if len(faces) < FEW:
        logger.warning("calibrated on %d faces only - give %d or more, better 256", len(faces), FEW)
    with tqdm(total=len(faces), unit="img", desc="calibrate", leave=False, disable=None) as bar:
        cosines = export_int8(network, arguments.out, faces, vnni=arguments.vnni, on_face=bar.update)
    size = Path(arguments.out).stat().st_size
    print(f"{arguments.out}: {size:,} bytes, opset {OPSET}, calibrated on {len(faces)} faces")
    print(f"cosine to the float network, {len(cosines)} of them: mean {cosines.mean():.3f}, least {cosines.min():.3f}")
    if cosines.mean() < LEAST_COSINE:
        advice = "calibrate on more faces, like those it will see; measure it, or take `export onnx`"
        logger.warning("%s: far from the float network - %s", arguments.out, advice)
