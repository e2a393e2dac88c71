"""Which cosine lets few strangers in: all pairs of faces of people that the network was not trained on.

    python benchmarks/cross_pairs.py --model MODEL [--gallery MODEL] [--no-flip] [--each 2] [--people 1000] DATA

DATA holds train.rec (`vargface rec build` makes one of a folder a person). Of each person with `--each` images or more,
`--people` of them at most, the first `--each` are taken, and every face is compared with every other: n people give
about (n x each)^2 / 2 pairs of different ones, where a verification pack has a few hundred or thousand. A threshold is
given down to the FAR at which ten of these pairs are let in; they share faces, so its error is larger than that of ten
independent ones.

MODEL is PREFIX,EPOCH or FILE.onnx. --gallery: the second face of each pair is embedded by another model, an int8 file's
float original say; also the mean cosine of its embedding of a face to the first model's.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from vargface.data.packs import Pack
from vargface.data.records import FaceRecords
from vargface.deploy.embedder import Embedder
from vargface.errors import InputError
from vargface.inference import unit
from vargface.teachers.onnx_network import OnnxNetwork

# the different pairs that a threshold lets in at least
LEAST_ACCEPTED = 10
FARS = (1e-2, 1e-3, 1e-4, 1e-5)


def faces_of(folder: str, people: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `each` faces of so many people (n, 3, 112, 112) uint8, and whose they are (n,).

    Raises InputError where they give too few pairs of different people to tell a threshold by.
    """
    records = FaceRecords(folder)
    of: dict[int, list[bytes]] = {}
    chosen: dict[int, list[bytes]] = {}
    for place in range(len(records)):
        label, encoded = records.read(place)
        found = of.setdefault(int(label), [])
        if len(found) < each:
            found.append(encoded)
        if len(found) == each:
            chosen[int(label)] = found
        if len(chosen) == people:
            break
    different = len(chosen) * (len(chosen) - 1) // 2 * each**2
    if different * max(FARS) < LEAST_ACCEPTED:
        few = f"{different:,} pairs of different people, {each} faces each of {len(chosen)}, tell no threshold"
        raise InputError(f"{folder}: {few} - {LEAST_ACCEPTED / max(FARS):,.0f} do; give more people, or another --each")
    images = [image for some in chosen.values() for image in some]
    faces = Pack(folder, images, np.empty(0, bool)).decode(0, len(images))
    return faces, np.repeat(list(chosen), each)


def embeddings(model: str, faces: np.ndarray, flip: bool) -> np.ndarray:
    """Return unit embeddings (n, D)."""
    network = OnnxNetwork(model) if model.endswith(".onnx") else Embedder(model)
    found = network(faces)
    return unit(found + network(np.ascontiguousarray(faces[..., ::-1])) if flip else found)


def main() -> int:
    """Print the thresholds and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="PREFIX,EPOCH|FILE.onnx")
    parser.add_argument("--gallery", metavar="PREFIX,EPOCH|FILE.onnx", help="another model for a pair's second face")
    parser.add_argument("--no-flip", action="store_true", help="of one view, as insightface embeds")
    parser.add_argument("--each", type=int, default=2, help="faces a person (default 2)")
    parser.add_argument("--people", type=int, default=1000, help="so many people at most (default 1000)")
    parser.add_argument("data", metavar="DATA")
    options = parser.parse_args()
    try:
        judge(options)
    except InputError as error:
        print(f"cross_pairs.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def judge(options: argparse.Namespace) -> None:
    """Print the table. Raises InputError for data and models that give none."""
    if options.each < 2:
        raise InputError(f"--each {options.each}: must be 2 or more - one face alone is no pair of the same person")
    faces, who = faces_of(options.data, options.people, options.each)
    first = embeddings(options.model, faces, not options.no_flip)
    second = embeddings(options.gallery, faces, not options.no_flip) if options.gallery else first
    if first.shape != second.shape:
        sizes = f"of {first.shape[1]} and {second.shape[1]} numbers"
        raise InputError(f"--gallery {options.gallery}: embeddings {sizes} cannot be compared")
    cosines, one = first @ second.T, who[:, None] == who
    # with two models a pair of faces is two pairs: either may be the one in the gallery
    once = ~np.eye(len(who), dtype=bool) if options.gallery else np.triu(np.ones(one.shape, bool), 1)
    same, different = cosines[one & once], np.sort(cosines[~one & once])[::-1]
    print(
        f"{len(set(who.tolist()))} people, {len(who)} faces, {len(same):,} pairs the same, {len(different):,} different"
    )
    if options.gallery:
        own = np.diag(cosines)
        print(f"a face by both models: mean cosine {own.mean():.3f}, least {own.min():.3f}")
    print(f"pairs the same: mean cosine {same.mean():.3f}")
    print(f"{'FAR':>6} {'cosine':>7} {'TAR %':>6} {'let in':>7}")
    for far in FARS:
        accepted = int(far * len(different))
        if accepted >= LEAST_ACCEPTED:
            threshold = different[accepted]
            print(f"{far:>6.0e} {threshold:>7.3f} {100 * (same > threshold).mean():>6.1f} {accepted:>7,}")


if __name__ == "__main__":
    sys.exit(main())
