"""What a parameter server, or this process's own store, does with what is pushed: rows of class centres, and sums.

A server gets a RowUpdate pickled, and imports this module for it.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from vargface.runtime import mx

__all__ = ["CENTRES", "LAST", "MOMENTUM", "TABLES", "RowUpdate", "last_width"]

# Keys of the store: three tables of as many rows, a row of each on one server. A table that MXNet does not split lies
# on the server (key * 9973) % servers: so each key is a multiple of their number. Sums have keys between (team.py).
_SERVERS = int(os.environ.get("DMLC_NUM_SERVER", "1"))
CENTRES, MOMENTUM, LAST = (number * 2**16 * _SERVERS for number in range(3))
TABLES = CENTRES, MOMENTUM, LAST


def last_width(shape: tuple[int, int]) -> int:
    """Return how many columns LAST has, of which the first is used, for CENTRES of `shape` (C, D).

    MXNet splits arrays of this many numbers among the servers: the tables must be split alike.
    """
    bound = int(os.environ.get("MXNET_KVSTORE_BIGARRAY_BOUND", 1_000_000))
    return -(-bound // shape[0]) if _SERVERS > 1 and shape[0] * shape[1] >= bound > 0 else 1


class RowUpdate(mx.optimizer.Optimizer):
    """SGD with momentum on the rows of CENTRES that a step has worked on; the sum of what was pushed of any other key.

    The momentum of a row is a row of the table MOMENTUM: so it can be read, and saved, from where it lies. LAST has the
    number of updates that a row is up to. A push there, of the updates gone, has its rows catch up with those that did
    not take them: with momentum m and velocity v, k updates without a gradient add v (m + m^2 + ... + m^k) to a centre
    and leave v m^k. That is what SGD on all rows does, also where the rate has changed meanwhile, for v has the rates of
    its gradients' own steps in it; but weight decay of these k is left out.
    tables: those that something has been pushed to; of one that learns the first push makes a table known, no more.
    """

    def __init__(self, momentum: float = 0.0, loads: bool = False, **options: Any) -> None:
        """Take SGD's options; with `loads`, rows of all tables become what is pushed."""
        super().__init__(**options)
        self._momentum, self._loads = momentum, loads
        self.tables: dict[int, mx.nd.NDArray] = {}

    def create_state_multi_precision(self, index: int, weight: mx.nd.NDArray) -> None:
        """Return None: what an optimiser keeps of a weight cannot be read on a server."""

    def update_multi_precision(self, index: int, weight: mx.nd.NDArray, grad: mx.nd.NDArray, state: None) -> None:
        """Update `weight`, what the store holds under key `index`, by `grad`, what was pushed in all."""
        if index not in TABLES:
            grad.copyto(weight)
            return
        known = index in self.tables
        self.tables[index] = weight
        if self._loads:
            _change_rows(weight, grad)
        elif known and index == LAST:
            self._catch_up(grad)
        elif known and index == CENTRES:
            self._learn(weight, grad)

    def _learn(self, weight: mx.nd.NDArray, grad: mx.nd.NDArray) -> None:
        self._update_count(CENTRES)
        options = {"lr": self._get_lr(CENTRES), "wd": self._get_wd(CENTRES), "rescale_grad": self.rescale_grad}
        momentum, last = self.tables[MOMENTUM], self.tables.get(LAST)
        mx.nd.sparse.sgd_mom_update(
            weight, grad, momentum, out=weight, momentum=self._momentum, lazy_update=True, **options
        )
        if last is not None and grad.indices.size:
            _change(last, grad.indices, mx.nd.ones((1, 1)), add=True)
        momentum.wait_to_read()  # MXNet's server waits for the weight alone before it sends rows of either

    def _catch_up(self, pushed: mx.nd.NDArray) -> None:
        """Have the rows of `pushed` be where they are after as many updates as it says."""
        if not pushed.indices.size:
            return
        centres, momentum, last = (self.tables[key] for key in TABLES)
        # `retain`, for `data` of a table is a copy of all of it
        found = mx.nd.sparse.retain(last, pushed.indices)
        now, before = (array.data.asnumpy()[:, :1].astype(np.float64) for array in (pushed, found))
        behind = (now > before)[:, 0]
        if not behind.any():
            return
        rows, missed = mx.nd.array(pushed.indices.asnumpy()[behind], dtype=np.int64), (now - before)[behind]
        left = self._momentum**missed
        gone = self._momentum * (1 - left) / (1 - self._momentum) if self._momentum < 1 else missed
        velocity = mx.nd.sparse.retain(momentum, rows).data
        _change(centres, rows, velocity * mx.nd.array(gone), add=True)
        _change(momentum, rows, velocity * mx.nd.array(left))
        _change(last, rows, mx.nd.array(now[behind]))


def _change(table: mx.nd.NDArray, rows: mx.nd.NDArray, values: mx.nd.NDArray, add: bool = False) -> None:
    """Have these rows of a table be `values`, broadcast to its width, or add them; waits for it."""
    values = values.broadcast_to((rows.size, table.shape[1]))
    _change_rows(table, mx.nd.sparse.row_sparse_array((values, rows), shape=table.shape), add)


def _change_rows(table: mx.nd.NDArray, rows: mx.nd.NDArray, add: bool = False) -> None:
    """Have rows of a table be what the row-sparse `rows` has there, or add that; the others stay. Waits for it."""
    # (1 - lr wd) w - lr rescale g
    options = {"lr": 1.0, "wd": 0.0 if add else 1.0, "rescale_grad": -1.0}
    mx.nd.sparse.sgd_update(table, rows, out=table, lazy_update=True, **options)
    table.wait_to_read()
