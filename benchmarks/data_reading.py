"""Images a second, from train.rec to batches in the training process: ours against the limit and the usual ways.

    python benchmarks/data_reading.py [DATA] [--batch 256] [--workers 2] [--rounds 7]
    python benchmarks/data_reading.py --start 5000000

Whatever the environment says, OpenMP has `--workers` threads here and OpenCV one.

--clock work counts seconds of work instead of the clock's, as if the cores had nothing else to do: for a machine that
others use. ImageRecordIter, whose threads decode more than a round ahead, is left out then.

DATA is an InsightFace folder; without it 2,000 synthetic faces are drawn. The ways take turns, one round of `--images`
images each, so that a noisy machine is noisy for all; what was decoded ahead is used up before a round. A figure is the
median over rounds, `ratio` is to the plain loop:

    decode          cv2.imdecode alone, of JPEGs that lie in memory: no reading, no batch; on one core, and on all of
                    `--workers` at once, a process each: the limit
    plain loop      MXIndexedRecordIO + mx.image.imdecode, shuffled, mirrored, into a batch: what InsightFace does
    ImageRecordIter MXNet's C++ pipeline, `--workers` threads, on the same images shuffled ('vargface rec shuffle')
    ours            FaceIterator with `--workers` processes, and with none (the training process decodes)

--start: seconds from nothing to the first batch of a folder of so many (tiny) records, as training opens it, beside
those of a reader that goes through the index line by line and reads every identity record, as InsightFace's does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from vargface.data.iterator import FaceIterator
from vargface.data.records import FaceRecords
from vargface.data.shuffle import shuffle
from vargface.data.synthetic import make_dataset
from vargface.data.writer import RecordWriter
from vargface.runtime import mx

# images that the bare decode goes round
_IN_MEMORY = 1000
# batches before a round, which use up what was decoded ahead
_WARM = 8


def decode_rate(folder: str, images: int) -> None:
    """Decode JPEGs on one core, for every line on standard input, and say when it is done."""
    records = FaceRecords(folder)
    encoded = [np.frombuffer(records.read(position)[1], np.uint8) for position in range(min(_IN_MEMORY, len(records)))]
    cv2.setNumThreads(1)
    print("ready", flush=True)
    for _ in sys.stdin:
        for image in itertools.islice(itertools.cycle(encoded), images):
            cv2.imdecode(image, cv2.IMREAD_COLOR)
        print("done", flush=True)


class Clock:
    """Seconds: of the wall or, for a machine that others use, of work, all threads and `pids`, as if on `cores`."""

    def __init__(self, kind: str, cores: int, pids: Callable[[], list[int]] = list) -> None:
        self._kind, self._cores, self._pids = kind, cores, pids

    def __call__(self) -> float:
        """Return the time."""
        if self._kind == "wall":
            return time.perf_counter()
        # these processes have one thread each
        others = sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in self._pids())
        return (time.process_time() + others / 1e9) / self._cores


class Decoders:
    """Processes that decode and do nothing else."""

    def __init__(self, folder: Path, images: int, count: int, clock: str) -> None:
        self._images = images // count * count
        self._clock = Clock(clock, count, lambda: [process.pid for process in self._processes])
        command = [sys.executable, __file__, str(folder), "--images", str(images // count), "--decoder"]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        for process in self._processes:
            process.stdout.readline()

    def __call__(self) -> float:
        """Return the images a second of all together."""
        started = self._clock()
        for process in self._processes:
            process.stdin.write("\n")
            process.stdin.flush()
        for process in self._processes:
            process.stdout.readline()
        return self._images / (self._clock() - started)

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.stdin.close()
            process.wait()


class Batches:
    """Any endless stream of batches."""

    def __init__(self, batches: Iterator[mx.io.DataBatch], images: int, batch: int, clock: Clock) -> None:
        self._batches, self._batch, self._count, self._clock = batches, batch, -(-images // batch), clock

    def __call__(self) -> float:
        """Return the images a second of a round."""
        for _ in range(_WARM):
            next(self._batches).data[0].wait_to_read()
        started = self._clock()
        for _ in range(self._count):
            next(self._batches).data[0].wait_to_read()
        return self._count * self._batch / (self._clock() - started)


def endless(iterator: mx.io.DataIter) -> Iterator[mx.io.DataBatch]:
    """Yield the batches of epoch after epoch."""
    while True:
        yield from iterator
        iterator.reset()


def plain_loop(folder: Path, batch: int) -> Iterator[mx.io.DataBatch]:
    """Yield batches as a plain loop makes them: one thread, a record at a time."""
    reader = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    header, _ = mx.recordio.unpack(reader.read_idx(0))
    keys = list(range(1, int(header.label[0])))
    data, labels = mx.nd.empty((batch, 3, 112, 112)), mx.nd.empty((batch,))
    while True:
        random.shuffle(keys)
        for start in range(0, len(keys) - batch + 1, batch):
            for row, key in enumerate(keys[start : start + batch]):
                header, encoded = mx.recordio.unpack(reader.read_idx(key))
                image = mx.image.imdecode(encoded)
                if random.random() < 0.5:
                    image = mx.nd.flip(image, axis=1)
                data[row][:] = mx.nd.transpose(image, axes=(2, 0, 1))
                labels[row][:] = header.label
            yield mx.io.DataBatch([data], [labels])


def cpp_pipeline(folder: Path, scratch: Path, batch: int, threads: int) -> Iterator[mx.io.DataBatch]:
    """Yield the batches of MXNet's C++ pipeline, of the same images in a file that it can read."""
    shuffle(folder, scratch / "shuffled")
    iterator = mx.io.ImageRecordIter(
        path_imgrec=str(scratch / "shuffled" / "train.rec"),
        data_shape=(3, 112, 112),
        batch_size=batch,
        rand_mirror=True,
        preprocess_threads=threads,
        verbose=False,
    )
    yield from endless(iterator)


def memory_of(pids: list[int]) -> str:
    """Return the memory of a process as the system counts it."""
    kinds = {"Rss": [], "Pss": [], "Private_Dirty": []}
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
        for kind, values in kinds.items():
            values.append(found[kind] / 1024)
    return ", ".join(f"{kind} {statistics.mean(values):.0f} MiB" for kind, values in kinds.items())


def compare(folder: Path, batch: int, workers: int, rounds: int, images: int, clock: str) -> None:
    """Print the table."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        records = FaceRecords(folder)
        ours = stack.enter_context(contextlib.closing(FaceIterator(records, batch, workers=workers)))
        here = FaceIterator(records, batch)
        one = stack.enter_context(contextlib.closing(Decoders(folder, images, 1, clock)))
        limit = stack.enter_context(contextlib.closing(Decoders(folder, images, workers, clock)))
        ways: dict[str, Callable[[], float]] = {
            "plain loop": Batches(plain_loop(folder, batch), images // 4, batch, Clock(clock, 1)),
            "decode, one core": one,
            f"decode, {workers} cores: the limit": limit,
            f"ours, {workers} processes": Batches(
                endless(ours), images, batch, Clock(clock, workers, lambda: ours.pids)
            ),
            "ours, no process": Batches(endless(here), images, batch, Clock(clock, 1)),
        }
        if clock == "wall":  # its threads run ahead, and would work in the others' rounds
            ways[f"ImageRecordIter, {workers} threads"] = Batches(
                cpp_pipeline(folder, scratch, batch, workers), images, batch, Clock(clock, workers)
            )
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                rates[way].append(run())
        first, limit_rate = (
            statistics.median(rates[way]) for way in ("plain loop", f"decode, {workers} cores: the limit")
        )
        size = records.file.size / len(records)
        print(f"{len(records):,} images of {size:,.0f} bytes, batches of {batch}, median of {rounds} rounds")
        print(f"{'way':<28}  {'img/s':>7}  ratio  of the limit")
        for way, found in rates.items():
            median = statistics.median(found)
            print(f"{way:<28}  {median:>7,.0f}  {median / first:>5.2f}  {median / limit_rate:>12.2f}", flush=True)
        print(f"memory of one of our processes: {memory_of(ours.pids)}")


def write_tiny(folder: Path, count: int) -> None:
    """Write a folder of `count` records of 93,431 identities, each an image of 8x8."""
    dot = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    identities = min(93_431, count)
    with RecordWriter(folder, identities, (8, 8)) as writer:
        for number in range(count):
            writer.add(number * identities // count, dot)


def start(folder: Path) -> None:
    """Print how long it takes from nothing to the first batch of `folder`: seconds, and seconds of one core's work."""
    mx.nd.zeros(1).wait_to_read()
    for workers in (0, 2):
        before, work = time.perf_counter(), time.process_time()
        records = FaceRecords(folder)
        opened = time.perf_counter() - before
        iterator = FaceIterator(records, 512, workers=workers)
        next(iterator)
        whole, work = time.perf_counter() - before, time.process_time() - work
        iterator.close()
        first = f"first batch after {whole:.2f} s ({work:.2f} s of work)"
        print(f"ours, {workers} processes: opened in {opened:.2f} s, {first}")
    before, work = time.perf_counter(), time.process_time()
    reader = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    header, _ = mx.recordio.unpack(reader.read_idx(0))
    for key in range(int(header.label[0]), int(header.label[1])):
        mx.recordio.unpack(reader.read_idx(key))
    whole, work = time.perf_counter() - before, time.process_time() - work
    print(f"every line, every identity record: opened in {whole:.2f} s ({work:.2f} s of work)")


def pin_threads(count: int) -> None:
    """Have OpenMP use `count` threads: MXNet has read their number already, so the program is started anew for it."""
    cv2.setNumThreads(1)
    if os.environ.get("OMP_NUM_THREADS") != str(count):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_NUM_THREADS": str(count)})


def main() -> None:
    """Print the table, or work as one of its decoders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=8000, help="of a round")
    parser.add_argument("--clock", choices=("wall", "work"), default="wall")
    parser.add_argument("--start", type=int, metavar="RECORDS", help="without DATA, of so many records")
    parser.add_argument("--decoder", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    if options.decoder:
        decode_rate(options.data, options.images)
        return
    pin_threads(options.workers)
    if options.start and options.data:
        start(Path(options.data))
    elif options.start:
        with tempfile.TemporaryDirectory() as scratch:
            write_tiny(Path(scratch), options.start)
            start(Path(scratch))
    elif options.data:
        compare(Path(options.data), options.batch, options.workers, options.rounds, options.images, options.clock)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            make_dataset(Path(scratch) / "data", identities=40, images_per_identity=50, pairs=20)
            compare(
                Path(scratch) / "data", options.batch, options.workers, options.rounds, options.images, options.clock
            )


if __name__ == "__main__":
    main()
