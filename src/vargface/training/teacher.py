"""The teacher as one more label: wraps an iterator of faces and adds `teacher_embedding` to every batch."""

from __future__ import annotations

import numpy as np

from vargface.inference import FrozenNetwork
from vargface.runtime import mx

__all__ = ["LABEL", "TaughtIterator", "Teacher"]

LABEL = "teacher_embedding"
# bytes that remembered embeddings may take; a set that needs more is computed anew each time
MEMORY = 2 << 30


class Teacher:
    """The frozen network and what it said so far of one data set: one for all generations.

    An image has two views, plain and mirrored; what the network said of a view is remembered (2 x D floats an image) as
    long as the whole set fits into `MEMORY`, so that only the first epochs of the first generation pay for it. With
    `two_views` False (the faces are augmented or mixed) no view comes again, and each is asked about.
    """

    def __init__(self, network: FrozenNetwork, num_images: int, two_views: bool = True) -> None:
        self.embedding_size = size = network.embedding_size
        self._network = network
        self._memory = None
        if two_views and num_images * 2 * size * 4 <= MEMORY:
            self._memory = np.zeros((2, num_images, size), np.float32)
            self._known = np.zeros((2, num_images), bool)

    def embeddings(self, batch: mx.io.DataBatch) -> np.ndarray:
        """Return (N, D) float32, unit norm, of the views in a batch of a FaceIterator."""
        if self._memory is None:
            return _unit(self._network(batch.data[0].asnumpy()))
        view = batch.mirrored.astype(int), batch.index
        new = np.flatnonzero(~self._known[view])
        if len(new):
            places = view[0][new], view[1][new]
            self._memory[places] = _unit(self._network(batch.data[0].asnumpy()[new]))
            self._known[places] = True
        return self._memory[view]


class TaughtIterator(mx.io.DataIter):
    """A FaceIterator whose batches carry the teacher's embeddings (N, D), float32, unit norm, as a label."""

    def __init__(self, faces: mx.io.DataIter, teacher: Teacher) -> None:
        super().__init__(faces.batch_size)
        self._faces, self._teacher = faces, teacher
        self.provide_data = faces.provide_data
        self.provide_label = [*faces.provide_label, mx.io.DataDesc(LABEL, (faces.batch_size, teacher.embedding_size))]

    def __getattr__(self, name: str):
        # epoch, seek, batches_per_epoch, close: the place in the data is the inner iterator's business
        return getattr(self._faces, name)

    def reset(self) -> None:
        """Go on to the next epoch."""
        self._faces.reset()

    def next(self) -> mx.io.DataBatch:
        """Return the next batch, taught."""
        batch = self._faces.next()
        batch.label = [*batch.label, mx.nd.array(self._teacher.embeddings(batch))]
        batch.provide_label = self.provide_label
        return batch


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
