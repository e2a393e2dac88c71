"""What the trainings of a study came to: means and deviations over seeds, paired differences, as tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from scipy import stats

from vargface.checkpoint import load_checkpoint, model_digest
from vargface.errors import InputError
from vargface.eval.table import few_pairs_note, format_table, tar_mark
from vargface.eval.verification import Verification
from vargface.files import whole_file
from vargface.inference import FrozenNetwork, unit
from vargface.runtime import mx
from vargface.study.cells import Job, Study, row_name
from vargface.teachers.models import TeacherModels
from vargface.training.report import history_of
from vargface.training.run_folder import TRAINED_ON, RunFolder, generation_folder, read_json
from vargface.training.verifier import find_packs

__all__ = ["Figures", "HeldOut", "collect", "figures_of", "paired", "tables"]

# images of each pack on which a student's embeddings are held against its teacher's
HELD_OUT = 400
BATCH = 32
MISSING = "-"
SPREADS = "± in the table above: standard deviation over seeds; in that of differences: half of their 95 % interval."


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one training, or one generation of it, came to.

    packs: figures of the last weights; cosine: to its teacher on HELD_OUT images of each pack, mean, NaN without a
    teacher; images_per_second: median over the log.
    """

    packs: Mapping[str, Verification]
    cosine: float
    images_per_second: float

    @property
    def mean_accuracy(self) -> float:
        """The mean over the packs, 0..1."""
        return float(np.mean([found.accuracy for found in self.packs.values()]))

    @property
    def mean_tar(self) -> float:
        """The mean over the packs, 0..1."""
        return float(np.mean([found.tar for found in self.packs.values()]))


class HeldOut:
    """Faces that no student is trained on, those of the packs, and what teachers say of them.

    packs: their names. Raises InputError where there are none.
    """

    def __init__(self, data: str, packs: Sequence[str]) -> None:
        found = find_packs(packs, data)
        if not found:
            raise InputError(f"{data}: has no verification pack, by which a study is judged - add a .bin, or packs=...")
        self.packs = [pack.name for pack in found]
        self._images = np.concatenate([pack.decode(0, HELD_OUT) for pack in found])
        self._said: dict[str, np.ndarray] = {}

    def cosine(self, model: str, teacher: str) -> float:
        """Return the mean cosine between the embeddings of checkpoint `model` and of `teacher`; NaN if sizes differ."""
        if teacher not in self._said:
            self._said[teacher] = unit(TeacherModels(teacher).network(BATCH, mx.cpu())(self._images))
        embeddings = unit(FrozenNetwork(load_checkpoint(model))(self._images))
        said = self._said[teacher]
        return float((embeddings * said).sum(axis=1).mean()) if embeddings.shape == said.shape else float("nan")


def figures_of(job: Job, generation: int, held_out: HeldOut) -> Figures | None:
    """Return what one generation of `job` came to, or None where it is not finished.

    The cosine, which takes a while, is kept in the run folder as held-out.json. Raises InputError where the run was
    verified on other packs.
    """
    path = generation_folder(job.folder, generation)
    if not (path / "result.json").exists():
        return None
    folder = RunFolder(path, job.recipe)
    result = folder.result
    if set(result["packs"]) != set(held_out.packs):
        found, due = (", ".join(sorted(names)) for names in (result["packs"], held_out.packs))
        raise InputError(f"{path}: verified on {found}, the study is on {due} - choose another out")
    return Figures(
        {name: Verification.of(result["packs"][name]) for name in held_out.packs},
        _cosine(folder, held_out),
        float(np.median(history_of(path).log["images_per_second"])),
    )


def _cosine(folder: RunFolder, held_out: HeldOut) -> float:
    """Return what held-out.json says, if it is of this checkpoint, teacher and packs of these names, or find it."""
    teacher, model = folder.recipe.teacher, folder.model(folder.result["last"])
    if not teacher:
        return float("nan")
    of = {
        "model": model_digest(model),
        "teacher": read_json(folder.path / "recipe.json").get(TRAINED_ON, {}).get("teacher"),
        "packs": held_out.packs,
        "images": HELD_OUT,
    }
    kept = folder.path / "held-out.json"
    known = read_json(kept) or {}
    cosine = known.pop("cosine", None)
    if cosine is None or known != of:
        cosine = held_out.cosine(model, teacher)
        with whole_file(kept, "w") as file:
            json.dump({"cosine": cosine, **of}, file)
    return cosine


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the differences `first` - `second`, seed by seed, and half of its 95 % interval (Student's t).

    The second is NaN for fewer than two pairs.
    """
    differences = np.asarray(first, float) - np.asarray(second, float)
    n = len(differences)
    if n < 2:
        return float(differences.mean()) if n else float("nan"), float("nan")
    return float(differences.mean()), float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))


def collect(study: Study, jobs: Sequence[Job], held_out: HeldOut) -> dict[str, dict[int, Figures]]:
    """Return row -> seed -> figures of what is finished, rows in the order of the study's cells."""
    found: dict[str, dict[int, Figures]] = {}
    for cell in study.cells:
        for job in (job for job in jobs if job.cell == cell):
            for generation in range(1, job.generations + 1):
                figures = figures_of(job, generation, held_out)
                if figures is not None:
                    found.setdefault(row_name(cell, generation), {})[job.seed] = figures
    return found


def tables(study: Study, found: Mapping[str, Mapping[int, Figures]]) -> str:
    """Return the study's two tables in Markdown: a row a cell and generation, a row a comparison.

    A TAR that a pack has too few different pairs to tell is marked, as in the table of results. A comparison is of the
    seeds that both rows have, for the mean of a row of one seed may be that of a lucky one.
    """
    packs = list(next(iter(next(iter(found.values())).values())).packs)
    header = ["", "seeds", *(f"{pack} %" for pack in packs), *(f"TAR {pack} %" for pack in packs), "cosine", "img/s"]
    rows = [[name, _seeds(of_seed), *_row(list(of_seed.values()), packs)] for name, of_seed in found.items()]
    every = (pack for of_seed in found.values() for figures in of_seed.values() for pack in figures.packs.values())
    parts = [format_table(header, rows, markdown=True), few_pairs_note(every, markdown=True), SPREADS]
    header = ["what", "first", "second", "seeds", *(f"{pack} points" for pack in packs), "mean of packs", "mean TAR"]
    rows = [
        [what, first, second, *_difference(found[first], found[second], packs)]
        for first, second, what in study.comparisons
        if first in found and second in found
    ]
    if rows:
        parts.append(format_table(header, rows, left=(0, 1, 2), markdown=True))
    return "\n\n".join(filter(None, parts))


def _row(runs: Sequence[Figures], packs: Sequence[str]) -> list[str]:
    of_packs = [[run.packs[pack] for run in runs] for pack in packs]
    accuracies = [_spread([100 * found.accuracy for found in of_pack], 2) for of_pack in of_packs]
    tars = [_spread([100 * found.tar for found in of_pack], 1) + max(map(tar_mark, of_pack)) for of_pack in of_packs]
    speed = f"{np.median([run.images_per_second for run in runs]):.0f}"
    return [*accuracies, *tars, _spread([run.cosine for run in runs], 3), speed]


def _seeds(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def _spread(values: Sequence[float], digits: int) -> str:
    if np.isnan(values).any():
        return MISSING
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def _difference(first: Mapping[int, Figures], second: Mapping[int, Figures], packs: Sequence[str]) -> list[str]:
    seeds = sorted(first.keys() & second.keys())

    def shown(value_of: Callable[[Figures], float]) -> str:
        mean, half = paired(*([100 * value_of(runs[seed]) for seed in seeds] for runs in (first, second)))
        return f"{mean:+.2f}" + ("" if np.isnan(half) else f" ± {half:.2f}")

    accuracies = [shown(lambda run, pack=pack: run.packs[pack].accuracy) for pack in packs]
    return [_seeds(seeds), *accuracies, shown(lambda run: run.mean_accuracy), shown(lambda run: run.mean_tar)]
