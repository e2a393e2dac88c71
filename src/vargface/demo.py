"""The default job: synthetic faces, a small teacher, VarGFaceNet without and with distillation, and a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from easydict import EasyDict

from vargface.checkpoint import load_checkpoint
from vargface.data.synthetic import make_dataset, progress_bar
from vargface.eval.table import Result, results_table
from vargface.files import locked_folder
from vargface.recipe import load_recipe, network_symbol
from vargface.runtime import contexts
from vargface.training.checks import check_recipe
from vargface.training.fit import train
from vargface.training.report import result_of

__all__ = ["draw_data", "run_demo"]

logger = logging.getLogger(__name__)

# as much as the steps of the recipes see; the packs are of other people than the training set
DATA = {"identities": 200, "images_per_identity": 30, "pairs": 300, "seed": 0}
OUT = "runs/demo"


def draw_data(out: str | Path = "") -> Path:
    """Draw the demo's data set into OUT/data, unless it is there, and return that folder (`out` is OUT or runs/demo).

    Raises InputError where it cannot be written.
    """
    folder = Path(out or OUT) / "data"
    if not (folder / "property").exists():
        logger.info("drawing synthetic faces into %s", folder)
        with progress_bar() as progress:
            make_dataset(folder, **DATA, progress=progress)
    return folder


def run_demo(overrides: Sequence[str] = ()) -> str:
    """Run what of the demo is not finished yet, and return the table of its results.

    overrides: KEY=VALUE; `out` is the folder of the whole demo (runs/demo), `teacher` takes the place of its own
    teacher, everything else goes into the students' recipe. Raises InputError as training does.
    """
    student = load_recipe("demo_student", overrides)
    check_recipe(student)
    network_symbol(student)
    if student.teacher:
        load_checkpoint(student.teacher)
    # its parts lock their own folders, too; with this one no second demo gets in between two of them
    with locked_folder(student.out or OUT) as out:
        return results_table(_train_all(student, out))


def _train_all(student: EasyDict, out: Path) -> list[Result]:
    """Train what is not trained yet and return a row for the teacher, the plain student and each generation."""
    data = Path(student.data) if student.data else draw_data(out)
    student.context = _devices(student.context)
    rows = []
    if not student.teacher:
        teacher = load_recipe(
            "demo_teacher",
            [
                f"data={data}",
                f"out={out / 'teacher'}",
                f"context={student.context}",
                f"embedding_size={student.embedding_size}",
            ],
        )
        logger.info("teacher: %d steps into %s", teacher.steps, teacher.out)
        folder = train(teacher)[0]
        rows.append(result_of(folder, "teacher"))
        student.teacher = folder.model(folder.result["best"])
    student.data = str(data)
    plain = {**student, "teacher": "", "generations": 1, "out": str(out / "student-undistilled")}
    logger.info("student without distillation: %d steps into %s", student.steps, plain["out"])
    rows += [result_of(folder, "student, no distillation") for folder in train(type(student)(plain))]
    student.out = str(out / "student")
    logger.info("student: %d generations of %d steps into %s", student.generations, student.steps, student.out)
    generations = train(student)
    rows += [result_of(folder, f"student, generation {n}") for n, folder in enumerate(generations, start=1)]
    return rows


def _devices(context: str) -> str:
    """Return two contexts, of one thread each, in place of one on the CPU.

    Networks this narrow gain little from two threads in one operator: the two contexts trained 1.3 to 1.4 x as fast.
    """
    return "cpu(0),cpu(1)" if context == "auto" and contexts("auto")[0].device_type == "cpu" else context
