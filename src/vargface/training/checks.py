"""What a recipe's numbers must be, asked before anything is read or written."""

from __future__ import annotations

import math
import re

from easydict import EasyDict

from vargface.data.sampling import VARYING
from vargface.errors import InputError
from vargface.symbols import angular_distillation
from vargface.training.team import KVSTORES

__all__ = ["check_recipe", "varied_by"]

POSITIVE = (
    "batch_size",
    "steps",
    "generations",
    "log_every",
    "verify_every",
    "save_every",
    "embedding_size",
    "accumulate",
)
# key -> the least and the greatest value
RANGES = {
    **dict.fromkeys(POSITIVE, (1, math.inf)),
    **dict.fromkeys(("lr", "wd", "alpha", "warmup_steps", "skip_steps"), (0, math.inf)),
    # beyond these MXNet fails, or the machine does
    "batch_size": (1, 2**20),
    "embedding_size": (1, 2**16),
    "multiplier": (0, 64),
    "seed": (0, 2**31 - 1),
    **dict.fromkeys((*VARYING, "max_bad", "class_share"), (0, 1)),
    "class_limit": (0, math.inf),
    "min_images": (1, math.inf),
    "workers": (-1, 256),
    "momentum": (0, 1),
    "lr_factor": (0, 1),
    "final_lr": (0, math.inf),
    "residual_gamma": (0, math.inf),
}


def check_recipe(recipe: EasyDict) -> None:
    """Raise InputError, naming key and value, where a number is out of its range or a name is not known."""
    for key, value in recipe.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{key} = {value}: must be a finite number")
        least, greatest = RANGES.get(key, (-math.inf, math.inf))
        if isinstance(value, (int, float)) and not least <= value <= greatest:
            most = f" and at most {greatest}" if greatest < math.inf else ""
            raise InputError(f"{key} = {value}: must be at least {least}{most}")
    if not re.fullmatch(r"\w[\w.-]*", recipe.role):
        raise InputError(f"role = {recipe.role!r}: names files, so letters, digits, '_', '-' and '.' only")
    unknown = [key for key in recipe.may_change if key not in recipe]
    if unknown:
        raise InputError(f"may_change = {recipe.may_change}: {unknown[0]} is no key of a recipe")
    if recipe.optimizer not in ("sgd", "adam"):
        raise InputError(f"optimizer = {recipe.optimizer!r}: must be sgd or adam")
    if recipe.class_share and recipe.optimizer != "sgd":
        raise InputError(f"class_share = {recipe.class_share}: class centres are sampled with optimizer = 'sgd' only")
    if recipe.class_limit and not recipe.class_share:
        raise InputError(f"class_limit = {recipe.class_limit}: of no effect without class_share - set it, too")
    if 0 < recipe.class_limit < recipe.batch_size:
        raise InputError(
            f"class_limit = {recipe.class_limit}: must be 0 or at least batch_size = {recipe.batch_size}: a batch may "
            "have as many classes"
        )
    for key in ("class_correction", "idle_updates"):
        if not (recipe[key] or recipe.class_share):
            raise InputError(f"{key} = False: of no effect without class_share - set it, too")
    if recipe.kvstore not in KVSTORES:
        raise InputError(f"kvstore = {recipe.kvstore!r}: must be {', '.join(KVSTORES[1:])}, or empty")
    if recipe.distillation not in angular_distillation.FORMS:
        forms = ", ".join(angular_distillation.FORMS)
        raise InputError(f"distillation = {recipe.distillation!r}: must be one of {forms}")
    _check_view(recipe)
    ramp = recipe.margin_ramp
    if len(ramp) != 2 or not 0 <= ramp[0] <= ramp[1]:
        raise InputError(f"margin_ramp = {ramp}: must be two rising step numbers, e.g. [1000, 3000]")
    if recipe.teacher and ramp[1] > recipe.steps:
        raise InputError(f"margin_ramp = {ramp}: must end by steps = {recipe.steps}")


def varied_by(recipe: EasyDict) -> str:
    """Return the key by which a face is seen in more views than plain and mirrored; empty where there is none."""
    return next((key for key in VARYING if recipe[key]), "")


def _check_view(recipe: EasyDict) -> None:
    """Raise InputError where it is not said, or cannot be, what a teacher is asked about or a store looked up for."""
    view, stored = recipe.teacher_view, bool(recipe.teacher_store)
    if stored and not recipe.teacher:
        raise InputError(f"teacher_store = {recipe.teacher_store}: whose it must be is not said - add teacher=")
    if view not in ("", "clean", "augmented"):
        raise InputError(f"teacher_view = {view!r}: must be clean or augmented")
    if view == "clean" and recipe.teacher and not stored:
        raise InputError("teacher_view = 'clean': needs a teacher_store, the loop has the augmented view alone")
    if view == "clean" and recipe.mix:
        raise InputError(f"mix = {recipe.mix}: a face of two has no clean view - set mix=0 or teacher_view=augmented")
    key = varied_by(recipe)
    if stored and not view and key:
        raise InputError(
            f"{key} = {recipe[key]}: the teacher_store knows clean faces alone - say teacher_view=clean (their "
            "embeddings are distilled) or teacher_view=augmented (ask the teacher in the loop, the store unused)"
        )
