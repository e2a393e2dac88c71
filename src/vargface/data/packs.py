"""Verification packs (`lfw.bin`, `cfp_fp.bin`, ...): pairs of faces and whether both are of one person.

A pack is a pickle of (list of 2P encoded images, list of P bools), images 2i and 2i+1 being pair i; InsightFace's
lfw2pack.py writes it and `load_bin` of its verification.py reads it. A pickle can run any code of its author's
choosing, and packs come from the internet: plain_pickle.py reads it without running it, and leaves the images in the
file, so that memory does not grow with them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vargface.data.decoding import decode, planes
from vargface.data.plain_pickle import Array, ByteString, Items, Refused, StringsInFile, load_plain
from vargface.errors import InputError
from vargface.files import whole_file

__all__ = ["Pack", "read_pack", "write_pack"]


@dataclass(frozen=True)
class Pack:
    """A verification pack.

    path: the file, or what messages call the images in its stead; images: 2P encoded images, of a file read one by one
    when they are asked for; issame: (P,) bool.
    """

    path: str | Path
    images: Sequence[bytes]
    issame: np.ndarray

    @property
    def name(self) -> str:
        """Return the file's name without `.bin`."""
        name = Path(self.path).name
        return name[: -len(".bin")] if name.endswith(".bin") else name

    def decode(self, start: int, stop: int, image_size: tuple[int, int] = (112, 112)) -> np.ndarray:
        """Return images start..stop-1 as (n, 3, H, W) uint8, RGB; `stop` past the end is the end.

        An image of another size but the same shape is resized, bicubic, as InsightFace's `resize_short` does. Raises
        InputError, naming the image, where it cannot be decoded or has another aspect ratio: where to crop would be a
        guess at where the face is, and InsightFace stops there too.
        """
        height, width = image_size
        encoded = self.images[start:stop]
        faces = np.empty((len(encoded), 3, height, width), dtype=np.uint8)
        for row, image in enumerate(encoded):
            try:
                face = decode(image)
            except ValueError as error:
                raise InputError(
                    f"{self.path}: {_image_name(start + row)} {error} - get the pack anew, or leave it out"
                ) from error
            if face.shape[:2] != image_size:
                if face.shape[0] * width != face.shape[1] * height:
                    raise InputError(
                        f"{self.path}: {_image_name(start + row)} is {face.shape[0]}x{face.shape[1]}, which does not "
                        f"scale to {height}x{width} - write the pack anew from aligned faces"
                    )
                face = cv2.resize(face, (width, height), interpolation=cv2.INTER_CUBIC)
            planes(face, faces[row])
        return faces


def read_pack(path: str | Path) -> Pack:
    """Return the pack in file `path`, written by Python 2 or 3, its images still encoded.

    Raises InputError where the file is missing, is no pack, asks for code to be run, has no pairs, or has a number of
    images that is not twice the number of pairs.
    """
    path = Path(path)
    try:
        content, strings = load_plain(path)
        if not (isinstance(content, (tuple, Items)) and len(content) == 2):
            raise InputError(f"{path}: is not a pair (images, issame) - give a verification pack (.bin)")
        parts = iter(content)
        images, issame = _images(path, next(parts), strings), _flags(path, next(parts), strings)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot read ({reason}) - give a verification pack (.bin)") from error
    except Refused as error:
        raise InputError(f"{path}: {error} - do not use this file, get the pack elsewhere") from error
    except ValueError as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: is not a verification pack ({reason}) - get the pack anew") from error
    if not len(issame):
        raise InputError(f"{path}: has no pairs - give another verification pack")
    if len(images) != 2 * len(issame):
        raise InputError(
            f"{path}: has {len(images)} images for {len(issame)} pairs, not {2 * len(issame)} - get the pack anew"
        )
    return Pack(path, images, issame)


def write_pack(path: str | Path, images: Iterable[bytes], issame: Sequence[bool] | np.ndarray) -> None:
    """Write 2P encoded images and P flags as a pack that InsightFace (Python 3) and `read_pack` read.

    One image is held at a time. Raises ValueError where the numbers do not fit, InputError where the file cannot be
    written.
    """
    written = 0
    with whole_file(path) as file:
        # protocol 3, the first with bytes: two lists, each item appended on its own, made a pair
        file.write(b"\x80\x03]")
        for image in images:
            file.writelines((b"B", struct.pack("<I", len(image)), image, b"a"))
            written += 1
        file.write(b"]")
        file.writelines(b"\x88a" if same else b"\x89a" for same in issame)
        file.write(b"\x86.")
        if not written or written != 2 * len(issame):
            raise ValueError(f"{written} images for {len(issame)} pairs: expected two a pair, and a pair at least")


def _image_name(number: int) -> str:
    return f"image {number} (pair {number // 2})"


class _ImagesInFile(Sequence):
    """The encoded images of a pack, each read from the file when it is asked for."""

    def __init__(self, path: Path, places: np.ndarray, strings: StringsInFile) -> None:
        self._path, self._places, self._strings = path, places, strings

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int | slice) -> bytes | list[bytes]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        try:
            return self._strings.read(int(self._places[number]))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self._path}: {_image_name(number)} cannot be read ({error}) - get the pack anew"
            ) from error


def _images(path: Path, images: Any, strings: StringsInFile) -> Sequence[bytes]:
    if isinstance(images, Array):
        in_memory = images.dtype.kind == "S"  # one string, of which each image is a part
        images = _items(images, strings)
        if in_memory:
            return images
    if not isinstance(images, (Items, tuple, list)):
        raise InputError(f"{path}: its images are no list - give a verification pack (.bin)")
    places = np.empty(len(images), dtype=np.int64)
    for number, image in enumerate(images):
        place = image.content if isinstance(image, Array) and image.dtype.itemsize == 1 else image
        if not isinstance(place, ByteString):
            kind = type(place).__name__.strip("_").lower()
            raise InputError(f"{path}: {_image_name(number)} is a {kind}, not encoded bytes - get the pack anew")
        places[number] = place
    return _ImagesInFile(path, places, strings)


def _flags(path: Path, issame: Any, strings: StringsInFile) -> np.ndarray:
    same = _items(issame, strings) if isinstance(issame, Array) else issame
    if not (
        isinstance(same, (list, tuple, Items))
        and all(type(each) in (bool, int, float) and each in (0, 1) for each in same)
    ):
        raise InputError(f"{path}: its second part is no list of True and False - give a verification pack (.bin)")
    return np.array(list(same), dtype=bool)


def _items(array: Array, strings: StringsInFile) -> Items | list:
    """Return the items of an array of one dimension."""
    if isinstance(array.content, Items):
        items = array.content
    else:
        items = np.frombuffer(strings.read(array.content), dtype=array.dtype).tolist()
    if len(items) != array.length:
        raise ValueError(f"an array of {array.length} holds {len(items)}")
    return items
