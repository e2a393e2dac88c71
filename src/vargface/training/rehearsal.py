"""What a run will take, found by trying: a few steps without leaving anything behind, or the input alone."""

from __future__ import annotations

import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from easydict import EasyDict

from vargface.checkpoint import Checkpoint
from vargface.inference import FrozenNetwork
from vargface.progress import duration
from vargface.runtime import mx
from vargface.training.faces import faces_of
from vargface.training.generation import VERIFY_BATCH, Generation
from vargface.training.plan import Plan, make_plan
from vargface.training.run_folder import RunFolder
from vargface.training.space import check_space, space_of
from vargface.training.teacher import Teacher, labels_of

__all__ = ["rehearse", "time_input"]

# steps timed, after one that makes what is made once
STEPS = 3
# seconds that the input is timed for, after its first batch
INPUT_SECONDS = 5.0


def rehearse(recipe: EasyDict) -> str:
    """Go some steps of `recipe` as training would, writing nothing that stays; return what a run takes, as lines.

    Raises InputError for everything that `train` would refuse before it begins, but what is in `out` already.
    """
    plan = make_plan(recipe)
    if recipe.out:
        check_space(plan)
    with tempfile.TemporaryDirectory() as scratch:
        teacher = labels_of(plan.teacher, recipe, len(plan.records), plan.devices[0])
        generation = Generation(plan, RunFolder(Path(scratch) / "run", recipe), teacher, 1)
        seconds = generation.timed_steps(plan.initial, STEPS)
        params, memory = generation.params(), _memory(generation.module, plan.devices)
        epoch = generation.batches_per_epoch
    step = statistics.median(seconds)
    verification = _verification_seconds(plan, params)
    times = -(-recipe.steps // recipe.verify_every)
    total = recipe.generations * (recipe.steps * step + times * verification)
    remembers = isinstance(teacher, Teacher) and teacher.remembers
    later = ", less than that from the second epoch on: the teacher's answers are remembered" if remembers else ""
    space = space_of(plan)
    rows = {
        "devices": ", ".join(map(str, plan.devices)),
        "memory": memory,
        "speed": f"{recipe.batch_size / step:.1f} img/s, {step:.3f} s a step of {recipe.batch_size} images (median of "
        f"{STEPS}{'; the teacher asked anew' if isinstance(teacher, Teacher) else ''})",
        "epoch": f"{epoch:,} steps, {duration(epoch * step)}",
        "verification": f"{duration(verification)}, {times} times a generation",
        "disk": f"up to {space.of_run(recipe.generations) / 1e6:,.0f} MB",
        "total": f"{recipe.generations} x {recipe.steps:,} steps ({recipe.steps / epoch:.1f} epochs): "
        f"{duration(total)}{later}",
    }
    return "\n".join(f"{name:<14}{value}" for name, value in rows.items())


def time_input(recipe: EasyDict) -> str:
    """Read batches as training would, without training; return images a second, as a line. Raises as `rehearse`."""
    plan = make_plan(recipe)
    faces = faces_of(plan, recipe.seed)
    try:
        faces.next()  # starts what decodes
        images, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < INPUT_SECONDS:
            try:
                images += faces.next().data[0].shape[0]
            except StopIteration:
                faces.reset()
    finally:
        faces.close()
    return f"input alone   {images / spent:,.0f} img/s ({images:,} images in {spent:.1f} s)"


def _memory(module: mx.mod.Module, devices: Sequence[mx.Context]) -> str:
    """Return what MXNet's executors have planned, and what the process or the first GPU takes in all."""
    planned = [re.search(r"Total (\d+) MB", executor.debug_str()) for executor in module._exec_group.execs]
    text = f"{sum(int(found.group(1)) for found in planned if found):,} MB planned by MXNet for network and batch"
    if devices[0].device_type == "gpu":
        free, whole = mx.context.gpu_memory_info(devices[0].device_id)
        return f"{text}; {(whole - free) / 1e6:,.0f} of {whole / 1e6:,.0f} MB of {devices[0]} taken"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{text}; the process took {peak / 1e6:,.0f} MB at its peak"


def _verification_seconds(plan: Plan, params: tuple[dict, dict]) -> float:
    """Return the seconds of one verification: of one batch, times the batches."""
    network = FrozenNetwork(Checkpoint(plan.network, *params, "training"), VERIFY_BATCH, plan.devices[0])
    images = np.zeros((VERIFY_BATCH, 3, *plan.records.image_size), np.float32)
    network(images)
    start = time.perf_counter()
    network(images)
    both_views = 2 * sum(2 * len(pack.issame) for pack in plan.packs)
    return (time.perf_counter() - start) * both_views / VERIFY_BATCH
