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
# batches that may be held beside that without a copy
HELD = 2
# references to an array that no batch has: the list's, and the question's own
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
    mixed these say all about its images. Its array is filled again once nothing refers to it: to keep a part, copy it.

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
                "- set a smaller batch_size"
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
            number, faults = self._decoder.take((self.epoch, self._batch))
            self._records.file.check_unchanged()
            self._note(faults)
        except BaseException:
            self.close()
            raise
        slot = self._decoder.shared.slots[number]
        batch = mx.io.DataBatch(
            data=[self._decoder.shared.give(number)],
            label=[mx.nd.array(slot.identities)],
            pad=0,
            index=slot.positions.copy(),
            provide_data=self.provide_data,
            provide_label=self.provide_label,
        )
        batch.mirrored = slot.mirrored.copy()
        self._decoder.go_on()
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
        return list(self._decoder.pids) if self._decoder else []

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


class _Shared:
    """Slots that MXNet sees as they are: a batch is given out without a copy, its slot filled again once it is gone."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        # a view, for MXNet makes the array it is given read-only
        self._ndarrays = [mx.nd.from_numpy(slot.data.view(), zero_copy=True) for slot in slots]
        self._given: list[int] = []
        self.free = list(range(len(slots)))

    def give(self, number: int) -> mx.nd.NDArray:
        """Return the data of a slot, or a copy where too many batches are held already."""
        if len(self._given) == HELD:
            self.free.append(number)
            copy = self._ndarrays[number].copy()
            copy.wait_to_read()
            return copy
        self._given.append(number)
        return self._ndarrays[number]

    def take_back(self) -> None:
        """Free the slots of the batches that are gone."""
        for number in self._given[:]:
            if sys.getrefcount(self._ndarrays[number]) == _UNUSED:
                # whatever MXNet was asked to do with it is done
                mx.base.check_call(mx.base._LIB.MXNDArrayWaitToWrite(self._ndarrays[number].handle))
                self._given.remove(number)
                self.free.append(number)

    def take_all_back(self) -> None:
        """Free the slots that are not given out, whatever is in them."""
        self.free = [number for number in range(len(self.slots)) if number not in self._given]


class _Here:
    """Decodes in this process, when it is asked."""

    pids: tuple[int, ...] = ()

    def __init__(self, records: FaceRecords, subset: np.ndarray | None, sampling: Sampling, orders: _Orders) -> None:
        self._records, self._subset, self._sampling, self._orders = records, subset, sampling, orders
        size = Slot.size(sampling.batch_size, records.image_size)
        try:
            memory = [memoryview(bytearray(size)) for _ in range(HELD + 1)]
        except MemoryError as error:
            raise InputError(f"decoding: no {size:,} bytes of memory for a batch - set a smaller batch_size") from error
        self.shared = _Shared([Slot(each, sampling.batch_size, records.image_size) for each in memory])
        # OpenCV's own threads would only take cores from training
        cv2.setNumThreads(1)

    def take(self, place: tuple[int, int]) -> tuple[int, list[Fault]]:
        """Return the number of the slot with the batch at `place` (epoch, batch), and what could not be used for it."""
        epoch, batch = place
        self.shared.take_back()
        number = self.shared.free.pop()
        slot = self.shared.slots[number]
        slot.candidates[:] = self._sampling.candidates(self._orders(epoch), batch, SPARE)
        return number, fill(self._records, self._subset, self._sampling, epoch, slot, 0, self._sampling.batch_size)

    def go_on(self) -> None:
        """Do nothing until the next batch is asked for."""

    def close(self) -> None:
        """Do nothing."""


class _Ahead:
    """Has processes decode from one place onward, over the ends of epochs, a few batches ahead of `take`."""

    def __init__(
        self, records: FaceRecords, subset: np.ndarray | None, sampling: Sampling, orders: _Orders, workers: int
    ) -> None:
        self._sampling, self._orders = sampling, orders
        self._pool = WorkerPool(records, subset, sampling, workers, _AHEAD, HELD)
        self.shared = _Shared(self._pool.slots)
        self._waiting: collections.deque[tuple[tuple[int, int], int]] = collections.deque()

    @property
    def pids(self) -> list[int]:
        """Return the processes."""
        return self._pool.pids

    def take(self, place: tuple[int, int]) -> tuple[int, list[Fault]]:
        """As `_Here.take`."""
        if not self._waiting or self._waiting[0][0] != place:
            self._pool.cancel()
            self._waiting.clear()
            self.shared.take_all_back()
            self._next = place
        self.go_on()
        _, number = self._waiting.popleft()
        return number, self._pool.wait(number)

    def go_on(self) -> None:
        """Have the slots that are free filled with later batches."""
        self.shared.take_back()
        while self.shared.free:
            number, (epoch, batch) = self.shared.free.pop(), self._next
            self.shared.slots[number].candidates[:] = self._sampling.candidates(self._orders(epoch), batch, SPARE)
            self._pool.submit(number, epoch)
            self._waiting.append((self._next, number))
            self._next = (epoch, batch + 1) if batch + 1 < self._sampling.batches else (epoch + 1, 0)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
