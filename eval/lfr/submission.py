"""The challenge's submission: a unit row for every line of filelist.txt, in its order, in the layout of its server.

An image's row is normalize(f(x) + f(mirror x)). A video's is the normalised sum of its frames' normalised embeddings,
without mirror images, as `gen_video_feature.py` has it; frames are in the order of their names.

Rows go into a file mapped into memory, in OUT.partial/; how many of them are done is written there after them. A run
that was ended, however, goes on where a batch began, so that every row comes out of the same batch, to the last bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vargface.errors import InputError
from vargface.eval.lfr.features import HEADER, header, normalised
from vargface.files import locked_folder, whole_file

__all__ = ["ROWS", "Submission", "picture_of", "read_filelist", "submit"]

FILELIST = "filelist.txt"
# rows of the challenge's own test sets: images, videos
ROWS = {False: 1_862_120, True: 203_848}
SAVE_SECONDS = 30.0
READERS = 4


@dataclasses.dataclass(frozen=True)
class Submission:
    """What is to be written.

    folder: holds filelist.txt and what it names. out: the file to write. model: what tells the network from any other
    (a digest); a run that began with another is not gone on with. on_error: "stop", or "zero" for a row of zeros.
    """

    folder: Path
    out: Path
    model: str
    dimensions: int
    video: bool = False
    on_error: str = "stop"
    batch_size: int = 32


def read_filelist(folder: str | Path, video: bool = False) -> list[str]:
    """Return the names in `folder`/filelist.txt: lines, or for videos the first word of each.

    Raises InputError where it is missing, empty or has an empty line before its end.
    """
    path = Path(folder) / FILELIST
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"{path}: cannot read ({reason}) - give the folder that holds the test set") from error
    names = [line.strip() for line in text.rstrip().split("\n")]
    if "" in names:
        line = names.index("") + 1
        raise InputError(f"{path}: line {line} is empty - " + ("write it anew" if text.strip() else "list the images"))
    return [name.split()[0] for name in names] if video else names


def picture_of(folder: Path, line: str) -> Path:
    """Return the image that `line` of filelist.txt is shown by: itself or, of a video, the first of its frames."""
    path = folder / line
    if not path.is_file() and (folder / line.split()[0]).is_dir():
        frames = _frames(folder / line.split()[0])
        return frames[0] if frames else folder / line.split()[0]
    return path


def _frames(video: Path) -> list[Path]:
    return sorted(video.glob("*.jpg"))


def _paths(job: Submission, name: str) -> list[Path]:
    if not job.video:
        return [job.folder / name]
    frames = _frames(job.folder / name)
    if not frames and job.on_error == "stop":
        raise InputError(f"{job.folder / name}: no frames (*.jpg) - get the video's folder, or give --on-error zero")
    return frames


@dataclasses.dataclass
class _Progress:
    """What of a submission is done, as its file says."""

    job: str  # digest of all that decides the rows
    done: int = 0
    zeros: int = 0  # rows of zeros
    unreadable: int = 0  # images that could not be read
    first: str = ""  # why, of the first one

    def save(self, folder: Path) -> None:
        with whole_file(folder / "progress.json", "w") as file:
            json.dump(dataclasses.asdict(self), file)

    @classmethod
    def load(cls, folder: Path, job: str) -> _Progress:
        path = folder / "progress.json"
        if not path.exists():
            return cls(job)
        try:
            found = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: cannot be read ({error}) - remove {folder} to start anew") from error
        if found.job != job:
            raise InputError(
                f"{folder}: was begun with another model, filelist or option - remove it, or choose another --out"
            )
        return found


def _identity(job: Submission, names: Sequence[str]) -> str:
    # not on_error: rows done under "stop" are those of "zero"
    about = [job.model, job.dimensions, job.video, job.batch_size, list(names)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _read_ahead(
    job: Submission, names: Sequence[str], start: int, read_image: Callable[[Path], np.ndarray]
) -> Iterator[tuple[int, list[list[Future]]]]:
    """Yield (first, images of each name as futures) of the names from `start` on, a batch of names at a time."""
    with ThreadPoolExecutor(READERS) as pool:

        def begin(first: int) -> tuple[int, list[list[Future]]]:
            some = names[first : first + job.batch_size]
            return first, [[pool.submit(read_image, path) for path in _paths(job, name)] for name in some]

        ahead = begin(start) if start < len(names) else None
        while ahead is not None:
            following = ahead[0] + job.batch_size
            current, ahead = ahead, begin(following) if following < len(names) else None
            yield current


class _Rows:
    """Makes rows of images, and counts what cannot be read."""

    def __init__(self, job: Submission, embed: Callable[[np.ndarray], np.ndarray], progress: _Progress) -> None:
        self.job, self.embed, self.progress = job, embed, progress

    def _image(self, future: Future) -> np.ndarray | None:
        try:
            return future.result()
        except InputError as error:
            if self.job.on_error == "stop":
                raise
            self.progress.unreadable += 1
            self.progress.first = self.progress.first or str(error)
            return None

    def _embedded(self, images: list[np.ndarray]) -> np.ndarray:
        """Return the unit embeddings (n, D) float32 of n images, both views of an image summed."""
        parts = [np.empty((0, self.job.dimensions), np.float32)]
        for start in range(0, len(images), self.job.batch_size):
            batch = np.stack(images[start : start + self.job.batch_size])
            rows = self.embed(batch)
            if not self.job.video:
                rows = rows + self.embed(np.ascontiguousarray(batch[..., ::-1]))
            parts.append(normalised(rows))
        return np.concatenate(parts)

    def make(self, first: int, names: Sequence[str], read: list[list[Future]], out: np.ndarray) -> int:
        """Put the rows of the names from `first` on in their place in `out`; return how many."""
        before = dataclasses.asdict(self.progress)
        try:
            made = self._of(first, names, read)
            out[first : first + len(made)] = made
            self.progress.done = first + len(made)
        except BaseException:  # a batch that was cut short counts nothing
            vars(self.progress).update(before)
            raise
        return len(made)

    def _of(self, first: int, names: Sequence[str], read: list[list[Future]]) -> np.ndarray:
        """Return the rows (n, D) float32 of names `first` to `first` + n - 1."""
        images = [[image for image in map(self._image, futures) if image is not None] for futures in read]
        embedded = self._embedded([image for some in images for image in some])
        ends = np.cumsum([len(some) for some in images])
        rows = np.zeros((len(images), self.job.dimensions), np.float32)
        for number, (some, end) in enumerate(zip(images, ends)):
            if some:
                own = embedded[end - len(some) : end]
                rows[number] = normalised(own.sum(axis=0, keepdims=True))[0] if self.job.video else own[0]
        if not np.isfinite(rows).all():
            name = names[first + int((~np.isfinite(rows)).any(axis=1).argmax())]
            raise InputError(f"{name}: its embedding is not finite - the checkpoint is damaged or diverged")
        self.progress.zeros += int((~rows.any(axis=1)).sum())
        return rows


def submit(
    job: Submission,
    embed: Callable[[np.ndarray], np.ndarray],
    read_image: Callable[[Path], np.ndarray],
    *,
    on_rows: Callable[[int], object] | None = None,
) -> tuple[int, int, str]:
    """Write the feature file of `job`; return how many rows are zeros, images unreadable, and why the first of them is.

    embed: (n, 3, H, W) uint8 RGB -> (n, D) float32, not normalised, n <= batch_size. read_image: path -> (3, H, W)
    uint8 RGB, an InputError naming the file where it cannot; called in threads. on_rows: called with the number of
    rows done, those of an earlier run first. Raises InputError for an image that cannot be read (on_error "stop"), an
    embedding that is not finite, a filelist or a place to write that cannot be used.
    """
    names = read_filelist(job.folder, job.video)
    size = HEADER.size + 4 * len(names) * job.dimensions
    if Path(job.out).is_dir():  # said now, not when the file is to take its name, hours later
        raise InputError(f"{job.out}: is a folder - give the file to write")
    with locked_folder(f"{job.out}.partial") as folder:
        progress = _Progress.load(folder, _identity(job, names))
        path = folder / "features"
        if progress.done == 0 or not path.exists() or path.stat().st_size != size:
            progress = _Progress(progress.job)
            _reserve(path, header(len(names), job.dimensions), size)
        rows = np.memmap(path, np.dtype("<f4"), "r+", HEADER.size, (len(names), job.dimensions))
        maker, saved = _Rows(job, embed, progress), time.monotonic()
        if on_rows is not None:
            on_rows(progress.done)
        try:
            with contextlib.closing(_read_ahead(job, names, progress.done, read_image)) as batches:
                for first, read in batches:
                    count = maker.make(first, names, read, rows)
                    if time.monotonic() - saved > SAVE_SECONDS:
                        rows.flush()
                        progress.save(folder)
                        saved = time.monotonic()
                    if on_rows is not None:
                        on_rows(count)
        finally:
            rows.flush()
            progress.save(folder)
        del rows
        os.replace(path, job.out)
        shutil.rmtree(folder)
    return progress.zeros, progress.unreadable, progress.first


def _reserve(path: Path, head: bytes, size: int) -> None:
    """Make a file of `size` bytes, allocated, that begins with `head`: a mapped file cannot say that a disk is full."""
    try:
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
            file.write(head)
    except OSError as error:
        raise InputError(
            f"{path}: cannot write {size:,} bytes ({error.strerror or error}) - free space or choose another place"
        ) from error
