"""What a study trains: the rows of a study's file, each with every seed.

A study's file is a recipe, `recipe`, with three more names:

    cells        row -> the keys in which it differs from `recipe`; the first row is what the others are held against
    main         rows whose seeds are all trained before the other rows are begun
    comparisons  [(row, row, what the difference of the two shows)]

The teacher is looked up in a store that the study makes, unless a cell says otherwise (`teacher_store`). `{other}` in a
cell's text is a second teacher.
A cell of n generations has n rows: NAME, "NAME, generation 2", ...
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vargface.errors import InputError
from vargface.recipe import load_recipe, read_recipe_file

__all__ = ["Job", "Study", "load_study", "row_name"]

OTHER = "{other}"


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: the cell's name, its seed, its run folder, the keys that `vargface train` gets."""

    cell: str
    seed: int
    folder: Path
    keys: tuple[str, ...]
    generations: int


@dataclasses.dataclass(frozen=True)
class Study:
    """A study's file, read and checked."""

    path: str
    cells: Mapping[str, Mapping[str, Any]]
    main: Sequence[str]
    comparisons: Sequence[tuple[str, str, str]]

    def jobs(self, out: Path, keys: Sequence[str], seeds: int, other: str) -> list[Job]:
        """Return the trainings in the order in which they are run; without `other`, a teacher, none that needs it."""
        first = [(cell, seed) for seed in range(seeds) for cell in self.main]
        then = [(cell, seed) for seed in range(seeds) for cell in self.cells if cell not in self.main]
        chosen = [place for place in first + then if other or not self.needs_other(place[0])]
        return [self._job(cell, seed, out, keys, other) for cell, seed in chosen]

    def needs_other(self, cell: str) -> bool:
        """Return whether `cell` has the second teacher."""
        return any(OTHER in str(value) for value in self.cells[cell].values())

    def _job(self, cell: str, seed: int, out: Path, keys: Sequence[str], other: str) -> Job:
        own = [f"{key}={value}".replace(OTHER, other) for key, value in self.cells[cell].items()]
        folder = out / "cells" / re.sub(r"[^a-z0-9]+", "-", cell.lower()).strip("-") / f"seed-{seed}"
        # verified at the end alone, so that what is reported is chosen by nobody
        fixed = (f"seed={seed}", "verify_every=1000000000", f"out={folder}")
        keys = (f"teacher_store={out / 'store'}", *keys, *own, *fixed)
        return Job(cell, seed, folder, keys, load_recipe(self.path, keys).generations)


def row_name(cell: str, generation: int) -> str:
    """Return the name of the row of one generation of `cell`."""
    return cell if generation == 1 else f"{cell}, generation {generation}"


def load_study(path: str | Path) -> Study:
    """Return the study in file `path`. Raises InputError where it is none, or names what there is not."""
    found = read_recipe_file(path)
    cells = found.get("cells")
    if not isinstance(cells, dict) or not cells:
        raise InputError(f"{path}: no study, has no `cells = {{row: {{key: value}}}}` - see recipes/study/")
    study = Study(str(path), cells, found.get("main", []), found.get("comparisons", []))
    rows = set(_rows(study))
    for name in [*study.main, *(row for comparison in study.comparisons for row in comparison[:2])]:
        if name not in rows:
            raise InputError(f"{path}: names a row {name!r} that its cells do not have - one of {', '.join(rows)}")
    return study


def _rows(study: Study) -> Iterator[str]:
    for cell, keys in study.cells.items():
        generations = load_recipe(study.path, [f"{key}={value}" for key, value in keys.items()]).generations
        yield from (row_name(cell, number) for number in range(1, generations + 1))
