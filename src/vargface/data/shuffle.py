"""An InsightFace folder's images in random order, alone: what `mx.io.ImageRecordIter` and plain readers train on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vargface.data.decoding import decode
from vargface.data.recordio import RecordFile, unpack
from vargface.data.records import check_folder, read_property
from vargface.data.sorting import blocks_of, sorted_rows
from vargface.data.writer import PlainWriter, refuse_used
from vargface.errors import InputError

__all__ = ["Shuffled", "shuffle"]

_PLACE = np.dtype([("offset", "i8")])
_DRAWN = np.dtype([("word", "u8"), ("offset", "i8")])


class Shuffled(NamedTuple):
    """What was written, and what was left out."""

    images: int
    left_out: int


def shuffle(
    folder: str | Path,
    out: str | Path,
    *,
    seed: int = 0,
    on_bad: Callable[[str], object] | None = None,
    on_image: Callable[[int], object] = lambda _: None,
) -> Shuffled:
    """Write the images of an InsightFace folder, as they are, to folder `out` in the order that `seed` draws.

    train.rec is read as it comes, the index is not asked. on_bad: called with what is wrong with a record that is left
    out; the images are decoded to find all of these. None: a damaged or empty record and a label that is no identity
    are an InputError, and nothing is decoded.
    on_image: called with 1 an image written. Raises InputError where a folder cannot be used.
    """
    folder, out = Path(folder), Path(out)
    check_folder(folder)
    num_identities, image_size = read_property(folder / "property")
    refuse_used(out)
    written, bad = 0, 0

    def left_out(what: str) -> None:
        nonlocal bad
        bad += 1
        on_bad(what)

    with contextlib.closing(RecordFile(folder / "train.rec")) as file:
        places = _usable(file, num_identities, image_size, left_out) if on_bad else _all(file, num_identities)
        drawn = sorted_rows(_with_words(blocks_of(places, _PLACE), seed), "word", (1 << 64) - 1)
        with PlainWriter(out, num_identities, image_size) as writer:
            for block in drawn:
                for offset in block["offset"].tolist():
                    writer.add(bytes(file.payload(offset)))
                    written += 1
                    on_image(1)
    return Shuffled(written, bad)


def _with_words(blocks: Iterator[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """Give each place a random word, the same of one seed under every release of numpy."""
    words = np.random.Philox(np.random.SeedSequence([seed, 3]))
    for block in blocks:
        drawn = np.empty(len(block), dtype=_DRAWN)
        drawn["word"] = words.random_raw(len(block))
        drawn["offset"] = block["offset"]
        yield drawn


def _all(file: RecordFile, num_identities: int) -> Iterator[tuple[int]]:
    """Yield (offset,) of every image; raises InputError at what can be told to be unusable without decoding."""
    for _, offset, label, empty in file.images():
        try:
            if empty:
                raise ValueError("holds no image (0 bytes)")
            _check_label(label, num_identities)
        except ValueError as error:
            raise InputError(
                f"{file.path}: the record at byte {offset} {error} - leave out all such records: --skip-bad"
            ) from error
        yield (offset,)


def _check_label(label: float, num_identities: int) -> None:
    if not (0 <= label < num_identities and label == int(label)):
        raise ValueError(f"has label {label:.10g}, not one of property's {num_identities} identities")


def _usable(
    file: RecordFile, num_identities: int, image_size: tuple[int, int], left_out: Callable[[str], object]
) -> Iterator[tuple[int]]:
    """Yield (offset,) of the images that can be trained on; tell of the others."""
    for item in file.scan():
        try:
            if item.damage:
                raise ValueError(f"is damaged ({item.damage})")
            labels, image = unpack(item.payload)
            if not image and labels.size > 1:
                continue  # record 0 or an identity's
            size = decode(image).shape[:2]
            if size != image_size:
                raise ValueError("is {}x{}, property says {}x{}".format(*size, *image_size))
            _check_label(float(labels[0]), num_identities)
        except ValueError as error:
            left_out(f"{file.path}: the record at byte {item.offset} {error}")
        else:
            yield (item.offset,)
