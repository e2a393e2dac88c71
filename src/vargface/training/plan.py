"""What a recipe asks for, checked and read before anything is written or trained."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from easydict import EasyDict

from vargface.checkpoint import Params, load_checkpoint, matching, model_digest, tagged
from vargface.data.iterator import FaceIterator
from vargface.data.packs import Pack
from vargface.data.records import FaceRecords
from vargface.errors import InputError
from vargface.files import digest
from vargface.recipe import network_symbol
from vargface.runtime import contexts, mx
from vargface.teachers.models import TeacherModels, teacher_digest
from vargface.teachers.store import TeacherStore
from vargface.training.centres import classes_taken
from vargface.training.checks import check_recipe
from vargface.training.objective import Objective
from vargface.training.schedule import learning_rate_schedule
from vargface.training.teacher import looked_up
from vargface.training.team import MOST_BYTES, Team, team_of
from vargface.training.verifier import check_images, find_packs

__all__ = ["Plan", "check_settings", "make_plan"]

logger = logging.getLogger(__name__)

IMAGE_SIZE = (112, 112)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe that can be trained.

    trained_on: what the run is made of, wherever it lies: `data`, `teacher` and `init` as text with a SHA-256, empty
    where there is none. team: not joined yet. teacher: its models, to be asked in the loop, or a store, to be looked up
    in. initial: the weights of `init`, (args, auxs).
    """

    recipe: EasyDict
    records: FaceRecords
    packs: Sequence[Pack]
    network: mx.sym.Symbol
    objective: Objective
    devices: list[mx.Context]
    team: Team
    teacher: TeacherModels | TeacherStore | None
    initial: tuple[Params, Params] | None
    trained_on: dict[str, str]


def check_settings(recipe: EasyDict) -> None:
    """Raise InputError for what is wrong with `recipe` whatever data it is trained on."""
    check_recipe(recipe)
    network = network_symbol(recipe)
    learning_rate_schedule(recipe)
    _devices(recipe, team_of(recipe.kvstore).size)
    # a store can only be held against its data
    _objective(network, recipe, 2, None if looked_up(recipe) else _teacher(recipe, None))
    _initial(recipe, network)


def make_plan(recipe: EasyDict) -> Plan:
    """Return the plan of `recipe`; writes nothing.

    Raises InputError for anything in the recipe, the data, the packs or the teacher that cannot be used.
    """
    if not recipe.data:
        raise InputError("data is not given - add data=FOLDER")
    check_recipe(recipe)
    records = FaceRecords(recipe.data)
    packs = find_packs(recipe.packs, recipe.data)
    if records.image_size != IMAGE_SIZE:
        found, wanted = ("{}x{}".format(*size) for size in (records.image_size, IMAGE_SIZE))
        raise InputError(f"{recipe.data}: images of {found}, the networks take {wanted} - write the data set anew")
    # refuses a batch that the data set does not fill
    FaceIterator(records, recipe.batch_size, min_images=recipe.min_images)
    _check_head(recipe, records.num_identities)
    network = network_symbol(recipe)
    learning_rate_schedule(recipe)
    teacher, team = _teacher(recipe, records), team_of(recipe.kvstore)
    if team.leads:
        _look_at_share(recipe, records.num_identities)
    plan = Plan(
        recipe=recipe,
        records=records,
        packs=packs,
        network=network,
        objective=_objective(network, recipe, records.num_identities, teacher),
        devices=_devices(recipe, team.size),
        team=team,
        teacher=teacher,
        initial=_initial(recipe, network),
        trained_on={
            "data": f"{len(records)} images of {records.num_identities} identities, {_data_digest(Path(recipe.data))}",
            "teacher": teacher_digest(recipe.teacher) if recipe.teacher else "",
            "init": model_digest(recipe.init) if recipe.init else "",
        },
    )
    check_images(packs)  # now, not at the first verification, hours into the training
    return plan


def _check_head(recipe: EasyDict, num_classes: int) -> None:
    """Raise InputError where the head's gradient is more than the servers of a job can sum."""
    size = 4 * num_classes * recipe.embedding_size
    if recipe.kvstore and not recipe.class_share and size > MOST_BYTES:
        raise InputError(
            f"{recipe.data}: {num_classes:,} classes x embedding_size = {recipe.embedding_size} are {size / 1e9:.2f} "
            f"GB of fc7, and MXNet's servers sum no array of more than {MOST_BYTES / 1e9:.2f} GB - set class_share "
            "(1 takes all classes), whose table they have in parts"
        )


def _look_at_share(recipe: EasyDict, num_classes: int) -> None:
    """Warn where the batch leaves so little room for other classes that a few stand for nearly all."""
    taken = classes_taken(recipe, num_classes)
    if recipe.class_share and recipe.class_correction and taken < min(2 * recipe.batch_size, num_classes):
        logger.warning(
            "a step takes %d classes, for a batch of %d: the few beside its own count for all others, and the loss "
            "leaps - class_limit and class_share x %d classes should be twice the batch at least",
            taken,
            recipe.batch_size,
            num_classes,
        )


def _objective(
    network: mx.sym.Symbol, recipe: EasyDict, num_classes: int, teacher: TeacherModels | TeacherStore | None
) -> Objective:
    try:
        return Objective(
            network, recipe, classes_taken(recipe, num_classes), teacher.embedding_size if teacher else None
        )
    except ValueError as error:
        raise InputError(f"recipe: {error}") from error


def _devices(recipe: EasyDict, workers: int) -> list[mx.Context]:
    devices = contexts(recipe.context)
    if recipe.batch_size % (workers * len(devices) * recipe.accumulate):
        of = f"{workers} workers x " if workers > 1 else ""
        raise InputError(
            f"batch_size = {recipe.batch_size}: must be a multiple of the {of}{len(devices)} contexts x accumulate = "
            f"{recipe.accumulate}"
        )
    return devices


def _teacher(recipe: EasyDict, records: FaceRecords | None) -> TeacherModels | TeacherStore | None:
    if not recipe.teacher:
        return None
    if records is not None and looked_up(recipe):
        teacher: TeacherModels | TeacherStore = TeacherStore(
            recipe.teacher_store, records, teacher_digest(recipe.teacher)
        )
    else:
        teacher = TeacherModels(recipe.teacher)
    if teacher.embedding_size != recipe.embedding_size and not recipe.teacher_map:
        raise InputError(
            f"teacher {recipe.teacher}: embeds into {teacher.embedding_size} dimensions, the student into "
            f"{recipe.embedding_size} - set embedding_size={teacher.embedding_size}, or teacher_map=True to learn a "
            "linear map between the two"
        )
    return teacher


def _initial(recipe: EasyDict, network: mx.sym.Symbol) -> tuple[Params, Params] | None:
    if not recipe.init:
        return None
    checkpoint = load_checkpoint(recipe.init)
    weights = matching(network, tagged(checkpoint.args, checkpoint.auxs), recipe.init)
    logger.info("%s: weights to start from; class centres (fc7) are not taken over, they start anew", recipe.init)
    return weights


def _data_digest(folder: Path) -> str:
    """Return what changes with the data set: of its index and property all bytes, of its records the length."""
    small = [path for path in (folder / "train.idx", folder / "property") if path.is_file()]
    return f"{(folder / 'train.rec').stat().st_size} bytes, {digest(*small)}"
