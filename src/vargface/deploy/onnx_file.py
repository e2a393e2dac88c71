"""A folded network as an ONNX file for ONNX Runtime, and so for `insightface` 0.2 and later.

The graph is written with onnx.helper: MXNet's exporter reads no `fix_gamma`, writes slopes and dense layers that ONNX
Runtime refuses, and keeps every batch norm. Preprocessing is in the graph, in nodes `Sub` and `Mul`, by which
insightface's ArcFaceONNX knows that it may feed RGB 0..255.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from vargface.deploy.fast_form import BLOCK, split_prelus
from vargface.deploy.network import INPUT, Layer, Network
from vargface.errors import InputError
from vargface.files import whole_file
from vargface.packages import require

__all__ = ["OPSET", "export_onnx", "onnx_model"]

# the first with quantisation by channel; ONNX Runtime has it since 1.8
OPSET = 13
# of the file format, as old as that opset
IR_VERSION = 7


def export_onnx(network: Network, path: str | Path, **options: bool) -> None:
    """Write `onnx_model` to `path`. Raises as that, and InputError where the file cannot be written."""
    serialised = onnx_model(network, **options).SerializeToString()
    with whole_file(path) as file:
        file.write(serialised)


def onnx_model(network: Network, *, wide_groups: bool = False, whole_prelus: bool = False):  # noqa: ANN201
    """Return the onnx.ModelProto of `network`, checked: input `data` (N, 3, 112, 112) float32, RGB 0..255, any N; one
    output, the network's (N, D), not normalised.

    wide_groups: put convolution groups of 8 channels side by side in pairs, which ONNX Runtime runs faster on CPUs with
    AVX-512; the zeros between them are not in the file but made when it is loaded. whole_prelus: leave each PReLU one
    operator; otherwise they are split where that is faster.

    Raises InputError for an operator that has no counterpart here.
    """
    onnx = require("onnx", "an ONNX file")
    if not whole_prelus and (wide_groups or not _has_narrow_groups(network)):
        # ONNX Runtime's own PReLU leaves the layout of the convolutions around it, these two operators stay in it;
        # but between groups that are left to slow code there is no such layout
        network = split_prelus(network)
    network = _scaling_first(network)
    graph = _Graph(onnx, network, wide_groups)
    for layer in network.layers:
        if layer.op not in OPERATORS:
            known = ", ".join(sorted(OPERATORS))
            raise InputError(f"{layer.name}: operator {layer.op} cannot be exported - the exporter has {known}")
        OPERATORS[layer.op](graph, layer)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "vargface",
            [helper.make_tensor_value_info(INPUT, kind, ["N", 3, 112, 112])],
            [helper.make_tensor_value_info(network.output, kind, ["N", *network.shapes()[network.output][1:]])],
            [onnx.numpy_helper.from_array(array, name) for name, array in graph.arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="vargface",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _scaling_first(network: Network) -> Network:
    """Return `network` beginning with a subtraction and a product: of nothing, by 1, where it does not scale that way.

    By those two ArcFaceONNX knows that a file takes 0..255; any other it would feed (x - 127.5) / 127.5.
    """

    def users(name: str) -> list[Layer]:
        return [layer for layer in network.layers if name in layer.inputs]

    first = users(INPUT)
    second = users(first[0].name)
    if [[layer.op for layer in layers] for layers in (first, second)] == [["_minus_scalar"], ["_mul_scalar"]]:
        return network
    same = Layer("_minus_scalar", "as_given", {"scalar": "0"}, (INPUT,))
    once = Layer("_mul_scalar", "as_given_times_1", {"scalar": "1"}, (same.name,))
    behind = [
        replace(layer, inputs=tuple(once.name if name == INPUT else name for name in layer.inputs))
        for layer in network.layers
    ]
    return network.with_layers([same, once, *behind], network.arrays)


def _has_narrow_groups(network: Network) -> bool:
    """Return whether a convolution has groups of several channels, but less than one of AVX-512's blocks."""
    convolutions = (layer for layer in network.layers if layer.op == "Convolution" and layer.get("num_group", 1) > 1)
    return any(1 < network.arrays[layer.inputs[1]].shape[1] < BLOCK for layer in convolutions)


class _Graph:
    """Nodes and arrays of an ONNX graph that grows; `images`: names of what has (N, C, H, W)."""

    def __init__(self, onnx, network: Network, wide_groups: bool) -> None:
        self._onnx, self.network, self.wide_groups = onnx, network, wide_groups
        self.images = network.image_channels()
        self.nodes: list = []
        self.arrays: dict[str, np.ndarray] = {}

    def node(self, op: str, name: str, inputs: list[str], *, node_name: str | None = None, **attributes) -> str:
        """Append a node whose output is called `name`, and return that name."""
        self.nodes.append(self._onnx.helper.make_node(op, inputs, [name], name=node_name or name, **attributes))
        return name

    def array(self, name: str, value: np.ndarray | None = None) -> str:
        """Add the network's array `name`, or a new one, and return its name."""
        self.arrays[name] = np.ascontiguousarray(self.network.arrays[name] if value is None else value)
        return name

    def number(self, name: str, value: float) -> str:
        """Add a scalar."""
        return self.array(name, np.array(value, np.float32))


def _scalar(op: str) -> Callable[[_Graph, Layer], None]:
    """Return what writes a layer that combines its input with a number."""

    def write(graph: _Graph, layer: Layer) -> None:
        number = graph.number(f"{layer.name}_scalar", layer.get("scalar"))
        # named for ArcFaceONNX, which looks for these names among the first eight nodes
        graph.node(op, layer.name, [layer.inputs[0], number], node_name=f"{op}_{layer.name}")

    return write


def _same(op: str) -> Callable[[_Graph, Layer], None]:
    """Return what writes a layer for which ONNX has the same operator."""
    return lambda graph, layer: graph.node(op, layer.name, list(layer.inputs)) and None


def _pair(numbers: tuple | None, default: int) -> list[int]:
    return list(numbers) if numbers else [default, default]


def _convolution(graph: _Graph, layer: Layer) -> None:
    groups, kernel = layer.get("num_group", 1), layer.get("kernel")
    weight, *bias = layer.inputs[1:]
    per_group = graph.network.arrays[weight].shape[1]
    weight = graph.array(weight)
    if graph.wide_groups and per_group == 8 and groups > 1 and groups % 2 == 0:
        weight, groups = _in_pairs(graph, layer.name, weight, groups), groups // 2
    graph.node(
        "Conv",
        layer.name,
        [layer.inputs[0], weight, *(graph.array(name) for name in bias)],
        kernel_shape=list(kernel),
        strides=_pair(layer.get("stride"), 1),
        dilations=_pair(layer.get("dilate"), 1),
        pads=_pair(layer.get("pad"), 0) * 2,
        group=groups,
    )


def _in_pairs(graph: _Graph, name: str, weight: str, groups: int) -> str:
    """Return a weight with twice the inputs, for half the groups: zero where an output does not look.

    It is made of nodes that ONNX Runtime works out once when it loads the file, which so holds no zeros.
    """
    outputs = graph.network.arrays[weight].shape[0]
    second = (np.arange(outputs) // (outputs // groups) % 2).astype(np.float32).reshape(-1, 1, 1, 1)
    halves = [
        graph.node(
            "Mul", f"{name}_{half}", [weight, graph.array(f"{name}_{half}_mask", mask)], node_name=f"{name}_{half}"
        )
        for half, mask in (("first", 1 - second), ("second", second))
    ]
    return graph.node("Concat", f"{name}_pairs", halves, axis=1)


def _dense(graph: _Graph, layer: Layer) -> None:
    data = layer.inputs[0]
    if data in graph.images:
        data = graph.node("Flatten", f"{layer.name}_flat", [data])
    graph.node("Gemm", layer.name, [data, *(graph.array(name) for name in layer.inputs[1:])], transB=1)


def _leaky_relu(graph: _Graph, layer: Layer) -> None:
    kind = layer.get("act_type", "leaky")
    if kind == "prelu":
        slope = graph.network.arrays[layer.inputs[1]]
        if layer.inputs[0] in graph.images:  # ONNX aligns shapes at the end: (C,) would be along the width
            slope = slope.reshape(-1, 1, 1)
        slope = graph.array(layer.inputs[1], slope)
        graph.node("PRelu", layer.name, [layer.inputs[0], slope])
    elif kind in ("leaky", "elu"):
        op = {"leaky": "LeakyRelu", "elu": "Elu"}[kind]
        graph.node(op, layer.name, [layer.inputs[0]], alpha=float(layer.get("slope", 0.25)))
    else:
        raise InputError(f"{layer.name}: LeakyReLU of type {kind} cannot be exported - prelu, leaky and elu can")


def _activation(graph: _Graph, layer: Layer) -> None:
    op = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "softrelu": "Softplus"}.get(layer.get("act_type"))
    if op is None:
        raise InputError(f"{layer.name}: Activation of type {layer.get('act_type')} cannot be exported")
    graph.node(op, layer.name, [layer.inputs[0]])


def _pooling(graph: _Graph, layer: Layer) -> None:
    op = {"avg": "AveragePool", "max": "MaxPool"}.get(layer.get("pool_type", "max"))
    if op is None or layer.get("pooling_convention", "valid") != "valid":
        raise InputError(f"{layer.name}: such a Pooling cannot be exported - average and maximum, 'valid', can")
    if layer.get("global_pool", False):
        graph.node(f"Global{op}", layer.name, [layer.inputs[0]])
        return
    extra = {"count_include_pad": 1} if op == "AveragePool" and layer.get("count_include_pad", True) else {}
    graph.node(
        op,
        layer.name,
        [layer.inputs[0]],
        kernel_shape=list(layer.get("kernel")),
        strides=_pair(layer.get("stride"), 1),
        pads=_pair(layer.get("pad"), 0) * 2,
        **extra,
    )


def _batch_norm(graph: _Graph, layer: Layer) -> None:
    """One that could not be folded: in front of a padded convolution."""
    data, gamma, *others = layer.inputs
    value = graph.network.arrays[gamma]
    if layer.get("fix_gamma", True):
        value = np.ones_like(value)
    arrays = [graph.array(gamma, value), *map(graph.array, others)]
    graph.node("BatchNormalization", layer.name, [data, *arrays], epsilon=float(layer.get("eps", 1e-3)))


OPERATORS: dict[str, Callable[[_Graph, Layer], None]] = {
    "Activation": _activation,
    "BatchNorm": _batch_norm,
    "Concat": lambda graph, layer: (
        graph.node("Concat", layer.name, list(layer.inputs), axis=layer.get("dim", 1)) and None
    ),
    "Convolution": _convolution,
    "Flatten": _same("Flatten"),
    "FullyConnected": _dense,
    "LeakyReLU": _leaky_relu,
    "Pooling": _pooling,
    "_div_scalar": _scalar("Div"),
    "_minus_scalar": _scalar("Sub"),
    "_mul_scalar": _scalar("Mul"),
    "_plus_scalar": _scalar("Add"),
    "broadcast_add": _same("Add"),
    "broadcast_mul": _same("Mul"),
    "elemwise_add": _same("Add"),
    "elemwise_mul": _same("Mul"),
    "relu": _same("Relu"),
    "sigmoid": _same("Sigmoid"),
}
