"""From records to the rows of a batch, in the process that decodes; it needs no MXNet."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from vargface.data.augment import Draws, augmented, compressed, cut_out, mixed
from vargface.data.decoding import decode, planes
from vargface.data.recordio import LEAVE_OUT
from vargface.data.records import Records
from vargface.data.sampling import Sampling
from vargface.errors import InputError

__all__ = ["NOBODY", "SPARE", "Fault", "Slot", "face_at", "fill"]

# the label of a face mixed from two: no identity's
NOBODY = -1.0
# images after its own that may stand in for an unusable one
SPARE = 64


class Fault(NamedTuple):
    """An image that cannot be used, why, and which one stands in for it (positions in the records)."""

    position: int
    reason: str
    stand_in: int


class Slot:
    """The arrays of one batch of N images in `buffer`.

    data (N, 3, H, W) float32, RGB, 0..255; identities (N,) float32; positions (N,) int64; mirrored (N,) bool; and, what
    it is made of, candidates (N + SPARE,) int64.
    """

    def __init__(self, buffer: memoryview, batch_size: int, image_size: tuple[int, int]) -> None:
        at = 0

        def array(dtype: str, *shape: int) -> np.ndarray:
            nonlocal at
            count = int(np.prod(shape))
            made = np.frombuffer(buffer, dtype, count, at).reshape(shape)
            at += made.nbytes
            return made

        # the widest first: all are aligned
        self.candidates = array("i8", batch_size + SPARE)
        self.positions = array("i8", batch_size)
        self.identities = array("f4", batch_size)
        self.data = array("f4", batch_size, 3, *image_size)
        self.mirrored = array("?", batch_size)

    @staticmethod
    def size(batch_size: int, image_size: tuple[int, int]) -> int:
        """Return the bytes of a slot, a whole number of memory pages."""
        size = 8 * (batch_size + SPARE) + batch_size * (8 + 4 + 4 * 3 * image_size[0] * image_size[1] + 1)
        return size + -size % 4096


def fill(
    records: Records, subset: np.ndarray | None, sampling: Sampling, epoch: int, slot: Slot, start: int, stop: int
) -> list[Fault]:
    """Make rows start..stop-1 of `slot` from its candidates, and return what could not be used.

    In place of an unusable image stands the next in the epoch's order that is usable, as that image is seen itself. So
    it is seen twice, and the same for any number of workers. subset: positions that may be mixed in; None: all.

    Raises InputError where the next SPARE are unusable, too.
    """
    faults: dict[int, Fault] = {}
    mirrored = sampling.mirrored(slot.candidates[start : stop + SPARE], epoch)
    for row in range(start, stop):
        reasons: list[tuple[int, str]] = []
        for at in range(row, row + SPARE):
            position = int(slot.candidates[at])
            mirror = bool(mirrored[at - start])
            try:
                identity, image = _sample(records, subset, sampling, epoch, position, mirror, faults)
                break
            except InputError as error:
                reasons.append((position, str(error)))
        else:
            raise InputError(f"{reasons[0][1]}; nor can the {SPARE - 1} images be used that follow it in this epoch")
        faults.update({unusable: Fault(unusable, reason, position) for unusable, reason in reasons})
        slot.identities[row], slot.positions[row], slot.mirrored[row] = identity, position, mirror
        planes(image, slot.data[row])
    return list(faults.values())


def _sample(
    records: Records,
    subset: np.ndarray | None,
    sampling: Sampling,
    epoch: int,
    position: int,
    mirror: bool,
    faults: dict[int, Fault],
) -> tuple[float, np.ndarray]:
    """Return label and image (H, W, 3) uint8, blue green red, as `position` is seen in `epoch`."""
    identity, image = face_at(records, position)
    if mirror:
        image = _mirrored(image)
    if sampling.varies:
        draws = Draws(sampling.seed, epoch, position)
        if draws() < sampling.mix:
            other = _other(records, subset, int(draws() * sampling.count), sampling.count, faults)
            image = mixed(image, _mirrored(other) if draws() < 0.5 else other, draws)
            identity = NOBODY
        image = augmented(image, sampling.augment, draws)
        if draws() < sampling.jpeg:
            image = compressed(image, draws)
        if draws() < sampling.cutout:
            image = cut_out(image, draws)
    return identity, image


def _other(records: Records, subset: np.ndarray | None, drawn: int, count: int, faults: dict[int, Fault]) -> np.ndarray:
    """Return the image to mix in: the one that was drawn or, where that cannot be used, the next in the file."""
    reasons = []
    for number in range(drawn, drawn + SPARE):
        position = number % count if subset is None else int(subset[number % count])
        try:
            image = face_at(records, position)[1]
        except InputError as error:
            reasons.append((position, str(error)))
            continue
        faults.update({unusable: Fault(unusable, reason, position) for unusable, reason in reasons})
        return image
    raise InputError(reasons[0][1])


def _mirrored(image: np.ndarray) -> np.ndarray:
    return cv2.flip(image, 1)


def face_at(records: Records, position: int) -> tuple[float, np.ndarray]:
    """Return the label and the image (H, W, 3) uint8, blue green red, at `position`; raises InputError, naming it."""
    identity, encoded = records.read(position)
    try:
        image = decode(encoded)
    except ValueError as error:
        raise InputError(f"{records.name(position)} of identity {identity:.0f} {error} - {LEAVE_OUT}") from error
    if image.shape[:2] != records.image_size:
        found, wanted = ("{}x{}".format(*size) for size in (image.shape[:2], records.image_size))
        raise InputError(
            f"{records.name(position)} of identity {identity:.0f} is {found} and property says {wanted} - correct "
            f"{records.folder / 'property'}, or {LEAVE_OUT}"
        )
    return identity, image
