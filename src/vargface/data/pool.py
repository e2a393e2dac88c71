"""Processes that decode batches into shared memory.

The processes are programs of their own, neither forked nor `multiprocessing`'s: they hold no MXNet, no copy of the
index, and nothing of the caller's. Index, batches and train.rec are handed on as open files: memory without a name,
which is gone with the last process, and cannot be left over. All processes take their tasks, a few dozen rows of a
batch each, from one socket. A task is a function of its place, so after a process was killed all are started anew and
what had not arrived is done again. An image at which processes die again and again counts as unusable.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import mmap
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref

import numpy as np

from vargface.data.records import Records
from vargface.data.samples import Fault, Slot
from vargface.data.sampling import Sampling
from vargface.data.worker import DONE, NOWHERE, TASK
from vargface.errors import InputError

__all__ = ["WorkerPool"]

logger = logging.getLogger(__name__)

# rows of a task: some 5 ms of work; more where there would be more tasks than the socket holds
_ROWS, _TASKS = 64, 256
# seconds without news after which the processes are looked at, and after which they count as stuck
_LOOK, _STUCK = 0.2, 120.0
# seconds after which a process that has nothing to do looks whether the trainer is still there
_LISTEN = 2
# deaths in a row, with no batch done between them, and deaths at one image, after which it is no accident
_DEATHS = 3
# without the folder that the trainer was started in, which `-m` and `-c` look for modules in first
_PROGRAM = """
import sys
sys.path[:] = [path for path in sys.path if path]
import runpy
runpy.run_module("vargface.data.worker", run_name="__main__")
"""
# seconds until a killed process is given up
_PATIENCE = 5.0


class WorkerPool:
    """Decodes batches in `workers` processes, into `slots`; used by one thread of the process that made it.

    ahead, held: the slots that are to be filled meanwhile, and those that the caller may keep.

    Raises InputError and what else a process met from `wait`, InputError where processes die again and again.
    """

    def __init__(
        self, records: Records, subset: np.ndarray | None, sampling: Sampling, workers: int, ahead: int, held: int
    ) -> None:
        self._workers, self._owner = workers, os.getpid()
        size = Slot.size(sampling.batch_size, records.image_size)
        rows = max(1, min(_ROWS, -(-sampling.batch_size // workers)))
        # enough batches for every process to have its next task waiting
        count = max(ahead, -(-2 * workers * rows // sampling.batch_size)) + held
        self._rows = max(rows, -(-sampling.batch_size * count // _TASKS))
        arrays = [records.image_keys, records.offsets, *([] if subset is None else [subset])]
        index, _ = _memory("vargface-index", sum(array.nbytes for array in arrays))
        slots, batches = _memory("vargface-batches", size * count)
        places, at_work = _memory("vargface-places", 8 * workers)
        self._files = weakref.finalize(self, _close_all, [index, slots, places])
        # which image each process is at
        self._places = np.frombuffer(at_work, np.int64)
        self._records = records
        at = 0
        for array in arrays:
            at += os.pwrite(index, np.ascontiguousarray(array, dtype=np.int64).data.cast("B"), at)
        memory = memoryview(batches)
        self.slots = [
            Slot(memory[number * size : (number + 1) * size], sampling.batch_size, records.image_size)
            for number in range(count)
        ]
        self._batch_size = sampling.batch_size
        self._inherited = (index, slots, places, records.file.fileno())
        self._setting = {
            "path": str(records.file.path),
            "file": records.file.fileno(),
            "index": index,
            "slots": slots,
            "places": places,
            "trainer": self._owner,
            "images": len(records),
            "subset": subset is not None,
            "num_identities": records.num_identities,
            "image_size": records.image_size,
            "sampling": sampling._asdict(),
        }
        self._missing = [0] * count  # rows of each slot that have not arrived
        self._epochs = [0] * count
        self._faults: list[list[Fault]] = [[] for _ in range(count)]
        self._errors: list[BaseException | None] = [None] * count
        self._deaths = 0
        self._ends: collections.Counter[int] = collections.Counter()
        self._unusable: dict[int, str] = {}
        self._start()

    @property
    def pids(self) -> list[int]:
        """Return the processes."""
        return [process.pid for process in self._processes]

    def submit(self, slot: int, epoch: int) -> None:
        """Have the candidates of `slot` made into a batch of `epoch`."""
        self._missing[slot], self._epochs[slot] = self._batch_size, epoch
        self._faults[slot], self._errors[slot] = [], None
        for start in range(0, self._batch_size, self._rows):
            stop = min(start + self._rows, self._batch_size)
            self._near.send(TASK.pack(slot, start, stop, epoch))

    def wait(self, slot: int) -> list[Fault]:
        """Wait until `slot` is complete, and return what could not be used for it; raise what a process met there."""
        self._complete(slot)
        if self._errors[slot] is not None:
            raise self._errors[slot]
        return self._faults[slot]

    def _complete(self, slot: int) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError("no decoding processes: make the iterator in the process it is used in")
        # also one that had nothing to do: the others would go on alone, more slowly, and nobody would know
        if any(process.poll() is not None for process in self._processes):
            self._again([process for process in self._processes if process.poll() is not None])
        heard = time.monotonic()
        while self._missing[slot]:
            try:
                message = self._near.recv(1 << 20)
            except socket.timeout:
                dead = [process for process in self._processes if process.poll() is not None]
                if dead:
                    self._again(dead)
                    heard = time.monotonic()
                elif time.monotonic() - heard > _STUCK:
                    at = ", ".join(filter(None, map(self._at, self._processes))) or ", at no record"
                    logger.warning("decoding: no news for %d s%s; the processes are started anew", _STUCK, at)
                    self._again([])
                    heard = time.monotonic()
                continue
            heard = time.monotonic()
            self._arrived(message)

    def cancel(self) -> None:
        """Give up what was submitted and has not arrived."""
        with contextlib.suppress(BlockingIOError):
            while True:
                slot, start, stop, _ = TASK.unpack(self._far.recv(TASK.size, socket.MSG_DONTWAIT))
                self._missing[slot] -= stop - start
        for slot in range(len(self.slots)):
            self._complete(slot)

    def close(self) -> None:
        """End the processes."""
        self._end()
        self._files()

    def _arrived(self, message: bytes) -> None:
        slot, rows = DONE.unpack_from(message)
        self._missing[slot] -= rows
        if not self._missing[slot]:
            # not before: parts of a batch are done again and again
            self._deaths = 0
        if len(message) > DONE.size:
            said = pickle.loads(message[DONE.size :])
            if isinstance(said, BaseException):
                self._errors[slot] = said
            else:
                self._faults[slot] += said

    def _again(self, dead: list[subprocess.Popen]) -> None:
        """Start all processes anew, and what has not arrived."""
        self._deaths += 1
        for process in dead:
            self._blame(process)
        how = ", ".join(_how(process.returncode) + self._at(process) for process in dead)
        how = how or "stuck" + "".join(map(self._at, self._processes))
        if self._deaths >= _DEATHS:
            self.close()
            raise InputError(
                f"decoding: the processes ended {_DEATHS} times with nothing done in between, at last {how} - give "
                "them more memory, or take fewer (workers=N; 0: the trainer decodes)"
            )
        if dead:
            logger.warning("decoding: process %s was %s; all are started anew", dead[0].pid, how)
        self._end()
        self._start()
        for slot, missing in enumerate(self._missing):
            if missing:
                self.submit(slot, self._epochs[slot])

    def _blame(self, process: subprocess.Popen) -> None:
        """Count a death at the image that the process was at; the last one of too many makes that unusable."""
        position = int(self._places[self._processes.index(process)])
        if position == NOWHERE:
            return
        self._ends[position] += 1
        if self._ends[position] == _DEATHS:
            self._unusable[position] = (
                f"{self._records.name(position)}: the process that decoded it was {_how(process.returncode)} "
                f"{_DEATHS} times - build the data set without it"
            )
            self._deaths = 0

    def _at(self, process: subprocess.Popen) -> str:
        """Return what to say of the record that a process is at, or was when it ended."""
        position = self._places[self._processes.index(process)]
        return "" if position == NOWHERE else f", at {self._records.name(position)}"

    def _start(self) -> None:
        self._places[:] = NOWHERE
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._near.settimeout(_LOOK)
        for side in (self._near, self._far):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _LISTEN, 0))
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        # as this process finds its modules, so do they
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._processes: list[subprocess.Popen] = []
        # before the first starts: whatever happens, it is ended
        self._end = weakref.finalize(self, _end, self._owner, self._near, self._far, self._processes)
        for number in range(self._workers):
            own = {"channel": self._far.fileno(), "number": number, "unusable": self._unusable}
            setting = json.dumps({**self._setting, **own})
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, setting],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=(self._far.fileno(), *self._inherited),
                start_new_session=True,  # Ctrl-C is the trainer's to hear
            )
            self._processes.append(process)


def _memory(name: str, size: int) -> tuple[int, mmap.mmap]:
    """Return `size` bytes of shared memory, as a handle and as they are; raises InputError where there are no more."""
    try:
        handle = os.memfd_create(name)
        os.ftruncate(handle, size)
        return handle, mmap.mmap(handle, 0)
    except OSError as error:
        raise InputError(
            f"decoding: no {size:,} bytes of shared memory ({error.strerror}) - set workers=0, or a smaller batch_size"
        ) from error


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-code}"


def _end(owner: int, near: socket.socket, far: socket.socket, processes: list[subprocess.Popen]) -> None:
    """End the processes: they hold nothing that could be lost. A fork of the trainer leaves them to that."""
    if os.getpid() != owner:
        return
    for process in processes:
        process.kill()
    for side in (near, far):
        side.close()
    for process in processes:
        # one that waits for a network's disk cannot be ended; better to leave it than to wait, too
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)


def _close_all(handles: list[int]) -> None:
    for handle in handles:
        os.close(handle)
