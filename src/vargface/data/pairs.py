"""Which images a verification pack compares: from a list of pairs, or drawn from a folder an identity.

Images are taken as aligned: they go into the pack byte for byte, nothing is detected, turned or cropped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vargface.data.build import identity_folders, image_files, read_image
from vargface.data.decoding import IMAGE_FORMS, decode
from vargface.data.packs import write_pack
from vargface.errors import InputError

__all__ = ["Pair", "drawn_pairs", "listed_pairs", "make_pack"]


class Pair(NamedTuple):
    """Two image files and whether they are of one person."""

    first: Path
    second: Path
    same: bool


def make_pack(pairs: list[Pair], out: str | Path, on_image: Callable[[int], object] = lambda _: None) -> None:
    """Write the images of `pairs` as verification pack `out`, one after the other.

    Raises InputError where an image cannot be read or decoded, or is not square, which verification could not use.
    """

    def images() -> Iterator[bytes]:
        for pair in pairs:
            for file in pair[:2]:
                yield _square_image(file)
                on_image(1)

    write_pack(out, images(), [pair.same for pair in pairs])


def listed_pairs(path: str | Path, root: str | Path) -> list[Pair]:
    """Return the pairs of a text file: lines 'IMAGE IMAGE 1' (one person) or 'IMAGE IMAGE 0', or LFW's pairs.txt.

    IMAGE is a path below `root`; fields are parted by tabs or, where there are none, by blanks. LFW's lines are
    'NAME 1 2' and 'NAME 1 OTHER 2', for root/NAME/NAME_0001.jpg (or .png, ...); its first line says how many there are.
    Raises InputError, naming the line, where it is something else or its image is not there.
    """
    path, root = Path(path), Path(root)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise InputError(f"{path}: cannot read ({reason}) - give a list of pairs, or a folder") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not fields or (number == 1 and all(field.isdecimal() for field in fields)):
            continue
        pair = _pair(root, [field.strip() for field in fields])
        if pair is None:
            raise InputError(
                f"{path}: line {number} is {line[:60]!r} - write 'IMAGE IMAGE 1' or 'IMAGE IMAGE 0', or lines as LFW's"
            )
        for file in pair[:2]:
            if not file.is_file():
                raise InputError(
                    f"{path}: line {number}: {file}: no such image - give the folder of the images by --root"
                )
        pairs.append(pair)
    if not pairs:
        raise InputError(f"{path}: has no pairs - give a list of pairs, or a folder")
    return pairs


def drawn_pairs(source: str | Path, count: int, seed: int) -> list[Pair]:
    """Return `count` pairs of images in source/IDENTITY/*, none twice, in turn of one person and of two.

    Raises InputError where there are too few images for so many.
    """
    source = Path(source)
    by_identity = [files for files in (image_files(source / name) for name in identity_folders(source)) if files]
    sizes = np.array([len(files) for files in by_identity], dtype=np.int64)
    total = int(sizes.sum())
    same = int((sizes * (sizes - 1) // 2).sum())
    different = total * (total - 1) // 2 - same
    wanted_same, wanted_different = count - count // 2, count // 2
    if wanted_same > same or wanted_different > different:
        raise InputError(
            f"{source}: {total} images of {len(sizes)} identities give {same} pairs of one person and {different} of "
            f"two, not {wanted_same} and {wanted_different} - ask for fewer by --pairs"
        )
    files = [file for of_one in by_identity for file in of_one]
    identity = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    # by the number of an identity's pairs, so that every pair is as likely as any other
    upto = np.cumsum(sizes * (sizes - 1) // 2)
    # `random()` alone is promised to give the same numbers in every release of Python
    draw = random.Random(seed).random

    def of_one_person() -> tuple[int, int]:
        one = int(np.searchsorted(upto, int(draw() * same), side="right"))
        first, second = (int(starts[one]) + int(draw() * sizes[one]) for _ in range(2))
        return first, second

    def of_two() -> tuple[int, int]:
        return int(draw() * total), int(draw() * total)

    pairs, seen = [], set()
    for number in range(count):
        alike = number % 2 == 0
        while True:
            first, second = of_one_person() if alike else of_two()
            key = min(first, second), max(first, second)
            if first != second and (identity[first] == identity[second]) == alike and key not in seen:
                break
        seen.add(key)
        pairs.append(Pair(files[first], files[second], alike))
    return pairs


def _pair(root: Path, fields: list[str]) -> Pair | None:
    if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
        return Pair(_of_lfw(root, fields[0], fields[1]), _of_lfw(root, fields[0], fields[2]), True)
    if len(fields) == 4 and fields[1].isdecimal() and fields[3].isdecimal():
        return Pair(_of_lfw(root, *fields[:2]), _of_lfw(root, *fields[2:]), False)
    if len(fields) == 3 and fields[2] in ("0", "1"):
        return Pair(root / fields[0], root / fields[1], fields[2] == "1")
    return None


def _of_lfw(root: Path, name: str, number: str) -> Path:
    stem = root / name / f"{name}_{int(number):04d}"
    found = (stem.with_name(stem.name + form) for form in IMAGE_FORMS)
    return next((file for file in found if file.is_file()), stem.with_name(stem.name + IMAGE_FORMS[0]))


def _square_image(file: Path) -> bytes:
    try:
        encoded = read_image(file)
        height, width = decode(encoded).shape[:2]
    except ValueError as error:
        raise InputError(f"{file}: {error} - replace it") from error
    if height != width:
        raise InputError(f"{file}: is {height}x{width} - align it to 112x112 first")
    return encoded
