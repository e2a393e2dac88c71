"""The training iterator: shuffled, mirrored batches of faces, decoded in the background.

Nothing is drawn from a running generator: the order of an epoch follows from (seed, epoch), whether an image is
mirrored and how it is augmented from (seed, epoch, its position), so any place of any epoch can be gone to and gives
the same batch again.
"""

from __future__ import annotations

import itertools
import queue
import threading
import weakref
from typing import NamedTuple

import cv2
import numpy as np

from vargface.data.augment import Draws, augmented, mixed
from vargface.data.records import FaceRecords
from vargface.errors import InputError
from vargface.runtime import mx

__all__ = ["NOBODY", "FaceIterator", "epoch_order", "face_at", "mirror_bits"]

# the label of a face mixed from two: no identity's
NOBODY = -1.0

# batches decoded ahead of training
_AHEAD = 3


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation (count,) int64 of `range(count)` that belongs to (seed, epoch).

    It sorts raw Philox words: numpy promises that these stay the same from release to release, and promises nothing
    about `permutation`; a run may be resumed under another release.
    """
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(words, kind="stable")


def mirror_bits(positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return (n,) bool, which of the images at `positions` (n,) int64 are mirrored in that epoch: half of them."""
    key = np.random.SeedSequence([seed, epoch, 1]).generate_state(1, np.uint64)[0]
    # the finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit moves every output bit
    words = (np.asarray(positions).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ key
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (words >> np.uint64(63)).astype(bool)


class _Sampling(NamedTuple):
    """Which images make which batch."""

    count: int
    batch_size: int
    seed: int
    mirror: bool
    augment: float
    mix: float
    part: int
    num_parts: int

    @property
    def batches(self) -> int:
        return self.count // (self.batch_size * self.num_parts)

    def positions(self, order: np.ndarray, batch: int) -> np.ndarray:
        """Return (N,) int64: the parts share out one global batch, so their number does not change its images."""
        start = (batch * self.num_parts + self.part) * self.batch_size
        return order[start : start + self.batch_size]

    def mirrored(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Return (N,) bool."""
        return mirror_bits(positions, self.seed, epoch) if self.mirror else np.zeros(len(positions), dtype=bool)


class _Samples(NamedTuple):
    """A decoded batch: data (N, 3, H, W) uint8, RGB, and (N,) of float32, int64, bool."""

    data: np.ndarray
    identities: np.ndarray
    positions: np.ndarray
    mirrored: np.ndarray


class FaceIterator(mx.io.DataIter):
    """Batches of data (N, 3, H, W) float32, RGB, 0..255, and softmax_label (N,) float32, for `Module`.

    An epoch has whole batches only: what is left over is dropped, and the next shuffle leaves out other images.
    With `num_parts` > 1 this is worker `part` of as many: the workers' images are disjoint and equal in number.
    `augment` in 0..1 is the strength of random views; `mix` in 0..1 the share of images that are mixed with another one
    of the data set: these have the label NOBODY (augment.py says what both do).

    epoch: the current one, from 0; `reset` moves to the next; batches_per_epoch: their number in every epoch.
    Each batch has `index` (N,) int64, positions in `records`, and `mirrored` (N,) bool: without `augment` and `mix`
    they say all about its images.
    Raises InputError where `records` do not fill a batch and, from `next`, where an image cannot be decoded or is not
    of the size that `property` gives.
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
        part: int = 0,
        num_parts: int = 1,
    ) -> None:
        super().__init__(batch_size)
        if batch_size < 1 or not 0 <= part < num_parts:
            raise ValueError(f"batch_size {batch_size} must be positive and part {part} in 0..{num_parts - 1}")
        self._records = records
        self._sampling = _Sampling(len(records), batch_size, seed, mirror, augment, mix, part, num_parts)
        self.batches_per_epoch = self._sampling.batches
        if not self.batches_per_epoch:
            raise InputError(
                f"{records.folder}: {len(records)} images are fewer than a batch of {batch_size} x {num_parts} workers "
                "- set a smaller batch"
            )
        self.provide_data = [mx.io.DataDesc("data", (batch_size, 3, *records.image_size))]
        self.provide_label = [mx.io.DataDesc("softmax_label", (batch_size,))]
        self.epoch = 0
        self._batch = 0
        self._prefetch: _Prefetch | None = None
        self._float32 = np.empty((batch_size, 3, *records.image_size), dtype=np.float32)
        # one thread decodes: OpenCV's own pool would only take cores from training
        cv2.setNumThreads(1)

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
        place = (self.epoch, self._batch)
        if self._prefetch is None or self._prefetch.place != place:
            self.close()
            self._prefetch = _Prefetch(self._records, self._sampling, place)
        try:
            samples = self._prefetch.take()
        except BaseException:
            self.close()
            raise
        self._batch += 1
        # one buffer for all batches: writing to fresh memory costs more than this whole conversion
        self._float32[:] = samples.data
        batch = mx.io.DataBatch(
            data=[mx.nd.array(self._float32)],
            label=[mx.nd.array(samples.identities)],
            pad=0,
            index=samples.positions,
            provide_data=self.provide_data,
            provide_label=self.provide_label,
        )
        batch.mirrored = samples.mirrored
        return batch

    def close(self) -> None:
        """Stop the background thread; a later `next` starts it again at the same place."""
        if self._prefetch is not None:
            self._prefetch.stop()
            self._prefetch = None


class _Prefetch:
    """A thread that decodes from one place onward, over the ends of epochs, a few batches ahead of `take`."""

    def __init__(self, records: FaceRecords, sampling: _Sampling, place: tuple[int, int]) -> None:
        self.place = place
        self._batches = sampling.batches
        self._ready: queue.Queue = queue.Queue(_AHEAD)
        stopping = threading.Event()
        # a daemon, and with no reference to this object: neither the end of the interpreter nor that of the iterator
        # waits for the thread, both end it through the finaliser
        self._thread = threading.Thread(
            target=_decode_onward,
            args=(records, sampling, place, self._ready, stopping),
            name="vargface-decode",
            daemon=True,
        )
        self.stop = weakref.finalize(self, _stop, self._thread, self._ready, stopping)
        self._thread.start()

    def take(self) -> _Samples:
        """Return the batch at `place` and move on; raises what the thread met."""
        while True:
            try:
                samples = self._ready.get(timeout=1)
                break
            except queue.Empty:
                # threads do not survive a fork: better an error than waiting for ever
                if not self._thread.is_alive():
                    raise RuntimeError("no decoding thread: make the iterator in the process it is used in") from None
        if isinstance(samples, BaseException):
            raise samples
        epoch, batch = self.place
        self.place = (epoch, batch + 1) if batch + 1 < self._batches else (epoch + 1, 0)
        return samples


def _stop(thread: threading.Thread, ready: queue.Queue, stopping: threading.Event) -> None:
    stopping.set()
    while thread.is_alive():
        try:
            # room for the batch that the thread is about to put
            ready.get_nowait()
        except queue.Empty:
            if thread is threading.current_thread():
                # the garbage collector may call from anywhere
                return
            thread.join(0.01)


def _decode_onward(
    records: FaceRecords,
    sampling: _Sampling,
    place: tuple[int, int],
    ready: queue.Queue,
    stopping: threading.Event,
) -> None:
    """Put batches into `ready` until `stopping` is set or an image cannot be used; then put the exception."""
    first, batch = place
    try:
        for epoch in itertools.count(first):
            order = epoch_order(sampling.count, sampling.seed, epoch)
            for index in range(batch, sampling.batches):
                if stopping.is_set():
                    return
                positions = sampling.positions(order, index)
                ready.put(_decode(records, positions, sampling, epoch))
            batch = 0
    except BaseException as error:
        ready.put(error)


def _decode(records: FaceRecords, positions: np.ndarray, sampling: _Sampling, epoch: int) -> _Samples:
    """Return the batch of the images at `positions` (N,) as they are seen in `epoch`."""
    data = np.empty((len(positions), 3, *records.image_size), dtype=np.uint8)
    identities = np.empty(len(positions), dtype=np.float32)
    mirrored = sampling.mirrored(positions, epoch)
    for row, position in enumerate(positions):
        identities[row], image = face_at(records, position)
        image = image[:, :: -1 if mirrored[row] else 1]
        if sampling.augment or sampling.mix:
            draws = Draws(sampling.seed, epoch, int(position))
            if draws() < sampling.mix:
                other = int(draws() * sampling.count)
                image = mixed(image, face_at(records, other)[1][:, :: -1 if draws() < 0.5 else 1], draws)
                identities[row] = NOBODY
            image = augmented(image, sampling.augment, draws)
        # OpenCV decodes to (H, W, blue green red)
        data[row] = image[:, :, ::-1].transpose(2, 0, 1)
    return _Samples(data, identities, positions, mirrored)


def face_at(records: FaceRecords, position: int) -> tuple[float, np.ndarray]:
    """Return the label and the image (H, W, 3) uint8, blue green red, at `position`.

    Raises InputError, naming the record, where it cannot be decoded or is not of the size that `property` gives.
    """
    height, width = records.image_size
    identity, encoded = records.read(position)
    image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(
            f"{records.name(position)} of identity {identity:.0f} is not an image that can be decoded "
            f"({len(encoded)} bytes) - replace it or write the data set anew without it"
        )
    if image.shape[:2] != (height, width):
        raise InputError(
            f"{records.name(position)} of identity {identity:.0f} is {image.shape[0]}x{image.shape[1]} and "
            f"property says {height}x{width} - write the data set anew with images of one size"
        )
    return identity, image
