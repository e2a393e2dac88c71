"""`vargface verify`: a checkpoint, or an ONNX file, on verification packs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vargface.commands import add_command
from vargface.files import make_folder, whole_file

if TYPE_CHECKING:
    from vargface.eval.table import Result
    from vargface.inference import FrozenNetwork
    from vargface.teachers.onnx_network import OnnxNetwork

__all__ = ["add_to"]

logger = logging.getLogger(__name__)

# the most wrong pairs of a pack, for a person to look at
SHOWN = 24


def add_to(commands: argparse._SubParsersAction) -> None:
    """Add the command to the command line."""
    verify = add_command(commands, "verify", _verify, "accuracy and TAR@FAR of a checkpoint on verification packs")
    verify.add_argument("--model", required=True, metavar="PREFIX,EPOCH|FILE.onnx")
    verify.add_argument(
        "--no-flip",
        action="store_true",
        help="judge by one view, as insightface embeds, not by the sum with its mirror",
    )
    verify.add_argument(
        "--far", type=_share, default=1e-3, help="the share of different pairs that TAR's threshold lets in (0.001)"
    )
    verify.add_argument("--json", metavar="FILE", help="write the figures there, too")
    verify.add_argument("--pictures", metavar="DIR", help="ROC, histograms and the most wrong pairs of each pack there")
    verify.add_argument("packs", nargs="+", metavar="PACK.bin")
    verify.epilog = "example: vargface verify --model runs/demo/student/student,1 runs/demo/data/lfw.bin"


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError("must be more than 0 and less than 1")
    return value


def _verify(arguments: argparse.Namespace) -> None:
    from vargface.eval.norms import explain_norms
    from vargface.eval.table import details_table, results_table
    from vargface.training.verifier import find_packs, verify_packs

    network, row = _model(arguments.model)
    packs = find_packs(arguments.packs, "")
    if arguments.pictures:
        make_folder(arguments.pictures)
    results = verify_packs(network, packs, flip=not arguments.no_flip, far=arguments.far)
    print(results_table([dataclasses.replace(row, packs=results)]), end="\n\n")
    print(details_table(results))
    for line in explain_norms({name: result.norms for name, result in results.items()}):
        logger.warning("%s", line)
    if arguments.json:
        with whole_file(arguments.json, "w") as file:
            json.dump({name: result.as_dict() for name, result in results.items()}, file, indent=1)
    if arguments.pictures:
        _draw(packs, results, Path(arguments.pictures))


def _model(model: str) -> tuple[FrozenNetwork | OnnxNetwork, Result]:
    """Return the network of PREFIX,EPOCH or FILE.onnx, and its row of the table without results.

    Parameters and FLOPs of an ONNX file are not counted: it may be folded, or in 8 bits.
    """
    from vargface.checkpoint import load_checkpoint, parse_model
    from vargface.eval.flops import network_cost
    from vargface.eval.table import Result
    from vargface.inference import FrozenNetwork
    from vargface.teachers.onnx_network import OnnxNetwork

    if model.endswith(".onnx"):
        return OnnxNetwork(model), Result(Path(model).stem, checkpoint=model)
    checkpoint = load_checkpoint(model)
    cost = network_cost(checkpoint.symbol)
    row = Result(Path(parse_model(model)[0]).name, params=cost.params, flops=cost.flops, checkpoint=model)
    return FrozenNetwork(checkpoint), row


def _draw(packs: list, results: dict, folder: Path) -> None:
    """Write NAME-roc.png, NAME-scores.png and NAME-wrong.png of every pack that has both kinds of pair."""
    from vargface.eval.pictures import draw_pairs, draw_roc, draw_scores
    from vargface.eval.roc import roc

    edges = np.linspace(-1, 1, 101)
    for pack in packs:
        result = results[pack.name]
        curve = roc(result.distances, pack.issame)
        if curve is None:
            logger.warning("%s: has pairs of one kind only: no ROC to draw", pack.name)
            continue
        cosines = 1 - result.distances / 2
        same, different = (np.histogram(cosines[kind], edges)[0] for kind in (pack.issame, ~pack.issame))
        wrong = _most_wrong(cosines, pack.issame, result.cosine_threshold)
        faces = [pack.decode(2 * pair, 2 * pair + 2).transpose(0, 2, 3, 1) for pair in wrong]
        captions = [f"pair {p}, {'same' if pack.issame[p] else 'different'}: {cosines[p]:.3f}" for p in wrong]
        pictures = {
            "roc": draw_roc({pack.name: (curve.fars, curve.tars)}),
            "scores": draw_scores(edges, same, different, {"best threshold": result.cosine_threshold}),
            "wrong": draw_pairs(faces, captions),
        }
        for kind, picture in pictures.items():
            with whole_file(folder / f"{pack.name}-{kind}.png") as file:
                file.write(picture)


def _most_wrong(cosines: np.ndarray, same: np.ndarray, threshold: float) -> np.ndarray:
    """Return up to SHOWN pairs, those farthest on the wrong side of `threshold` first."""
    wrongness = np.where(same, threshold - cosines, cosines - threshold)
    return np.argsort(-wrongness, kind="stable")[:SHOWN]
