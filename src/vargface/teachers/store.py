"""A teacher store: what a teacher says of both views of every image of a data set, computed once.

A folder:

    store.json          whose embeddings these are, of which images (`Contents`)
    shard-0000.npy      (n, 2, D) float16, unit norm: n images in the order of the data set, plain and mirrored
    shard-0000.sha256   its SHA-256, as sha256sum writes it; a shard without it is not finished
    unusable.json       where there are such: positions of images that cannot be decoded, zeros in the shards, and why

Written by `vargface.teachers.writer`, read by training in place of the network (`TeacherStore` and
`vargface.training.teacher.Teacher` give the same labels but for float16's rounding).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import mmap
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vargface.data.records import FaceRecords
from vargface.errors import InputError
from vargface.files import save_whole, sha256, whole_file
from vargface.runtime import mx

__all__ = ["Contents", "TeacherStore"]

CONTENTS, UNUSABLE = "store.json", "unusable.json"
FORMAT = 1
VIEWS = 2
DTYPE = np.dtype(np.float16)
# images of a shard: what a kill costs; at most so many shards, for each one open keeps a file descriptor of 1,024
LEAST_IMAGES, MOST_SHARDS = 1024, 512


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a store holds: the embeddings of `images` images, known by their `index`, by `teacher`, both digests."""

    teacher: str
    index: str
    images: int
    embedding_size: int

    @property
    def shard_images(self) -> int:
        """Images of every shard but the last."""
        return max(LEAST_IMAGES, -(-self.images // MOST_SHARDS))

    @property
    def shards(self) -> list[range]:
        """The positions of the images of each shard."""
        starts = range(0, self.images, self.shard_images)
        return [range(start, min(start + self.shard_images, self.images)) for start in starts]

    @property
    def num_bytes(self) -> int:
        """Bytes of all embeddings."""
        return self.images * VIEWS * self.embedding_size * DTYPE.itemsize

    def shape(self, shard: int) -> tuple[int, int, int]:
        """Return the shape of shard number `shard`."""
        return len(self.shards[shard]), VIEWS, self.embedding_size

    def misfit(self, other: Contents) -> str:
        """Return why a store of these contents does not fit `other`, "" where it does."""
        if self.teacher != other.teacher:
            return f"of another teacher ({self.teacher}, not {other.teacher})"
        if self.images != other.images:
            return f"of another data set ({self.images:,} images, not {other.images:,})"
        if self.index != other.index:
            return f"of another data set (the index is {self.index}, not {other.index})"
        return ""


def shard_file(folder: Path, shard: int) -> Path:
    """Return the file of shard number `shard`."""
    return folder / f"shard-{shard:04d}.npy"


def read_contents(folder: Path) -> Contents | None:
    """Return what the store in `folder` holds, None where there is none. Raises InputError where that is damaged."""
    path = folder / CONTENTS
    try:
        found = json.loads(path.read_text())
        if found.pop("format") != FORMAT:
            raise ValueError("written by another version of vargface")
        contents = Contents(**found)
        if min(contents.images, contents.embedding_size) < 1:
            raise ValueError("holds nothing")
        return contents
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not what `vargface teacher-store` wrote ({error}) - make the store anew") from error


def write_contents(folder: Path, contents: Contents) -> None:
    """Write store.json, whole or not at all."""
    with whole_file(folder / CONTENTS, "w") as file:
        json.dump({"format": FORMAT, **dataclasses.asdict(contents)}, file, indent=1)


def read_unusable(folder: Path) -> dict[int, str]:
    """Return position -> why of the images without an embedding. Raises InputError where the list is damaged."""
    try:
        return {int(position): why for position, why in json.loads((folder / UNUSABLE).read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{folder / UNUSABLE}: cannot be read ({error}) - remove it") from error


def write_shard(folder: Path, shard: int, embeddings: np.ndarray) -> None:
    """Write shard number `shard`, (n, 2, D), and its checksum after it. Raises InputError where there is no space."""
    file = shard_file(folder, shard)
    content = save_whole(file, lambda out: np.save(out, embeddings.astype(DTYPE, copy=False)))
    with whole_file(file.with_suffix(".sha256"), "w") as out:
        out.write(f"{hashlib.sha256(content).hexdigest()}  {file.name}\n")


def shard_fault(folder: Path, shard: int, shape: tuple[int, int, int]) -> str:
    """Return what is wrong with shard number `shard`: "missing", "damaged", or "" where it is whole."""
    file = shard_file(folder, shard)
    try:
        due = file.with_suffix(".sha256").read_text().split()
        if due[:1] != [sha256(file)]:
            return "damaged"
        found = np.load(file, mmap_mode="r")
        return "" if (found.shape, found.dtype) == (shape, DTYPE) else "damaged"
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError):
        return "damaged"


def whole_shards(folder: Path, contents: Contents) -> list[bool]:
    """Return which shards are whole, all their bytes read and held against their checksums; with a progress bar."""
    numbers = tqdm(range(len(contents.shards)), desc=f"check {folder}", unit="shard", leave=False, disable=None)
    return [not shard_fault(folder, shard, contents.shape(shard)) for shard in numbers]


def _mapped(file: Path) -> np.ndarray:
    """Return the shard in `file`, (n, 2, D), its bytes read when they are looked up."""
    shard = np.load(file, mmap_mode="r")
    # the system would read 128 KB around each embedding, which in a store larger than the memory are not used
    shard._mmap.madvise(mmap.MADV_RANDOM)
    # a plain array on the mapped memory: numpy's own memmap class makes each lookup three times as slow
    return shard.view(np.ndarray)


class TeacherStore:
    """A finished store as a teacher: the label of a batch of a FaceIterator, looked up.

    The shards are memory-mapped: what is looked up is read, and stays in the system's memory as long as there is room.
    embedding_size: D.
    """

    def __init__(self, folder: str | Path, records: FaceRecords, teacher: str) -> None:
        """Open the store in `folder` for the images of `records` and the teacher of the digest `teacher`.

        Reads every shard once, to hold it against its checksum. Raises InputError where there is no store, it is of
        another teacher or data set, not finished or damaged.
        """
        self.folder = Path(folder)
        contents = read_contents(self.folder)
        make = "make one: vargface teacher-store --model TEACHER DATA OUT"
        if contents is None:
            raise InputError(f"{folder}: no teacher store ({CONTENTS}) - {make}")
        misfit = contents.misfit(Contents(teacher, records.index_digest(), len(records), contents.embedding_size))
        if misfit:
            raise InputError(f"{folder}: a store {misfit} - {make}")
        whole = whole_shards(self.folder, contents)
        if not all(whole):
            bad = shard_file(self.folder, whole.index(False)).name
            raise InputError(
                f"{folder}: {whole.count(False)} of {len(whole)} shards are missing or damaged ({bad} first) - the "
                "command that made the store makes them, and only them"
            )
        self.embedding_size = contents.embedding_size
        self._shard_images = contents.shard_images
        self._shards = [_mapped(shard_file(self.folder, shard)) for shard in range(len(whole))]

    def embeddings(self, batch: mx.io.DataBatch) -> np.ndarray:
        """Return (N, D) float32, unit norm but for float16's rounding, of the views in a batch of a FaceIterator.

        Raises InputError for an image that could not be used when the store was made.
        """
        shards, rows = np.divmod(batch.index, self._shard_images)
        places = zip(shards.tolist(), rows.tolist(), batch.mirrored.astype(int).tolist())
        found = np.stack([self._shards[shard][row, view] for shard, row, view in places]).astype(np.float32)
        known = found.any(axis=1)
        if not known.all():
            position = int(batch.index[int(np.argmin(known))])
            raise InputError(
                f"{self.folder}: has no embedding of image {position} (from 0), which could not be used when the store "
                "was made - make it anew"
            )
        return found
