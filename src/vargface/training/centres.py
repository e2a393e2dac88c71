"""Class centres as rows of a table: a step takes those of its batch and a random share of the others, and no more.

The softmax is over the classes taken, as in "Partial FC" (https://arxiv.org/abs/2010.05222; the table lies on MXNet's
parameter servers here, or in this process, where that one splits it over GPUs). Unlike there, a class at random counts
for as many as it stands for (https://arxiv.org/abs/1712.00527), so that the softmax's denominator is in
the mean that of all classes. The head is symbols/margin_softmax.py for so many classes, whose `fc7_weight` is fed, and
the labels are numbers of rows taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from easydict import EasyDict

from vargface.errors import InputError
from vargface.runtime import mx
from vargface.training.optimiser import options
from vargface.training.row_update import CENTRES, LAST, MOMENTUM, TABLES, Missed, RowUpdate, key_of, last_width
from vargface.training.schedule import learning_rate_schedule
from vargface.training.team import Team

__all__ = ["OFFSET", "WEIGHT", "Centres", "classes_taken", "draw_classes", "stands_for"]

WEIGHT, OFFSET = "fc7_weight", "fc7_offset"
# of a centre that has not learnt, as InsightFace's
SPREAD = 0.01
# rows that are moved at a time between the table and a file; the store keeps the last of each part
BLOCK = 1 << 13
# of a part of a table, at most: servers take none of more than MOST_BYTES (team.py), and one is made anew as it starts
PART_BYTES = 1 << 29


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


def stands_for(classes: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return (n,) float32: for how many of `num_classes` each of `classes` (n,), drawn for `labels`, stands.

    One of `labels` is there for certain, for itself, each other one for its share of all that might have been drawn: so
    a sum over classes, times this, is that over all of them in the mean over draws.
    """
    own = np.isin(classes, labels)
    others = num_classes - own.sum()
    drawn = max(len(own) - own.sum(), 1)
    return np.where(own, 1, others / drawn).astype(np.float32)


class Centres:
    """The table of class centres (C, D) float32 and their momenta, and the rows that a module works on.

    With `idle_updates` a third says how many updates a row has gone along with (row_update.py): it catches up with the
    others when it is taken. The store has the tables in parts of at most PART_BYTES.

    Every worker of a team calls the same of these methods in the same order.
    """

    def __init__(self, recipe: EasyDict, num_classes: int, team: Team, module: mx.mod.Module) -> None:
        """Take a bound `module` with a state `fc7_weight` (classes taken, D), and memory for two tables (C, D)."""
        self._recipe, self._team, self._module = recipe, team, module
        self._shape = num_classes, recipe.embedding_size
        self._taken = classes_taken(recipe, num_classes)
        # without the third none is ever behind
        self._tables = TABLES if recipe.idle_updates and self._taken < num_classes else (CENTRES, MOMENTUM)
        count = math.ceil(num_classes / max(PART_BYTES // (4 * recipe.embedding_size), 1))
        # of one length, or nearly: MXNet must share out all of them among its servers, or none
        starts = [num_classes * number // count for number in range(count + 1)]
        self._parts = [
            _Part(team.store, number, start, (stop - start, recipe.embedding_size))
            for number, (start, stop) in enumerate(zip(starts, starts[1:]))
        ]
        self._starts = np.array(starts)
        self._rows = np.arange(0)
        self._schedule = learning_rate_schedule(recipe)
        self._updates: list[tuple[float, float]] = []  # rate x weight decay, and momentum, of each

    def start(self, source: Path | None, updates: int, with_momentum: bool) -> None:
        """Load the tables from `source`, which `save` wrote, at rank 0; None: draw them. The rate is that of `updates`.

        Without `with_momentum` that starts anew.
        """
        self._use(RowUpdate(loads=True))
        saved = _Saved(source) if source is not None else None
        drawn = np.random.default_rng([self._recipe.seed, 7])
        for part, rows in self._blocks():
            place = slice(part.start + rows[0], part.start + rows[-1] + 1)
            values = self._begin(saved, drawn, place, updates, with_momentum) if self._team.leads else {}
            for table in self._tables:
                if not self._team.has_tables and rows[0] == 0:
                    part.make(table)  # not before: what is pushed next takes the zeros' place here
                part.push(table, rows, values.get(table))
                mx.nd.waitall()  # MXNet orders what is done with an array, not what with a key
        self._team.has_tables = True
        goes_on = saved is not None and with_momentum  # where rank 0 does, the others need no more than the number
        self._updates = saved.updates if goes_on else [(0.0, 0.0)] * updates
        behind = self._updates[int(saved.last.min()) :] if goes_on else []
        self._use(RowUpdate(begin_num_update=updates, missed=behind, **options(self._recipe)))
        # the one that learns is to know all tables before it needs them
        for part in self._parts:
            for table in self._tables:
                part.push(table, np.arange(0), None)
        self._team.meet()

    def _begin(
        self, saved: _Saved | None, drawn: np.random.Generator, place: slice, updates: int, with_momentum: bool
    ) -> dict[int, np.ndarray]:
        """Return what the rows `place` of each table begin with."""
        number = place.stop - place.start
        velocity, last = np.zeros((number, 1), np.float32), np.full((number, 1), updates, np.float32)
        if saved is None:
            centres = drawn.standard_normal((number, self._shape[1]), np.float32) * np.float32(SPREAD)
        elif with_momentum and LAST in self._tables:
            (centres, velocity), last = saved.tables[:, place], saved.last[place, None]
        else:
            centres, momenta = saved.up_to_date(place)
            velocity = momenta if with_momentum else velocity
        return {CENTRES: centres, MOMENTUM: velocity, LAST: last}

    def take(self, labels: np.ndarray, seed: tuple[int, ...], updates: int) -> np.ndarray:
        """Feed the module with the rows of a step and what they stand for; return this worker's `labels` (N,) as
        numbers of these rows.

        updates: how many there were before. Negative labels stay. The classes are those of all workers' labels, and the
        same for all.
        """
        every = np.zeros(len(labels) * self._team.size, np.float32)
        every[self._team.rank * len(labels) :][: len(labels)] = labels
        array = mx.nd.array(every)
        self._team.sum("labels", [array])
        every = array.asnumpy()
        self._rows = draw_classes(every, self._taken, self._shape[0], seed)
        if LAST in self._tables:
            # the last update is to be done before this, and this before the rows are read
            mx.nd.waitall()
            for part, _, rows in self._taken_of_parts():
                part.push(LAST, rows, np.full((len(rows), 1), updates) if self._team.leads else None)
            mx.nd.waitall()
        # of each part a row at least: a push to it waits for what was pulled, and that for the push before
        pulled = [
            (place, part.pull(CENTRES, rows if len(rows) else np.arange(1)))
            for part, place, rows in self._taken_of_parts()
        ]
        for place, rows in pulled:
            values = rows.data
            if place.stop > place.start:
                for executor in self._module._exec_group.execs:
                    values.copyto(executor.arg_dict[WEIGHT][place])
        if self._recipe.class_correction:
            offsets = mx.nd.array(np.log(stands_for(self._rows, every, self._shape[0])))
            for executor in self._module._exec_group.execs:
                offsets.copyto(executor.arg_dict[OFFSET])
        return np.where(labels >= 0, np.searchsorted(self._rows, labels), labels).astype(np.float32)

    @property
    def gradients(self) -> list[mx.nd.NDArray]:
        """Return the gradients of the rows, (classes taken, D) a context."""
        return [executor.grad_dict[WEIGHT] for executor in self._module._exec_group.execs]

    def update(self) -> None:
        """Update the rows of this step by their gradients, where the table is."""
        self._updates.append((self._schedule(len(self._updates) + 1) * self._recipe.wd, self._recipe.momentum))
        first, *others = self.gradients
        total = first.copyto(mx.cpu()) if others else first.as_in_context(mx.cpu())
        for other in others:
            total += other.as_in_context(mx.cpu())
        for part, place, rows in self._taken_of_parts():
            part.push(CENTRES, rows, total[place] if len(rows) else None)

    def save(self, file: IO[bytes]) -> None:
        """Write three .npy files, one behind the other: tables (2, C, D) and (C,) float32, updates (n, 2) float64."""
        mx.nd.waitall()
        for table in TABLES:
            shape = {CENTRES: (2, *self._shape), LAST: self._shape[:1]}.get(table)
            if shape is not None:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            width = 1 if table == LAST else self._shape[1]
            for part, rows in self._blocks():
                if table in self._tables:
                    values = part.pull(table, rows).data.asnumpy()[:, :width]
                else:
                    values = np.full(len(rows), len(self._updates), np.float32)
                file.write(values.tobytes())
        np.save(file, np.reshape(self._updates, (-1, 2)))

    def _use(self, optimizer: RowUpdate) -> None:
        """Have the store, or all servers, use `optimizer` from here on, once all that was pushed is done."""
        self._team.meet()
        if self._team.leads:
            self._team.store.set_optimizer(optimizer)
        self._team.meet()

    def _blocks(self) -> Iterator[tuple[_Part, np.ndarray]]:
        """Yield all rows in order, a block at a time: its part and its rows there."""
        for part in self._parts:
            for start in range(0, part.count, BLOCK):
                yield part, np.arange(start, min(start + BLOCK, part.count))

    def _taken_of_parts(self) -> Iterator[tuple[_Part, slice, np.ndarray]]:
        """Yield each part, where among the rows of this step its own are, and which of it they are."""
        ends = np.searchsorted(self._rows, self._starts)
        for part, start, stop in zip(self._parts, ends, ends[1:]):
            yield part, slice(start, stop), self._rows[start:stop] - part.start


class _Part:
    """Rows `start` to `start` + `count` of all tables, which the store has under keys of their own."""

    def __init__(self, store: mx.kv.KVStore, number: int, start: int, shape: tuple[int, int]) -> None:
        """Take the `shape` (count, D) of CENTRES here."""
        self.start, self.count = start, shape[0]
        self._store, self._number = store, number
        self._shapes = {CENTRES: shape, MOMENTUM: shape, LAST: (shape[0], last_width(shape))}

    def make(self, table: int) -> None:
        """Have the store hold zeros; its first worker sends them: a server learns from these how many rows it has."""
        shape = self._shapes[table]
        zeros = mx.nd.sparse.zeros("row_sparse", shape)
        if self._store.rank == 0:
            # all of its rows are there: MXNet's row-wise update wants them so
            rows = mx.nd.arange(self.count, dtype=np.int64)
            zeros = mx.nd.sparse.row_sparse_array((mx.nd.zeros(shape), rows), shape=shape)
        self._store.init(key_of(table, self._number), zeros)

    def push(self, table: int, rows: np.ndarray, values: np.ndarray | mx.nd.NDArray | None) -> None:
        """Push `values` (n, D), or broadcast to that, of `rows`; None: nothing of ours."""
        shape = self._shapes[table]
        if values is None or not len(rows):
            pushed = mx.nd.sparse.zeros("row_sparse", shape)
        else:
            values = values if isinstance(values, mx.nd.NDArray) else mx.nd.array(values)
            values = values.broadcast_to((len(rows), shape[1]))
            pushed = mx.nd.sparse.row_sparse_array((values, mx.nd.array(rows, dtype=np.int64)), shape=shape)
        self._store.push(key_of(table, self._number), pushed)

    def pull(self, table: int, rows: np.ndarray) -> mx.nd.sparse.RowSparseNDArray:
        """Return `rows` of the table, whose `data` (n, D) waits for them to come."""
        pulled = mx.nd.sparse.zeros("row_sparse", self._shapes[table])
        row_ids = mx.nd.array(rows, dtype=np.int64)
        self._store.row_sparse_pull(key_of(table, self._number), out=pulled, row_ids=row_ids)
        return pulled


class _Saved:
    """What `Centres.save` wrote: `tables` (2, C, D), left on the disk, `last` (C,), and the `updates`."""

    def __init__(self, path: Path) -> None:
        try:
            self.tables = np.load(path, mmap_mode="r")
            with open(path, "rb") as file:
                file.seek(self.tables.offset + self.tables.nbytes)
                self.last, self.updates = np.load(file), list(map(tuple, np.load(file).tolist()))
        except (ValueError, EOFError) as error:
            raise InputError(f"{path}: of another version's form ({error}) - begin the run anew") from None
        self._missed = Missed(self.updates)

    def up_to_date(self, place: slice) -> np.ndarray:
        """Return the rows `place` of both tables, (2, n, D), once all have gone along with all updates."""
        found, missed = np.array(self.tables[:, place]), len(self.updates) - self.last[place]
        self._missed.catch_up(*found, np.arange(len(missed)), missed)
        return found
