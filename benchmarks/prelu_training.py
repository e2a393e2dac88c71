"""What MXNet's wrong PReLU gradient does to training: the same seed with the native graph and with the right one.

    python benchmarks/prelu_training.py DATA [--teacher PREFIX,EPOCH] [--seeds 2] [KEY=VALUE ...]

DATA is an InsightFace folder with packs (`vargface synth`); KEY=VALUE go into the demo student's recipe, one generation
of it. Each training runs in a process of its own, once with MKLDNN (MXNet's default: 4 of the 82 slopes are wrong) and
once without (all are; docs/prelu.md). Columns, mean and standard deviation over seeds: both losses over the last tenth
of the steps, how far a slope moved from where it started (mean of |slope - 0.25|), the share of slopes below 0.25,
accuracy over the packs; and the same of the differences, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

GRAPHS = ("right", "native")
COLUMNS = ("margin loss", "distillation loss", "slopes moved", "slopes below 0.25", "accuracy %")


def train_once(graph: str, keys: Sequence[str]) -> dict[str, float]:
    """Return the figures of one training in this process."""
    from vargface import runtime

    runtime.prepare_for_training()
    from vargface import graph as rewrites
    from vargface.checkpoint import load_checkpoint
    from vargface.recipe import load_recipe
    from vargface.training import fit
    from vargface.training.report import history_of

    if graph == "native":  # PReLU stays as it is, the other rewrites are made
        rewrites._prelu = lambda place, write: None
    with tempfile.TemporaryDirectory() as out:
        (folder,) = fit.train(load_recipe("demo_student", ["generations=1", "log_every=1", *keys, f"out={out}"]))
        log = history_of(out).log
        checkpoint = load_checkpoint(folder.model(folder.result["last"]))
        packs = folder.result["packs"].values()
    nodes = json.loads(checkpoint.symbol.tojson())["nodes"]
    names = [nodes[node["inputs"][1][0]]["name"] for node in nodes if node["op"] == "LeakyReLU"]
    slopes = np.concatenate([checkpoint.args[name].asnumpy() for name in names])
    last = -max(len(log["step"]) // 10, 1)
    return dict(
        zip(
            COLUMNS,
            (
                float(log["margin_loss"][last:].mean()),
                float(log["distillation_loss"][last:].mean()) if "distillation_loss" in log else float("nan"),
                float(np.abs(slopes - 0.25).mean()),
                float((slopes < 0.25).mean()),
                100 * float(np.mean([pack["accuracy"] for pack in packs])),
            ),
        )
    )


def in_a_process(graph: str, mkldnn: str, keys: Sequence[str]) -> dict[str, float]:
    """Return `train_once` of a fresh process."""
    command = [sys.executable, __file__, "--one", graph, keys[0].partition("=")[2], *keys[1:]]
    environment = {**os.environ, "MXNET_MKLDNN_ENABLED": mkldnn, "MXNET_STORAGE_FALLBACK_LOG_VERBOSE": "0"}
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def cell(values: np.ndarray) -> str:
    """Return the mean of one column over the seeds, with its standard deviation where there are several."""
    mean = f"{np.mean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2g}"


def main() -> None:
    """Print the table, or the figures of one training as JSON for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--teacher", default="", metavar="PREFIX,EPOCH")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--one", choices=GRAPHS, help=argparse.SUPPRESS)
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    keys = [f"data={options.data}", *options.keys]
    if options.one:
        print(json.dumps(train_once(options.one, keys)))
        return
    keys += [f"teacher={options.teacher}"] * bool(options.teacher)
    print("| MKLDNN | graph | " + " | ".join(COLUMNS) + " |")
    print("|---|---|" + "---|" * len(COLUMNS))
    for mkldnn in ("1", "0"):
        figures = {}
        for graph in GRAPHS:
            runs = [in_a_process(graph, mkldnn, [*keys, f"seed={seed}"]) for seed in range(options.seeds)]
            figures[graph] = np.array([[run[column] for column in COLUMNS] for run in runs])
        figures["native - right"] = figures["native"] - figures["right"]
        for what, values in figures.items():
            cells = " | ".join(map(cell, values.T))
            print(f"| {'on' if mkldnn == '1' else 'off'} | {what} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
