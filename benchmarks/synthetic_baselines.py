"""How hard a set of synthetic faces is: accuracy per pack of what compares faces without a network.

    vargface synth data/synthetic
    python benchmarks/synthetic_baselines.py data/synthetic

Every row turns a face into a vector; packs are judged as `vargface verify` judges them (10 folds, f(x) + f(mirror x)).
PCA and LDA learn from the first 24 pictures of each person of train.rec, none of whom is in a pack.
"""

from __future__ import annotations

import argparse
import sys
from typing import Callable

import cv2
import numpy as np
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import Pipeline, make_pipeline

from vargface.data.packs import Pack, read_pack
from vargface.data.records import FaceRecords
from vargface.data.synthetic.dataset import PACKS
from vargface.errors import InputError
from vargface.eval.table import format_table
from vargface.eval.verification import verify_pack

SIZE = (112, 112)
LEARN_PICTURES, LEARN_COMPONENTS = 24, 200
Embed = Callable[[np.ndarray], np.ndarray]  # (n, 3, 112, 112) uint8 RGB -> (n, D)

_HOG = cv2.HOGDescriptor(SIZE, (28, 28), (14, 14), (14, 14), 9)
_FILTERS = np.random.default_rng(0).standard_normal((48, 7, 7)).astype(np.float32)


def grey(faces: np.ndarray) -> np.ndarray:
    """Return faces (n, 3, H, W) RGB as (n, H, W) uint8."""
    return np.array([cv2.cvtColor(np.ascontiguousarray(face.transpose(1, 2, 0)), cv2.COLOR_RGB2GRAY) for face in faces])


def pixels(faces: np.ndarray) -> np.ndarray:
    """Return grey 28 x 28 pixels (n, 784), each face less its own mean."""
    small = np.array([cv2.resize(face, (28, 28), interpolation=cv2.INTER_AREA) for face in grey(faces)], np.float32)
    flat = small.reshape(len(faces), -1)
    return flat - flat.mean(axis=1, keepdims=True)


def random_filters(faces: np.ndarray) -> np.ndarray:
    """Return what an untrained layer gives: 48 random filters, ReLU, means over 7 x 7 cells, (n, 48 * 49)."""
    maps = [[np.maximum(cv2.filter2D(face, cv2.CV_32F, one), 0) for one in _FILTERS] for face in grey(faces)]
    cells = [[cv2.resize(one, (7, 7), interpolation=cv2.INTER_AREA) for one in face] for face in maps]
    return np.array(cells).reshape(len(faces), -1)


def hog(faces: np.ndarray) -> np.ndarray:
    """Return histograms of gradients (n, D): 9 directions, cells of 14 pixels, blocks of 2 x 2 cells."""
    return np.array([_HOG.compute(face).ravel() for face in grey(faces)])


def learnt(embed: Embed, records: FaceRecords) -> Pipeline:
    """Return PCA and LDA fitted to the first pictures of each person: means of `embed` of a face and its mirror."""
    vectors, people, seen = [], [], np.zeros(records.num_identities, int)
    for position in range(len(records)):
        person, jpeg = records.read(position)
        seen[person] += 1
        if seen[person] <= LEARN_PICTURES:
            face = Pack(records.name(position), [jpeg], np.zeros(0)).decode(0, 1)
            vectors.append((embed(face) + embed(face[..., ::-1]))[0] / 2)
            people.append(person)
    if len(vectors) <= LEARN_COMPONENTS or len(set(people)) == len(people) or len(set(people)) < 2:
        raise InputError(
            f"{records.folder}: {len(people)} pictures of {len(set(people))} people, too few to learn from - "
            "give the folder of a default set (vargface synth FOLDER)"
        )
    projection = make_pipeline(
        PCA(LEARN_COMPONENTS, svd_solver="randomized", random_state=0),
        LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1),
    )
    return projection.fit(np.array(vectors), people)


def accuracies(embed: Embed, packs: list[Pack]) -> list[str]:
    """Return the accuracy of each pack, for the table."""
    return [f"{verify_pack(embed, pack).accuracy:.3f}" for pack in packs]


def table(folder: str) -> str:
    """Return the table for the data set in `folder`."""
    records = FaceRecords(folder)
    packs = [read_pack(records.folder / f"{name}.bin") for name in PACKS]
    projection = learnt(hog, records)
    rows: dict[str, Embed] = {
        "raw pixels, 28 x 28, each face less its mean": pixels,
        "48 random 7 x 7 filters, ReLU, 7 x 7 cells (untrained)": random_filters,
        "gradient histograms (HOG), nothing learnt": hog,
        f"HOG, PCA and LDA of {LEARN_PICTURES} pictures a person": lambda faces: projection.transform(hog(faces)),
    }
    lines = [[name, *accuracies(embed, packs)] for name, embed in rows.items()]
    return format_table(["what compares", *PACKS], lines, markdown=True)


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="FOLDER", help="made by `vargface synth FOLDER`")
    options = parser.parse_args()
    try:
        print(table(options.folder))
    except InputError as error:
        print(f"synthetic_baselines: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
