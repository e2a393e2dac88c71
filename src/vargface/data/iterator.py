"""The training iterator: shuffled, mirrored batches of faces, decoded in processes of their own or here.

The order of an epoch follows from (seed, epoch), whether an image is mirrored and how it is augmented from (seed,
epoch, its position): any place of any epoch can be gone to and gives the same batch again, whoever decodes it.
"""

from __future__ import annotations

import collections
import logging
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np

from vargface.data.pool import WorkerPool
from vargface.data.records import FaceRecords
from vargface.data.samples import SPARE, Fault, Slot, fill
from vargface.data.sampling import Sampling, epoch_order
from vargface.errors import InputError
from vargface.runtime import mx

__all__ = ["FaceIterator"]

logger = logging.getLogger(__name__)

# batches decoded ahead of training
_AHEAD = 3
# arrays kept to be used again
_KEPT = 4
# references to one of these that no batch has: the list's, and the question's own
_UNUSED = 2
# unusable images named when there are too many
_NAMED = 20


class FaceIterator(mx.io.DataIter):
    """Batches of data (N, 3, H, W) float32, RGB, 0..255, and softmax_label (N,) float32, for `Module`.

    An epoch has whole batches only: what is left over is dropped, and the next shuffle leaves out other images.

    Parameters
    ----------
    records : the data set.
    workers : processes that decode, a few batches ahead; 0: this one decodes, when it is asked for a batch. They start
        with the first batch, and hold the image of no other process.
    augment : 0..1, the strength of random views; mix : 0..1, the share of images that are mixed with another one of the
        data set: these have the label NOBODY; jpeg, cutout : 0..1, the shares that are compressed, and lose a square
        (augment.py says what all do).
    min_images : leave out the images of identities that have fewer. These keep their classes.
    max_bad : 0..1, the share of the data set's images that may be unusable (damaged, no image, another size, a label
        that is none). One that is met is logged, and the next in the epoch's order stands in for it, then and whenever
        its place comes again; at more InputError lists them.
    part, num_parts : this is worker `part` of as many in distributed training: their images are disjoint and equal in
        number.

    epoch: the current one, from 0; `reset` moves to the next; batches_per_epoch: their number in every epoch; faults:
    position in `records` -> why that image cannot be used, of all met so far.
    Each batch has `index` (N,) int64, positions in `records`, and `mirrored` (N,) bool: unless they are augmented or
    mixed these say all about its images. Its array is used again once nothing refers to it: to keep a part, copy it.

    Raises InputError where `records` do not fill a batch; from `next`, where too many images are unusable, train.rec
    was written to since it was opened, or decoding processes die again and again.
    """

    def __init__(
        self,
        records: FaceRecords,
        batch_size: int,
        *,
        seed: int = 0,
        mirror: bool = True,
        augment: float = 0.0,
        mix: float = 0.0,
        jpeg: float = 0.0,
        cutout: float = 0.0,
        min_images: int = 1,
        max_bad: float = 0.001,
        part: int = 0,
        num_parts: int = 1,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size)
        if batch_size < 1 or not 0 <= part < num_parts:
            raise ValueError(f"batch_size {batch_size} must be positive and part {part} in 0..{num_parts - 1}")
        self._records, self._workers = records, workers
        self._subset = records.of_identities_with(min_images) if min_images > 1 else None
        count = len(records) if self._subset is None else len(self._subset)
        self._sampling = Sampling(count, batch_size, seed, mirror, augment, mix, jpeg, cutout, part, num_parts)
        self.batches_per_epoch = self._sampling.batches
        if not self.batches_per_epoch:
            of = "" if self._subset is None else f" of identities with {min_images} or more"
            raise InputError(
                f"{records.folder}: {count} images{of} are fewer than a batch of {batch_size} x {num_parts} workers "
                "- set a smaller batch"
            )
        shape = (batch_size, 3, *records.image_size)
        self.provide_data = [mx.io.DataDesc("data", shape)]
        self.provide_label = [mx.io.DataDesc("softmax_label", (batch_size,))]
        self.epoch = 0
        self._batch = 0
        self._orders = _Orders(self._sampling, self._subset)
        self.faults: dict[int, str] = {}
        self._allowed = max_bad * count
        self._decoder: _Here | _Ahead | None = None
        self._kept: list[mx.nd.NDArray] = []

    def reset(self) -> None:
        """Go to the start of the next epoch."""
        self.seek(self.epoch + 1)

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Go to a batch of an epoch: the next one given is that one."""
        if epoch < 0 or not 0 <= batch <= self.batches_per_epoch:
            raise ValueError(f"epoch {epoch}, batch {batch} is outside 0..{self.batches_per_epoch}")
        self.epoch, self._batch = epoch, batch

    def next(self) -> mx.io.DataBatch:
        """Return the next batch of the epoch; raises StopIteration at its end."""
        if self._batch == self.batches_per_epoch:
            raise StopIteration
        if self._decoder is None:
            of = self._records, self._subset, self._sampling, self._orders
            self._decoder = _Ahead(*of, self._workers) if self._workers else _Here(*of)
        try:
            slot, ndarray, faults = self._decoder.take((self.epoch, self._batch))
            self._records.file.check_unchanged()
            self._note(faults)
        except BaseException:
            self.close()
            raise
        batch = self._as_batch(slot, ndarray)
        self._decoder.give_back()
        self._batch += 1
        return batch

    def close(self) -> None:
        """End the processes; a later `next` starts them again at the same place."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    @property
    def pids(self) -> list[int]:
        """Return the processes that decode, if any."""
        return self._decoder.pids if isinstance(self._decoder, _Ahead) else []

    def _as_batch(self, slot: Slot, ndarray: mx.nd.NDArray) -> mx.io.DataBatch:
        data = self._array()
        # the one copy there is, uint8 to float32, by MXNet's threads
        mx.nd.cast(ndarray, dtype="float32", out=data)
        batch = mx.io.DataBatch(
            data=[data],
            label=[mx.nd.array(slot.identities)],
            pad=0,
            index=slot.positions.copy(),
            provide_data=self.provide_data,
            provide_label=self.provide_label,
        )
        batch.mirrored = slot.mirrored.copy()
        data.wait_to_read()
        return batch

    def _array(self) -> mx.nd.NDArray:
        """Return an array for a batch: one that no batch has any more, for fresh memory takes eight times as long."""
        for number in range(len(self._kept)):
            if sys.getrefcount(self._kept[number]) == _UNUSED:
                return self._kept[number]
        made = mx.nd.empty(self.provide_data[0].shape)
        if len(self._kept) < _KEPT:
            self._kept.append(made)
        return made

    def _note(self, faults: list[Fault]) -> None:
        """Log and count unusable images; raises InputError where there are more than allowed."""
        for position, reason, stand_in in faults:
            if position not in self.faults:
                self.faults[position] = reason
                logger.warning("%s; skipped, record %d stands in", reason, self._records.image_keys[stand_in])
        if len(self.faults) <= self._allowed:
            return
        reasons = list(self.faults.values())
        if len(reasons) == 1:
            raise InputError(reasons[0])
        keys = sorted(int(self._records.image_keys[position]) for position in self.faults)
        named = ", ".join(map(str, keys[:_NAMED])) + (", ..." if len(keys) > _NAMED else "")
        raise InputError(
            f"{reasons[0]}; with it {len(keys)} of {self._sampling.count} images are unusable, more than max_bad "
            f"allows: records {named} - run 'vargface rec check {self._records.folder} --decode' to list all"
        )


class _Orders:
    """The orders of epochs; the next one is drawn in the background, for five million images take most of a second."""

    def __init__(self, sampling: Sampling, subset: np.ndarray | None) -> None:
        self._sampling, self._subset = sampling, subset
        self._drawn: dict[int, Future] = {}
        self._thread = ThreadPoolExecutor(1, "vargface-order")

    def __call__(self, epoch: int) -> np.ndarray:
        """Return the positions (count,) int64 of `epoch` in its order."""
        self._drawn = {
            number: self._drawn.get(number) or self._thread.submit(self._draw, number) for number in (epoch, epoch + 1)
        }
        return self._drawn[epoch].result()

    def _draw(self, epoch: int) -> np.ndarray:
        order = epoch_order(self._sampling.count, self._sampling.seed, epoch)
        return order if self._subset is None else self._subset[order]


class _Here:
    """Decodes in this process, when it is asked."""

    def __init__(self, records: FaceRecords, subset: np.ndarray | None, sampling: Sampling, orders: _Orders) -> None:
        self._records, self._subset, self._sampling, self._orders = records, subset, sampling, orders
        size = Slot.size(sampling.batch_size, records.image_size)
        self._slot = Slot(memoryview(bytearray(size)), sampling.batch_size, records.image_size)
        self._ndarray = _view_of(self._slot)
        # OpenCV's own threads would only take cores from training
        cv2.setNumThreads(1)

    def take(self, place: tuple[int, int]) -> tuple[Slot, mx.nd.NDArray, list[Fault]]:
        """Return the batch at `place` (epoch, number), its data as MXNet sees it, and what could not be used for it."""
        epoch, number = place
        self._slot.candidates[:] = self._sampling.candidates(self._orders(epoch), number, SPARE)
        faults = fill(self._records, self._subset, self._sampling, epoch, self._slot, 0, self._sampling.batch_size)
        return self._slot, self._ndarray, faults

    def give_back(self) -> None:
        """Do nothing: there is one slot."""

    def close(self) -> None:
        """Do nothing."""


class _Ahead:
    """Has processes decode from one place onward, over the ends of epochs, a few batches ahead of `take`."""

    def __init__(
        self, records: FaceRecords, subset: np.ndarray | None, sampling: Sampling, orders: _Orders, workers: int
    ) -> None:
        self._sampling, self._orders = sampling, orders
        self._pool = WorkerPool(records, subset, sampling, workers, _AHEAD)
        self._ndarrays = [_view_of(slot) for slot in self._pool.slots]
        self._free: list[int] = []
        self._waiting: collections.deque[tuple[tuple[int, int], int]] = collections.deque()

    def take(self, place: tuple[int, int]) -> tuple[Slot, mx.nd.NDArray, list[Fault]]:
        """As `_Here.take`; the slot is as it is until `give_back`."""
        if not self._waiting or self._waiting[0][0] != place:
            self._pool.cancel()
            self._waiting.clear()
            self._free = list(range(len(self._pool.slots)))
            self._next = place
            self._submit()
        _, slot = self._waiting[0]
        return self._pool.slots[slot], self._ndarrays[slot], self._pool.wait(slot)

    @property
    def pids(self) -> list[int]:
        """Return the processes."""
        return self._pool.pids

    def give_back(self) -> None:
        """Have the slot that was taken filled with a later batch."""
        self._free.append(self._waiting.popleft()[1])
        self._submit()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def _submit(self) -> None:
        while self._free:
            slot, (epoch, number) = self._free.pop(), self._next
            self._pool.slots[slot].candidates[:] = self._sampling.candidates(self._orders(epoch), number, SPARE)
            self._pool.submit(slot, epoch)
            self._waiting.append((self._next, slot))
            self._next = (epoch, number + 1) if number + 1 < self._sampling.batches else (epoch + 1, 0)


def _view_of(slot: Slot) -> mx.nd.NDArray:
    """Return the data of `slot` as MXNet sees it: the same memory."""
    # a view, for MXNet makes the array it is given read-only
    return mx.nd.from_numpy(slot.data.view(), zero_copy=True)
