"""What `vargface lfr score` and `identify` have found so far: in a file, of one process, saved now and then."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from vargface.errors import InputError
from vargface.eval.lfr.units import Work
from vargface.files import save_whole

__all__ = ["do", "load"]

SAVE_SECONDS = 60.0

Loaded = TypeVar("Loaded")


def load(path: Path, of: Callable[[dict[str, np.ndarray]], Loaded]) -> Loaded:
    """Return `of` the arrays in state file `path`. Raises InputError where they are not its."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return of(dict(arrays))
    except OSError as error:
        raise InputError(
            f"{path}: cannot read ({error.strerror or error}) - give a file that 'vargface lfr' has written"
        ) from error
    except (BadZipFile, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: is no state of 'vargface lfr', or damaged - remove it, or give another") from error


def do(work: Work, path: Path, run: Callable[..., None], processes: int, *, total: int, name: str) -> None:
    """`run` what is left of `work`, of `total` pairs, in `processes`, under a bar; its state is in file `path`."""
    from vargface.workers import in_order, one_blas_thread

    mapped = functools.partial(in_order, workers=processes, environment=one_blas_thread())
    done = work.pairs(work.done.nonzero()[0])
    with saved(work, path) as save, tqdm(
        total=total, initial=done, unit="pair", unit_scale=True, desc=name, disable=None, smoothing=0
    ) as bar:

        def on_unit(pairs: int) -> None:
            bar.update(pairs)
            save()

        run(work, mapped=mapped, on_unit=on_unit)


@contextmanager
def saved(work: Work, path: Path) -> Iterator[Callable[[], None]]:
    """Yield what saves `work` in `path` now and then; it is saved at the end, too, whatever ends the block.

    And at the beginning: a place that cannot be written to is said before hours of work.
    """
    begun = last = time.monotonic()
    before = work.seconds

    def write() -> None:
        if not work.whole:  # interrupted between a unit's pairs and its being done: the state before it stays
            return
        work.seconds = before + time.monotonic() - begun
        save_whole(path, lambda file: np.savez(file, **work.arrays()))

    def save() -> None:
        nonlocal last
        if time.monotonic() - last > SAVE_SECONDS:
            write()
            last = time.monotonic()

    write()
    try:
        yield save
    finally:
        write()
