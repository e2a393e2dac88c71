"""Units of work, done in any process, of which what is found can be saved between two: what stops and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import numpy as np

__all__ = ["Work", "do_units"]

Task = TypeVar("Task")
Found = TypeVar("Found")


class Work(Protocol):
    """What is found so far. done: (units,) bool. whole: False while what a unit has found is being added."""

    done: np.ndarray
    seconds: float
    whole: bool

    def pairs(self, units: Iterable[int]) -> int:
        """Return how many pairs `units` have."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all of it as arrays, for a file."""


def do_units(
    work: Work,
    units: Sequence[int],
    function: Callable[[Task], Found],
    task: Callable[[int], Task],
    add: Callable[[int, Found], object],
    *,
    mapped: Callable[[Callable[[Task], Found], Iterable[Task]], Iterable[Found]] = map,
    on_unit: Callable[[int], object] | None = None,
) -> None:
    """`add` to `work` what `function` finds of the `task` of each of `units` that is not done.

    mapped: gives the results of a function on each task, in order (a pool's, to use several processes); it must draw
    the tasks as it needs them, as later ones profit from what earlier ones found. on_unit: called with the number of
    pairs after each unit, when `work` is whole; what it raises stops the work.
    """
    todo = [int(unit) for unit in units if not work.done[unit]]
    for unit, found in zip(todo, mapped(function, map(task, todo))):
        # whatever interrupts this: what is found of a unit that is not done would be found again
        work.whole = False
        add(unit, found)
        work.done[unit] = True
        work.whole = True
        if on_unit is not None:
            on_unit(work.pairs([unit]))
