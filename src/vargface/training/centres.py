"""Class centres as rows of a table: a step takes those of its batch and a random share of the others, and no more.

The softmax is over the classes taken, as in "Partial FC" (https://arxiv.org/abs/2010.05222; the table lies on MXNet's
parameter servers here, or in this process, where that one splits it over GPUs). The head is symbols/margin_softmax.py
for so many classes, whose `fc7_weight` is fed, and the labels are numbers of rows taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from easydict import EasyDict

from vargface.runtime import mx
from vargface.training.optimiser import options
from vargface.training.row_update import CENTRES, LAST, MOMENTUM, RowUpdate, last_width
from vargface.training.team import Team

__all__ = ["WEIGHT", "Centres", "classes_taken", "draw_classes"]

WEIGHT = "fc7_weight"
# of a centre that has not learnt, as InsightFace's
SPREAD = 0.01
# rows that are moved at a time between the table and a file
BLOCK = 1 << 15


def classes_taken(recipe: EasyDict, num_classes: int) -> int:
    """Return how many classes a step of `recipe` works on: `num_classes`, or fewer where it samples them."""
    if not recipe.class_share:
        return num_classes
    share = math.ceil(recipe.class_share * num_classes)
    most = recipe.class_limit or num_classes
    # a batch of as many classes as images must find its place
    return min(max(min(share, most), recipe.batch_size), num_classes)


def draw_classes(labels: np.ndarray, taken: int, num_classes: int, seed: tuple[int, ...]) -> np.ndarray:
    """Return (taken,) int64, rising: the classes of `labels` (negative ones are of none), and others at random.

    Each set of others is as likely as any; they follow from `seed`.
    """
    own = np.unique(labels[labels >= 0]).astype(np.int64)
    count = taken - len(own)
    drawn = np.random.default_rng(seed).choice(num_classes - len(own), count, replace=False, shuffle=False)
    # the k-th class that is none of `own`: k, and one more for each of those before it
    drawn += np.searchsorted(own - np.arange(len(own)), drawn, side="right")
    return np.sort(np.concatenate([own, drawn]))


class Centres:
    """The table of class centres (C, D) float32 and their momenta, and the rows that a module works on.

    With `idle_momentum` a third says how many updates a row has gone along with (row_update.py): it catches up with the
    others when it is taken.

    Every worker of a team calls the same of these methods in the same order.
    """

    def __init__(self, recipe: EasyDict, num_classes: int, team: Team, module: mx.mod.Module) -> None:
        """Take a bound `module` with a state `fc7_weight` (classes taken, D), and memory for two tables (C, D)."""
        self._recipe, self._team, self._module = recipe, team, module
        self._shape = num_classes, recipe.embedding_size
        self._taken = classes_taken(recipe, num_classes)
        self._store = team.store
        self._rows = np.arange(0)
        self._shapes = {CENTRES: self._shape, MOMENTUM: self._shape}
        if recipe.idle_momentum and self._taken < num_classes:  # else none is ever behind
            self._shapes[LAST] = num_classes, last_width(self._shape)
        self._pulled = {shape: mx.nd.sparse.zeros("row_sparse", shape) for shape in self._shapes.values()}

    def start(self, source: Path | None, updates: int, with_momentum: bool) -> None:
        """Load the tables from `source`, which `save` wrote, at rank 0; None: draw them. The rate is that of `updates`.

        Without `with_momentum` that starts anew.
        """
        loading = RowUpdate(loads=True)
        self._use(loading)
        if not self._team.has_tables:
            self._make_tables(loading)
        saved = _read_tables(source) if source is not None else {}
        drawn = np.random.default_rng([self._recipe.seed, 7])
        for rows in self._blocks():
            for key, (_, width) in self._shapes.items():
                if not self._team.leads:
                    values = None
                elif key in saved and (key == CENTRES or with_momentum):
                    values = saved[key][rows[0] : rows[-1] + 1]
                elif key == CENTRES:
                    values = drawn.standard_normal((len(rows), width), np.float32) * np.float32(SPREAD)
                else:
                    values = np.full((len(rows), 1), updates if key == LAST else 0, np.float32)
                self._push(key, rows, values)
                mx.nd.waitall()  # MXNet orders what is done with an array, not what with a key
        learning = options(self._recipe)
        self._use(RowUpdate(begin_num_update=updates, **learning))
        # the one that learns is to know all tables before it needs them
        for key in self._shapes:
            self._push(key, np.arange(0), None)
        self._team.meet()

    def take(self, labels: np.ndarray, seed: tuple[int, ...], updates: int) -> np.ndarray:
        """Feed the module with the rows of a step and return `labels` (N,) of this worker as numbers of these rows.

        updates: how many there were before. Negative labels stay. The classes are those of all workers' labels, and the
        same for all.
        """
        every = np.zeros(len(labels) * self._team.size, np.float32)
        every[self._team.rank * len(labels) :][: len(labels)] = labels
        array = mx.nd.array(every)
        self._team.sum("labels", [array])
        self._rows = draw_classes(array.asnumpy(), self._taken, self._shape[0], seed)
        if LAST in self._shapes:
            # the last update is to be done before this, and this before the rows are read
            mx.nd.waitall()
            self._push(LAST, self._rows, np.full((self._taken, 1), updates) if self._team.leads else None)
            mx.nd.waitall()
        rows = self._pull(CENTRES, self._rows)
        for executor in self._module._exec_group.execs:
            rows.copyto(executor.arg_dict[WEIGHT])
        return np.where(labels >= 0, np.searchsorted(self._rows, labels), labels).astype(np.float32)

    @property
    def gradients(self) -> list[mx.nd.NDArray]:
        """Return the gradients of the rows, (classes taken, D) a context."""
        return [executor.grad_dict[WEIGHT] for executor in self._module._exec_group.execs]

    def update(self) -> None:
        """Update the rows of this step by their gradients, where the table is."""
        first, *others = self.gradients
        total = first.as_in_context(mx.cpu())
        for other in others:
            total = total + other.as_in_context(mx.cpu())
        self._push(CENTRES, self._rows, total)

    def save(self, file: IO[bytes]) -> None:
        """Write the tables as two .npy files, one behind the other: (2, C, D) float32 and, of LAST, (C,) float32."""
        mx.nd.waitall()
        for key, (_, width) in self._shapes.items():
            shape = {CENTRES: (2, *self._shape), LAST: self._shape[:1]}.get(key)
            if shape is not None:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            for rows in self._blocks():
                file.write(self._pull(key, rows).asnumpy()[:, : 1 if key == LAST else width].tobytes())

    def _make_tables(self, loading: RowUpdate) -> None:
        """Have the store hold tables of zeros."""
        if self._team.kvstore is None:
            self._store.init(CENTRES, _zeros(self._shape))
            # the first table, which the first push meets, is what the second is made of: memory for two, not for three
            self._push(CENTRES, np.arange(0), None)
            self._store.init(MOMENTUM, loading.tables[CENTRES])
        for key, shape in self._shapes.items():
            if self._team.kvstore is not None:
                self._store.init(key, _zeros(shape) if self._store.rank == 0 else self._pulled[shape])
            elif key == LAST:
                self._store.init(key, _zeros(shape))
        self._team.has_tables = True

    def _use(self, optimizer: RowUpdate) -> None:
        """Have the store, or all servers, use `optimizer` from here on, once all that was pushed is done."""
        self._team.meet()
        if self._team.leads:
            self._store.set_optimizer(optimizer)
        self._team.meet()

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, self._shape[0], BLOCK):
            yield np.arange(start, min(start + BLOCK, self._shape[0]))

    def _push(self, key: int, rows: np.ndarray, values: np.ndarray | mx.nd.NDArray | None) -> None:
        """Push `values` (n, D), or broadcast to that, of `rows`; None: nothing of ours."""
        shape = self._shapes[key]
        if values is None:
            pushed = mx.nd.sparse.zeros("row_sparse", shape)
        else:
            values = values if isinstance(values, mx.nd.NDArray) else mx.nd.array(values)
            values = values.broadcast_to((len(rows), shape[1]))
            pushed = mx.nd.sparse.row_sparse_array((values, mx.nd.array(rows, dtype=np.int64)), shape=shape)
        self._store.push(key, pushed)

    def _pull(self, key: int, rows: np.ndarray) -> mx.nd.NDArray:
        """Return (n, D) of the table `key`, good until the next call."""
        pulled = self._pulled[self._shapes[key]]
        self._store.row_sparse_pull(key, out=pulled, row_ids=mx.nd.array(rows, dtype=np.int64))
        return pulled.data


def _read_tables(path: Path) -> dict[int, np.ndarray]:
    """Return what `Centres.save` wrote by key, centres and momenta left on the disk; a state may have no LAST."""
    tables = np.load(path, mmap_mode="r")
    found = {CENTRES: tables[0], MOMENTUM: tables[1]}
    with open(path, "rb") as file:
        file.seek(tables.offset + tables.nbytes)
        if file.peek(1):
            found[LAST] = np.load(file)[:, None]
    return found


def _zeros(shape: tuple[int, int]) -> mx.nd.sparse.RowSparseNDArray:
    """Return zeros all of whose rows are there: MXNet's row-wise update wants them so."""
    rows = mx.nd.arange(shape[0], dtype=np.int64)
    return mx.nd.sparse.row_sparse_array((mx.nd.zeros(shape), rows), shape=shape)
