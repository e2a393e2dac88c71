"""What a network costs as the LFR challenge (ICCV 2019) counts it: convolutions and fully connected layers, no more.

conv = (2 * Cin * kh * kw - 1) * Cout * Hout * Wout / groups without a bias, 2 * Cin * kh * kw * Cout * Hout * Wout /
groups with one, rounded down; Cin is ALL input channels, so that the `- 1` is divided by the groups too. FC = 2 * in *
out, less `out` without a bias. Batch norm, activations, pooling, sums and the scaling of the input are free.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import re
from typing import Any

__all__ = ["LayerCost", "NetworkCost", "network_cost"]

FLOAT_BYTES = 4
COUNTED = ("Convolution", "FullyConnected")
# what the names of other operators that multiply matrices have in common, MXNet's numpy ones among them
MULTIPLYING = re.compile(r"convol|correlation|dot|gemm|matmul|einsum|rnn|selfatt|syrk|trmm|khatri", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One node that computes or holds parameters; a parameter shared by several nodes is counted at the first."""

    name: str
    op: str
    output_shape: tuple[int, ...]  # of one image: without the batch axis
    flops: int
    macs: int
    params: int
    aux_params: int


@dataclasses.dataclass(frozen=True)
class NetworkCost:
    """Cost of one image's forward pass, and of the parameters that it needs."""

    layers: tuple[LayerCost, ...]
    fixed_gammas: int  # of `params`: held at 1 by fix_gamma, though the published counts call them learnable
    file_bytes: int  # of the float32 .params file that MXNet 1.9 writes
    uncounted: tuple[str, ...]  # nodes that multiply matrices and of which `flops` and `macs` have nothing

    @property
    def warning(self) -> str:
        """What `flops` leaves out, in a sentence; "" where it is all."""
        if not self.uncounted:
            return ""
        names = ", ".join(self.uncounted[:3]) + (", ..." if len(self.uncounted) > 3 else "")
        return (
            f"not in these FLOPs: {len(self.uncounted)} nodes that multiply ({names}), for the challenge counts "
            "Convolution and FullyConnected alone - add theirs by hand"
        )

    @property
    def flops(self) -> int:
        """Operations as the challenge counts them."""
        return sum(layer.flops for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the same layers, biases left out."""
        return sum(layer.macs for layer in self.layers)

    @property
    def params(self) -> int:
        """Learnable parameters as published: everything MXNet saves under `arg:`."""
        return sum(layer.params for layer in self.layers)

    @property
    def aux_params(self) -> int:
        """Moving means and variances, saved under `aux:`."""
        return sum(layer.aux_params for layer in self.layers)

    @property
    def payload_bytes(self) -> int:
        """Bytes of all values in float32."""
        return FLOAT_BYTES * (self.params + self.aux_params)


def _conv_cost(node: dict, data: tuple[int, ...], output: tuple[int, ...]) -> tuple[int, int]:
    attrs = node["attrs"]
    kernel, groups = ast.literal_eval(attrs["kernel"]), int(attrs.get("num_group", 1))
    taps = data[1] * math.prod(kernel)
    outputs = math.prod(output[1:])
    has_bias = len(node["inputs"]) > 2
    return (2 * taps - (not has_bias)) * outputs // groups, taps * outputs // groups


def _dense_cost(node: dict, weight: tuple[int, ...], output: tuple[int, ...]) -> tuple[int, int]:
    has_bias = len(node["inputs"]) > 2
    outputs = math.prod(output[1:])
    macs = weight[1] * outputs
    return 2 * macs - (0 if has_bias else outputs), macs


def _cost_of(node: dict, shapes: dict[tuple[int, int], tuple[int, ...]], output: tuple[int, ...]) -> tuple[int, int]:
    if node["op"] == "Convolution":
        return _conv_cost(node, shapes[tuple(node["inputs"][0][:2])], output)
    if node["op"] == "FullyConnected":
        return _dense_cost(node, shapes[tuple(node["inputs"][1][:2])], output)
    return 0, 0


def _fixes_gamma(node: dict) -> bool:
    """Return what fix_gamma says; MXNet's default is True, and it takes a number for a bool."""
    return node.get("attrs", {}).get("fix_gamma", "True").lower() in ("true", "1")


def _saved_bytes(names: list[str], shapes: list[tuple[int, ...]]) -> int:
    """Bytes of a .params file: magic, reserved, two counts; each array its head, axes and values, and its name."""
    arrays = sum(4 + 4 + 4 + 8 * len(shape) + 8 + 4 + FLOAT_BYTES * math.prod(shape) for shape in shapes)
    return 4 * 8 + arrays + sum(8 + len(f"arg:{name}".encode()) for name in names)


def _node_shapes(
    symbol: Any, inputs: dict[str, tuple[int, ...]]
) -> tuple[list[dict], dict[tuple[int, int], tuple[int, ...]]]:
    """Return the graph's nodes and the shape of every (node, output); names alone could be ambiguous."""
    internals = symbol.get_internals()
    graph = json.loads(internals.tojson())
    _, shapes, _ = internals.infer_shape(**inputs)
    if shapes is None:
        raise ValueError(f"shapes do not follow from {inputs}: give those of the symbol's other inputs too")
    return graph["nodes"], {tuple(head[:2]): tuple(shape) for head, shape in zip(graph["heads"], shapes)}


def network_cost(
    symbol: Any, input_shape: tuple[int, ...] = (3, 112, 112), **other_inputs: tuple[int, ...]
) -> NetworkCost:
    """Return FLOPs, MACs, parameters and file size of an MXNet `symbol` (NCHW), in total and by layer.

    input_shape: of one image, the input `data`. other_inputs: shapes, batch axis of 1 included, of the symbol's inputs
    that are neither `data` nor parameters (labels). Raises ValueError if shapes cannot be inferred from these.
    """
    inputs = {"data": (1, *input_shape), **other_inputs}
    nodes, shapes = _node_shapes(symbol, inputs)
    aux = set(symbol.list_auxiliary_states())
    layers, seen, fixed_gammas, uncounted = [], {}, 0, []
    for index, node in enumerate(nodes):
        if node["op"] == "null":
            continue
        sizes = {"arg": 0, "aux": 0}
        for position, (source, *_) in enumerate(node["inputs"]):
            name = nodes[source]["name"]
            if nodes[source]["op"] != "null" or name in inputs or name in seen:
                continue
            seen[name] = shapes[source, 0]
            sizes["aux" if name in aux else "arg"] += math.prod(seen[name])
            if node["op"] == "BatchNorm" and position == 1 and _fixes_gamma(node):
                fixed_gammas += math.prod(seen[name])
        if node["op"] not in COUNTED and MULTIPLYING.search(node["op"]):
            uncounted.append(node["name"])
        output = shapes[index, 0]
        flops, macs = _cost_of(node, shapes, output)
        if flops or any(sizes.values()):
            layers.append(LayerCost(node["name"], node["op"], output[1:], flops, macs, sizes["arg"], sizes["aux"]))
    saved = _saved_bytes(list(seen), list(seen.values()))
    return NetworkCost(tuple(layers), fixed_gammas, saved, tuple(uncounted))
