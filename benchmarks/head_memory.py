"""Peak memory and time of one training step of the head: ours against InsightFace's formula.

    python benchmarks/head_memory.py [--classes 93431] [--size 512] [--batch 128 512]

Every head runs in a process of its own: `peak` is how far the resident set rose from before the bind to the highest
point of three steps. Four arrays of the weight's size are in it whichever the head (weight, normalised weight, and the
gradient of each); `over weights` is the rest. `ratio` is the figure over ours.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time

from vargface.runtime import mx
from vargface.symbols import margin_softmax

HEADS = ("insightface", "vargface")


def insightface_head(embedding: mx.sym.Symbol, label: mx.sym.Symbol, classes: int, size: int) -> mx.sym.Symbol:
    """Return ArcFace as InsightFace's graph computes it: softmax output and logged cross-entropy."""
    sym, scale, m2 = mx.sym, 64.0, 0.5
    weight = sym.L2Normalization(sym.Variable("fc7_weight", shape=(classes, size)), mode="instance")
    embedding = sym.L2Normalization(embedding, mode="instance") * scale
    logits = sym.FullyConnected(embedding, weight, no_bias=True, num_hidden=classes)
    of_label = sym.pick(logits, label, axis=1)
    with_margin = sym.cos(sym.arccos(of_label / scale) + m2) * scale
    change = sym.expand_dims(with_margin - of_label, axis=1)
    logits = logits + sym.broadcast_mul(sym.one_hot(label, depth=classes), change)
    minus_one_at_label = sym.one_hot(label, depth=classes, on_value=-1.0, off_value=0.0)
    cross_entropy = sym.sum(sym.log(sym.SoftmaxActivation(logits)) * minus_one_at_label)
    return sym.Group([sym.SoftmaxOutput(logits, label, normalization="valid"), sym.BlockGrad(cross_entropy)])


def resident(field: str) -> float:
    """Return this process's VmRSS (now) or VmHWM (highest) in MiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024


def measure(head: str, classes: int, size: int, batch: int, steps: int = 3) -> dict[str, float]:
    """Return {"peak": MiB, "seconds": the best step's} of a head, on the CPU."""
    embedding, label = mx.sym.Variable("embedding"), mx.sym.Variable("label")
    if head == "insightface":
        symbol = insightface_head(embedding, label, classes, size)
    else:
        outputs = margin_softmax.get_symbol(embedding, label, num_classes=classes, embedding_size=size)
        symbol = mx.sym.Group(list(outputs))
    before = resident("VmRSS")
    bound = symbol.simple_bind(
        mx.cpu(),
        embedding=(batch, size),
        label=(batch,),
        type_dict={"embedding": "float32", "label": "float32"},
        grad_req={"embedding": "write", "fc7_weight": "write", "label": "null"},
    )
    bound.arg_dict["embedding"][:] = mx.nd.random.normal(shape=(batch, size))
    mx.nd.random.normal(0, 0.01, shape=(classes, size), out=bound.arg_dict["fc7_weight"])
    bound.arg_dict["label"][:] = mx.nd.random.randint(0, classes, shape=(batch,)).astype("float32")
    mx.nd.waitall()
    seconds = math.inf
    for _ in range(steps):
        started = time.perf_counter()
        bound.forward(is_train=True)
        bound.backward()
        mx.nd.waitall()
        seconds = min(seconds, time.perf_counter() - started)
    return {"peak": resident("VmHWM") - before, "seconds": seconds}


def in_a_process(head: str, classes: int, size: int, batch: int) -> dict[str, float]:
    """Return `measure` of a fresh process."""
    command = [sys.executable, __file__, "--one", head, "--classes", classes, "--size", size, "--batch", batch]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    finished = subprocess.run(list(map(str, command)), env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def main() -> None:
    """Print the table, or the figures of one head as JSON for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=93_431, help="default: those of ms1m-retinaface-t1")
    parser.add_argument("--size", type=int, default=512, help="embedding size")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--one", choices=HEADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.classes, options.size, options.batch[0])))
        return
    weights = 4 * options.classes * options.size * 4 / 2**20
    print(f"{options.classes} classes, {options.size}-d, float32")
    print(*("batch", "head       ", "peak MiB", "ratio", "over weights", "ratio", "s/step"), sep="  ")
    for batch in options.batch:
        figures = {head: in_a_process(head, options.classes, options.size, batch) for head in HEADS}
        ours = figures["vargface"]["peak"]
        for head, figure in figures.items():
            peak = figure["peak"]
            over, ratio_over = peak - weights, (peak - weights) / (ours - weights)
            print(
                f"{batch:>5}  {head:<11}  {peak:>8.0f}  {peak / ours:>5.2f}  {over:>12.0f}  {ratio_over:>5.2f}"
                f"  {figure['seconds']:>6.2f}"
            )


if __name__ == "__main__":
    main()
