"""Verification during and after training: every pack, on the weights as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vargface.data.packs import Pack, read_pack
from vargface.errors import InputError
from vargface.eval.verification import Verification, verify_pack
from vargface.inference import FrozenNetwork
from vargface.teachers.onnx_network import OnnxNetwork

__all__ = ["check_images", "find_packs", "mean_accuracy", "verify_packs"]

# of the protocol
FOLDS = 10
# images decoded at a time by the check
CHECKED_TOGETHER = 100


def find_packs(packs: Sequence[str], data: str) -> list[Pack]:
    """Return the packs of files `packs` or, where there are none, of every *.bin in folder `data`, by name.

    Raises InputError for a file that is missing, a folder, no pack, or has too few pairs, and for two of one name.
    """
    files = [Path(pack) for pack in packs] or sorted(Path(data).glob("*.bin"))
    for file in files:
        if file.is_dir():
            raise InputError(f"{file}: is a folder, not a verification pack - give the .bin files, or rename it")
        if not file.is_file():
            raise InputError(f"{file}: no such verification pack")
    found = [read_pack(file) for file in files]
    for file, pack in zip(files, found):
        # said now, not at the first verification, hours into a training
        if len(pack.issame) < FOLDS:
            raise InputError(f"{file}: {len(pack.issame)} pairs, verification needs {FOLDS} or more - add pairs")
        if sum(other.name == pack.name for other in found) > 1:
            raise InputError(f"{file}: two packs are called {pack.name} - rename one")
    return found


def check_images(packs: Sequence[Pack]) -> None:
    """Decode every image of `packs`, once; raises InputError naming the first that verification could not use.

    An image takes 0.1 ms: LFW, CFP-FP and AgeDB-30 together, 38,000 images, 4 s.
    """
    for pack in packs:
        for start in range(0, len(pack.images), CHECKED_TOGETHER):
            pack.decode(start, start + CHECKED_TOGETHER)


def verify_packs(
    network: FrozenNetwork | OnnxNetwork,
    packs: Sequence[Pack],
    *,
    flip: bool = True,
    far: float = 1e-3,
    on_batch: Callable[[], object] = lambda: None,
) -> dict[str, Verification]:
    """Return name -> `verify_pack` of `network` on each of `packs`, with a progress bar on a terminal.

    on_batch: called after each batch; what it raises ends the verification.
    """
    results = {}
    total = sum(len(pack.images) for pack in packs)
    with tqdm(total=total, unit="img", desc="verify", leave=False, disable=None) as bar:

        def count(images: int) -> None:
            bar.update(images)
            on_batch()

        for pack in packs:
            results[pack.name] = verify_pack(
                network, pack, FOLDS, far=far, batch_size=network.batch_size, flip=flip, on_batch=count
            )
    return results


def mean_accuracy(results: dict[str, Verification]) -> float:
    """Return the mean accuracy over packs, 0 where there are none."""
    return float(np.mean([result.accuracy for result in results.values()])) if results else 0.0
