"""The rewritten graphs: the same network to whoever feeds it, with the gradient that finite differences give."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vargface.graph import inference_form, rewrite, training_form
from vargface.runtime import mx
from vargface.symbols import mobilefacenet, resnet, vargfacenet
from vargface.symbols.layers import embedding_layer

BATCH, SIZE = 4, 8


def beginning(symbol, last: str):
    """Return the first units of a network, up to node `last`, closed by an embedding as every network has it."""
    return embedding_layer(symbol.get_internals()[f"{last}_output"], SIZE, fix_gamma=True)


# One VarGFaceNet and one ResNet whole, as narrow as they go; of the others the first units, which differ from those.
# Of ResNet the output FC: E's dropout is drawn anew in every forward pass, and has no parameters.
NETWORKS = {
    "vargfacenet-authors": lambda: vargfacenet.get_symbol(SIZE, 0.25),
    "vargfacenet-insightface": lambda: beginning(
        vargfacenet.get_symbol(SIZE, 0.25, "insightface"), "vargface_stage_2_unit_2_out_data_act"
    ),
    "resnet": lambda: resnet.get_symbol(18, SIZE, "FC", multiplier=0.125),
    "mobilefacenet-y1": lambda: beginning(mobilefacenet.get_symbol("y1"), "dconv_23_conv_proj_batchnorm"),
    "mobilefacenet-y2": lambda: beginning(mobilefacenet.get_symbol("y2"), "_plus0"),
}
every_network = pytest.mark.parametrize("network", NETWORKS)
every_form = pytest.mark.parametrize("form", [training_form, inference_form])


def kind_of(symbol, name: str) -> str:
    """Return which kind of parameter `name` is; slopes and BN's scales are both called gamma."""
    part = name.rsplit("_", 1)[1]
    return "slope" if part == "gamma" and "__init__" in symbol.attr_dict().get(name, {}) else part


def random_values(symbol, seed: int = 0) -> tuple[dict, dict]:
    """Return float32 images and parameters, a third of the slopes negative, and moving statistics."""
    random = np.random.default_rng(seed)
    shapes, _, aux_shapes = symbol.infer_shape(data=(BATCH, 3, 112, 112))
    draw = {
        "data": lambda shape: random.uniform(0, 255, shape),
        "slope": lambda shape: random.uniform(-0.4, 0.8, shape),
        "gamma": lambda shape: random.uniform(0.5, 1.5, shape),
        "beta": lambda shape: random.uniform(-0.5, 0.5, shape),
        "bias": lambda shape: random.uniform(-0.5, 0.5, shape),
        "weight": lambda shape: random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape),
        "mean": lambda shape: random.uniform(-0.1, 0.1, shape),
        "var": lambda shape: random.uniform(0.5, 1.5, shape),
    }
    args, auxs = {}, {}
    for into, names, their in (
        (args, symbol.list_arguments(), shapes),
        (auxs, symbol.list_auxiliary_states(), aux_shapes),
    ):
        for name, shape in zip(names, their):
            kind = "data" if name == "data" else kind_of(symbol, name)
            into[name] = draw[kind](shape).astype(np.float32)
    return args, auxs


def predicted(symbol, args, auxs, dtype="float32") -> np.ndarray:
    """Return the output of `symbol`, bound without a Module, on arrays of `dtype`."""
    arrays, states = ({k: mx.nd.array(v, dtype=dtype) for k, v in values.items()} for values in (args, auxs))
    return symbol.bind(mx.cpu(), arrays, grad_req="null", aux_states=states).forward(is_train=False)[0].asnumpy()


def module_gradients(symbol, args, auxs, weights) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the embeddings and the gradients of sum(embeddings * weights) of a Module bound for training."""
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", args["data"].shape)], for_training=True)
    params = {name: mx.nd.array(value) for name, value in args.items() if name != "data"}
    module.set_params(params, {name: mx.nd.array(value) for name, value in auxs.items()})
    module.forward(mx.io.DataBatch([mx.nd.array(args["data"])]), is_train=True)
    module.backward([mx.nd.array(weights)])
    group = module._exec_group
    gradients = {name: arrays[0].asnumpy() for name, arrays in zip(group.param_names, group.grad_arrays)}
    return module.get_outputs()[0].asnumpy(), gradients


def elementary_prelu(place, write):
    """PReLU as max(x, 0) + slope * min(x, 0): unlike the native one it computes float64 arrays in float64."""
    if place.attrs.get("act_type") != "prelu":
        return None
    (data, slope), name = place.inputs, place.name
    above = write("_maximum_scalar", f"{name}_above", [data], scalar=0)
    below = write("_minimum_scalar", f"{name}_below", [data], scalar=0)
    slope = write("Reshape", f"{name}_slope", [slope], shape=(1, -1, 1, 1))
    return write("elemwise_add", name, [above, write("broadcast_mul", f"{name}_product", [below, slope])])


class Reference:
    """A network of native operators in float64, PReLU written out, that differentiates by finite differences."""

    def __init__(self, symbol, args, auxs, weights) -> None:
        types = dict.fromkeys([*args, *auxs], "float64")
        self._args = {name: value.astype(np.float64) for name, value in args.items()}
        self._weights = weights
        symbol = rewrite(symbol, [elementary_prelu])
        self._executor = symbol.simple_bind(mx.cpu(), type_dict=types, data=args["data"].shape)
        for name, value in auxs.items():
            self._executor.aux_dict[name][:] = mx.nd.array(value, dtype="float64")
        self.embeddings = self._forward({}, 0)
        self._executor.backward(mx.nd.array(weights, dtype="float64"))
        self.gradients = {name: value.asnumpy().copy() for name, value in self._executor.grad_dict.items()}

    def _forward(self, direction, distance) -> np.ndarray:
        for name, value in self._args.items():
            moved = value + distance * direction[name] if name in direction else value
            self._executor.arg_dict[name][:] = mx.nd.array(moved, dtype="float64")
        return self._executor.forward(is_train=True)[0].asnumpy()

    def derivative(self, direction, step=1e-6) -> float:
        """Return the derivative of sum(embeddings * weights) along `direction` (name -> array)."""
        above, below = (self._forward(direction, distance) for distance in (step, -step))
        return ((above - below) * self._weights).sum() / (2 * step)


@every_network
def test_a_bound_module_has_the_gradient_of_finite_differences(network):
    """For every kind of parameter along a random direction, and parameter by parameter against float64 autograd.

    Three functions: the training form in float32 by its own backward; the reference's autograd; the reference's finite
    differences. The last two are equal by calculus, so that the second may stand for the third where that would take
    a forward pass for every number.
    """
    symbol = NETWORKS[network]()
    args, auxs = random_values(symbol)
    random = np.random.default_rng(1)
    weights = random.normal(size=(BATCH, SIZE))
    embeddings, gradients = module_gradients(training_form(symbol), args, auxs, weights)
    reference = Reference(symbol, args, auxs, weights)
    np.testing.assert_allclose(embeddings, reference.embeddings, atol=5e-3)

    kinds: dict[str, dict] = {}
    for name, gradient in gradients.items():
        direction = random.normal(size=gradient.shape) * np.sqrt(np.mean(np.square(args[name], dtype=np.float64)))
        kinds.setdefault(kind_of(symbol, name), {})[name] = direction
    assert set(kinds) == {"slope", "gamma", "beta", "weight", "bias"}
    for kind, direction in kinds.items():
        expected = reference.derivative(direction)
        exact, ours = (
            [(found[name] * moved).sum() for name, moved in direction.items()]
            for found in (reference.gradients, gradients)
        )
        # against what the parameters' shares would sum to at random: in the sum itself they may cancel
        size = np.linalg.norm(exact) + 1e-3
        assert abs(sum(exact) - expected) < 0.01 * size, kind
        assert abs(sum(ours) - expected) < 0.05 * size, kind

    norms = {name: np.linalg.norm(reference.gradients[name]) for name in gradients}
    # a shift ahead of a batch normalisation has no gradient but rounding
    floor = 1e-3 * np.median(list(norms.values()))
    errors = {
        name: np.linalg.norm(gradient - reference.gradients[name]) / max(norms[name], floor)
        for name, gradient in gradients.items()
    }
    assert max(errors.values()) < 0.15, max(errors, key=errors.get)
    assert np.median(list(errors.values())) < 0.05


@every_network
def test_both_forms_give_the_embeddings_of_the_native_operators(network):
    """In float64, where equal formulas agree to the last digits; their float32 is tested with the golden vector."""
    symbol = NETWORKS[network]()
    args, auxs = random_values(symbol, seed=2)
    args["data"] = args["data"][:2]
    native = predicted(rewrite(symbol, [elementary_prelu]), args, auxs, "float64")
    for form in (training_form, inference_form):
        embeddings = predicted(form(symbol), args, auxs, "float64")
        np.testing.assert_allclose(embeddings, native, rtol=0, atol=1e-9 * np.abs(native).max())
