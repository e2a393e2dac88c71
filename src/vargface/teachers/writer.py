"""Making a teacher store: several processes embed, this one writes, shard after shard."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import multiprocessing
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vargface.data.decoding import planes
from vargface.data.records import FaceRecords
from vargface.data.samples import face_at
from vargface.errors import InputError
from vargface.files import locked_folder, whole_file
from vargface.inference import unit
from vargface.progress import LoggedProgress
from vargface.runtime import THREADS, contexts, cores
from vargface.teachers import store
from vargface.teachers.models import Network, TeacherModels, teacher_digest
from vargface.teachers.store import Contents
from vargface.workers import in_order

__all__ = ["make_store"]

logger = logging.getLogger(__name__)

# images that a worker is asked about at a time
TASK_IMAGES = 128
BATCH_SIZE = 32
# what the disk keeps beyond the embeddings: headers and checksums
SPARE_BYTES = 4 << 20


def make_store(
    teacher: str,
    data: str,
    out: str | Path,
    *,
    context: str = "auto",
    workers: int | None = None,
    max_bad: float = 0.001,
) -> Path:
    """Embed both views of every image of `data` by `teacher`, into the store `out`, and return that folder.

    teacher: a model, or several (`vargface.teachers.models`). data: an InsightFace folder. context: as a recipe's.
    workers: processes; None is one a GPU or, on the CPU, one a core. max_bad: the share of images that may be unusable,
    as in training; their embeddings are zeros, and unusable.json says what is wrong with them.

    Shards that are there and whole are not made again, whatever ended the command that made them. Raises InputError for
    what cannot be used or written, for `out` with a store of other contents, and where the disk has not the space.
    """
    records = FaceRecords(data)
    if records.image_size != (112, 112):
        found = "{}x{}".format(*records.image_size)
        raise InputError(f"{data}: images of {found}, teachers take 112x112 - write the data set anew")
    devices = contexts(context)
    if workers is None:
        workers = len(devices) if devices[0].device_type == "gpu" else cores()
    if workers < 1:
        raise InputError(f"workers = {workers}: must be at least 1")
    if not 0 <= max_bad <= 1:
        raise InputError(f"max_bad = {max_bad}: must be at least 0 and at most 1")
    contents = Contents(
        teacher=teacher_digest(teacher),
        index=records.index_digest(),
        images=len(records),
        embedding_size=TeacherModels(teacher).embedding_size,
    )
    with locked_folder(out) as folder:
        missing = _prepare(folder, contents)
        if missing:
            opened = functools.partial(_embedded, teacher, str(data), context)
            try:
                with _threads(workers):
                    _write(folder, contents, missing, opened, workers, max_bad)
            finally:
                _opened.cache_clear()  # one worker is this process
    logger.info("%s: finished, %s", folder, f"{contents.num_bytes:,} bytes")
    return folder


def _prepare(folder: Path, contents: Contents) -> list[int]:
    """Return the shards to make in `folder`, once it is known to be a place for them; says how much they take."""
    found = store.read_contents(folder)
    if found is None:
        foreign = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if foreign:
            raise InputError(f"{folder}: holds {foreign[0]} and no teacher store - choose another folder")
        missing = list(range(len(contents.shards)))
    else:
        misfit = found.misfit(contents)
        if misfit:
            raise InputError(f"{folder}: holds a store {misfit} - choose another folder")
        whole = store.whole_shards(folder, contents)
        missing = [shard for shard, is_whole in enumerate(whole) if not is_whole]
        logger.info("%s: %d of %d shards are there already", folder, whole.count(True), len(whole))
    size, free = contents.num_bytes, shutil.disk_usage(folder).free
    logger.info(
        "%s images x %d views x %d dimensions x %d bytes = %.3g GB, in %d shards",
        *(f"{contents.images:,}", store.VIEWS, contents.embedding_size, store.DTYPE.itemsize, size / 1e9),
        len(contents.shards),
    )
    # a damaged shard is replaced: its space is not counted on, for the new one is whole before the old one goes
    needed = sum(contents.num_bytes * len(contents.shards[shard]) // contents.images for shard in missing)
    if missing and needed + SPARE_BYTES > free:
        raise InputError(
            f"{folder}: {needed / 1e9:.3g} GB are to be written, {free / 1e9:.3g} GB are free - free space or choose "
            "another place"
        )
    if found is None:
        store.write_contents(folder, contents)
    return missing


def _write(
    folder: Path,
    contents: Contents,
    missing: list[int],
    embedded: Callable[[range], tuple[np.ndarray, dict[int, str]]],
    workers: int,
    max_bad: float,
) -> None:
    again = {position for shard in missing for position in contents.shards[shard]}
    unusable = {position: why for position, why in store.read_unusable(folder).items() if position not in again}
    tasks = [part for shard in missing for part in _parts(contents.shards[shard])]
    found = in_order(embedded, tasks, workers)
    total, done = sum(map(len, tasks)), 0
    progress = LoggedProgress(str(folder), "image", total)
    with contextlib.closing(found), tqdm(total=total, unit="img", desc=str(folder), disable=None) as bar:
        for shard in missing:
            rows = np.empty(contents.shape(shard), store.DTYPE)
            for part in _parts(contents.shards[shard]):
                start = part.start - contents.shards[shard].start
                rows[start : start + len(part)], faults = next(found)
                unusable.update(faults)
                for why in faults.values():
                    logger.warning("%s; it gets no embedding", why)
                if len(unusable) > max_bad * contents.images:
                    raise InputError(
                        f"{folder}: {len(unusable)} of {contents.images:,} images are unusable, more than max_bad = "
                        f"{max_bad:g} allows - mend the data set, or give --max-bad"
                    )
                bar.update(len(part))
                done += len(part)
                if bar.disable:
                    progress(done)
            # before the shard: a shard that is whole has its images in there
            if unusable or (folder / store.UNUSABLE).exists():
                with whole_file(folder / store.UNUSABLE, "w") as file:
                    json.dump(unusable, file, indent=1)
            store.write_shard(folder, shard, rows)


def _parts(images: range) -> list[range]:
    return [images[start : start + TASK_IMAGES] for start in range(0, len(images), TASK_IMAGES)]


def _embedded(teacher: str, data: str, context: str, positions: range) -> tuple[np.ndarray, dict[int, str]]:
    """Return (n, 2, D) float16, unit norm, both views of the images at `positions`, and the unusable ones; in a worker.

    An unusable image has zeros, and an entry: its position and why.
    """
    network, records = _opened(teacher, data, context)
    images = np.zeros((len(positions), 3, *records.image_size), np.uint8)
    unusable = {}
    for row, position in enumerate(positions):
        try:
            planes(face_at(records, position)[1], images[row])
        except InputError as error:
            unusable[position] = str(error)
    raw = [network(view) for view in (images, images[:, :, :, ::-1])]
    finite = np.isfinite(raw).all(axis=(0, 2))
    if not finite.all():
        name = records.name(positions[int(np.argmin(finite))])
        raise InputError(f"{teacher}: its embedding of {name} is not finite - the teacher is damaged or diverged")
    views = [unit(view) for view in raw]
    found = np.stack(views, axis=1).astype(store.DTYPE)
    found[[position - positions.start for position in unusable]] = 0
    return found, unusable


@functools.lru_cache(maxsize=1)
def _opened(teacher: str, data: str, context: str) -> tuple[Network, FaceRecords]:
    """Return what a worker keeps: the network on a device of its own, as far as there are enough, and the images."""
    devices = contexts(context)
    number = re.search(r"(\d+)$", multiprocessing.current_process().name)
    device = devices[int(number[1]) % len(devices)] if number else devices[0]
    return TeacherModels(teacher).network(BATCH_SIZE, device), FaceRecords(data)


@contextlib.contextmanager
def _threads(workers: int) -> Iterator[None]:
    """Let processes started in this block share the cores, unless the user has said how many threads they have."""
    before = os.environ["OMP_NUM_THREADS"]
    os.environ["OMP_NUM_THREADS"] = THREADS or str(max(cores() // workers, 1))
    try:
        yield
    finally:
        os.environ["OMP_NUM_THREADS"] = before
