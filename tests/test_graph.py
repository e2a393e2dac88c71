"""The rewritten graphs: the same network to whoever feeds it, with the gradient that finite differences give."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from vargface.graph import attribute, inference_form, rewrite, training_form
from vargface.runtime import mx
from vargface.symbols import mobilefacenet, resnet, vargfacenet
from vargface.symbols.layers import embedding_layer

BATCH, SIZE = 4, 8


def beginning(symbol, last: str):
    """Return the first units of a network, up to node `last`, closed by an embedding as every network has it."""
    return embedding_layer(symbol.get_internals()[f"{last}_output"], SIZE, fix_gamma=True)


SE_UNITS = "vargface_stage_2_unit_2_out_data_act"
# The first units of each network, which have every kind of parameter it has; ResNet whole, as narrow as it goes.
# Of ResNet the output FC: E's dropout is drawn anew in every forward pass, and has no parameters.
NETWORKS = {
    "vargfacenet-authors": lambda: beginning(vargfacenet.get_symbol(multiplier=0.25), SE_UNITS),
    "vargfacenet-insightface": lambda: beginning(
        vargfacenet.get_symbol(multiplier=0.25, variant="insightface"), SE_UNITS
    ),
    "resnet": lambda: resnet.get_symbol(18, SIZE, "FC", multiplier=0.125),
    "mobilefacenet-y1": lambda: beginning(mobilefacenet.get_symbol("y1"), "dconv_23_conv_proj_batchnorm"),
    "mobilefacenet-y2": lambda: beginning(mobilefacenet.get_symbol("y2"), "_plus0"),
}
every_network = pytest.mark.parametrize("network", NETWORKS)


def in_other_words(symbol, true: str, false: str):
    """Return `symbol` with other words for "True" and "False", which MXNet takes in any case and as numbers."""
    words = symbol.tojson().replace('"True"', f'"{true}"').replace('"False"', f'"{false}"')
    assert words != symbol.tojson()
    return mx.sym.load_json(words)


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
        assert abs(sum(ours) - expected) < 0.02 * size, kind

    assert_equal_gradients(gradients, reference.gradients, 0.05)


@pytest.mark.slow
def test_the_same_with_mkldnn_off():
    """Where native slopes are all wrong: with MKLDNN, layouts save those of these two networks (docs/prelu.md)."""
    name = test_a_bound_module_has_the_gradient_of_finite_differences.__name__
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k"]
    done = subprocess.run(
        [*command, f"{name} and (resnet or y1)"],
        env={**os.environ, "MXNET_MKLDNN_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def assert_equal_gradients(gradients, expected, tolerance) -> None:
    """Compare every parameter's gradient by norm. Batch statistics multiply float32's rounding, more with depth."""
    norms = {name: np.linalg.norm(expected[name]) for name in gradients}
    # a shift ahead of a batch normalisation has no gradient but rounding
    floor = 1e-3 * np.median(list(norms.values()))
    errors = {
        name: np.linalg.norm(gradient - expected[name]) / max(norms[name], floor)
        for name, gradient in gradients.items()
    }
    assert max(errors.values()) < tolerance, max(errors, key=errors.get)
    assert np.median(list(errors.values())) < tolerance / 5


def test_every_parameter_of_a_whole_vargfacenet_has_the_right_gradient():
    symbol = vargfacenet.get_symbol(SIZE, 0.25)
    args, auxs = random_values(symbol)
    weights = np.random.default_rng(1).normal(size=(BATCH, SIZE))
    _, gradients = module_gradients(training_form(symbol), args, auxs, weights)
    assert len(gradients) == 368
    assert_equal_gradients(gradients, Reference(symbol, args, auxs, weights).gradients, 0.15)


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


FORMS = {"training": training_form, "inference": inference_form}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
SYMBOLS = {
    "vargfacenet": lambda: vargfacenet.get_symbol(),
    "resnet": lambda: resnet.get_symbol(18),
    "mobilefacenet": lambda: mobilefacenet.get_symbol("y2"),
}
every_symbol = pytest.mark.parametrize("make", SYMBOLS.values(), ids=SYMBOLS)


def operators(symbol) -> list[str]:
    return [node["op"] for node in json.loads(symbol.tojson())["nodes"]]


@every_form
@every_symbol
def test_a_form_has_the_parameters_of_the_native_symbol(make, form):
    native = make()
    as_it_was = native.tojson()
    rewritten = form(native)
    assert native.tojson() == as_it_was
    assert rewritten.tojson() != as_it_was
    assert rewritten.list_outputs() == ["fc1_output"]
    assert rewritten.list_arguments() == native.list_arguments()
    assert rewritten.list_auxiliary_states() == native.list_auxiliary_states()
    # for a batch other than the one that rewriting looks at
    assert rewritten.infer_shape(data=(5, 3, 112, 112)) == native.infer_shape(data=(5, 3, 112, 112))
    starts = {name: found["__init__"] for name, found in native.attr_dict().items() if "__init__" in found}
    assert starts
    assert {name: found["__init__"] for name, found in rewritten.attr_dict().items() if "__init__" in found} == starts


@every_form
@every_symbol
def test_a_form_has_no_native_prelu(make, form):
    assert "LeakyReLU" in operators(make())
    assert "LeakyReLU" not in operators(form(make()))


def test_the_training_form_has_none_of_the_operators_with_a_slow_backward():
    native, rewritten = vargfacenet.get_symbol(), training_form(vargfacenet.get_symbol())
    assert operators(native).count("broadcast_mul") == 12
    assert "broadcast_mul" not in operators(rewritten)
    poolings = [node for node in json.loads(rewritten.tojson())["nodes"] if node["op"] == "Pooling"]
    assert [node["attrs"]["pool_type"] for node in poolings] == ["sum"] * 12


def test_a_dense_layer_over_the_last_axis_alone_stays_as_it_is():
    dense = mx.sym.FullyConnected(mx.sym.Variable("data"), num_hidden=6, flatten=False, name="fc1")
    assert inference_form(dense).infer_shape(data=(5, 3, 112, 112)) == dense.infer_shape(data=(5, 3, 112, 112))


def test_a_factor_that_all_images_share_stays_a_broadcast_product():
    """(1, C, 1, 1), which for a single image looks like squeeze-excitation's (N, C, 1, 1)."""
    data, factor = mx.sym.Variable("data"), mx.sym.Variable("factor", shape=(1, 3, 1, 1))
    rewritten = training_form(mx.sym.broadcast_mul(data, factor))
    images = np.random.RandomState(0).randn(4, 3, 5, 5)
    factors = np.array([2.0, -1.0, 0.5]).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(predicted(rewritten, {"data": images, "factor": factors}, {}), images * factors, 1e-6)


def test_a_form_can_be_saved_and_loaded_as_json():
    rewritten = training_form(vargfacenet.get_symbol(SIZE, 0.25))
    again = mx.sym.load_json(rewritten.tojson())
    assert again.infer_shape(data=(3, 3, 112, 112)) == rewritten.infer_shape(data=(3, 3, 112, 112))


def test_a_network_may_go_on_behind_its_training_form():
    """A loss, with a label of its own, is what training puts there."""
    embedding = training_form(vargfacenet.get_symbol(SIZE, 0.25))
    head = mx.sym.SoftmaxOutput(mx.sym.FullyConnected(embedding, num_hidden=10), name="softmax")
    shapes, outputs, _ = head.infer_shape(data=(6, 3, 112, 112))
    assert outputs == [(6, 10)]
    assert dict(zip(head.list_arguments(), shapes))["softmax_label"] == (6,)


def test_the_inference_form_puts_a_flatten_where_an_old_checkpoint_has_none():
    data = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=4, kernel=(7, 7), stride=(7, 7), no_bias=True)
    old = mx.sym.FullyConnected(data, num_hidden=6, name="fc1")
    rewritten = inference_form(old)
    assert "Flatten" not in operators(old) and operators(rewritten).count("Flatten") == 1
    assert rewritten.infer_shape(data=(2, 3, 112, 112)) == old.infer_shape(data=(2, 3, 112, 112))
    ours = resnet.get_symbol(18)
    assert operators(inference_form(ours)).count("Flatten") == operators(ours).count("Flatten") == 1


@every_form
@pytest.mark.parametrize("rows", [False, True], ids=["images", "rows"])
def test_a_prelu_has_the_values_and_gradients_of_its_formula(form, rows):
    """On (N, C, H, W), and on (N, C) as behind a dense layer. The loss is sum(PReLU(x) * weights)."""
    one = mx.sym.Pooling(mx.sym.Variable("data"), kernel=(112, 112), pool_type="max")
    one = mx.sym.Flatten(one) if rows else one
    symbol = form(mx.sym.LeakyReLU(one, act_type="prelu", name="act"))
    random = np.random.default_rng(0)
    values, weights, slopes = *random.normal(size=(2, 5, 3)), np.array([0.25, -0.5, 2.0])
    data = np.broadcast_to(values[..., None, None], (5, 3, 112, 112))
    gradients = {"act_gamma": mx.nd.zeros(3)}
    executor = symbol.bind(mx.cpu(), {"data": mx.nd.array(data), "act_gamma": mx.nd.array(slopes)}, gradients)
    (output,) = executor.forward(is_train=True)
    expected = np.where(values > 0, values, slopes * values)
    np.testing.assert_allclose(output.asnumpy().reshape(5, 3), expected, rtol=1e-4, atol=1e-5)
    executor.backward(mx.nd.array(weights.reshape(output.shape)))
    due = (weights * np.minimum(values, 0)).sum(0)
    np.testing.assert_allclose(gradients["act_gamma"].asnumpy(), due, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [training_form, inference_form])
def test_a_prelu_may_have_one_slope_for_all_channels(form):
    """As Gluon's has; its reshape to a slope a channel read what lay behind it in memory."""
    one = mx.sym.Pooling(mx.sym.Variable("data"), kernel=(112, 112), pool_type="max")
    symbol = form(mx.sym.LeakyReLU(one, mx.sym.Variable("act_gamma", shape=(1,)), act_type="prelu", name="act"))
    random = np.random.default_rng(0)
    values, weights = random.normal(size=(2, 5, 3))
    data = np.broadcast_to(values[..., None, None], (5, 3, 112, 112))
    gradients = {"act_gamma": mx.nd.zeros(1)}
    executor = symbol.bind(mx.cpu(), {"data": mx.nd.array(data), "act_gamma": mx.nd.array([-0.5])}, gradients)
    (output,) = executor.forward(is_train=True)
    np.testing.assert_allclose(output.asnumpy().reshape(5, 3), np.where(values > 0, values, -0.5 * values), rtol=1e-5)
    executor.backward(mx.nd.array(weights.reshape(output.shape)))
    np.testing.assert_allclose(gradients["act_gamma"].asnumpy(), [(weights * np.minimum(values, 0)).sum()], rtol=1e-4)


def test_the_training_form_is_of_an_image_size():
    symbol = mx.sym.Pooling(mx.sym.Variable("data"), global_pool=True, pool_type="avg", kernel=(1, 1))
    ones = {"data": mx.nd.ones((2, 3, 56, 56))}
    (output,) = training_form(symbol, (56, 56)).bind(mx.cpu(), ones, grad_req="null").forward(is_train=False)
    np.testing.assert_allclose(output.asnumpy(), 1)


def test_rewriting_keeps_every_output_of_a_node_and_every_head_in_its_place():
    """The third part of a split goes where it went, and a rewritten node may be both inside and an output."""
    thirds = mx.sym.SliceChannel(mx.sym.Variable("data"), num_outputs=3)
    first = mx.sym.LeakyReLU(thirds[1], act_type="prelu", name="act")
    symbol = mx.sym.Group([thirds[2] - first, first, thirds[0]])
    images = mx.nd.array(np.random.default_rng(0).normal(size=(2, 3, 112, 112)))
    args = {"data": images, "act_gamma": mx.nd.array([-0.5])}
    native, rewritten = (
        [output.asnumpy() for output in graph.bind(mx.cpu(), args, grad_req="null").forward(is_train=False)]
        for graph in (symbol, training_form(symbol))
    )
    for expected, output in zip(native, rewritten):
        np.testing.assert_allclose(output, expected, atol=1e-6)


# --- PReLU by itself


def prelu_of(data):
    return mx.sym.LeakyReLU(data, act_type="prelu", name="act")


@pytest.fixture(params=[(0.25, -0.5, 2.0), (0.0, 1.0, -1.5)])
def case(request):
    """(slopes, images, weights, the true gradients of sum(output * weights) to slopes and images)."""
    slopes = np.array(request.param)
    images, weights = np.random.default_rng(0).normal(size=(2, 2, 3, 112, 112))
    slope_gradient = (weights * np.minimum(images, 0)).sum((0, 2, 3))
    return slopes, images, weights, slope_gradient, weights * np.where(images > 0, 1, slopes[:, None, None])


def executor_gradients(symbol, slopes, images, weights):
    """Return the gradients of sum(output * weights) to slopes and images, through a bound executor."""
    arrays = {"data": mx.nd.array(images), "act_gamma": mx.nd.array(slopes)}
    gradients = {name: mx.nd.zeros(value.shape) for name, value in arrays.items()}
    executor = symbol.bind(mx.cpu(), arrays, gradients)
    executor.forward(is_train=True)
    executor.backward(mx.nd.array(weights))
    return gradients["act_gamma"].asnumpy(), gradients["data"].asnumpy()


def test_mxnets_own_prelu_gives_the_slope_times_its_gradient(case):
    """Pins the fault that the rewriting is for. The day this fails MXNet has been mended: see docs/prelu.md."""
    slopes, images, weights, slope_gradient, data_gradient = case
    ours, of_data = executor_gradients(prelu_of(mx.sym.Variable("data") * 1), slopes, images, weights)
    np.testing.assert_allclose(ours, slopes * slope_gradient, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(of_data, data_gradient, atol=1e-5)


def test_mxnets_own_prelu_is_right_where_no_memory_is_shared(case):
    """On an argument of the graph, whose gradient is the caller's array, and in imperative autograd: the cause is that
    elsewhere the data's gradient is written over the output's before the slope's is worked out from that."""
    slopes, images, weights, slope_gradient, _ = case
    computed, _ = executor_gradients(prelu_of(mx.sym.Variable("data")), slopes, images, weights)
    np.testing.assert_allclose(computed, slope_gradient, rtol=1e-4, atol=1e-2)
    data, gamma = mx.nd.array(images), mx.nd.array(slopes)
    for array in (data, gamma):
        array.attach_grad()
    with mx.autograd.record():
        output = mx.nd.LeakyReLU(data * 1, gamma, act_type="prelu")
    output.backward(mx.nd.array(weights))
    np.testing.assert_allclose(gamma.grad.asnumpy(), slope_gradient, rtol=1e-4, atol=1e-2)


def test_the_training_forms_prelu_has_the_right_gradients(case):
    slopes, images, weights, slope_gradient, data_gradient = case
    native = prelu_of(mx.sym.Variable("data") * 1)
    ours, of_data = executor_gradients(training_form(native), slopes, images, weights)
    np.testing.assert_allclose(ours, slope_gradient, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(of_data, data_gradient, atol=1e-5)


def test_attributes_as_mxnet_reads_them():
    read = {"True": True, "true": True, "TRUE": True, "1": 1, "False": False, "false": False, "0": 0, "(3, 3)": (3, 3)}
    for text, value in {**read, "prelu": "prelu", "1e-05": 1e-5}.items():
        assert attribute({"key": text}, "key") == value
    assert attribute({}, "key", 8) == 8


@every_network
@pytest.mark.parametrize("words", [("true", "false"), ("1", "0")])
def test_true_and_false_in_other_words(network, words):
    symbol = NETWORKS[network]()
    other = in_other_words(symbol, *words)
    for form in (training_form, inference_form):
        ops = [[node["op"] for node in json.loads(form(given).tojson())["nodes"]] for given in (symbol, other)]
        assert ops[0] == ops[1]
