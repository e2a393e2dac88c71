"""The teacher as one more label: wraps an iterator of faces and adds `teacher_embedding` to every batch."""

from __future__ import annotations

import numpy as np
from easydict import EasyDict

from vargface.inference import unit
from vargface.runtime import mx
from vargface.teachers.models import Network, TeacherModels
from vargface.teachers.store import TeacherStore
from vargface.training.checks import varied_by

__all__ = ["LABEL", "TaughtIterator", "Teacher", "labels_of", "looked_up"]

LABEL = "teacher_embedding"
# bytes that remembered embeddings may take; a set that needs more is computed anew each time
MEMORY = 2 << 30
# images that it is asked about at a time
BATCH_SIZE = 32


class Teacher:
    """The frozen network and what it said so far of one data set: one for all generations.

    An image has two views, plain and mirrored; what the network said of a view is remembered (2 x D floats an image) as
    long as the whole set fits into `MEMORY`, so that only the first epochs of the first generation pay for it. With
    `two_views` False (the faces are augmented or mixed) no view comes again, and each is asked about.
    """

    def __init__(self, network: Network, num_images: int, two_views: bool = True) -> None:
        self.embedding_size = size = network.embedding_size
        self._network = network
        self._memory = None
        if two_views and num_images * 2 * size * 4 <= MEMORY:
            self._memory = np.zeros((2, num_images, size), np.float32)
            self._known = np.zeros((2, num_images), bool)

    @property
    def remembers(self) -> bool:
        """Whether a view that comes again is answered from memory."""
        return self._memory is not None

    def embeddings(self, batch: mx.io.DataBatch) -> np.ndarray:
        """Return (N, D) float32, unit norm, of the views in a batch of a FaceIterator."""
        if self._memory is None:
            return unit(self._network(batch.data[0].asnumpy()))
        view = batch.mirrored.astype(int), batch.index
        new = np.flatnonzero(~self._known[view])
        if len(new):
            places = view[0][new], view[1][new]
            self._memory[places] = unit(self._network(batch.data[0].asnumpy()[new]))
            self._known[places] = True
        return self._memory[view]


class TaughtIterator(mx.io.DataIter):
    """A FaceIterator whose batches carry the teacher's embeddings (N, D), float32, unit norm, as a label."""

    def __init__(self, faces: mx.io.DataIter, teacher: Teacher | TeacherStore) -> None:
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


def looked_up(recipe: EasyDict) -> bool:
    """Return whether the teacher's embeddings come from `teacher_store`: unless the view asked for is not in there."""
    return bool(recipe.teacher_store) and not (varied_by(recipe) and recipe.teacher_view == "augmented")


def labels_of(
    teacher: TeacherModels | TeacherStore | None, recipe: EasyDict, num_images: int, device: mx.Context
) -> Teacher | TeacherStore | None:
    """Return where a TaughtIterator gets its labels: a store as it is, models bound to `device`."""
    if not isinstance(teacher, TeacherModels):
        return teacher
    network = teacher.network(min(BATCH_SIZE, recipe.batch_size), device)
    return Teacher(network, num_images, two_views=not varied_by(recipe))
