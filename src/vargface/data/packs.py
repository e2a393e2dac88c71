"""Verification packs (`lfw.bin`, `cfp_fp.bin`, ...): pairs of faces and whether both are of one person.

A pack is a pickle of (list of 2P encoded images, list of P bools), images 2i and 2i+1 being pair i; InsightFace's
lfw2pack.py writes it and `load_bin` of its verification.py reads it. A pickle can run any code of its author's
choosing, and packs come from the internet: here nothing is called but the few builders of plain data below.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vargface.errors import InputError
from vargface.files import whole_file

__all__ = ["Pack", "read_pack", "write_pack"]

# Python 3.4 and later; older protocols spell bytes as text and take half as much again
_PROTOCOL = 4


@dataclass(frozen=True)
class Pack:
    """A verification pack.

    path: the file, or what messages call the images in its stead; images: 2P encoded images; issame: (P,) bool.
    """

    path: str | Path
    images: list[bytes]
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
            face = cv2.imdecode(np.frombuffer(image, dtype=np.uint8), cv2.IMREAD_COLOR) if image else None
            if face is None:
                raise InputError(
                    f"{self.path}: {_image_name(start + row)} is not an image ({len(image)} bytes) - get the pack "
                    "anew, or leave it out"
                )
            if face.shape[:2] != image_size:
                if face.shape[0] * width != face.shape[1] * height:
                    raise InputError(
                        f"{self.path}: {_image_name(start + row)} is {face.shape[0]}x{face.shape[1]}, which does not "
                        f"scale to {height}x{width} - write the pack anew from aligned faces"
                    )
                face = cv2.resize(face, (width, height), interpolation=cv2.INTER_CUBIC)
            faces[row] = face[:, :, ::-1].transpose(2, 0, 1)
        return faces


def read_pack(path: str | Path) -> Pack:
    """Return the pack in file `path`, written by Python 2 or 3, its images still encoded.

    Raises InputError where the file is missing, is no pack, asks for code to be run, has no pairs, or has a number of
    images that is not twice the number of pairs.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file).load()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: cannot read ({reason}) - give a verification pack (.bin)") from error
    except _Refused as error:
        raise InputError(f"{path}: {error} - do not use this file, get the pack elsewhere") from error
    except Exception as error:
        # a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise InputError(f"{path}: is not a verification pack ({reason}) - get the pack anew") from error
    if not (isinstance(content, (tuple, list)) and len(content) == 2):
        raise InputError(f"{path}: is not a pair (images, issame) - give a verification pack (.bin)")
    images, issame = _images(path, content[0]), _flags(path, content[1])
    if not len(issame):
        raise InputError(f"{path}: has no pairs - give another verification pack")
    if len(images) != 2 * len(issame):
        raise InputError(
            f"{path}: has {len(images)} images for {len(issame)} pairs, not {2 * len(issame)} - get the pack anew"
        )
    return Pack(path, images, issame)


def write_pack(path: str | Path, images: Sequence[bytes], issame: Sequence[bool] | np.ndarray) -> None:
    """Write 2P encoded images and P flags as a pack that InsightFace (Python 3) and `read_pack` read.

    Raises ValueError where the numbers do not fit, InputError where the file cannot be written.
    """
    if not len(issame) or len(images) != 2 * len(issame):
        raise ValueError(f"{len(images)} images for {len(issame)} pairs: expected two a pair, and a pair at least")
    content = ([bytes(image) for image in images], [bool(same) for same in issame])
    with whole_file(path) as file:
        pickle.dump(content, file, protocol=_PROTOCOL)


def _image_name(number: int) -> str:
    return f"image {number} (pair {number // 2})"


def _images(path: Path, images: Any) -> list[bytes]:
    if isinstance(images, _PickledArray):
        images = images.values()
    if not isinstance(images, (list, tuple)):
        raise InputError(f"{path}: its images are no list - give a verification pack (.bin)")
    images = [image.values().tobytes() if isinstance(image, _PickledArray) else image for image in images]
    for number, image in enumerate(images):
        if not isinstance(image, (bytes, bytearray)):
            raise InputError(
                f"{path}: {_image_name(number)} is a {type(image).__name__}, not encoded bytes - get the pack anew"
            )
    return [bytes(image) for image in images]


def _flags(path: Path, issame: Any) -> np.ndarray:
    if isinstance(issame, _PickledArray):
        issame = issame.values().tolist()
    if not (isinstance(issame, (list, tuple)) and all(isinstance(same, int) and same in (0, 1) for same in issame)):
        raise InputError(f"{path}: its second part is no list of True and False - give a verification pack (.bin)")
    return np.array(issame, dtype=bool)


class _Refused(Exception):
    """The pickle asks for something that plain data does not need."""


class _Unpickler(pickle.Unpickler):
    """Builds lists, tuples, bytes, numbers and one-byte numpy arrays; refuses every other name."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        # bytes: what Python 2 wrote as str are the encoded images
        super().__init__(file, encoding="bytes")
        self._builders = _builders()

    def find_class(self, module: str, name: str) -> Any:
        """Return what builds the object that the pickle calls `module.name`."""
        try:
            return self._builders[module, name]
        except KeyError:
            raise _Refused(f"asks to run {module}.{name}"[:100]) from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuse: packs have no objects outside of the file."""
        raise _Refused("asks for an object outside of the file")


class _PickledDtype:
    """Stands for the data type of an array of truth values or bytes."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        # byte order and fields: one-byte types have none
        pass


class _PickledArray:
    """Stands for a `numpy.ndarray` of truth values or bytes."""

    def __setstate__(self, state: tuple) -> None:
        _, _, of_type, _, self.content = state
        self.dtype = of_type.dtype

    def values(self) -> np.ndarray:
        """Return the array, one-dimensional."""
        return np.frombuffer(self.content, dtype=self.dtype)


def _builders() -> dict[tuple[str, str], Callable | None]:
    """Return (module, name) in a pickle -> what is called in its stead.

    None of the real functions is there: `bytes(10**12)` or a crafted array state would do harm as well. They are
    functions, never classes, and made anew for each file, so that what a pickle sets on them ends with it.
    """

    def as_bytes(content: Any = b"", encoding: Any = None) -> bytes:
        if isinstance(content, str):
            return content.encode("latin-1")
        if not isinstance(content, (bytes, bytearray)):
            raise _Refused(f"makes bytes of {type(content).__name__}")
        return bytes(content)

    def as_dtype(name: str | bytes, *_: Any) -> _PickledDtype:
        name = as_bytes(name)
        if name not in (b"b1", b"?", b"u1"):
            raise _Refused(f"holds an array of type {name!r}"[:100])
        return _PickledDtype(np.dtype(name.decode("ascii")))

    def as_scalar(of_type: _PickledDtype, content: Any) -> int:
        return int(np.frombuffer(as_bytes(content), dtype=of_type.dtype, count=1)[0])

    def as_array(*_: Any) -> _PickledArray:
        return _PickledArray()

    def from_buffer(content: Any, of_type: _PickledDtype, *_: Any) -> _PickledArray:
        array = _PickledArray()
        array.__setstate__((None, None, of_type, None, as_bytes(content)))
        return array

    builders = {("_codecs", "encode"): as_bytes, ("numpy", "dtype"): as_dtype, ("numpy", "ndarray"): None}
    for module in ("builtins", "__builtin__"):
        builders.update({(module, "bytes"): as_bytes, (module, "bytearray"): as_bytes})
    for module in ("numpy.core", "numpy._core"):
        builders[f"{module}.multiarray", "scalar"] = as_scalar
        builders[f"{module}.multiarray", "_reconstruct"] = as_array
        builders[f"{module}.numeric", "_frombuffer"] = from_buffer
    return builders
