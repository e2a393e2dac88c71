"""What a teacher costs: a training step of full-width VarGFaceNet without one, with a store, with one in the loop.

    python benchmarks/teacher_cost.py [--batch 16] [--threads 2] [--rounds 7] [--ways plain store] [--clock cpu]

A step is training's own: the next batch decoded, labelled by the teacher, forward, backward, update. Every way runs in
a process of its own; they take turns, one step each, so that a noisy machine is noisy for all. `measured` is the ratio
of the medians to the first way. In the loop the teacher is asked about every view anew, as it is where what it said
cannot be remembered (MS1M, augmented faces). Teachers have random weights, the store random embeddings, the images are
noise: only the time is of interest. `computed` is the ratio of FLOPs (as the challenge counts them; backward as twice
forward, the losses left out): what it comes to where both networks run equally efficiently, which was not measured.
--clock cpu takes the processor's time in place of the wall's: with --threads 1 it can be measured beside other work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from training_step import Worker, answer, taking_turns

if TYPE_CHECKING:
    from vargface.runtime import mx

CLASSES, EACH = 64, 8
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WAYS = {
    "plain": "ArcFace",
    "store": "ArcFace + store",
    "y1": "ArcFace + MobileFaceNet y1 in the loop",
    "r50": "ArcFace + LResNet50E-IR in the loop",
    "r100": "ArcFace + LResNet100E-IR in the loop",
}


def teacher_symbol(name: str) -> mx.sym.Symbol:
    """Return the teacher's symbol, which embeds into as many dimensions as the student (y1's own are 128)."""
    from vargface.symbols import mobilefacenet, resnet

    if name == "y1":
        return mobilefacenet.get_symbol(variant="y1", embedding_size=512)
    return resnet.get_symbol(num_layers=int(name[1:]), embedding_size=512)


def make_data(folder: Path) -> None:
    """Write a data set of smooth noise."""
    from vargface.data.writer import RecordWriter

    random = np.random.default_rng(0)
    with RecordWriter(folder, CLASSES) as writer:
        for identity in range(CLASSES):
            for _ in range(EACH):
                image = cv2.resize(random.integers(0, 256, (14, 14, 3), dtype=np.uint8), (112, 112))
                writer.add(identity, cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())


def make_teacher(folder: Path, name: str) -> str:
    """Write a teacher of random weights and return its PREFIX,EPOCH."""
    from vargface.checkpoint import save_checkpoint
    from vargface.runtime import mx

    symbol = teacher_symbol(name)
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", (1, 3, 112, 112))], for_training=False)
    module.init_params(mx.init.Xavier(rnd_type="gaussian", factor_type="out", magnitude=2))
    return save_checkpoint(folder / name, 0, symbol, *module.get_params())


def make_store(folder: Path, data: Path, teacher: str) -> Path:
    """Write a store of random embeddings that passes for the teacher's."""
    from vargface.data.records import FaceRecords
    from vargface.teachers import store
    from vargface.teachers.models import teacher_digest, unit

    records = FaceRecords(data)
    contents = store.Contents(teacher_digest(teacher), records.index_digest(), len(records), 512)
    folder.mkdir()
    store.write_contents(folder, contents)
    for shard in range(len(contents.shards)):
        rows = np.random.default_rng(shard).normal(size=contents.shape(shard))
        store.write_shard(folder, shard, unit(rows.reshape(-1, 512)).reshape(rows.shape))
    return folder


def training_step(folder: Path, way: str, batch: int) -> Callable[[], None]:
    """Return a function that does one step of training, and waits for it."""
    from vargface import runtime
    from vargface.recipe import load_recipe

    runtime.prepare_for_training()
    from vargface.runtime import mx
    from vargface.training import teacher as teacher_module
    from vargface.training.generation import Generation
    from vargface.training.log import Means
    from vargface.training.plan import make_plan
    from vargface.training.run_folder import RunFolder

    teacher_module.MEMORY = 0  # every view is asked about anew
    keys = {"data": folder / "data", "out": folder / f"run-{way}", "batch_size": batch, "context": "cpu", "lr": 0.001}
    if way == "store":
        keys.update(teacher=f"{folder}/y1,0", teacher_store=folder / "store")
    elif way != "plain":
        keys.update(teacher=f"{folder}/{way},0")
    recipe = load_recipe("base", [f"{key}={value}" for key, value in keys.items()])
    plan = make_plan(recipe)
    teacher = teacher_module.labels_of(plan.teacher, recipe, len(plan.records), plan.devices[0])
    generation = Generation(plan, RunFolder(recipe.out, recipe, plan.trained_on), teacher, 1)
    generation._start(None)

    def step() -> None:
        means = Means([*plan.objective.outputs, *plan.objective.gradients], batch)
        generation._train_step(means)
        means.take()
        mx.nd.waitall()

    return step


def computed(way: str) -> float:
    """Return FLOPs of a step by those of a step without a teacher."""
    from vargface.eval.flops import network_cost
    from vargface.symbols import vargfacenet

    student = 3 * network_cost(vargfacenet.get_symbol()).flops
    return 1 + (network_cost(teacher_symbol(way)).flops / student if way in ("y1", "r50", "r100") else 0)


def main() -> None:
    """Print the table, or answer as the worker of one way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        answer(training_step(options.folder, options.way, options.batch), CLOCKS[options.clock])
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder / "data")
        for way in {*options.ways, "y1"} - {"plain", "store"}:
            make_teacher(folder, way)
        make_store(folder / "store", folder / "data", f"{folder}/y1,0")
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        command = [
            sys.executable,
            __file__,
            "--folder",
            name,
            "--batch",
            str(options.batch),
            "--clock",
            options.clock,
            "--way",
        ]
        workers = {way: Worker([*command, way], environment) for way in options.ways}
        seconds = taking_turns(workers, options.rounds)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    first = medians[options.ways[0]]
    settings = f"batch {options.batch}, {options.threads} threads, {options.clock} time"
    print(f"VarGFaceNet x 1.25, {settings}, median of {options.rounds} steps")
    print(f"{'way':<38}  {'ms/img':>6}  measured  computed")
    for way, median in medians.items():
        print(f"{WAYS[way]:<38}  {1000 * median / options.batch:>6.1f}  {median / first:>8.3f}  {computed(way):>8.2f}")


if __name__ == "__main__":
    main()
