"""What a parameter server, or this process's own store, does with what is pushed: rows of class centres, and sums.

A server gets a RowUpdate pickled, and imports this module for it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from vargface.runtime import mx

__all__ = ["CENTRES", "LAST", "MOMENTUM", "TABLES", "Missed", "RowUpdate", "key_of", "last_width", "sum_key"]

# Keys of the store: three tables of as many rows, each in parts of a key each, a row of all three on one server. What
# MXNet does not split lies on the server (key * 9973) % servers: so the keys of tables are multiples of their number.
# They are small: MXNet reckons that product in 32 bits.
_SERVERS = int(os.environ.get("DMLC_NUM_SERVER", "1"))
_SPACING = 8 * _SERVERS
TABLES = CENTRES, MOMENTUM, LAST = tuple(number * _SPACING for number in range(3))
# numbers that catch up at a time: few enough for the cache, and for the memory of intermediate ones to be used again
_AT_ONCE = 1 << 15


def key_of(table: int, part: int) -> int:
    """Return the key of a part of CENTRES, MOMENTUM or LAST; that of part 0 is the table's own."""
    return table + part * len(TABLES) * _SPACING


def sum_key(number: int) -> int:
    """Return the key of a sum, of which no table has one: `number` counts them from 0."""
    return number + number // (_SPACING - 1) + 1


def last_width(shape: tuple[int, int]) -> int:
    """Return how many columns a part of LAST has, of which the first is used, for one of CENTRES of `shape` (C, D).

    MXNet splits arrays of this many numbers among the servers: the tables must be split alike.
    """
    bound = int(os.environ.get("MXNET_KVSTORE_BIGARRAY_BOUND", 1_000_000))
    return -(-bound // shape[0]) if _SERVERS > 1 and shape[0] * shape[1] >= bound > 0 else 1


class RowUpdate(mx.optimizer.Optimizer):
    """SGD with momentum on the rows of CENTRES that a step has worked on; the sum of what was pushed of any other key.

    The momentum of a row is a row of the table MOMENTUM: so it can be read, and saved, from where it lies. LAST has the
    number of updates that a row is up to. A push there, of the updates gone, has its rows catch up with those that did
    not take them (`Missed`): then they are where SGD on all rows has them.
    missed: the updates gone when this begins, as far back as rows are behind.
    tables: the parts, by key, that something has been pushed to; of one that learns the first push of each makes it
    known, no more. Every part of CENTRES is pushed at every step, be it no row of it: its pushes are the updates that
    the rate goes by.
    """

    def __init__(
        self, momentum: float = 0.0, loads: bool = False, missed: Iterable[tuple[float, float]] = (), **options: Any
    ) -> None:
        """Take SGD's options; with `loads`, rows of all tables become what is pushed."""
        super().__init__(**options)
        self._momentum, self._loads, self._missed = momentum, loads, Missed(missed)
        self._noted = self.begin_num_update  # the last update of these
        self.tables: dict[int, mx.nd.NDArray] = {}

    def create_state_multi_precision(self, index: int, weight: mx.nd.NDArray) -> None:
        """Return None: what an optimiser keeps of a weight cannot be read on a server."""

    def update_multi_precision(self, index: int, weight: mx.nd.NDArray, grad: mx.nd.NDArray, state: None) -> None:
        """Update `weight`, what the store holds under key `index`, by `grad`, what was pushed in all."""
        if index % _SPACING:
            grad.copyto(weight)
            return
        known = index in self.tables
        self.tables[index] = weight
        if self._loads:
            # rows that nobody pushed stay; of the others (1 - lr wd) w - lr rescale g is g
            mx.nd.sparse.sgd_update(weight, grad, out=weight, lr=1.0, wd=1.0, rescale_grad=-1.0, lazy_update=True)
            weight.wait_to_read()
        elif known:
            part, table = divmod(index, key_of(CENTRES, 1))
            if table == LAST:
                self._catch_up(part, grad.indices.asnumpy(), grad.data.asnumpy()[:, 0].astype(np.float64))
            elif table == CENTRES:
                self._learn(part, weight, grad)

    def _learn(self, part: int, weight: mx.nd.NDArray, grad: mx.nd.NDArray) -> None:
        key = key_of(CENTRES, part)
        self._update_count(key)
        options = {"lr": self._get_lr(key), "wd": self._get_wd(key), "rescale_grad": self.rescale_grad}
        if self.num_update > self._noted:  # the first part of a step
            self._missed.append(options["lr"] * options["wd"], self._momentum)
            self._noted = self.num_update
        momentum, last = (self.tables.get(key_of(table, part)) for table in (MOMENTUM, LAST))
        mx.nd.sparse.sgd_mom_update(
            weight, grad, momentum, out=weight, momentum=self._momentum, lazy_update=True, **options
        )
        if last is not None:
            _memory(last)[grad.indices.asnumpy(), 0] += 1
        momentum.wait_to_read()  # MXNet's server waits for the weight alone before it sends rows of either

    def _catch_up(self, part: int, rows: np.ndarray, updates: np.ndarray) -> None:
        """Have `rows` (n,) be where they are after `updates` (n,)."""
        centres, momentum, last = (_memory(self.tables[key_of(table, part)]) for table in TABLES)
        self._missed.catch_up(centres, momentum, rows, updates - last[rows, 0])
        last[rows, 0] = updates


class Missed:
    """What updates without a gradient do to a row; of the last k of `updates`, whatever k.

    updates: rate x weight decay, and momentum, of each update, the newest last. SGD without a gradient is linear in
    centre and velocity, v' = m v - decay w and w' = w + v': the products of these 2 x 2 matrices, from the newest one
    backwards, say it of all numbers of a row.
    """

    def __init__(self, updates: Iterable[tuple[float, float]]) -> None:
        self._updates = list(updates)
        # of the last updates, kept for all parts of a table: as many as the longest gap of this step or the last
        self._products = np.empty((0, 4), np.float32)
        self._longest, self._before = 0, 0

    def append(self, decay: float, momentum: float) -> None:
        """Add an update."""
        self._updates.append((decay, momentum))
        self._products = self._products[:0]
        self._longest, self._before = 0, self._longest

    def catch_up(self, centres: np.ndarray, velocity: np.ndarray, rows: np.ndarray, missed: np.ndarray) -> None:
        """Have `rows` (n,) of two tables (C, D) float32 go along with the last `missed` (n,) updates, 0 or more."""
        missed = missed.astype(int)
        self._longest = max(self._longest, missed.max(initial=0))
        if self._longest >= len(self._products):
            self._products = self._find(max(self._longest, self._before))
        count = max(_AT_ONCE // centres.shape[1], 1)
        for start in range(0, len(rows), count):
            some = rows[start:][:count]
            kept, moved, braked, left = self._products[missed[start:][:count]].T[..., None]
            w, v = centres[some], velocity[some]
            centres[some], velocity[some] = kept * w + moved * v, braked * w + left * v

    def _find(self, most: int) -> np.ndarray:
        """Return the products (most + 1, 4) float32 of the last 0, 1, ... `most` updates."""
        products = np.empty((most + 1, 4))
        products[0] = kept, moved, braked, left = 1.0, 0.0, 0.0, 1.0
        for number in range(1, most + 1):
            decay, momentum = self._updates[-number]
            kept, moved = kept - (kept + moved) * decay, (kept + moved) * momentum
            braked, left = braked - (braked + left) * decay, (braked + left) * momentum
            products[number] = kept, moved, braked, left
        return products.astype(np.float32)


def _memory(table: mx.nd.NDArray) -> np.ndarray:
    """Return the memory of a table that has all its rows, to be read and written while MXNet does nothing with it.

    `data` would be a copy of all, and MXNet's operators on some of its rows take eight times as long.
    """
    table.wait_to_read()
    pointer = ctypes.POINTER(ctypes.c_float)()
    mx.base.check_call(mx.base._LIB.MXNDArrayGetData(table.handle, ctypes.byref(pointer)))
    return np.ctypeslib.as_array(pointer, shape=table.shape)
