"""What a teacher store's form costs: the rounding of float16, opening a store, looking up in it.

    python benchmarks/teacher_store.py [--images 100000] [--size 512] [--batch 512] [--cold]

Random unit vectors stand for embeddings; the store is written to a temporary folder (0.2 GB) and read from the system's
page cache. Prints the greatest 1 - cosine between a vector and its stored form, the greatest change of the cosine of
any two of 4,000, the seconds to open the store (its checksums) and the median milliseconds of a look-up. --cold makes
the system forget the store before each look-up, so that every embedding comes from the disk, as in a store that is far
larger than the memory.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from vargface.inference import unit
from vargface.teachers import store
from vargface.teachers.store import Contents, TeacherStore

COMPARED, LOOK_UPS = 4000, 50


def rounding(size: int) -> tuple[float, float]:
    """Return the greatest 1 - cosine of a vector to its float16 form, and change of the cosine of two."""
    vectors = unit(np.random.default_rng(0).normal(size=(COMPARED, size)))
    stored = vectors.astype(store.DTYPE).astype(np.float64)
    own = (vectors * stored).sum(axis=1) / np.linalg.norm(stored, axis=1)
    return float((1 - own).max()), float(np.abs(vectors @ vectors.T - stored @ stored.T).max())


def forget(opened: TeacherStore) -> None:
    """Have the system drop what it holds of the store's shards."""
    for shard in opened._shards:
        mapped = shard.base
        mapped._mmap.madvise(mmap.MADV_DONTNEED)  # pages that a process has mapped are kept
        with open(mapped.filename, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def look_ups(folder: Path, images: int, size: int, batch: int, cold: bool) -> tuple[float, list[float]]:
    """Return the seconds to open a store of `images`, and the milliseconds of each look-up of `batch` at random."""
    contents = Contents("teacher", "index", images, size)
    store.write_contents(folder, contents)
    random = np.random.default_rng(1)
    rows = unit(random.normal(size=(contents.shard_images * store.VIEWS, size))).astype(store.DTYPE)
    for shard in range(len(contents.shards)):
        shape = contents.shape(shard)
        store.write_shard(folder, shard, rows[: shape[0] * shape[1]].reshape(shape))

    class Records:
        """The images that the store is of."""

        def index_digest(self) -> str:
            return "index"

        def __len__(self) -> int:
            return images

    start = time.perf_counter()
    opened = TeacherStore(folder, Records(), "teacher")
    seconds, spent = time.perf_counter() - start, []
    os.sync()  # what is not on the disk yet cannot be dropped
    for _ in range(LOOK_UPS):
        if cold:
            forget(opened)
        views = SimpleNamespace(index=random.integers(0, images, batch), mirrored=random.random(batch) < 0.5)
        start = time.perf_counter()
        opened.embeddings(views)
        spent.append(1000 * (time.perf_counter() - start))
    return seconds, spent


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--cold", action="store_true", help="every look-up from the disk")
    options = parser.parse_args()
    own, pair = rounding(options.size)
    print(
        f"float16, {options.size} dimensions: 1 - cosine {own:.1e} at most, cosine of two changed by {pair:.1e} at most"
    )
    with tempfile.TemporaryDirectory() as scratch:
        seconds, spent = look_ups(Path(scratch), options.images, options.size, options.batch, options.cold)
    print(f"{options.images:,} images: opened in {seconds:.2f} s")
    print(f"look-up of {options.batch}: {statistics.median(spent):.2f} ms, {max(spent):.2f} at most")


if __name__ == "__main__":
    main()
