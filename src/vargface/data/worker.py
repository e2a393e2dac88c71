"""A process that decodes: `python -m vargface.data.worker`, started by pool.py and by nothing else.

It inherits a socket, train.rec and three pieces of shared memory, and ends when the process that started it does,
however that ends: then the socket does or, where a fork of that process still holds it, nothing is asked for any more.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import pickle
import socket
import struct
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from vargface.data.recordio import RecordFile
from vargface.data.records import Records
from vargface.data.samples import Slot, fill
from vargface.data.sampling import Sampling
from vargface.errors import InputError

__all__ = ["DONE", "NOWHERE", "TASK", "main"]

# slot, first row, last row + 1, epoch
TASK = struct.Struct("<iiiq")
# slot, rows done; pickled faults or the exception may follow
DONE = struct.Struct("<ii")
FAULTS = 300
# where a process is that decodes no image
NOWHERE = -1


class _WatchedRecords(Records):
    """Records that write down, where the trainer sees it, which image is being decoded: should it be the last."""

    place: np.ndarray  # (1,) int64
    unusable: dict[int, str]  # positions of images that ended a process, and what to say of them

    def read(self, position: int) -> tuple[int, bytes]:
        """As `Records.read`."""
        self.place[0] = position
        if self.unusable and int(position) in self.unusable:
            raise InputError(self.unusable[int(position)])
        return super().read(position)


def _tasks(channel: socket.socket, trainer: int) -> Iterator[bytes]:
    """Yield what there is to do as long as the trainer lives; `recv` gives up after a time, which pool.py sets."""
    while True:
        message = None
        with contextlib.suppress(BlockingIOError):
            message = channel.recv(TASK.size)
        if message == b"" or os.getppid() != trainer:
            return
        if message:
            yield message


def main() -> None:
    """Do tasks until there are none any more."""
    setting = json.loads(sys.argv[1])
    cv2.setNumThreads(1)
    channel = socket.socket(fileno=setting["channel"])
    file = RecordFile(Path(setting["path"]), setting["file"])
    size, batch_size = tuple(setting["image_size"]), setting["sampling"]["batch_size"]
    count, of_subset = setting["images"], setting["subset"]
    index = np.frombuffer(mmap.mmap(setting["index"], 0, prot=mmap.PROT_READ), np.int64)
    records = _WatchedRecords(file, index[:count], index[count : 2 * count], setting["num_identities"], size)
    records.place = np.frombuffer(mmap.mmap(setting["places"], 0), np.int64, 1, 8 * setting["number"])
    records.unusable = {int(position): why for position, why in setting["unusable"].items()}
    subset = index[2 * count :] if of_subset else None
    memory = memoryview(mmap.mmap(setting["slots"], 0))
    step = Slot.size(batch_size, size)
    slots = [Slot(memory[at : at + step], batch_size, size) for at in range(0, len(memory), step)]
    sampling = Sampling(**setting["sampling"])
    # a trainer that was killed may leave the socket's end as a failure
    with contextlib.suppress(ConnectionError):
        for message in _tasks(channel, setting["trainer"]):
            slot, start, stop, epoch = TASK.unpack(message)
            try:
                said = fill(records, subset, sampling, epoch, slots[slot], start, stop)
            except Exception as error:
                # what cannot be used comes as itself, a bug of ours with where it happened
                said = error if isinstance(error, InputError) else RuntimeError(traceback.format_exc())
            records.place[0] = NOWHERE
            # a message has its limits; who has so many faults in a few dozen rows is stopped by these
            said = said[:FAULTS] if isinstance(said, list) else said
            channel.send(DONE.pack(slot, stop - start) + (pickle.dumps(said) if said else b""))


if __name__ == "__main__":
    main()
