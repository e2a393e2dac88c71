"""From a folder an identity to an InsightFace folder. Images are taken as aligned: nothing is detected or turned."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from vargface.data.decoding import IMAGE_FORMS, decode
from vargface.data.writer import RecordWriter, refuse_used
from vargface.errors import InputError
from vargface.files import make_folder, whole_file

__all__ = ["RESIZE", "Built", "build", "identity_folders", "image_files", "read_image"]

# what becomes of an image of another size
RESIZE = {
    "scale": "one of the same shape is scaled, any other is unusable",
    "crop": "its shorter side is scaled, the middle cut out",
    "never": "it is unusable",
}


class Built(NamedTuple):
    """What was written, and what was left out."""

    images: int
    identities: int
    small_identities: int
    left_out: int


def build(
    source: str | Path,
    out: str | Path,
    *,
    image_size: tuple[int, int] = (112, 112),
    quality: int = 95,
    resize: str = "scale",
    min_images: int = 1,
    on_bad: Callable[[str], object] | None = None,
    on_identity: Callable[[int], object] = lambda _: None,
) -> Built:
    """Write the images in source/IDENTITY/* to the InsightFace folder `out`, identities and images by name.

    A JPEG of the right size goes in byte for byte; any other image is encoded anew. `out`/identities.txt holds the name
    of identity n in line n + 1.

    Parameters
    ----------
    image_size : (height, width).
    quality : 1..100, of the JPEGs that are encoded here.
    resize : a key of RESIZE.
    min_images : identities of fewer usable images are left out, and do not get a number.
    on_bad : called with what is wrong with an image that is left out; None: such an image is an InputError.
    on_identity : called with 1 an identity done.

    Raises InputError where there is nothing to write, or `out` holds a data set already; nothing is left of it then.
    """
    source, out = Path(source), Path(out)
    names = identity_folders(source)
    refuse_used(out)
    images = small = bad = 0

    def left_out(what: str) -> None:
        nonlocal bad
        bad += 1
        on_bad(what)

    make_folder(out)
    with whole_file(out / "identities.txt") as identities, RecordWriter(out, len(names), image_size) as writer:
        for name in names:
            usable = _usable(source / name, image_size, quality, resize, left_out if on_bad else None)
            # no more are held than it takes to know that there are enough
            first = [jpeg for _, jpeg in zip(range(min_images), usable)]
            if first and len(first) >= min_images:
                identities.write(os.fsencode(name) + b"\n")
                number = writer.num_identities
                for jpeg in first:
                    writer.add(number, jpeg)
                images += len(first)
                for jpeg in usable:
                    writer.add(number, jpeg)
                    images += 1
            else:
                small += 1
            on_identity(1)
        if not images:
            few = f" in {len(names)} folders of which none has {min_images}" if small else ""
            raise InputError(f"{source}: no image to write{few} - give a folder of one folder an identity")
        number = writer.num_identities
    return Built(images, number, small, bad)


def identity_folders(source: Path) -> list[str]:
    """Return the names of the folders in `source`, sorted; raises InputError where there is none."""
    names = sorted(name for name, is_folder in _entries(source) if is_folder)
    if not names:
        raise InputError(f"{source}: no folder in it - give a folder of one folder an identity")
    for name in names:
        if "\n" in name:
            raise InputError(
                f"{source}: {name!r} has a line break in its name, identities.txt a line a name - rename it"
            )
    return names


def image_files(folder: Path) -> list[Path]:
    """Return the image files in `folder`, by name."""
    return [folder / name for name, is_folder in sorted(_entries(folder)) if not is_folder and _is_image(name)]


def read_image(file: Path) -> bytes:
    """Return the bytes of an image file; raises ValueError, its text the reason, where it cannot be read."""
    try:
        # what waits for a writer, or never ends, is no image
        if not stat.S_ISREG(file.stat().st_mode):
            raise ValueError("is no file, but a pipe, a device or a folder")
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_FORMS)


def _entries(folder: Path) -> Iterator[tuple[str, bool]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.name, entry.is_dir() and not entry.name.startswith(".")
    except OSError as error:
        raise InputError(
            f"{folder}: cannot read ({error.strerror}) - give a folder of one folder an identity"
        ) from error


def _usable(
    folder: Path,
    image_size: tuple[int, int],
    quality: int,
    resize: str,
    left_out: Callable[[str], object] | None,
) -> Iterator[bytes]:
    for file in image_files(folder):
        try:
            yield _jpeg(file, image_size, quality, resize)
        except ValueError as error:
            if left_out is None:
                raise InputError(f"{file}: {error} - replace it, or leave out all such images: --skip-bad") from error
            left_out(f"{file}: {error}")


def _jpeg(file: Path, image_size: tuple[int, int], quality: int, resize: str) -> bytes:
    """Return the image in `file` as a JPEG of `image_size`; raises ValueError, its text the reason."""
    encoded = read_image(file)
    image = decode(encoded)
    if image.shape[:2] == image_size and encoded[:2] == b"\xff\xd8":
        return encoded
    image = _resized(image, image_size, resize)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _resized(image: np.ndarray, image_size: tuple[int, int], resize: str) -> np.ndarray:
    if image.shape[:2] == image_size:
        return image
    (height, width), (target_height, target_width) = image.shape[:2], image_size
    if resize == "never" or (resize == "scale" and height * target_width != width * target_height):
        raise ValueError(f"is {height}x{width}, not {target_height}x{target_width} (the resize policy is '{resize}')")
    scale = max(target_height / height, target_width / width)
    size = max(round(height * scale), target_height), max(round(width * scale), target_width)
    # area does not alias when pixels become fewer
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (size[0] - target_height) // 2, (size[1] - target_width) // 2
    return image[top : top + target_height, left : left + target_width]
