"""The faces that this process trains on."""

from __future__ import annotations

from vargface.data.iterator import FaceIterator
from vargface.runtime import cores, mx
from vargface.training.plan import Plan

__all__ = ["faces_of"]

# decoding processes, unless the recipe says how many
MOST_WORKERS = 16


def faces_of(plan: Plan, seed: int) -> FaceIterator:
    """Return the iterator of this worker's faces, in the order and the views that belong to `seed`."""
    recipe, team = plan.recipe, plan.team
    return FaceIterator(
        plan.records,
        recipe.batch_size // team.size,
        seed=seed,
        mirror=recipe.mirror,
        augment=recipe.augment,
        mix=recipe.mix if recipe.teacher else 0.0,
        jpeg=recipe.jpeg,
        cutout=recipe.cutout,
        min_images=recipe.min_images,
        max_bad=recipe.max_bad,
        workers=_decode_workers(recipe.workers, plan.devices[0]),
        part=team.rank,
        num_parts=team.size,
    )


def _decode_workers(workers: int, device: mx.Context) -> int:
    """Return the number of decoding processes: none on CPUs, where decoding takes a hundredth of a step's time."""
    if workers >= 0:
        return workers
    return 0 if device.device_type == "cpu" else min(cores(), MOST_WORKERS)
