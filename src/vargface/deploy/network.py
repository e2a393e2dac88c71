"""A network as deployment sees it: a short list of layers with their arrays, batch norms folded, training's nodes gone.

Both targets are made from it, the graph that MXNet runs (`fast_form.py`) and the ONNX file (`onnx_file.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vargface.checkpoint import Checkpoint
from vargface.graph import attribute
from vargface.runtime import mx

__all__ = ["INPUT", "Layer", "Network", "fold"]

INPUT = "data"
# what inference passes through unchanged
NO_OPS = ("_copy", "identity", "Dropout", "BlockGrad")
# checkpoints that were trained in half precision cast to it and back; here all is float32
CASTS = ("Cast", "amp_cast")
# layers that are linear in each output channel, behind which a batch norm can be folded
LINEAR = ("Convolution", "FullyConnected")


@dataclass(frozen=True)
class Layer:
    """An MXNet operator: its name is that of its output; `inputs` are names of layers, arrays or INPUT.

    A further output of a layer is NAME:1, NAME:2, ...
    """

    op: str
    name: str
    attrs: dict[str, str]
    inputs: tuple[str, ...]

    def get(self, key: str, default: Any = None) -> Any:
        """Return attribute `key` as Python's value (`graph.attribute`)."""
        return attribute(self.attrs, key, default)


@dataclass(frozen=True)
class Network:
    """Layers in an order in which each follows its inputs, the arrays (name -> float32), and the result's name.

    auxiliary: names of arrays that are MXNet's auxiliary states.
    """

    layers: tuple[Layer, ...]
    arrays: dict[str, np.ndarray]
    auxiliary: frozenset[str]
    output: str

    def uses(self) -> Counter:
        """Return how many inputs each name feeds, the result counting as one."""
        uses = Counter(name for layer in self.layers for name in layer.inputs)
        uses[self.output] += 1
        return uses

    def with_layers(self, layers: list[Layer], arrays: dict[str, np.ndarray]) -> Network:
        """Return this network made of `layers`, with those of `arrays` that they use."""
        used = {name for layer in layers for name in layer.inputs}
        kept = {name: array for name, array in arrays.items() if name in used}
        return replace(self, layers=tuple(layers), arrays=kept, auxiliary=self.auxiliary & set(kept))

    def symbol(self) -> mx.sym.Symbol:
        """Return the network for MXNet: input `data`, the arrays by their names."""
        nodes: list[dict] = []
        place: dict[str, int] = {}

        def entry(name: str) -> list[int]:
            name, _, output = name.partition(":")
            if name not in place:  # the input, or an array
                attrs = {"__shape__": str(self.arrays[name].shape)} if name in self.arrays else {}
                add({"op": "null", "name": name, "attrs": attrs, "inputs": []})
            return [place[name], int(output or 0), 0]

        def add(node: dict) -> None:
            place[node["name"]] = len(nodes)
            nodes.append(node)

        for layer in self.layers:
            inputs = [entry(name) for name in layer.inputs]
            add({"op": layer.op, "name": layer.name, "attrs": layer.attrs, "inputs": inputs})
        variables = [index for index, node in enumerate(nodes) if node["op"] == "null"]
        graph = {"nodes": nodes, "arg_nodes": variables, "heads": [entry(self.output)]}
        return mx.sym.load_json(json.dumps({**graph, "attrs": {"mxnet_version": ["int", 10901]}}))

    def checkpoint(self) -> Checkpoint:
        """Return the network with its arrays as MXNet's."""
        arrays = {name: mx.nd.array(array) for name, array in self.arrays.items()}
        auxs = {name: arrays.pop(name) for name in self.auxiliary}
        return Checkpoint(self.symbol(), arrays, auxs, "folded")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every layer's first output for one image, by name."""
        internals = self.symbol().get_internals()
        _, shapes, _ = internals.infer_shape(data=(1, 3, 112, 112))
        outputs = zip(internals.list_outputs(), shapes)
        return {name[: -len("_output")]: shape for name, shape in outputs if name.endswith("_output")}

    def image_channels(self) -> dict[str, int]:
        """Return the number of channels of every layer's first output that is (N, C, H, W), by name."""
        return {name: shape[1] for name, shape in self.shapes().items() if len(shape) == 4}


def fold(checkpoint: Checkpoint) -> Network:
    """Return `checkpoint` for inference: without dropout, batch norms folded into the layer before or dense one behind.

    A batch norm in front of a padded convolution stays: the padding's zeros come after it.
    """
    return _fold_forwards(_fold_backwards(_read(checkpoint)))


def _read(checkpoint: Checkpoint) -> Network:
    """Return the checkpoint's network as it is, but for what inference passes through."""
    graph = json.loads(checkpoint.symbol.tojson())
    names: list[str] = []  # of each node's output
    taken: set[str] = set()
    layers = []
    for node in graph["nodes"]:
        inputs = tuple(names[index] + (f":{output}" if output else "") for index, output, *_ in node["inputs"])
        if node["op"] in NO_OPS or (node["op"] in CASTS and node["attrs"]["dtype"].startswith("float")):
            names.append(inputs[0])
            continue
        name = node["name"]
        while name in taken:  # MXNet lets operators share a name
            name += "_"
        taken.add(name)
        names.append(name)
        if node["op"] != "null":
            layers.append(Layer(node["op"], name, node.get("attrs", {}), inputs))
    arrays = {
        name: array.asnumpy().astype(np.float32) for name, array in {**checkpoint.args, **checkpoint.auxs}.items()
    }
    return Network(tuple(layers), arrays, frozenset(checkpoint.auxs), names[graph["heads"][0][0]])


def _scale_and_shift(norm: Layer, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return what a batch norm multiplies by and adds, each (C,) float64."""
    gamma, beta, mean, variance = (arrays[name].astype(np.float64) for name in norm.inputs[1:])
    if norm.get("fix_gamma", True):  # whatever the array holds
        gamma = np.ones_like(gamma)
    scale = gamma / np.sqrt(variance + norm.get("eps", 1e-3))
    return scale, beta - mean * scale


def _fold_backwards(network: Network) -> Network:
    """Fold each batch norm into the convolution or dense layer whose only user it is."""
    uses, arrays = network.uses(), dict(network.arrays)
    layers: list[Layer] = []
    place: dict[str, int] = {}
    for layer in network.layers:
        before = layers[place[layer.inputs[0]]] if layer.inputs[0] in place else None
        foldable = layer.op == "BatchNorm" and layer.get("axis", 1) == 1
        if foldable and before is not None and before.op in LINEAR and uses[before.name] == 1:
            scale, shift = _scale_and_shift(layer, arrays)
            weight, *bias = (arrays[name] for name in before.inputs[1:])
            shift = shift + scale * bias[0] if bias else shift
            by_channel = scale.reshape(-1, *(1 for _ in weight.shape[1:]))
            folded = _linear(before, layer.name, before.inputs[0], weight * by_channel, shift, arrays)
            layers[place[before.name]] = folded
            place[layer.name] = place[before.name]
        else:
            place[layer.name] = len(layers)
            layers.append(layer)
    return network.with_layers(layers, arrays)


def _fold_forwards(network: Network) -> Network:
    """Fold each batch norm whose only user is a dense layer, flattened or not, into that."""
    uses, arrays = network.uses(), dict(network.arrays)
    by_name = {layer.name: layer for layer in network.layers}
    gone: dict[str, str] = {}  # folded batch norm -> its input
    changed: dict[str, Layer] = {}
    for layer in network.layers:
        if layer.op != "FullyConnected":
            continue
        norm = by_name.get(layer.inputs[0])
        if norm is not None and norm.op == "Flatten" and uses[norm.name] == 1:
            norm = by_name.get(norm.inputs[0])
        if norm is None or norm.op != "BatchNorm" or norm.get("axis", 1) != 1 or uses[norm.name] != 1:
            continue
        scale, shift = _scale_and_shift(norm, arrays)
        weight, *bias = (arrays[name].astype(np.float64) for name in layer.inputs[1:])
        # a dense layer sees its inputs channel by channel
        each = weight.shape[1] // len(scale)
        bias = weight @ np.repeat(shift, each) + (bias[0] if bias else 0)
        changed[layer.name] = _linear(layer, layer.name, layer.inputs[0], weight * np.repeat(scale, each), bias, arrays)
        gone[norm.name] = norm.inputs[0]
    layers = []
    for layer in network.layers:
        if layer.name not in gone:
            layer = changed.get(layer.name, layer)
            layers.append(replace(layer, inputs=tuple(gone.get(name, name) for name in layer.inputs)))
    return network.with_layers(layers, arrays)


def _linear(
    layer: Layer, name: str, data: str, weight: np.ndarray, bias: np.ndarray, arrays: dict[str, np.ndarray]
) -> Layer:
    """Return `layer` under a new name with these arrays, which go into `arrays`."""
    inputs = (data, f"{name}_folded_weight", f"{name}_folded_bias")
    arrays[inputs[1]], arrays[inputs[2]] = weight.astype(np.float32), bias.astype(np.float32)
    return Layer(layer.op, name, {**layer.attrs, "no_bias": "False"}, inputs)
