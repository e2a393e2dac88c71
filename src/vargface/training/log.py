"""What a run leaves to read: running means of its outputs, as CSV that a kill leaves whole to the line, TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from vargface.errors import InputError
from vargface.files import whole_file
from vargface.runtime import mx

__all__ = ["Board", "CsvLog", "Means"]


logger = logging.getLogger(__name__)


class CsvLog:
    """A CSV file of rows that begin with `step`, appended to; the header is written once, also by a resumed run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, row: Mapping[str, object]) -> None:
        """Append `row`, whose keys are the columns. Raises InputError where there is no space or no permission."""
        try:
            columns = self._columns(row)
            with open(self._path, "a", newline="") as file:
                writer = csv.DictWriter(file, columns)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(
                    {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
                )
        except OSError as error:
            raise InputError(
                f"{self._path}: cannot write ({error.strerror}) - free space or choose another out"
            ) from error

    def _columns(self, row: Mapping[str, object]) -> list[str]:
        """Return the file's columns, those of `row` among them: new ones are added, empty in the rows before."""
        known, rows = [], []
        with contextlib.suppress(FileNotFoundError), open(self._path, newline="") as file:
            reader = csv.DictReader(file)
            known = list(reader.fieldnames or [])
            rows = list(reader) if set(row) - set(known) else []
        columns = known + [name for name in row if name not in known]
        if known and columns != known:
            with whole_file(self._path, "w") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)
        return columns

    def rows(self) -> list[dict[str, str]]:
        """Return the rows, as text; none where there is no file."""
        with contextlib.suppress(FileNotFoundError), open(self._path, newline="") as file:
            return list(csv.DictReader(file))
        return []

    def drop_after(self, step: int) -> None:
        """Take out the rows of steps after `step`, and those that were cut short. Raises InputError as `write` does."""
        try:
            lines = self._path.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"{self._path}: cannot read ({error.strerror}) - choose another out") from error
        whole = [line for line in lines if line.endswith(b"\n")]
        kept = whole[:1] + [line for line in whole[1:] if _step(line) <= step]
        if kept != lines:
            with whole_file(self._path) as file:
                file.writelines(kept)


def _step(line: bytes) -> float:
    """Return the number that a line of a log begins with, infinity where it begins with none."""
    number = line.partition(b",")[0]
    return int(number) if number.isdigit() else math.inf


class Board:
    """Scalars for TensorBoard in `folder`: `tensorboard --logdir` on it, or on a folder above for several runs."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._after = folder, -1
        # not SummaryWriter, whose thread and end of process meet a full disk where nobody can say so
        self._writer: EventsWriter | None = None

    def drop_after(self, step: int) -> None:
        """Have TensorBoard forget what was written of steps after `step`; before the first `write`."""
        self._after = step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write name -> value at `step`. Raises InputError where there is no space or no permission."""
        # TensorBoard has no other numbers than finite ones
        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items() if math.isfinite(value)]
        try:
            if self._writer is None:
                self._writer = self._begin()
            self._writer.write_event(Event(step=step, wall_time=time.time(), summary=Summary(value=found)))
            self._writer.flush()
        except OSError as error:
            raise InputError(
                f"{self._folder}: cannot write ({error.strerror}) - free space or choose another out"
            ) from error

    def _begin(self) -> EventsWriter:
        """Return the writer of a new file, at the head of which stands from which step on older ones are void."""
        first = self._after + 1
        self._folder.mkdir(exist_ok=True)
        # named by the second, in which a run may have been stopped and gone on with
        writer = EventsWriter(str(self._folder / "events"), filename_suffix=f".{first:08d}")
        start = SessionLog(status=SessionLog.START)
        writer.write_event(Event(step=first, wall_time=time.time(), session_log=start))
        return writer

    def close(self) -> None:
        """Write out what is still held back; where that fails, say so: the CSV files have it all."""
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                logger.warning("%s: not whole (%s)", self._folder, error.strerror)


class Means:
    """Means of the outputs of steps since the last look."""

    def __init__(self, names: Sequence[str], batch_size: int, spread: Sequence[str] = ()) -> None:
        """Take the names of the outputs; those in `spread` get their 5th and 95th percentile over samples, too."""
        self._names, self._batch_size, self._spread = list(names), batch_size, set(spread)
        self._kept: list[list[mx.nd.NDArray]] = []
        self._since = time.perf_counter()

    def add(self, outputs: Sequence[mx.nd.NDArray]) -> None:
        """Take the outputs (N,) of one step or part of it, in the order of the names; they must stay as they are."""
        self._kept.append(list(outputs))

    def take(self) -> dict[str, float]:
        """Return name -> mean over samples and steps (nan of none), with `images_per_second`, and start anew."""
        columns = zip(*self._kept) if self._kept else [()] * len(self._names)
        means = {}
        for name, arrays in zip(self._names, columns):
            values = np.stack([array.asnumpy() for array in arrays]) if arrays else np.full((1, 1), math.nan)
            means[name] = float(np.mean(values.mean(axis=1)))
            if name in self._spread:
                means[f"{name}_p5"], means[f"{name}_p95"] = map(float, np.percentile(values, (5, 95)))
        now = time.perf_counter()
        means["images_per_second"] = len(self._kept) * self._batch_size / max(now - self._since, 1e-9)
        self._kept, self._since = [], now
        return means

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Leave the time that the block takes (a verification) out of the rate."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start
