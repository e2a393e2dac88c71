"""Step time and memory of the head by the number of classes: all of them, a tenth of them, at most so many of them.

    python benchmarks/sampled_head.py [--classes 10000 ...] [--batch 64] [--picture FILE.png] [--figures FILE.json]

The head alone, on embeddings of 512 numbers that are given: forward, backward, the look for numbers that are not
finite, the update of the centres with momentum; for a share also the draw of the classes and the rows' way from the
table and back. One thread, every head in a process of its own. `s/step` is the processor's time of the best of the
steps after the first, so that other work on the machine counts little; `steps` the memory that the process holds then;
`peak` the most it held. What needs more memory than is free is not run. With `--figures` a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from head_memory import resident

from vargface.recipe import load_recipe
from vargface.runtime import mx
from vargface.symbols import margin_softmax
from vargface.training.centres import OFFSET, WEIGHT, Centres, classes_taken
from vargface.training.optimiser import init_optimizer
from vargface.training.step import Step
from vargface.training.team import Team

SIZE = 512
# name -> keys of the recipe
HEADS = {
    "full": [],
    "share 0.1": ["class_share=0.1"],
    "at most 10,000": ["class_share=0.1", "class_limit=10000"],
}
# arrays of the table's size at the peak: the full head's weight, normalised weight, their gradients, momentum, a copy
TABLES = {True: 6, False: 2}
SPARE_GB = 2.0


def measure(head: str, classes: int, batch: int, steps: int) -> dict[str, float]:
    """Return {"seconds": the best step's, "steps" and "peak": MiB, "taken": classes that a step works on}."""
    keys = [*HEADS[head], f"batch_size={batch}", f"embedding_size={SIZE}", "schedule=poly", "workers=0"]
    recipe, team = load_recipe("base", keys), Team()
    taken, sampled = classes_taken(recipe, classes), bool(recipe.class_share)
    data, label = mx.sym.Variable("data"), mx.sym.Variable("softmax_label")
    # without a parameter of its own, a module has nothing to update
    embedding = mx.sym.broadcast_mul(data, mx.sym.Variable("gain", shape=(1, SIZE), init=mx.init.One()))
    settings = {"num_classes": taken, "embedding_size": SIZE, "offset": mx.sym.Variable(OFFSET) if sampled else None}
    outputs = margin_softmax.get_symbol(embedding, label, **settings)
    states = [WEIGHT, OFFSET] if sampled else []
    module = mx.mod.Module(outputs.loss, label_names=["softmax_label"], state_names=states, context=mx.cpu())
    learnt = {"gain": "write", WEIGHT: "write", OFFSET: "null"}
    module.bind([("data", (batch, SIZE))], [("softmax_label", (batch,))], grad_req=learnt)
    module.init_params(mx.init.Normal(0.01))
    init_optimizer(module, recipe, team)
    centres = Centres(recipe, classes, team, module) if sampled else None
    if centres is not None:
        centres.start(None, 0, with_momentum=False)
    step, random, seconds = Step(module, ["loss"], 1, team=team, centres=centres), np.random.default_rng(0), []
    for number in range(steps + 1):
        labels, images = random.integers(0, classes, batch), random.normal(size=(batch, SIZE))
        mx.nd.waitall()
        started = time.process_time()
        if centres is not None:
            labels = centres.take(labels, (0, number), number)
        step(mx.io.DataBatch([mx.nd.array(images)], [mx.nd.array(labels)], index=np.arange(batch)))
        mx.nd.waitall()
        seconds.append(time.process_time() - started)
    return {"seconds": min(seconds[1:]), "steps": resident("VmRSS"), "peak": resident("VmHWM"), "taken": taken}


def in_a_process(head: str, classes: int, batch: int, steps: int) -> dict[str, float] | None:
    """Return `measure` of a fresh process, None where there is not the memory for it."""
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable")) / 2**20
    if TABLES[head == "full"] * classes * SIZE * 4 / 2**30 + SPARE_GB > free:
        return None
    command = [sys.executable, __file__, "--one", head, "--classes", classes, "--batch", batch, "--steps", steps]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    finished = subprocess.run(list(map(str, command)), env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def draw(figures: dict[tuple[str, int], dict[str, float]], batch: int, path: Path) -> None:
    """Draw step time and memory against the number of classes, a line a head."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, key, scale, title in zip(axes, ("seconds", "steps"), (1, 1024), ("seconds a step", "GiB while stepping")):
        for head in HEADS:
            points = sorted((classes, found[key] / scale) for (of, classes), found in figures.items() if of == head)
            axis.loglog(*zip(*points), marker="o", label=head)
        axis.set(xlabel="classes", title=f"{title}, batch {batch}")
        axis.grid(which="both", alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Print the table, or the figures of one head as JSON for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 2_000_000])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="timed, after one that is not")
    parser.add_argument("--picture", type=Path, help="where to draw it")
    parser.add_argument("--figures", type=Path, help="where they are kept, JSON")
    parser.add_argument("--one", choices=HEADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.classes[0], options.batch, options.steps)))
        return
    known = json.loads(options.figures.read_text()) if options.figures and options.figures.exists() else []
    figures = {(row["head"], row["classes"]): row for row in known}
    print(f"batch {options.batch}, {SIZE}-d, float32")
    print(f"{'classes':>9}  {'head':<14}  {'taken':>9}  {'s/step':>7}  {'steps MiB':>9}  {'peak MiB':>9}")
    for classes in options.classes:
        for head in HEADS:
            found = figures.get((head, classes)) or in_a_process(head, classes, options.batch, options.steps)
            if found is None:
                print(f"{classes:>9}  {head:<14}  not run: not enough memory is free", flush=True)
                continue
            figures[head, classes] = {**found, "head": head, "classes": classes}
            if options.figures:
                options.figures.write_text(json.dumps(list(figures.values()), indent=1))
            row = f"{found['taken']:>9}  {found['seconds']:>7.3f}  {found['steps']:>9.0f}  {found['peak']:>9.0f}"
            print(f"{classes:>9}  {head:<14}  {row}", flush=True)
    if options.picture:
        draw(figures, options.batch, options.picture)


if __name__ == "__main__":
    main()
