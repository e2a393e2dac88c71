"""A whole synthetic data set: an InsightFace folder to train on, and verification packs of people not in it."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from vargface.data.packs import write_pack
from vargface.data.synthetic.draw import SIZE, render, render_jpeg
from vargface.data.synthetic.identity import Identity
from vargface.data.synthetic.view import View
from vargface.data.writer import RecordWriter
from vargface.errors import InputError
from vargface.files import make_folder
from vargface.runtime import cores
from vargface.workers import in_order

__all__ = ["PACKS", "contact_sheet", "make_dataset", "person", "picture", "progress_bar"]

# Name of the pack -> what kinds of view its pairs compare.
PACKS = {"lfw": ("frontal", "frontal"), "cfp_fp": ("frontal", "profile"), "agedb_30": ("young", "old")}

_PERSON, _PICTURE, _PAIRS = range(3)  # what a random stream is for


def _stream(seed: int, *use: int) -> np.random.Generator:
    """The generator for one use of `seed`: streams of different uses are independent, whoever asks for them first."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=use))


@functools.lru_cache(maxsize=8)
def person(seed: int, identity: int) -> Identity:
    """The person of this number in the population of `seed`."""
    return Identity.draw(_stream(seed, _PERSON, identity))


def picture(seed: int, identity: int, image: int, kind: str = "any") -> bytes:
    """JPEG (quality 95) of one picture of one person; the same arguments always give the same bytes."""
    rng = _stream(seed, _PICTURE, identity, image)
    return render_jpeg(person(seed, identity), View.draw(rng, kind), rng)


def _pictures(seed: int, wanted: list[tuple[int, int, str]]) -> list[bytes]:
    return [picture(seed, *one) for one in wanted]


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _in_order(
    seed: int, batches: list[list], workers: int, report: Callable[[int], None] | None
) -> Iterator[tuple[list, list[bytes]]]:
    """Yield each batch of (identity, image, kind) with its pictures, in order, drawn by `workers` processes."""
    drawn = in_order(functools.partial(_pictures, seed), batches, workers, start=_one_thread)
    with contextlib.closing(drawn):
        for batch, images in zip(batches, drawn):
            if report:
                report(len(images))
            yield batch, images


def _pairs(seed: int, pack: str, pairs: int, first: int, people: int) -> tuple[list[tuple[int, int, str]], np.ndarray]:
    """The pictures (2 * pairs) a pack compares and whether each pair is one person: every second pair is.

    People are `first` .. `first + people - 1`; no picture is used twice.
    """
    number = list(PACKS).index(pack)
    rng = _stream(seed, _PAIRS, number)
    issame = np.arange(pairs) % 2 == 0
    wanted = []
    for k, same in enumerate(issame):
        one, other = rng.choice(people, 2, replace=False)
        image = 2 * (number * pairs + k)
        wanted.append((first + int(one), image, PACKS[pack][0]))
        wanted.append((first + int(one if same else other), image + 1, PACKS[pack][1]))
    return wanted, issame


def make_dataset(
    folder: str | Path,
    *,
    identities: int = 200,
    images_per_identity: int = 50,
    pairs: int = 600,
    pack_identities: int = 150,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a synthetic data set to `folder` and return its path.

    Parameters
    ----------
    folder : must not exist or be empty. It appears under its name only when all of it is written.
    identities, images_per_identity : what `train.rec`, `train.idx` and `property` hold; at least 1 each.
    pairs : of each pack, half of them of one person, a multiple of 10 (the folds) and at least 20.
    pack_identities : people in `lfw.bin`, `cfp_fp.bin` and `agedb_30.bin`, none of whom is trained on; at least 2.
    seed : same seed and counts, same bytes, however many workers.
    workers : processes; None is one per core.
    progress : called with (images done, images in all) now and then.

    Raises InputError for counts out of range and a folder that is in use or cannot be written.
    """
    folder = Path(folder)
    _check(folder, identities, images_per_identity, pairs, pack_identities, seed)
    parent = make_folder(folder.absolute().parent)
    total, done = identities * images_per_identity + 2 * pairs * len(PACKS), 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    batches = [[(person_, image, "any") for image in range(images_per_identity)] for person_ in range(identities)]
    planned = {pack: _pairs(seed, pack, pairs, identities, pack_identities) for pack in PACKS}
    step = 40
    for wanted, _ in planned.values():
        batches += [wanted[k : k + step] for k in range(0, len(wanted), step)]
    temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        drawn = _in_order(seed, batches, workers or cores(), report)
        with contextlib.closing(drawn), RecordWriter(temporary, identities, (SIZE, SIZE)) as writer:
            for _ in range(identities):
                for (identity, _image, _kind), jpeg in zip(*next(drawn)):
                    writer.add(identity, jpeg)
            for pack, (wanted, issame) in planned.items():
                images: list[bytes] = []
                while len(images) < len(wanted):
                    images += next(drawn)[1]
                write_pack(temporary / f"{pack}.bin", images, issame)
        temporary.chmod(0o755)
        _rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Yield what `make_dataset` takes as `progress`: it moves a bar on a terminal, and says nothing elsewhere."""
    with tqdm(unit="img", desc="draw", disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _rename(temporary: Path, folder: Path) -> None:
    try:
        os.replace(temporary, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror or error}) - choose another folder") from error


def _check(
    folder: Path, identities: int, images_per_identity: int, pairs: int, pack_identities: int, seed: int
) -> None:
    least = {
        "identities": (identities, 1),
        "images_per_identity": (images_per_identity, 1),
        "pairs": (pairs, 20),
        "pack_identities": (pack_identities, 2),
        "seed": (seed, 0),
    }
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise InputError(f"{name}={value}: too small - give at least {smallest}")
    if pairs % 10:
        raise InputError(f"pairs={pairs}: not a multiple of 10, the number of folds - give {pairs // 10 * 10 + 10}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not empty - remove it or choose another folder")


def contact_sheet(identities: int = 8, *, seed: int = 0, first: int = 0) -> np.ndarray:
    """A picture (112 * identities, 112 * 9, 3) uint8 RGB: a row per person, from `first` on.

    The columns: a passport picture, two frontal ones, three of any kind, one in profile, one young, one old.
    """
    rows = []
    for identity in range(first, first + identities):
        row = [render(person(seed, identity), View.plain(), _stream(seed, _PICTURE, identity, 0))]
        for image, kind in enumerate(("frontal", "frontal", "any", "any", "any", "profile", "young", "old"), start=1):
            rng = _stream(seed, _PICTURE, identity, image)
            row.append(render(person(seed, identity), View.draw(rng, kind), rng))
        rows.append(np.hstack(row))
    return np.vstack(rows)
