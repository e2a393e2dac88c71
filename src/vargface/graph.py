"""Rewrites of a Symbol's graph: the saved symbol stays InsightFace's, the one that runs is right and fast.

A rewrite never renames a parameter or changes its shape, so any checkpoint of the stack can be rewritten after loading,
and what was trained in a rewritten graph is saved with the original one.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any, Callable, NamedTuple, Optional

from vargface.runtime import mx

__all__ = ["Place", "Writer", "attribute", "inference_form", "rewrite", "training_form"]

# a node's output in MXNet's JSON: [node, output, version]
Entry = list
Shape = tuple


class Place(NamedTuple):
    """A node under rewriting: as it was, its inputs in the new graph, and their shapes for two images."""

    op: str
    name: str
    attrs: dict[str, str]
    inputs: list[Entry]
    shapes: list[Shape]


class Writer:
    """The node list of a new graph."""

    def __init__(self) -> None:
        self.nodes: list[dict] = []

    def __call__(self, op: str, name: str, inputs: list[Entry], **attrs: Any) -> Entry:
        """Append a node and return its first output."""
        self.nodes.append(
            {"op": op, "name": name, "inputs": inputs, "attrs": {key: str(value) for key, value in attrs.items()}}
        )
        return [len(self.nodes) - 1, 0, 0]


Rule = Callable[[Place, Writer], Optional[Entry]]


def attribute(attrs: Mapping[str, str], key: str, default: Any = None) -> Any:
    """Return attribute `key` of a node as Python's value: (3, 3), 8, True, "prelu".

    As MXNet reads them: true and false in any case, or 1 and 0.
    """
    text = attrs.get(key)
    if text is None:
        return default
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def rewrite(symbol: mx.sym.Symbol, rules: list[Rule], image_size: tuple[int, int] = (112, 112)) -> mx.sym.Symbol:
    """Return `symbol` (input `data`) with every node for which one of `rules` has a replacement exchanged for it.

    A rule gets the node's Place and a Writer, and returns None to keep the node or the entry that stands for its one
    visible output, made by `write(op, name, inputs, **attrs)`.
    """
    graph = json.loads(symbol.tojson())
    shapes = _shapes(symbol, image_size)
    write = Writer()
    new_of: dict[int, Entry] = {}

    def moved(entry: Entry) -> Entry:
        new = new_of[entry[0]]
        return [new[0], new[1] + entry[1], 0]

    for index, node in enumerate(graph["nodes"]):
        inputs = [moved(entry) for entry in node["inputs"]]
        entry = None
        if node["op"] != "null":
            input_shapes = [shapes[graph["nodes"][old]["name"], output] for old, output, *_ in node["inputs"]]
            place = Place(node["op"], node["name"], node.get("attrs", {}), inputs, input_shapes)
            entry = next(filter(None, (rule(place, write) for rule in rules)), None)
        elif node["name"] != "data":
            # a parameter that feeds a reshape can no longer be inferred backwards from its consumer
            node = {**node, "attrs": {**node.get("attrs", {}), "__shape__": str(shapes[node["name"], 0])}}
        if entry is None:
            write.nodes.append({**node, "inputs": inputs})
            entry = [len(write.nodes) - 1, 0, 0]
        new_of[index] = entry
    graph["heads"] = [moved(entry) for entry in graph["heads"]]
    graph["nodes"] = write.nodes
    graph["arg_nodes"] = [index for index, node in enumerate(write.nodes) if node["op"] == "null"]
    del graph["node_row_ptr"]
    return mx.sym.load_json(json.dumps(graph))


def training_form(symbol: mx.sym.Symbol, image_size: tuple[int, int] = (112, 112)) -> mx.sym.Symbol:
    """Return `symbol` computing the same, with the right PReLU gradient and fast on the CPU (docs/prelu.md).

    For images of this size alone: the factor of a global average is of it.
    """
    return rewrite(symbol, [_prelu, _global_average, _channel_scale], image_size)


def inference_form(symbol: mx.sym.Symbol) -> mx.sym.Symbol:
    """Return `symbol` computing the same, safe to run more than once on CPU, and its PReLUs in a form twice as fast."""
    return rewrite(symbol, [_image_prelu, _flat_dense])


def _shapes(symbol: mx.sym.Symbol, image_size: tuple[int, int]) -> dict[tuple[str, int], Shape]:
    """Return (node's name, number of its output) -> shape, for two images: what each image has of its own shows."""
    internals = symbol.get_internals()
    _, shapes, _ = internals.infer_shape(data=(2, 3, *image_size))
    graph = json.loads(internals.tojson())
    return {(graph["nodes"][node]["name"], output): shape for (node, output, *_), shape in zip(graph["heads"], shapes)}


def _prelu(place: Place, write: Writer) -> Entry | None:
    """PReLU as g*x + (1 - g)*relu(x), on images each product a 1x1 depthwise convolution.

    MXNet's native backward writes the data's gradient over the output's and works out the slope's from what is left:
    it comes out times g. Of the forms that are right this one consists of MKLDNN's own primitives alone, so nothing
    leaves its layout.
    """
    if place.op != "LeakyReLU" or place.attrs.get("act_type") != "prelu":
        return None
    (data, slope), name = place.inputs, place.name
    _, channels, *rest = place.shapes[0]
    if place.shapes[1] != (channels,):  # one slope for all, as Gluon's PReLU has by itself
        slope = write("broadcast_axis", f"{name}_each", [slope], axis=0, size=channels)
    if len(rest) == 2:
        shape, product = (channels, 1, 1, 1), "Convolution"
        options = {"num_filter": channels, "num_group": channels, "kernel": (1, 1), "no_bias": True}
    else:  # behind a dense layer: too small for its speed to matter
        shape, product, options = (1, channels, *(1 for _ in rest)), "broadcast_mul", {}
    below = write("Reshape", f"{name}_below", [slope], shape=shape)
    above = write("_rminus_scalar", f"{name}_above", [below], scalar=1)
    positive = write("Activation", f"{name}_relu", [data], act_type="relu")
    whole = write(product, f"{name}_whole", [data, below], **options)
    return write("elemwise_add", name, [whole, write(product, f"{name}_rest", [positive, above], **options)])


def _image_prelu(place: Place, write: Writer) -> Entry | None:
    """PReLU as `_prelu` has it, on images alone: forward the native one is right.

    Behind a dense layer MKLDNN would put the ReLU into that layer, whose output the other product needs as it was.
    """
    return _prelu(place, write) if len(place.shapes[0]) == 4 else None


def _global_average(place: Place, write: Writer) -> Entry | None:
    """Global average pooling as sum pooling and a factor: MKLDNN's backward of the average is its slow reference."""
    attrs = place.attrs
    if place.op != "Pooling" or not attribute(attrs, "global_pool", False) or attrs.get("pool_type") != "avg":
        return None
    *_, height, width = place.shapes[0]
    total = write("Pooling", f"{place.name}_sum", place.inputs, **{**attrs, "pool_type": "sum"})
    return write("_mul_scalar", place.name, [total], scalar=1 / (height * width))


def _channel_scale(place: Place, write: Writer) -> Entry | None:
    """(N, C, H, W) x (N, C, 1, 1) as a batch of products 1x1 by 1xHW: the broadcast's backward is a slow reduction."""
    if place.op != "broadcast_mul" or [len(shape) for shape in place.shapes] != [4, 4]:
        return None
    (images, *_), (scaled, *size) = place.shapes[0], place.shapes[1]
    if scaled != images or size[1:] != [1, 1]:
        return None
    (data, scale), name = place.inputs, place.name
    rows = write(
        "Reshape", f"{name}_rows", [write("Reshape", f"{name}_pairs", [data], shape=(-3, -3))], shape=(0, 1, -1)
    )
    scale = write("Reshape", f"{name}_scale", [scale], shape=(-3, 1, 1))
    return write("reshape_like", name, [write("batch_dot", f"{name}_product", [scale, rows]), data])


def _flat_dense(place: Place, write: Writer) -> Entry | None:
    """FullyConnected on (N, C, H, W) behind a Flatten: without it MXNet 1.9.1 may raise at the second forward pass."""
    if place.op != "FullyConnected" or len(place.shapes[0]) != 4 or not attribute(place.attrs, "flatten", True):
        return None
    flat = write("Flatten", f"{place.name}_flat", place.inputs[:1])
    return write(place.op, place.name, [flat, *place.inputs[1:]], **place.attrs)
