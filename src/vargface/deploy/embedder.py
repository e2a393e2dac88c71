"""Faces to embeddings, fast on a CPU: arrays, photos with landmarks, files."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vargface.checkpoint import Checkpoint, load_checkpoint
from vargface.deploy.alignment import SIZE, align
from vargface.deploy.face_files import Face, channels_first
from vargface.deploy.fast_form import fast_form
from vargface.deploy.network import fold
from vargface.errors import InputError
from vargface.inference import HANDING_OVER, FrozenNetwork, unit, values
from vargface.runtime import SIDE_BY_SIDE, cores, is_thread_count, leave_threads_to_workers, mx

__all__ = ["BATCH_SIZE", "Embedder"]

# images a pass: what goes through the network together then stays in the cache (docs/inference.md)
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

    def __init__(self, model: str | Path | Checkpoint, *, context: mx.Context | None = None) -> None:
        """Load `model` ("PREFIX,EPOCH", or a checkpoint) for `context` (default: CPU). Raises as `load_checkpoint`."""
        leave_threads_to_workers()
        with HANDING_OVER:
            self._load(model if isinstance(model, Checkpoint) else load_checkpoint(str(model)), context)

    def _load(self, checkpoint: Checkpoint, context: mx.Context | None) -> None:
        self.embedding_size = checkpoint.embedding_size
        self.batch_size = BATCH_SIZE
        self._contexts = [context] if context else [mx.cpu(number) for number in range(_side_by_side())]
        network = fold(checkpoint)
        on_cpu = self._contexts[0].device_type == "cpu"
        self._network = fast_form(network) if on_cpu else network.checkpoint()
        self._bound: dict[tuple, FrozenNetwork] = {}  # by batch size and context

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
            embeddings[rows] = values(waiting)[: rows.stop - rows.start]

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
        faces = channels_first(_stacked(faces, "faces", (SIZE, SIZE, 3)))
        _check_pixels(faces)
        if not flip:
            return unit(self(faces))

        def views(rows: slice) -> np.ndarray:
            """Each face, its mirror image behind it; batches are of even numbers."""
            some = faces[rows.start // 2 : rows.stop // 2]
            return np.stack([some, some[..., ::-1]], axis=1).reshape(-1, *some.shape[1:])

        # side by side, so that a single face is one pass, not two
        return unit(self._run(2 * len(faces), views).reshape(-1, 2, self.embedding_size).sum(axis=1))

    def embed_photo(
        self,
        photo: np.ndarray,
        landmarks: np.ndarray | Sequence,
        *,
        flip: bool = True,
        on_unusable: Callable[[InputError], object] | None = None,
    ) -> np.ndarray:
        """Return (n, D) as `embed`, of the faces at `landmarks` (n, 5, 2) in `photo` (H, W, 3) RGB uint8.

        Raises InputError for another shape or type of either, and, naming the row, for landmarks that are no face's in
        this photo (`alignment.check_face`); with `on_unusable`, that is called with the error instead, and the row is
        zeros.
        """
        photo, landmarks = np.asarray(photo), _stacked(landmarks, "landmarks", (5, 2))
        if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype != np.uint8:
            raise InputError(f"photo is {photo.dtype} {photo.shape}: must be uint8 (H, W, 3), RGB")
        if landmarks.ndim != 3:
            raise InputError(f"landmarks of shape {landmarks.shape}: must be (n, 5, 2), five points for each face")
        if landmarks.dtype.kind not in "uif":
            raise InputError(f"landmarks are {landmarks.dtype}: must be numbers, pixels of the photo")
        embeddings = np.zeros((len(landmarks), self.embedding_size), np.float32)
        aligned = {}
        for row, points in enumerate(landmarks):
            try:
                aligned[row] = align(photo, points)
            except InputError as error:
                named = InputError(f"face {row}: {error}")
                if on_unusable is None:
                    raise named from error
                on_unusable(named)
        embeddings[list(aligned)] = self.embed(list(aligned.values()), flip=flip)
        return embeddings

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

        Raises InputError, naming the file, for what cannot be read or has another size (see `Face.pixels`), for
        landmarks that are no face's before anything else; with `on_unusable`, that is called with the error instead,
        and the face's row is zeros.
        """
        if on_unusable is None:
            for face in faces:  # not after hours
                face.check()
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
        with HANDING_OVER:
            if key not in self._bound:
                self._bound[key] = FrozenNetwork(self._network, batch_size, context)
            return self._bound[key]


def _side_by_side() -> int:
    """Return how many batches the cores can work on at a time, SIDE_BY_SIDE at most."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    batches = cores() // int(threads) if is_thread_count(threads) else 1
    return min(max(batches, 1), SIDE_BY_SIDE)


def _stacked(items: np.ndarray | Sequence, what: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return `items`, an array or a list of arrays, as one array; an empty list is (0, *shape).

    Raises InputError for a list of several shapes, which numpy would make objects of.
    """
    if not isinstance(items, (list, tuple)):
        return np.asarray(items)
    try:
        arrays = [np.asarray(item) for item in items]
    except ValueError as error:
        raise InputError(f"{what}: not an array of {shape} each ({error})") from error
    shapes = list(dict.fromkeys(array.shape for array in arrays))
    if len(shapes) > 1:
        raise InputError(f"{what} of shapes {shapes[0]} and {shapes[1]} in one list: must all be {shape}")
    return np.stack(arrays) if arrays else np.empty((0, *shape), np.uint8)


def _check_pixels(faces: np.ndarray) -> None:
    """Raise InputError where `faces` (n, 3, 112, 112) are not RGB 0..255 in numbers of a usual kind, each of them."""
    if faces.dtype == np.uint8:
        return
    if faces.dtype.kind not in "uif":
        raise InputError(f"faces are {faces.dtype}: must be RGB 0..255, uint8 or float32")
    for row, face in enumerate(faces):
        least, most = face.min(), face.max()
        what = f"face {row} is {faces.dtype} in {least:.6g}..{most:.6g}: must be RGB 0..255"
        if not (least >= 0 and most <= 255):  # NaN is neither
            raise InputError(f"{what}, not normalised")
        # a face of whole numbers is a black one
        if faces.dtype.kind == "f" and 0 < most <= 1 and (face % 1).any():
            raise InputError(f"{what} - multiply by 255")
