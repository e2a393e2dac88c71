"""The workers of a job: this one's place among them, and what they sum through MXNet's parameter servers."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence

from vargface.errors import InputError
from vargface.jobs.orders import RANK
from vargface.runtime import mx
from vargface.training.row_update import sum_key

__all__ = ["KVSTORES", "MOST_BYTES", "Team", "leave", "team_of"]

logger = logging.getLogger(__name__)

KVSTORES = ("", "dist_sync", "dist_device_sync")
# of an array that servers sum: they count them in 32 bits with a sign
MOST_BYTES = 2**31 - 1
NOTES = ("stop", "save")
# seconds of waiting between two lines that say so
WAIT_SECONDS = 60.0
# stores of this process, which ends with them (member.py): one that goes waits until all workers let go of theirs
_joined: list[mx.kv.KVStore] = []


class Team:
    """The workers of a job, or this process alone.

    rank: 0 for the one that logs, verifies and saves; size: how many there are; kvstore: through which they sum, None
    before `join` and for one alone; has_tables: whether `store` holds tables of class centres (centres.py); heard: of
    the notes "stop" and "save", those that some worker had left at the last `sum_gradients` or `hear`.

    Every worker calls the same of these methods in the same order, or all wait for each other for ever.
    """

    def __init__(self, kind: str = "", rank: int = 0, size: int = 1) -> None:
        self.rank, self.size, self.kvstore = rank, size, None
        self.has_tables = False
        self._kind, self._keys = kind, {}
        self._own_store: mx.kv.KVStore | None = None
        self._notes: frozenset[str] = frozenset()
        self.heard: frozenset[str] = frozenset()

    @property
    def leads(self) -> bool:
        """Return whether this worker is the one that logs, verifies and saves."""
        return self.rank == 0

    @property
    def store(self) -> mx.kv.KVStore:
        """Return where tables of class centres lie: on the servers or, of one alone, in this process."""
        if self.kvstore is None and self._own_store is None:
            self._own_store = mx.kv.create("local")
        return self.kvstore or self._own_store

    def meet(self) -> None:
        """Wait until all workers are here, and all that they asked MXNet for is done."""
        mx.nd.waitall()
        if self.kvstore is not None:
            self.kvstore._barrier()

    def join(self) -> None:
        """Wait until all workers and servers of the job are there."""
        if self._kind and self.kvstore is None:
            servers = os.environ.get("DMLC_NUM_SERVER", "?")
            with _saying(f"waiting for others of the job: {self.size} workers and {servers} servers are to come"):
                self.kvstore = mx.kv.create(self._kind)
            _joined.append(self.kvstore)

    def sum(self, name: str, arrays: Sequence[mx.nd.NDArray]) -> None:
        """Have `arrays`, one a context and all of one shape, hold the sum over contexts and workers.

        One alone has nothing to sum: its arrays stay as they are.
        """
        if self.kvstore is None:
            return
        self._begin_sum(name, arrays)
        for array in arrays:
            array.wait_to_read()

    def give(self, name: str, arrays: Sequence[mx.nd.NDArray]) -> None:
        """Have `arrays`, one a context and all of one shape, hold what the first of them holds at rank 0."""
        if self.kvstore is None:
            return
        for array in arrays if self.rank else arrays[1:]:
            array[:] = 0
        self.sum(name, arrays)

    def agreed(self, *numbers: float) -> list[int]:
        """Return what these whole numbers, exact to 2^24, are at rank 0."""
        if self.kvstore is None:
            return [int(number) for number in numbers]
        array = mx.nd.array(numbers)
        self.give(f"numbers of {len(numbers)}", [array])
        return [int(number) for number in array.asnumpy()]

    def mean(self, name: str, arrays: Sequence[mx.nd.NDArray]) -> None:
        """Have `arrays`, one a context and all of one shape, hold the mean over contexts and workers."""
        if self.kvstore is not None:
            self.sum(name, arrays)
            for array in arrays:
                array /= self.size * len(arrays)

    def note(self, **notes: bool) -> None:
        """Leave those of the notes "stop" and "save" that are true; one alone hears them at once."""
        self._notes = frozenset(name for name, left in notes.items() if left)
        if self.kvstore is None:
            self.heard = self._notes

    def hear(self) -> None:
        """Have `heard` be the notes that some worker has left."""
        self.sum_gradients([], [])

    def sum_gradients(self, names: Sequence[str], gradients: Sequence[Sequence[mx.nd.NDArray]]) -> None:
        """Sum the gradients of the parameters `names`, an array a context each, and hear what notes were left."""
        if self.kvstore is None:
            return
        notes = mx.nd.array([name in self._notes for name in NOTES])
        self._begin_sum("notes", [notes])
        for name, arrays in zip(names, gradients):
            self._begin_sum(name, arrays)
        self.heard = frozenset(name for name, count in zip(NOTES, notes.asnumpy()) if count)

    def _begin_sum(self, name: str, arrays: Sequence[mx.nd.NDArray]) -> None:
        """Have the sum come into `arrays` in the background.

        MXNet orders what is done with an array, not with a key: before other arrays are summed under this name, it must
        be there.
        """
        key = self._key(name, arrays[0])
        self.kvstore.push(key, list(arrays), priority=-key)
        self.kvstore.pull(key, out=list(arrays), priority=-key)

    def _key(self, name: str, array: mx.nd.NDArray) -> int:
        if name not in self._keys:
            self._keys[name] = sum_key(len(self._keys))
            self.kvstore.init(self._keys[name], mx.nd.zeros(array.shape))
        return self._keys[name]


def team_of(kind: str) -> Team:
    """Return the team that this process is of for `kvstore` = `kind`, not joined yet.

    Raises InputError where the recipe names a store of several processes and `vargface launch` has not started them.
    """
    if not kind:
        return Team()
    if RANK not in os.environ:
        raise InputError(
            f"kvstore = {kind!r}: is for several processes - start them: vargface launch -n 2 -- train ..."
        )
    return Team(kind, int(os.environ[RANK]), int(os.environ["DMLC_NUM_WORKER"]))


def leave() -> None:
    """Let go of this process's stores: MXNet ends servers and scheduler once all workers have, and waits for them."""
    for store in _joined:
        store.__del__()


@contextlib.contextmanager
def _saying(text: str) -> Iterator[None]:
    """Log `text` whenever another WAIT_SECONDS of this block are gone."""
    done = threading.Event()

    def say() -> None:
        while not done.wait(WAIT_SECONDS):
            logger.warning(text)

    threading.Thread(target=say, daemon=True).start()
    try:
        yield
    finally:
        done.set()
