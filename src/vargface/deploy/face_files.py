"""Faces in files: aligned images, folders of them, lists, photos with landmarks, arrays."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from vargface.data.decoding import IMAGE_FORMS, decode
from vargface.deploy.alignment import SIZE, align, check_face
from vargface.errors import InputError
from vargface.files import open_file

__all__ = ["Face", "channels_first", "find_faces", "paths_of"]

logger = logging.getLogger(__name__)

# of what was left out of a folder, so many are named
NAMED = 3


class Face:
    """A face in a file: an aligned image, a photo with landmarks (5, 2), or a row of a .npy file."""

    def __init__(
        self,
        path: str | Path,
        *,
        landmarks: np.ndarray | None = None,
        pixels: np.ndarray | None = None,
        listed: str = "",
        row: int | None = None,
    ) -> None:
        """`listed`: "FILE: line N: ", where a list names the face: errors begin with it. row: that of a .npy file."""
        self.path, self._landmarks, self._pixels = Path(path), landmarks, pixels
        self._name = f"{listed}{path}"
        # what tells the face: its path, with "[row]" behind that of an array
        self.name = str(path) if row is None else f"{path}[{row}]"

    def check(self) -> None:
        """Raise InputError where its landmarks are no face's in any photo. The file is not read."""
        if self._landmarks is not None:
            try:
                check_face(self._landmarks)
            except InputError as error:
                raise InputError(f"{self._name}: {error}") from error

    def pixels(self, resize: bool = False) -> np.ndarray:
        """Return the aligned face (112, 112, 3) uint8, RGB.

        resize: an image of another size but the same shape is resized, bicubic. Raises InputError where it has another
        size without that, another shape, landmarks that are no face's in it, or cannot be read.
        """
        if self._pixels is not None:
            return self._pixels
        try:
            with open_file(self.path) as file:
                image = np.ascontiguousarray(decode(file.read())[:, :, ::-1])
        except OSError as error:
            raise InputError(f"{self._name}: cannot read ({error.strerror or error})") from error
        except ValueError as error:
            raise InputError(f"{self._name}: {error} - leave it out") from error
        if self._landmarks is not None:
            try:
                return align(image, self._landmarks)
            except InputError as error:
                raise InputError(f"{self._name}: {error}") from error
        height, width = image.shape[:2]
        if (height, width) == (SIZE, SIZE):
            return image
        if not resize or height != width:
            also = ", or --resize if it is aligned" if height == width else ""
            size = f"is {height}x{width}, not an aligned face of {SIZE}x{SIZE}"
            raise InputError(f"{self._name}: {size} - give its five landmarks{also}")
        return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def paths_of(sources: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the paths that `sources` are, one or several."""
    return [Path(source) for source in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]


def find_faces(sources: str | Path | Sequence[str | Path]) -> list[Face]:
    """Return the faces that `sources`, one or several, name, in order.

    A source is an image; a folder: every image below it and below the folders that links lead to, by path, as the names
    tell (the log says what was left out); an array, FILE.npy, uint8 (n, 112, 112, 3) or (n, 3, 112, 112), RGB; or a
    list, FILE.txt: in each line the path of an aligned image, relative to the list's folder, or of a photo and ten
    numbers, x and y of the landmarks (`alignment`). Raises InputError where a source is missing, empty or has another
    form. Whether what a folder or list names can be used shows when it is (`Face.pixels`).
    """
    return [face for source in paths_of(sources) for face in _faces_of(source)]


def _faces_of(source: Path) -> list[Face]:
    try:
        mode = os.stat(source).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError(f"{source}: no such image, folder, list or array") from error
    except OSError as error:
        raise InputError(f"{source}: cannot read ({error.strerror or error})") from error
    if stat.S_ISDIR(mode):
        return [Face(file) for file in _images_below(source)]
    if not stat.S_ISREG(mode):
        raise InputError(f"{source}: is a pipe or a device - give an image, folder, list or array")
    if source.suffix.lower() == ".npy":
        return [Face(source, pixels=face, row=row) for row, face in enumerate(_array(source))]
    if source.suffix.lower() == ".txt":
        return list(_listed(source))
    return [Face(source)]


def _images_below(folder: Path) -> list[Path]:
    """Return the images below `folder`, sorted; what has an image's name and cannot be read is one of them.

    The log says how many files were left out, and which links and folders. Raises InputError where there is no image.
    """
    images: list[Path] = []
    others, left = 0, []

    def leave(error: OSError, path: str = "") -> None:
        left.append(f"{path or error.filename} ({error.strerror or error})")

    # folder -> those above it, as the system knows them: a link may lead back to one
    above: dict[str, frozenset] = {str(folder): frozenset()}
    for place, folders, names in os.walk(folder, onerror=leave, followlinks=True):
        over, this = above.pop(place), _identity(place)
        if this in over:
            left.append(f"{place} (a link to a folder above it)")
            folders.clear()
            continue
        above.update(dict.fromkeys((os.path.join(place, name) for name in folders), over | {this}))
        for name in names:
            path = os.path.join(place, name)
            is_image = name.lower().endswith(IMAGE_FORMS) and not name.startswith(".")
            try:
                is_file = stat.S_ISREG(os.stat(path).st_mode)
            except OSError as error:  # a link that leads nowhere, or where this user may not look
                if is_image:
                    images.append(Path(path))  # whoever reads it is told
                else:
                    leave(error, path)
                continue
            if is_image and is_file:
                images.append(Path(path))
            else:
                others += 1
    kinds = ", ".join(IMAGE_FORMS)
    which = ", ".join(left[:NAMED]) + (f" and {len(left) - NAMED} more" if len(left) > NAMED else "")
    if not images:
        also = f" (left out: {which})" if left else ""
        raise InputError(f"{folder}: no image in this folder{also} - of {kinds}")
    if others:
        total = others + len(images)
        logger.warning("%s: %d of %d files left out, which are no %s", folder, others, total, kinds)
    if left:
        logger.warning("%s: left out: %s", folder, which)
    return sorted(images)


def _identity(path: str) -> tuple[int, int]:
    """Return what tells a file or folder from all others, whatever its name."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _array(path: Path) -> np.ndarray:
    try:
        faces = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise InputError(f"{path}: not an array that numpy can read ({error})") from error
    if not isinstance(faces, np.ndarray):
        raise InputError(f"{path}: is an .npz, several arrays in one file - save the faces alone with numpy.save")
    if not faces.size:
        raise InputError(f"{path}: holds no face (shape {faces.shape}) - leave it out")
    if faces.dtype != np.uint8:
        raise InputError(f"{path}: holds {faces.dtype}, must be uint8, RGB 0..255")
    try:
        return channels_first(faces).transpose(0, 2, 3, 1)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _listed(path: Path) -> Iterator[Face]:
    """Yield the faces of a list."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a list that can be read ({error})") from error
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: names no image - give a path a line")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, numbers = _split(line, path.parent)
        listed = f"{path}: line {number}: "
        if len(numbers) not in (0, 10):
            found = f"{len(numbers)} numbers behind the path"
            raise InputError(f"{listed}{found} - give none, or ten: x and y of five landmarks")
        yield Face(path.parent / name, landmarks=np.array(numbers).reshape(5, 2) if numbers else None, listed=listed)


def _split(line: str, folder: Path) -> tuple[str, list[float]]:
    """Return a line's path, which may have spaces and end in a number, and the numbers behind it, ten at most."""
    line = line.strip()
    if os.path.isfile(folder / line):
        return line, []
    words = line.replace("\t", " ").split(" ")
    numbers: list[float] = []
    while len(words) > 1 and len(numbers) < 10:
        try:
            numbers.insert(0, float(words[-1])) if words[-1] else None
        except ValueError:
            break
        words.pop()
    name = " ".join(words).rstrip()
    if len(numbers) < 10 and not os.path.isfile(folder / name):
        return line, []  # an image that is not there, and has numbers in its name
    return name, numbers


def channels_first(faces: np.ndarray) -> np.ndarray:
    """Return `faces` as (n, 3, 112, 112). Raises InputError for another shape."""
    if faces.ndim == 4 and faces.shape[1:] == (SIZE, SIZE, 3):
        return faces.transpose(0, 3, 1, 2)
    if faces.ndim != 4 or faces.shape[1:] != (3, SIZE, SIZE):
        raise InputError(
            f"faces of shape {faces.shape}: must be (n, {SIZE}, {SIZE}, 3) or (n, 3, {SIZE}, {SIZE}), aligned"
        )
    return faces
