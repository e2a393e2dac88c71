"""`vargface lfr score|merge|identify`: what a feature file of the LFR challenge is worth."""

from __future__ import annotations

import argparse
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vargface.commands import add_command, whole
from vargface.commands.lfr_state import do, load
from vargface.errors import InputError
from vargface.files import locked_file, make_folder, whole_file
from vargface.runtime import cores

__all__ = ["add_to"]

logger = logging.getLogger(__name__)

# below so many admitted pairs a TPR depends on single pairs
FEW_ADMITTED = 100


def add_to(steps: argparse._SubParsersAction) -> None:
    """Add the commands to those of `vargface lfr`."""
    score = add_command(steps, "score", _score, "TPR at a FPR over all pairs, and the curve around it")
    _takes_files(score)
    score.add_argument("--fpr", default="1e-8", help="default: 1e-8, the image tracks'; 1e-4 is the video tracks'")
    score.add_argument("--processes", type=whole(1), help="default: the cores")
    score.add_argument("--part", type=_part, default=(1, 1), metavar="I/K", help="part I of K alone, to be merged")
    score.add_argument("--state", metavar="FILE.npz", help="what is found so far (default: beside FEATURES)")
    score.add_argument(
        "--seed", type=whole(0), default=0, help="of the sample that says where to look; the result is the same"
    )
    score.add_argument(
        "--after", nargs="+", metavar="PART.npz", help="all parts of a first pass, whose sample had misjudged"
    )
    _takes_outputs(score)
    score.set_defaults(goes_on=True)
    score.epilog = "example: vargface lfr score feat.bin labels.txt --pictures pictures --images lfr_images"

    merge = add_command(steps, "merge", _merge, "the result of all parts of a score")
    _takes_files(merge)
    merge.add_argument("parts", nargs="+", metavar="PART.npz")
    _takes_outputs(merge)
    merge.epilog = "example: vargface lfr merge feat.bin labels.txt feat.bin.1-of-2.npz feat.bin.2-of-2.npz"

    identify = add_command(steps, "identify", _identify, "rank-k, and TPIR at FPIR with distractors as strangers")
    _takes_files(identify)
    identify.add_argument("--processes", type=whole(1), help="default: the cores")
    identify.add_argument("--state", metavar="FILE.npz", help="what is found so far (default: beside FEATURES)")
    identify.add_argument("--json", metavar="FILE", help="write the figures there, too")
    identify.set_defaults(goes_on=True)
    identify.epilog = "example: vargface lfr identify feat.bin labels.txt"


def _takes_files(command: argparse.ArgumentParser) -> None:
    command.add_argument("features", metavar="FEATURES.bin")
    command.add_argument("labels", metavar="LABELS", help="a number a row (text or .npy), -1 for a distractor")


def _takes_outputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", metavar="FILE", help="write the figures there, too")
    command.add_argument("--pictures", metavar="DIR", help="ROC and histograms there; most wrong pairs with --images")
    command.add_argument("--images", metavar="DIR", help="the folder that was submitted")


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/K with I from 1 to K")
    return int(found[1]), int(found[2])


def _score(arguments: argparse.Namespace) -> None:
    from vargface.eval.lfr.plan import make_plan
    from vargface.eval.lfr.scoring import Part, corrected, finish, misjudged

    _look_ahead(arguments)
    index, parts = arguments.part
    plan = make_plan(arguments.features, arguments.labels, headline=arguments.fpr, seed=arguments.seed)
    suffix = ""
    if arguments.after:
        plan, suffix = corrected(_merged(arguments.after, plan)), ".second"
    _warn(plan, arguments.fpr)
    path = Path(arguments.state or f"{arguments.features}.{index}-of-{parts}{suffix}.npz")
    with locked_file(path):
        part = Part.empty(plan, index, parts)
        if path.exists():
            part = load(path, Part.of)
            # alone, it may be in its second pass already; parts have to look in the same places
            fits = plan.asks_the_same if parts == 1 and not arguments.after else plan.agrees
            if not fits(part.plan) or (part.index, part.parts) != (index, parts):
                raise InputError(f"{path}: is of another scan - remove it, or give another --state")
            part.plan = part.plan.of_files(plan.features, plan.labels)
        _scan(part, path, arguments.processes)
        if parts > 1:
            pairs = part.pairs(part.mine)
            print(f"{path}: part {index}/{parts}, {pairs:,} pairs in {part.seconds:.0f} s; merge it with the others")
            return
        if misjudged(part):
            logger.warning("%s: a second pass over all pairs, about as long as the first, finds it", _where(part))
            part = Part.empty(corrected(part))
            _scan(part, path, arguments.processes)
        _report(finish(part), arguments)
        path.unlink()


def _scan(part: Any, path: Path, processes: int | None) -> None:
    from vargface.eval.lfr.scoring import run

    do(part, path, run, processes or cores(), total=part.pairs(part.mine), name="score")


def _where(part: Any) -> str:
    from vargface.eval.lfr.scoring import misjudged

    fprs = ", ".join(misjudged(part))
    return f"the sample of pairs misjudged where the threshold of FPR {fprs} lies"


def _merge(arguments: argparse.Namespace) -> None:
    from vargface.eval.lfr.plan import make_plan
    from vargface.eval.lfr.scoring import Part, finish, misjudged

    _look_ahead(arguments)
    first = load(Path(arguments.parts[0]), Part.of).plan
    plan = make_plan(arguments.features, arguments.labels, headline=first.headline, seed=first.seed)
    merged = _merged(arguments.parts, plan)
    _warn(plan, first.headline)
    if misjudged(merged):
        raise InputError(f"{_where(merged)} - keep these parts and score each anew, with all of them after --after")
    arguments.fpr = first.headline
    _report(finish(merged), arguments)


def _merged(paths: Sequence[str], plan: Any) -> Any:
    """Return the parts in files `paths` as one. Raises InputError where they are of other files than `plan`."""
    from vargface.eval.lfr.scoring import Part, merge

    parts = [load(Path(path), Part.of) for path in paths]
    for path, part in zip(paths, parts):
        if not part.plan.asks_the_same(plan):
            raise InputError(
                f"{path}: is not of {plan.features} with {plan.labels} at this FPR - give what it was made of"
            )
        part.plan = part.plan.of_files(plan.features, plan.labels)
    return merge(parts)


def _look_ahead(arguments: argparse.Namespace) -> None:
    """Refuse what could not be written or drawn after hours of work."""
    if arguments.pictures:
        make_folder(arguments.pictures)
    if arguments.images:
        _names(arguments)
    if arguments.json:
        make_folder(Path(arguments.json).absolute().parent)


def _names(arguments: argparse.Namespace) -> list[str]:
    from vargface.eval.lfr.features import open_features
    from vargface.eval.lfr.submission import read_filelist

    names = read_filelist(arguments.images)
    rows = len(open_features(arguments.features))
    if len(names) != rows:
        raise InputError(
            f"{arguments.images}: filelist.txt has {len(names):,} lines, {arguments.features} {rows:,} rows - give the "
            "folder that was submitted"
        )
    return names


def _warn(plan: Any, fpr: str) -> None:
    if plan.admitted(fpr) < FEW_ADMITTED:
        logger.warning(
            "a FPR of %s admits %d of %s pairs of different people: with fewer than %d the TPR depends on single pairs",
            fpr,
            plan.admitted(fpr),
            f"{plan.negatives:,}",
            FEW_ADMITTED,
        )
    if plan.zeros:
        logger.warning("%d rows are zero: they score 0 with everyone", plan.zeros)


def _report(score: Any, arguments: argparse.Namespace) -> None:
    """Print the curve and the figure of the challenge; write what else was asked for."""
    from vargface.eval.table import format_table

    header = ["FPR", "admitted", "accepted", "threshold", "TPR", "exact"]
    rows = [
        [
            p.fpr,
            f"{p.admitted:,}",
            _range(p.accepted, p.accepted_high, ","),
            _range(p.threshold, p.threshold_high, ".6f"),
        ]
        + [_range(p.tpr, p.tpr_high, ".6f"), "yes" if p.exact else "bounds"]
        for p in score.curve
    ]
    print(format_table(header, rows))
    print(
        f"\n{score.rows:,} rows, {score.distractors:,} of them distractors: {score.positives:,} pairs of one person, "
        f"{score.negatives:,} of two\na float32 score is within {score.score_error:.1e} of the exact; what is nearer "
        "to a threshold is decided in float64"
    )
    point = score.at(arguments.fpr)
    print(f"TPR {_range(point.tpr, point.tpr_high, '.6f')} at FPR {arguments.fpr}")
    if arguments.json:
        with whole_file(arguments.json, "w") as file:
            json.dump(score.as_dict(), file, indent=1)
    if arguments.pictures:
        _draw(score, arguments)


def _range(low: float, high: float, form: str) -> str:
    """Return both bounds, or one if they read alike."""
    return f"{low:{form}}" if f"{low:{form}}" == f"{high:{form}}" else f"{low:{form}}..{high:{form}}"


def _draw(score: Any, arguments: argparse.Namespace) -> None:
    from vargface.eval.lfr.plan import HISTOGRAM
    from vargface.eval.pictures import draw_pairs, draw_roc, draw_scores

    fars = np.array([float(point.fpr) for point in score.curve])
    tars = np.array([point.tpr for point in score.curve])
    name = Path(arguments.features).name
    thresholds = {f"FPR {arguments.fpr}": score.at(arguments.fpr).threshold}
    folder = Path(arguments.pictures)
    pictures = {
        "roc.png": draw_roc({name: (fars, tars)}),
        "scores.png": draw_scores(HISTOGRAM, *score.histograms, thresholds),
    }
    for title, picture in pictures.items():
        with whole_file(folder / title) as file:
            file.write(picture)
    if not arguments.images:
        return
    names = _names(arguments)
    for title, pairs in (("false-accepts.png", score.false_accepts), ("false-rejects.png", score.false_rejects)):
        images = [[_shown(Path(arguments.images), names[row]) for row in rows] for rows in zip(*pairs[:2])]
        with whole_file(folder / title) as file:
            file.write(draw_pairs(images, [f"{i}, {j}: {cosine:.3f}" for i, j, cosine in zip(*pairs)]))


def _shown(folder: Path, line: str) -> np.ndarray | str:
    """Return the image (H, W, 3) uint8, RGB, of a line of filelist.txt, or the line where it cannot be read."""
    from vargface.data.faces import read_face
    from vargface.eval.lfr.submission import picture_of

    try:
        return read_face(picture_of(folder, line)).transpose(1, 2, 0)
    except InputError as error:
        logger.warning("%s; drawn as a grey tile", error)
        return line


def _identify(arguments: argparse.Namespace) -> None:
    from vargface.eval.lfr.identification import Probing, finish, run

    if arguments.json:
        make_folder(Path(arguments.json).absolute().parent)
    path = Path(arguments.state or f"{arguments.features}.identify.npz")
    probing = Probing.begun(arguments.features, arguments.labels)
    with locked_file(path):
        if path.exists() and not load(path, probing.go_on):
            raise InputError(f"{path}: is of other features or labels - remove it, or give another --state")
        total = probing.pairs(range(len(probing.done)))
        do(probing, path, run, arguments.processes or cores(), total=total, name="identify")
        _report_identification(finish(probing), arguments)
        path.unlink()


def _report_identification(found: Any, arguments: argparse.Namespace) -> None:
    from vargface.eval.table import format_table

    print(f"gallery {found.gallery:,} people; {found.probes:,} probes; {found.distractors:,} distractors\n")
    ranks = [[f"rank-{k}", _share(found.rank[k]), _share(found.rank_with_distractors[k])] for k in found.rank]
    print(format_table(["", "gallery", "and distractors"], ranks), end="\n\n")
    shares = [[f, _share(found.tpir[f]), _share(found.thresholds[f])] for f in found.tpir]
    print(format_table(["FPIR", "TPIR", "threshold"], shares))
    if arguments.json:
        with whole_file(arguments.json, "w") as file:
            json.dump(found.as_dict(), file, indent=1)


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.6f}"
