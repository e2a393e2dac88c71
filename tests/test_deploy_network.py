"""The network as deployment sees it: folded and in MXNet's fastest form it gives what the checkpoint gives."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from test_graph import NETWORKS, in_other_words, random_values

from vargface.checkpoint import Checkpoint
from vargface.deploy import fast_form as fast
from vargface.deploy.fast_form import fast_form, side_by_side
from vargface.deploy.network import fold
from vargface.inference import FrozenNetwork
from vargface.runtime import mx
from vargface.symbols.layers import embedding_layer

every_network = pytest.mark.parametrize("network", NETWORKS)


def of_symbol(symbol, seed: int = 0) -> tuple[Checkpoint, np.ndarray]:
    """Return a checkpoint of random weights and statistics, and images for it."""
    args, auxs = random_values(symbol, seed)
    images = args.pop("data")
    as_mx = ({name: mx.nd.array(value) for name, value in part.items()} for part in (args, auxs))
    return Checkpoint(symbol, *as_mx, "random"), images


def native(checkpoint: Checkpoint, images: np.ndarray) -> np.ndarray:
    """Return what InsightFace's consumers get: the checkpoint's own symbol in a Module."""
    module = mx.mod.Module(checkpoint.symbol, label_names=None)
    module.bind([("data", images.shape)], for_training=False)
    module.set_params(checkpoint.args, checkpoint.auxs)
    module.forward(mx.io.DataBatch([mx.nd.array(images)]), is_train=False)
    return module.get_outputs()[0].asnumpy()


def assert_same(embeddings: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@every_network
@pytest.mark.parametrize("block", [0, 16])
def test_every_form_gives_what_the_checkpoint_gives(network, block):
    checkpoint, images = of_symbol(NETWORKS[network]())
    expected = native(checkpoint, images)
    folded = fold(checkpoint)
    assert_same(FrozenNetwork(folded.checkpoint(), len(images))(images), expected)
    assert_same(FrozenNetwork(fast_form(folded, block), len(images))(images), expected)


@every_network
@pytest.mark.parametrize("words", [("true", "false"), ("1", "0")])
def test_true_and_false_in_other_words(network, words):
    """A gamma that is not fixed was folded as if it were, and the embeddings were of nobody."""
    checkpoint, images = of_symbol(in_other_words(NETWORKS[network](), *words))
    expected = native(checkpoint, images)
    assert_same(FrozenNetwork(checkpoint, len(images))(images), expected)
    assert_same(FrozenNetwork(fold(checkpoint).checkpoint(), len(images))(images), expected)


@every_network
def test_only_batch_norms_in_front_of_padding_are_left(network):
    checkpoint, _ = of_symbol(NETWORKS[network]())
    folded = fold(checkpoint)
    left = [layer.name for layer in folded.layers if layer.op == "BatchNorm"]
    # ResNet's units begin with one, and the first convolution of a unit is padded
    expected = [f"stage{s}_unit{u}_bn1" for s in (1, 2, 3, 4) for u in (1, 2)] if network == "resnet" else []
    assert left == expected
    assert not {"Dropout", "_copy"} & {layer.op for layer in folded.layers}
    assert folded.output == "fc1"
    used = Counter(name for layer in folded.layers for name in layer.inputs)
    assert set(folded.arrays) <= set(used)


def test_dropout_is_gone_and_the_norm_before_the_dense_layer_is_in_it():
    data = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=4, kernel=(3, 3), stride=(16, 16), name="conv")
    shared = data + mx.sym.Convolution(data, num_filter=4, kernel=(1, 1), name="side")  # `conv` has two users
    norm = mx.sym.BatchNorm(shared, name="bn1", fix_gamma=True)
    symbol = embedding_layer(mx.sym.Dropout(norm, p=0.4, name="dropout0"), 8, fix_gamma=True)
    checkpoint, images = of_symbol(symbol)
    folded = fold(checkpoint)
    assert [layer.op for layer in folded.layers] == [
        "Convolution", "Convolution", "elemwise_add", "Flatten", "FullyConnected",
    ]  # fmt: skip
    assert_same(FrozenNetwork(folded.checkpoint(), len(images))(images), native(checkpoint, images))


def test_a_batch_norm_is_not_folded_into_a_convolution_that_others_use():
    data = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=4, kernel=(3, 3), stride=(16, 16), name="conv")
    norm = mx.sym.BatchNorm(data, name="bn", fix_gamma=False)
    symbol = embedding_layer(mx.sym.LeakyReLU(norm, act_type="prelu", name="act") + data, 8, fix_gamma=False)
    checkpoint, images = of_symbol(symbol)
    folded = fold(checkpoint)
    assert Counter(layer.op for layer in folded.layers)["BatchNorm"] == 1
    expected = native(checkpoint, images)
    assert_same(FrozenNetwork(fast_form(folded, 16), len(images))(images), expected)


@pytest.mark.parametrize("slopes", [[0.25, 0.5, -0.3, 2.0], [1.0, 0.25, 0.999, 1.001], [0.0, -1.0, 1.5, 100.0]])
def test_slopes_of_any_size(slopes):
    data = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=4, kernel=(3, 3), stride=(8, 8), name="conv")
    data = mx.sym.LeakyReLU(data, act_type="prelu", name="act")
    data = mx.sym.Convolution(data, num_filter=8, num_group=2, kernel=(3, 3), name="behind")
    checkpoint, images = of_symbol(embedding_layer(data, 8, fix_gamma=True))
    checkpoint.args["act_gamma"][:] = mx.nd.array(slopes)
    form = fast_form(fold(checkpoint), 0)
    assert_same(FrozenNetwork(form, len(images))(images), native(checkpoint, images))
    # absorbed where no factor is near 0: else a product more
    products = [name for name in form.args if name.endswith("_rest_weight")]
    assert bool(products) == any(abs(1 - slope) < fast.NEAR_ONE for slope in slopes)


def test_a_dense_layer_straight_on_a_prelu_on_an_image():
    """As the checkpoints of 2018 have it."""
    data = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=4, kernel=(3, 3), stride=(32, 32), name="conv")
    data = mx.sym.LeakyReLU(data, act_type="prelu", name="act")
    checkpoint, images = of_symbol(mx.sym.FullyConnected(data, num_hidden=8, name="fc1"))
    assert checkpoint.args["fc1_weight"].shape == (8, 4 * 4 * 4)
    form = fast_form(fold(checkpoint), 0)
    assert_same(FrozenNetwork(form, len(images))(images), native(checkpoint, images))


def test_groups_side_by_side_against_each_group_alone():
    random = np.random.default_rng(0)
    data = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=12, num_group=3, kernel=(1, 1), name="odd")
    grouped = mx.sym.Convolution(data, num_filter=8, num_group=4, kernel=(3, 3), no_bias=True, name="even")
    checkpoint, _ = of_symbol(embedding_layer(mx.sym.Pooling(grouped, kernel=(50, 50)), 8, fix_gamma=True))
    wide = side_by_side(fold(checkpoint), 6)
    groups = {layer.name: layer.get("num_group") for layer in wide.layers if layer.op == "Convolution"}
    assert groups == {"odd": 3, "even": 2}  # depthwise as it is; four groups of three
    weight = next(wide.arrays[layer.inputs[1]] for layer in wide.layers if layer.name == "even")
    original = checkpoint.args["even_weight"].asnumpy()
    pixels = random.normal(size=12).astype(np.float32)
    alone = np.concatenate([original[2 * g : 2 * g + 2, :, 1, 1] @ pixels[3 * g : 3 * g + 3] for g in range(4)])
    together = np.concatenate([weight[4 * g : 4 * g + 4, :, 1, 1] @ pixels[6 * g : 6 * g + 6] for g in range(2)])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
