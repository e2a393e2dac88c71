"""The graph that MXNet runs fastest on a CPU for a folded network: only primitives of MKLDNN, each in MKLDNN's layout.

* PReLU is g*x + (1 - g)*relu(x): a ReLU and a 1x1 depthwise convolution that MKLDNN adds to it in one pass. Where only
  convolutions follow, the factor 1 - g goes into their weights, which leaves relu(x) + g/(1 - g)*x.
* With AVX-512 MKLDNN blocks 16 channels, and a convolution of 8 channels a group runs at half speed and in a layout
  that no neighbour shares. Two such groups side by side, zeros between them, take the same time and share it.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np

from vargface.checkpoint import Checkpoint
from vargface.deploy.network import LINEAR, Layer, Network

__all__ = ["BLOCK", "fast_form", "side_by_side", "split_prelus"]

# channels in a block of AVX-512
BLOCK = 16
# a slope nearer to 1 than this would make g / (1 - g) a large number
NEAR_ONE = 1e-2


def fast_form(network: Network, block: int | None = None) -> Checkpoint:
    """Return `network` as a symbol and arrays for MXNet, computing the same.

    block: channels that a group of a convolution is filled up to, 0 for as they are; default: 16 with AVX-512.
    """
    block = (BLOCK if _has_avx512() else 0) if block is None else block
    if block:
        network = side_by_side(network, block)
    return split_prelus(network).checkpoint()


def side_by_side(network: Network, block: int) -> Network:
    """Return `network`, groups of less than `block` channels put side by side in one, with zeros between them.

    As many as fill a block and divide the number of groups; depthwise convolutions stay as they are.
    """
    arrays, layers = dict(network.arrays), []
    for layer in network.layers:
        groups = layer.get("num_group", 1)
        if layer.op == "Convolution" and groups > 1:
            weight = arrays[layer.inputs[1]]
            together = block // weight.shape[1]
            if weight.shape[1] > 1 and together > 1 and groups % together == 0:
                name = f"{layer.name}_wide_weight"
                arrays[name] = _block_diagonal(weight, groups, together)
                inputs = (layer.inputs[0], name, *layer.inputs[2:])
                layer = replace(layer, inputs=inputs, attrs={**layer.attrs, "num_group": str(groups // together)})
        layers.append(layer)
    return network.with_layers(layers, arrays)


def _block_diagonal(weight: np.ndarray, groups: int, together: int) -> np.ndarray:
    """Return `weight` (O, I, h, w) as (O, I * together, h, w): each output channel sees its own group's part alone."""
    outputs, inputs, *kernel = weight.shape
    wide = np.zeros((groups, outputs // groups, together, inputs, *kernel), weight.dtype)
    of_group = weight.reshape(groups, outputs // groups, inputs, *kernel)
    for group in range(groups):
        wide[group, :, group % together] = of_group[group]
    return wide.reshape(outputs, together * inputs, *kernel)


def split_prelus(network: Network) -> Network:
    """Return `network` with its PReLUs on images as ReLUs and 1x1 depthwise convolutions."""
    arrays, layers = dict(network.arrays), []
    factors: dict[str, np.ndarray] = {}  # PReLU -> what the layers behind it still have to multiply its channels by
    shapes = network.image_channels()
    for layer in network.layers:
        if layer.op in LINEAR and layer.inputs[0] in factors:
            name = f"{layer.name}_factored_weight"
            arrays[name] = _scale_inputs(layer, arrays[layer.inputs[1]], factors[layer.inputs[0]])
            layer = replace(layer, inputs=(layer.inputs[0], name, *layer.inputs[2:]))
        if layer.op != "LeakyReLU" or layer.get("act_type") != "prelu" or layer.inputs[0] not in shapes:
            layers.append(layer)
            continue
        data, slope = layer.inputs[0], arrays[layer.inputs[1]].astype(np.float64)
        slope = np.broadcast_to(slope, shapes[data])  # one slope for all channels is allowed, too
        positive = Layer("Activation", f"{layer.name}_positive", {"act_type": "relu"}, (data,))
        users = [user for user in network.layers if layer.name in user.inputs]
        absorbed = layer.name != network.output and all(user.op in LINEAR for user in users)
        if absorbed and (np.abs(1 - slope) > NEAR_ONE).all():
            factors[layer.name] = 1 - slope
            terms = [positive, _product(f"{layer.name}_whole", data, slope / (1 - slope), arrays)]
        else:
            rest = _product(f"{layer.name}_rest", positive.name, 1 - slope, arrays)
            terms = [positive, rest, _product(f"{layer.name}_whole", data, slope, arrays)]
        layers += [*terms, Layer("elemwise_add", layer.name, {}, (terms[-1].name, terms[-2].name))]
    return network.with_layers(layers, arrays)


def _scale_inputs(layer: Layer, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return `weight` of a linear layer for inputs whose channels are 1 / factor (C,) of what they were."""
    groups = layer.get("num_group", 1)
    if layer.op == "FullyConnected":  # sees its inputs channel by channel
        factor = np.repeat(factor, weight.shape[1] // len(factor))
    by_group = factor.reshape(groups, 1, -1, *(1 for _ in weight.shape[2:]))
    return (weight.reshape(groups, -1, *weight.shape[1:]) * by_group).reshape(weight.shape).astype(np.float32)


def _product(name: str, data: str, factor: np.ndarray, arrays: dict[str, np.ndarray]) -> Layer:
    """Return the layer `data` (N, C, H, W) * factor (C,), as a convolution."""
    channels = str(len(factor))
    arrays[f"{name}_weight"] = factor.reshape(-1, 1, 1, 1).astype(np.float32)
    attrs = {"num_filter": channels, "num_group": channels, "kernel": "(1, 1)", "no_bias": "True"}
    return Layer("Convolution", name, attrs, (data, f"{name}_weight"))


@functools.lru_cache(maxsize=None)
def _has_avx512() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.is_file() and " avx512f " in cpu.read_text()
