"""Verification during and after training: every pack, on the weights as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vargface.data.packs import Pack, read_pack
from vargface.errors import InputError
from vargface.eval.verification import Verification, verify_pack
from vargface.inference import FrozenNetwork

__all__ = ["find_packs", "mean_accuracy", "verify_packs"]


def find_packs(packs: Sequence[str], data: str) -> list[Pack]:
    """Return the packs of files `packs` or, where there are none, of every *.bin in folder `data`, by name.

    Raises InputError for a file that is missing or no pack.
    """
    files = [Path(pack) for pack in packs] or sorted(Path(data).glob("*.bin"))
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such verification pack")
    return [read_pack(file) for file in files]


def verify_packs(network: FrozenNetwork, packs: Sequence[Pack]) -> dict[str, Verification]:
    """Return name -> verification of `network` on each of `packs`, with a progress bar on a terminal."""
    results = {}
    total = sum(len(pack.images) for pack in packs)
    with tqdm(total=total, unit="img", desc="verify", leave=False, disable=None) as bar:
        for pack in packs:
            results[pack.name] = verify_pack(network, pack, batch_size=network.batch_size, on_batch=bar.update)
    return results


def mean_accuracy(results: dict[str, Verification]) -> float:
    """Return the mean accuracy over packs, 0 where there are none."""
    return float(np.mean([result.accuracy for result in results.values()])) if results else 0.0
