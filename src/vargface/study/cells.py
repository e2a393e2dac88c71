"""What a study trains: the rows of a study's file, each with every seed.

A study's file is a recipe, `recipe`, with three more names:

    cells        row -> the keys in which it differs from `recipe`; the first row is what the others are held against
    main         rows whose seeds are all trained before the other rows are begun
    comparisons  [(row, row, what the difference of the two shows)]

The teacher is looked up in a store that the study makes, unless a cell says otherwise (`teacher_store`). `{other}` in a
cell's text is a second teacher.
A cell of n generations has n rows: NAME, "NAME, generation 2", ...

What a cell sets, the command line may not, but for the teacher: its rows would be of something else than they say.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict

from vargface.errors import InputError
from vargface.recipe import load_recipe, read_recipe_file

__all__ = ["Job", "Study", "load_study", "row_name"]

OTHER = "{other}"
# the study's own, and what would let a row be trained by something else
FIXED = {"seed", "verify_every", "teacher_store", "may_change"}
# verified at the end alone, so that what is reported is chosen by nobody
VERIFY_EVERY = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: the cell's name, its seed, its run folder, the keys that `vargface train` gets, its recipe."""

    cell: str
    seed: int
    folder: Path
    keys: tuple[str, ...]
    recipe: EasyDict

    @property
    def generations(self) -> int:
        """Its generations."""
        return self.recipe.generations


@dataclasses.dataclass(frozen=True)
class Study:
    """A study's file, read and checked."""

    path: str
    cells: Mapping[str, Mapping[str, Any]]
    main: Sequence[str]
    comparisons: Sequence[tuple[str, str, str]]

    def jobs(self, out: Path, keys: Sequence[str], seeds: int, other: str) -> list[Job]:
        """Return the trainings in the order in which they are run; without `other`, a teacher, none that needs it.

        keys: of the command line, `out` not among them. Raises InputError for one that is the study's to set.
        """
        fixed = {*FIXED, *(key for cell in self.cells.values() for key in cell)} - {"teacher"}
        for name in (key.partition("=")[0] for key in keys):
            if name in fixed:
                raise InputError(f"{name}: set by the study {self.path}, cell by cell - change it there, in a copy")
        first = [(cell, seed) for seed in range(seeds) for cell in self.main]
        then = [(cell, seed) for seed in range(seeds) for cell in self.cells if cell not in self.main]
        chosen = [place for place in first + then if other or not self.needs_other(place[0])]
        return [self._job(cell, seed, out, keys, other) for cell, seed in chosen]

    def needs_other(self, cell: str) -> bool:
        """Return whether `cell` has the second teacher."""
        return any(OTHER in str(value) for value in self.cells[cell].values())

    def _job(self, cell: str, seed: int, out: Path, keys: Sequence[str], other: str) -> Job:
        own = [f"{key}={value}".replace(OTHER, other) for key, value in self.cells[cell].items()]
        folder = out / "cells" / _folder_name(cell) / f"seed-{seed}"
        fixed = (f"seed={seed}", f"verify_every={VERIFY_EVERY}", f"out={folder}")
        keys = (f"teacher_store={out / 'store'}", *keys, *own, *fixed)
        return Job(cell, seed, folder, keys, load_recipe(self.path, keys))


def row_name(cell: str, generation: int) -> str:
    """Return the name of the row of one generation of `cell`."""
    return cell if generation == 1 else f"{cell}, generation {generation}"


def load_study(path: str | Path) -> Study:
    """Return the study in file `path`. Raises InputError where it is none, or names what there is not."""
    found = read_recipe_file(path)
    cells, main, comparisons = found.get("cells"), found.get("main", []), found.get("comparisons", [])
    if not isinstance(cells, dict) or not cells or not all(isinstance(keys, dict) for keys in cells.values()):
        raise InputError(f"{path}: no study, has no `cells = {{row: {{key: value}}}}` - see recipes/study/")
    if not _are(main, str):
        raise InputError(f"{path}: main = {main!r}: must be a list of rows")
    if not _are(comparisons, tuple) or not all(len(row) == 3 and _are(row, str) for row in comparisons):
        raise InputError(f"{path}: comparisons: must be a list of (row, row, what the difference of the two shows)")
    folders: dict[str, str] = {}
    for cell in cells:
        twin = folders.setdefault(_folder_name(cell), cell)
        if twin != cell or not _folder_name(cell):
            raise InputError(f"{path}: cells {twin!r} and {cell!r} would have one folder - name them apart")
    study = Study(str(path), cells, main, comparisons)
    rows = set(_rows(study))
    for name in [*study.main, *(row for comparison in study.comparisons for row in comparison[:2])]:
        if name not in rows:
            raise InputError(f"{path}: names a row {name!r} that its cells do not have - one of {', '.join(rows)}")
    return study


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, kind) for value in values)


def _folder_name(cell: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", cell.lower()).strip("-")


def _rows(study: Study) -> Iterator[str]:
    for cell, keys in study.cells.items():
        generations = load_recipe(study.path, [f"{key}={value}" for key, value in keys.items()]).generations
        yield from (row_name(cell, number) for number in range(1, generations + 1))
