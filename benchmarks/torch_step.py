"""The PyTorch worker of training_step.py: the network's own graph, node by node, as eager PyTorch functions.

    TORCH_PYTHON benchmarks/torch_step.py GRAPH.json BATCH THREADS

It needs `torch` and numpy alone, so an environment without MXNet can run it.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from training_step import answer  # beside this file; of the standard library alone until it is asked for MXNet


class Network(torch.nn.Module):
    """VarGFaceNet from MXNet's JSON; parameters are made at the first pass, when their shapes are known."""

    def __init__(self, graph: dict) -> None:
        super().__init__()
        self._nodes, self._heads = graph["nodes"], graph["heads"]
        self.weights = torch.nn.ParameterDict()
        self.norms = torch.nn.ModuleDict()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (N, 512) of `images` (N, 3, 112, 112)."""
        values: list = []
        for node in self._nodes:
            inputs = [values[index] for index, *_ in node["inputs"]]
            values.append(images if node["name"] == "data" else self._value(node, inputs))
        return values[self._heads[0][0]]

    def _value(self, node: dict, inputs: list):
        attrs = {key: _literal(value) for key, value in node.get("attrs", {}).items()}
        op, x = node["op"], inputs[0] if inputs else None
        if op == "null":
            return node["name"]  # a parameter, made by the operator that takes it
        if op == "Convolution":
            groups = attrs.get("num_group", 1)
            weight = self._weight(inputs[1], (attrs["num_filter"], x.shape[1] // groups, *attrs["kernel"]))
            bias = self._weight(inputs[2], (attrs["num_filter"],)) if len(inputs) > 2 else None
            return F.conv2d(x, weight, bias, attrs.get("stride", 1), attrs.get("pad", 0), 1, groups)
        if op == "BatchNorm":
            if node["name"] not in self.norms:
                kind = torch.nn.BatchNorm2d if x.dim() == 4 else torch.nn.BatchNorm1d
                self.norms[node["name"]] = kind(x.shape[1], eps=attrs["eps"], momentum=0.1)
            return self.norms[node["name"]](x)
        if op == "LeakyReLU":
            return F.prelu(x, self._weight(inputs[1], (x.shape[1],)))
        if op == "FullyConnected":
            width = attrs["num_hidden"]
            return F.linear(x, self._weight(inputs[1], (width, x.shape[1])), self._weight(inputs[2], (width,)))
        return _FUNCTIONS[op](attrs, *inputs)

    def _weight(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name not in self.weights:
            value = torch.full(shape, 0.25) if len(shape) == 1 else torch.nn.init.kaiming_normal_(torch.empty(shape))
            self.weights[name] = torch.nn.Parameter(value)
        return self.weights[name]


def _literal(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


_FUNCTIONS: dict[str, Callable] = {
    "_copy": lambda attrs, x: x,
    "identity": lambda attrs, x: x,
    "_minus_scalar": lambda attrs, x: x - attrs["scalar"],
    "_mul_scalar": lambda attrs, x: x * attrs["scalar"],
    "elemwise_add": lambda attrs, x, y: x + y,
    "_plus": lambda attrs, x, y: x + y,
    "broadcast_mul": lambda attrs, x, y: x * y,
    "sigmoid": lambda attrs, x: torch.sigmoid(x),
    "Pooling": lambda attrs, x: x.mean((2, 3), keepdim=True),
    "Flatten": lambda attrs, x: x.flatten(1),
}


def main() -> None:
    """Answer as the worker of PyTorch."""
    path, batch, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with open(path) as file:
        network = Network(json.load(file)).train()
    images = torch.randint(0, 256, (batch, 3, 112, 112)).float()
    gradient = torch.randn(batch, 512)
    network(images)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        network(images).backward(gradient / batch)
        optimizer.step()

    answer(step)


if __name__ == "__main__":
    main()
