"""Accuracy of a small network whose softmax is over all classes, or over a tenth of them drawn anew each step.

    python benchmarks/sampled_accuracy.py DATA [--seeds 0 1 2] [--steps 800] [--settings SETTING...]

A SETTING is KEY=VALUE,...; as they are: all classes, a tenth, and a tenth without one or both of what it does to be
like all classes; without both it is Partial FC.

DATA is a folder of `vargface synth` with many identities. The network is made for this: four convolutions on a quarter
of the resolution, so that many steps take little. Figures are the mean accuracy over DATA's packs after the last step.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterable

from vargface import runtime

runtime.prepare_for_training()

import numpy as np  # noqa: E402

from vargface.recipe import load_recipe  # noqa: E402
from vargface.runtime import mx  # noqa: E402
from vargface.symbols.layers import batch_norm, embedding_layer, prelu, scaled_input  # noqa: E402
from vargface.training import plan  # noqa: E402
from vargface.training.fit import train  # noqa: E402

SIZE = 64
RECIPE = ["batch_size=64", f"embedding_size={SIZE}", "scale=16", "m2=0.1", "lr=0.1", "schedule=cosine", "context=cpu"]
WATCHING = ["warmup_steps=20", "verify_every=100000", "save_every=100000", "report=False"]
TENTH, AS_ONE, STILL = "class_share=0.1", "class_correction=False", "idle_updates=False"
SETTINGS = ["class_share=0", TENTH, f"{TENTH},{AS_ONE}", f"{TENTH},{STILL}", f"{TENTH},{AS_ONE},{STILL}"]


def network(_recipe: dict) -> mx.sym.Symbol:
    """Return the network, ending in `fc1`."""
    with mx.name.NameManager():
        data = mx.sym.Pooling(scaled_input(), kernel=(4, 4), stride=(4, 4), pool_type="avg", name="coarse")
        for number, filters in enumerate((16, 32, 64, 64)):
            stride = (1, 1) if number == 0 else (2, 2)
            data = mx.sym.Convolution(
                data, num_filter=filters, kernel=(3, 3), stride=stride, pad=(1, 1), no_bias=True, name=f"conv{number}"
            )
            data = prelu(batch_norm(data, f"bn{number}"), f"relu{number}")
        return embedding_layer(data, SIZE, fix_gamma=False)


def accuracy(data: str, steps: int, seed: int, setting: str) -> float:
    """Return the mean accuracy over the packs, in percent."""
    with tempfile.TemporaryDirectory() as out:
        keys = [f"data={data}", f"out={out}/run", f"steps={steps}", f"seed={seed}", *setting.split(",")]
        (folder,) = train(load_recipe("base", [*RECIPE, *WATCHING, *keys]))
        return 100 * float(np.mean([figures["accuracy"] for figures in folder.result["packs"].values()]))


def main() -> None:
    """Print a row a seed, and means with deviations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    options = parser.parse_args()
    logging.getLogger().setLevel(logging.WARNING)
    plan.network_symbol = network
    print("seed  " + "  ".join(options.settings))
    rows = []

    def line(figures: Iterable[float]) -> str:
        return "  ".join(f"{figure:>{len(setting)}.2f}" for figure, setting in zip(figures, options.settings))

    for seed in options.seeds:
        rows.append([accuracy(options.data, options.steps, seed, setting) for setting in options.settings])
        print(f"{seed:>4}  " + line(rows[-1]), flush=True)
    found = np.array(rows)
    print("mean  " + line(found.mean(axis=0)))
    if len(rows) > 1:
        print("sd    " + line(found.std(axis=0, ddof=1)))


if __name__ == "__main__":
    main()
