"""Faces to embeddings, fast on a CPU: arrays, image files, photos with landmarks."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from vargface.checkpoint import Checkpoint, load_checkpoint
from vargface.data.decoding import IMAGE_FORMS, decode
from vargface.deploy.alignment import SIZE, align, similarity
from vargface.deploy.fast_form import fast_form
from vargface.deploy.network import fold
from vargface.errors import InputError
from vargface.inference import FrozenNetwork, unit
from vargface.runtime import SIDE_BY_SIDE, cores, is_thread_count, mx

__all__ = ["BATCH_SIZE", "Embedder", "Face", "find_faces"]

logger = logging.getLogger(__name__)

# images a pass: what goes through the network together then stays in the cache (docs/insightface.md)
BATCH_SIZE = 4
# that one is bound for: a face alone, a face and its mirror image, and many
SIZES = (1, 2, BATCH_SIZE)


class Embedder:
    """A checkpoint of the InsightFace stack, in the form in which MXNet runs it fastest.

    Called with images it gives raw embeddings, as `eval.verification.verify_pack` wants them; `embed` gives what one
    compares by cosine. Batches are worked on side by side where the cores allow more than OMP_NUM_THREADS threads: with
    2 every two cores have their own, without it one batch has all cores (soonest for one image). Python threads may
    share it.
    """

    def __init__(self, model: str | Checkpoint, *, context: mx.Context | None = None) -> None:
        """Load `model` ("PREFIX,EPOCH", or a checkpoint) for `context` (default: CPU). Raises as `load_checkpoint`."""
        checkpoint = load_checkpoint(model) if isinstance(model, str) else model
        self.embedding_size = checkpoint.embedding_size
        self.batch_size = BATCH_SIZE
        self._contexts = [context] if context else [mx.cpu(number) for number in range(_side_by_side())]
        network = fold(checkpoint)
        on_cpu = self._contexts[0].device_type == "cpu"
        self._network = fast_form(network) if on_cpu else network.checkpoint()
        self._bound: dict[tuple, FrozenNetwork] = {}  # by batch size and context
        self._binding = threading.Lock()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the embeddings (n, D) float32, not normalised, of `images` (n, 3, 112, 112), RGB 0..255, any n.

        Raises InputError for another shape.
        """
        if images.shape[1:] != (3, SIZE, SIZE):
            raise InputError(f"images of shape {images.shape}: must be (n, 3, {SIZE}, {SIZE})")
        return self._run(len(images), images.__getitem__)

    def _run(self, number: int, images: Callable[[slice], np.ndarray]) -> np.ndarray:
        """Return the embeddings (number, D) of the images that `images` gives for slices of their rows."""
        embeddings = np.empty((number, self.embedding_size), np.float32)
        begun: deque = deque()

        def finish() -> None:
            rows, waiting = begun.popleft()
            embeddings[rows] = waiting.asnumpy()[: rows.stop - rows.start]

        for start in range(0, number, BATCH_SIZE):
            rows = slice(start, min(start + BATCH_SIZE, number))
            context = self._contexts[start // BATCH_SIZE % len(self._contexts)]
            size = next(size for size in SIZES if size >= rows.stop - start)
            begun.append((rows, self._of_size(size, context).begin(images(rows))))
            if len(begun) > len(self._contexts):
                finish()
        while begun:
            finish()
        return embeddings

    def embed(self, faces: np.ndarray | Sequence[np.ndarray], *, flip: bool = True) -> np.ndarray:
        """Return (n, D) float32, unit norm, of aligned `faces`, RGB 0..255: (n, 112, 112, 3) or (n, 3, 112, 112).

        A list of n faces of one shape will do, an empty one too, which gives (0, D).
        flip: the sum of a face's embedding and its mirror image's, as in the verification protocol, in twice the time.
        Raises InputError for another shape, type or range.
        """
        faces = _channels_first(_pixels(_stacked(faces, "faces", (SIZE, SIZE, 3))))
        if not flip:
            return unit(self(faces))

        def views(rows: slice) -> np.ndarray:
            """Each face, its mirror image behind it; batches are of even numbers."""
            some = faces[rows.start // 2 : rows.stop // 2]
            return np.stack([some, some[..., ::-1]], axis=1).reshape(-1, *some.shape[1:])

        # side by side, so that a single face is one pass, not two
        return unit(self._run(2 * len(faces), views).reshape(-1, 2, self.embedding_size).sum(axis=1))

    def embed_photo(self, photo: np.ndarray, landmarks: np.ndarray, *, flip: bool = True) -> np.ndarray:
        """Return (n, D) as `embed`, of the faces at `landmarks` (n, 5, 2) in `photo` (H, W, 3) RGB uint8.

        Raises InputError for another shape or type of either, and for landmarks that are no face's in this photo
        (`alignment.check_face`).
        """
        photo, landmarks = np.asarray(photo), _stacked(landmarks, "landmarks", (5, 2))
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise InputError(f"photo is {photo.dtype} {photo.shape}: must be uint8 (H, W, 3), RGB")
        if landmarks.ndim != 3:
            raise InputError(f"landmarks of shape {landmarks.shape}: must be (n, 5, 2), five points for each face")
        return self.embed([align(photo, points) for points in landmarks], flip=flip)

    def embed_faces(
        self,
        faces: Sequence[Face],
        *,
        flip: bool = True,
        resize: bool = False,
        on_batch: Callable[[int], object] | None = None,
        on_unusable: Callable[[InputError], object] | None = None,
    ) -> np.ndarray:
        """Return (n, D) as `embed`, of the faces in files; `on_batch` is called with the number done each time.

        Raises InputError, naming the file, for what cannot be read or has another size (see `Face.pixels`); with
        `on_unusable`, that is called with the error instead, and the face's row is zeros.
        """
        embeddings = np.zeros((len(faces), self.embedding_size), np.float32)
        # a batch for every context, of single views as well
        step = BATCH_SIZE * max(len(self._contexts), 8)
        for start in range(0, len(faces), step):
            read = {}
            for row, face in enumerate(faces[start : start + step], start):
                try:
                    read[row] = face.pixels(resize)
                except InputError as error:
                    if on_unusable is None:
                        raise
                    on_unusable(error)
            embeddings[list(read)] = self.embed(list(read.values()), flip=flip)
            if on_batch is not None:
                on_batch(min(step, len(faces) - start))
        return embeddings

    def _of_size(self, batch_size: int, context: mx.Context) -> FrozenNetwork:
        key = batch_size, context
        with self._binding:
            if key not in self._bound:
                self._bound[key] = FrozenNetwork(self._network, batch_size, context)
            return self._bound[key]


def _side_by_side() -> int:
    """Return how many batches the cores can work on at a time, SIDE_BY_SIDE at most."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    batches = cores() // int(threads) if is_thread_count(threads) else 1
    return min(max(batches, 1), SIDE_BY_SIDE)


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

    def pixels(self, resize: bool = False) -> np.ndarray:
        """Return the aligned face (112, 112, 3) uint8, RGB.

        resize: an image of another size but the same shape is resized, bicubic. Raises InputError where it has another
        size without that, another shape, landmarks that are no face's in it, or cannot be read.
        """
        if self._pixels is not None:
            return self._pixels
        try:
            image = np.ascontiguousarray(decode(self.path.read_bytes())[:, :, ::-1])
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


def find_faces(sources: Sequence[str | Path]) -> list[Face]:
    """Return the faces that `sources` name, in order.

    A source is an image; a folder: every image below it, by path, as the names tell (the log says how many files were
    left out); an array, FILE.npy, uint8 (n, 112, 112, 3) or (n, 3, 112, 112), RGB; or a list, FILE.txt: in each line
    the path of an aligned image, relative to the list's folder, or of a photo and ten numbers, x and y of the landmarks
    (`alignment`). Raises InputError where one is missing, empty or has another form.
    """
    return [face for source in sources for face in _faces_of(Path(source))]


def _faces_of(source: Path) -> list[Face]:
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.is_file())
        images = [file for file in files if file.suffix.lower() in IMAGE_FORMS and not file.name.startswith(".")]
        if not images:
            raise InputError(f"{source}: no image in this folder - of {', '.join(IMAGE_FORMS)}")
        if len(images) < len(files):
            left, kinds = len(files) - len(images), ", ".join(IMAGE_FORMS)
            logger.warning("%s: %d of %d files left out, which are no %s", source, left, len(files), kinds)
        return [Face(file) for file in images]
    if not source.is_file():
        raise InputError(f"{source}: no such image, folder, list or array")
    if source.suffix.lower() == ".npy":
        return [Face(source, pixels=face, row=row) for row, face in enumerate(_array(source))]
    if source.suffix.lower() == ".txt":
        return list(_listed(source))
    return [Face(source)]


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
        return _channels_first(faces).transpose(0, 2, 3, 1)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _listed(path: Path) -> Iterator[Face]:
    """Yield the faces of a list."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
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
        landmarks = np.array(numbers).reshape(5, 2) if numbers else None
        if landmarks is not None:
            try:
                similarity(landmarks)
            except InputError as error:
                raise InputError(f"{listed}{error}") from error
        yield Face(path.parent / name, landmarks=landmarks, listed=listed)


def _split(line: str, folder: Path) -> tuple[str, list[float]]:
    """Return a line's path, which may have spaces and end in a number, and the numbers behind it, ten at most."""
    if (folder / line.strip()).is_file():
        return line.strip(), []
    words = line.strip().replace("\t", " ").split(" ")
    numbers: list[float] = []
    while len(words) > 1 and len(numbers) < 10:
        try:
            numbers.insert(0, float(words[-1])) if words[-1] else None
        except ValueError:
            break
        words.pop()
    return " ".join(words).rstrip(), numbers


def _stacked(items: np.ndarray | Sequence, what: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return `items`, an array or a list of arrays, as one array; an empty list is (0, *shape).

    Raises InputError for a list of several shapes, which numpy would make objects of.
    """
    if not isinstance(items, (list, tuple)):
        return np.asarray(items)
    arrays = [np.asarray(item) for item in items]
    shapes = list(dict.fromkeys(array.shape for array in arrays))
    if len(shapes) > 1:
        raise InputError(f"{what} of shapes {shapes[0]} and {shapes[1]} in one list: must all be {shape}")
    return np.stack(arrays) if arrays else np.empty((0, *shape), np.uint8)


def _pixels(faces: np.ndarray) -> np.ndarray:
    """Return `faces`. Raises InputError where they are not RGB 0..255 in numbers of a usual kind."""
    if faces.dtype == np.uint8 or not faces.size:
        return faces
    what = f"faces are {faces.dtype}"
    if faces.dtype.kind not in "uif":
        raise InputError(f"{what}: must be RGB 0..255, uint8 or float32")
    least, most = faces.min(), faces.max()
    if not (least >= 0 and most <= 255):  # NaN is neither
        raise InputError(f"{what} in {least:.6g}..{most:.6g}: must be RGB 0..255, not normalised")
    if faces.dtype.kind == "f" and 0 < most <= 1:
        raise InputError(f"{what} in {least:.6g}..{most:.6g}: must be RGB 0..255 - multiply by 255")
    return faces


def _channels_first(faces: np.ndarray) -> np.ndarray:
    """Return `faces` as (n, 3, 112, 112). Raises InputError for another shape."""
    if faces.ndim == 4 and faces.shape[1:] == (SIZE, SIZE, 3):
        return faces.transpose(0, 3, 1, 2)
    if faces.ndim != 4 or faces.shape[1:] != (3, SIZE, SIZE):
        raise InputError(
            f"faces of shape {faces.shape}: must be (n, {SIZE}, {SIZE}, 3) or (n, 3, {SIZE}, {SIZE}), aligned"
        )
    return faces
