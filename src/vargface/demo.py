"""The default job: synthetic faces, a small teacher, VarGFaceNet without and with distillation, and a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from easydict import EasyDict

from vargface.data.synthetic import make_dataset, progress_bar
from vargface.eval.table import Result, results_table
from vargface.files import locked_folder
from vargface.recipe import load_recipe
from vargface.runtime import contexts
from vargface.training.fit import train
from vargface.training.plan import check_settings, make_plan
from vargface.training.report import result_of

__all__ = ["draw_data", "run_demo"]

logger = logging.getLogger(__name__)

# the packs are of other people than the training set
DATA = {"identities": 200, "images_per_identity": 50, "pairs": 300, "seed": 0}
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
    student.context = _devices(student.context)
    # what can be refused is refused before anything is drawn, written or trained
    check: Callable = make_plan if student.data else check_settings
    for recipe in _recipes(student):
        check(recipe)
    # its parts lock their own folders, too; with this one no second demo gets in between two of them
    with locked_folder(student.out or OUT) as out:
        if not student.data:
            student.data = str(draw_data(out))
            for recipe in _recipes(student):
                make_plan(recipe)
        return results_table(_train_all(student, out))


def _teacher_of(student: EasyDict) -> EasyDict:
    """Return the recipe of the demo's own teacher for `student`; without `out`."""
    keys = ("data", "packs", "context", "embedding_size", "batch_size")
    teacher = load_recipe("demo_teacher")
    teacher.update({key: student[key] for key in keys})
    return teacher


def _recipes(student: EasyDict) -> list[EasyDict]:
    """Return the recipes that the demo trains by: the student's and, unless one is given, its own teacher's."""
    return [student] if student.teacher else [student, _teacher_of(student)]


def _train_all(student: EasyDict, out: Path) -> list[Result]:
    """Train what is not trained yet and return a row for the teacher, the plain student and each generation."""
    rows = []
    if not student.teacher:
        teacher = _teacher_of(student)
        teacher.out = str(out / "teacher")
        logger.info("teacher: %d steps into %s", teacher.steps, teacher.out)
        folder = train(teacher)[0]
        rows.append(result_of(folder, "teacher"))
        student.teacher = folder.model(folder.result["best"])
    untaught = {"teacher": "", "teacher_store": "", "generations": 1}
    plain = {**student, **untaught, "out": str(out / "student-undistilled")}
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
