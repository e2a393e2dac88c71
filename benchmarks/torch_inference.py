"""The PyTorch worker of inference.py: a checkpoint's own graph and weights as eager PyTorch functions.

    TORCH_PYTHON benchmarks/torch_inference.py GRAPH.json WEIGHTS.npz BATCH THREADS CLOCK FORM

It needs `torch` and numpy alone, so an environment without MXNet can run it. FORM: `eager`, or `compiled` by
torch.compile, which needs a C++ compiler and half a minute. Its first line has the largest difference of its unit
embedding to MXNet's (in WEIGHTS.npz), of one image.
"""

from __future__ import annotations

import json
import sys
import time

started = time.perf_counter()

import numpy as np  # noqa: E402 - loading is part of what is timed
import torch  # noqa: E402
from inference import answer  # noqa: E402 - beside this file; of the standard library alone until it is asked for more
from torch_step import Network  # noqa: E402


def load(graph: str, weights: str, image: np.ndarray) -> Network:
    """Return the network in `graph` with `weights`, ready to infer."""
    with open(graph) as file:
        network = Network(json.load(file))
    network(torch.from_numpy(np.repeat(image, 2, 0)).float())  # makes the parameters; two, for norms that still learn
    arrays = {name: torch.from_numpy(array) for name, array in np.load(weights).items()}
    for name, value in network.weights.items():
        value.data.copy_(arrays[name])
    for name, norm in network.norms.items():
        norm.weight.data.copy_(arrays[f"{name}_gamma"])
        norm.bias.data.copy_(arrays[f"{name}_beta"])
        norm.running_mean.copy_(arrays[f"{name}_moving_mean"])
        norm.running_var.copy_(arrays[f"{name}_moving_var"])
    return network.eval().requires_grad_(False)


def main() -> None:
    """Answer as the worker of PyTorch."""
    graph, weights, batch, threads, clock, form = sys.argv[1:]
    torch.set_num_threads(int(threads))
    saved = np.load(weights)
    image, expected = saved["image"], saved["embedding"]
    with torch.inference_mode():
        network = load(graph, weights, image)
        if form == "compiled":
            network = torch.compile(network)

        def embed(images: np.ndarray) -> np.ndarray:
            return network(torch.from_numpy(images.astype(np.float32))).numpy()

        found = embed(np.repeat(image, int(batch), 0))[:1]
        loaded = time.perf_counter() - started
        apart = np.abs(found / np.linalg.norm(found) - expected / np.linalg.norm(expected)).max()
        images = np.random.default_rng(0).integers(0, 256, (int(batch), 3, 112, 112), np.uint8)
        answer(embed, images, loaded, clock, apart=float(apart))


if __name__ == "__main__":
    main()
