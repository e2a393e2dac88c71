"""The learning rate by step, as MXNet's own schedulers give it."""

from __future__ import annotations

from easydict import EasyDict

from vargface.errors import InputError
from vargface.runtime import mx

__all__ = ["SCHEDULES", "learning_rate_schedule", "ramp"]

SCHEDULES = ("step", "cosine", "poly")


def learning_rate_schedule(recipe: EasyDict) -> mx.lr_scheduler.LRScheduler:
    """Return the schedule of `recipe`: linear warm-up over `warmup_steps`, then `step`, `cosine` or `poly` decay.

    `step` multiplies by `lr_factor` after each of `lr_steps`; `cosine` and `poly` (power 2) fall from `lr` to
    `final_lr` at `steps`. Raises InputError for an unknown name or steps that do not fit.
    """
    warmup = {"base_lr": recipe.lr, "warmup_steps": recipe.warmup_steps, "warmup_begin_lr": 0.0}
    if recipe.schedule not in SCHEDULES:
        raise InputError(f"schedule = {recipe.schedule!r}: must be one of {', '.join(SCHEDULES)}")
    if recipe.warmup_steps >= recipe.steps:
        found = f"warmup_steps = {recipe.warmup_steps}"
        raise InputError(f"{found}: must be fewer than steps = {recipe.steps} - 0 for no warm-up")
    if recipe.lr_factor > 1:
        raise InputError(f"lr_factor = {recipe.lr_factor}: must be at most 1")
    if recipe.schedule == "step":
        lr_steps = list(recipe.lr_steps)
        if not lr_steps or lr_steps[0] < 1 or any(later <= sooner for sooner, later in zip(lr_steps, lr_steps[1:])):
            raise InputError(f"lr_steps = {lr_steps}: must be one or more rising step numbers")
        return mx.lr_scheduler.MultiFactorScheduler(lr_steps, factor=recipe.lr_factor, **warmup)
    kind = {"cosine": mx.lr_scheduler.CosineScheduler, "poly": mx.lr_scheduler.PolyScheduler}[recipe.schedule]
    return kind(recipe.steps, final_lr=recipe.final_lr, **warmup)


def ramp(step: int, first: int, full: int) -> float:
    """Return the weight at `step` that is 0 until `first`, rises linearly and is 1 from `full` on."""
    if step >= full:
        return 1.0
    return max(step - first, 0) / max(full - first, 1)
