"""Aligned faces in image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vargface.data.decoding import decode, planes
from vargface.errors import InputError

__all__ = ["read_face"]


def read_face(path: str | Path, image_size: tuple[int, int] = (112, 112)) -> np.ndarray:
    """Return the face in image file `path`, (3, H, W) uint8, RGB.

    Raises InputError, naming the file, where it cannot be read or decoded (a JPEG that is cut short, too) or is of
    another size than `image_size`: a test set's images are aligned, and must not be scaled.
    """
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error}) - give the folder it is in") from error
    try:
        image = decode(encoded)
    except ValueError as error:
        raise InputError(f"{path}: {error} - get it anew, or leave it out") from error
    if image.shape[:2] != image_size:
        found, wanted = ("x".join(map(str, size)) for size in (image.shape[:2], image_size))
        raise InputError(f"{path}: is {found}, not {wanted} - give aligned faces")
    face = np.empty((3, *image_size), np.uint8)
    planes(image, face)
    return face
