"""Operations and parameters against the challenge's figures, the files on disk and hand-made graphs."""

from __future__ import annotations

import pytest

from vargface.eval.flops import network_cost
from vargface.runtime import mx
from vargface.symbols import mobilefacenet, resnet, vargfacenet

# FLOPs as the challenge counts them, `arg:` values, `aux:` values; SPEC sections 1, 2 and 6
NETWORKS = {
    "vargfacenet-authors": (
        lambda: vargfacenet.get_symbol(),
        1_022_864_152,
        5_198_292,
        41_744,
    ),
    "vargfacenet-insightface": (
        lambda: vargfacenet.get_symbol(variant="insightface"),
        1_022_388_952,
        4_957_512,
        41_744,
    ),
    "mobilefacenet-y1": (
        lambda: mobilefacenet.get_symbol(variant="y1"),
        439_821_056,
        1_003_264,
        19_584,
    ),
    "mobilefacenet-y2": (
        lambda: mobilefacenet.get_symbol(variant="y2"),
        933_336_950,
        1_996_288,
        38_400,
    ),
    "resnet34": (
        lambda: resnet.get_symbol(num_layers=34),
        8_914_217_984,
        34_139_328,
        25_856,
    ),
    "resnet50": (
        lambda: resnet.get_symbol(num_layers=50),
        12_612_791_296,
        43_590_848,
        38_144,
    ),
    "resnet100": (
        lambda: resnet.get_symbol(num_layers=100),
        24_169_929_728,
        65_156_160,
        69_632,
    ),
    "resnet100-FC": (
        lambda: resnet.get_symbol(num_layers=100, output="FC"),
        24_169_929_728,
        65_156_160,
        69_632,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_cost_what_the_challenge_counts(name):
    build, flops, params, aux_params = NETWORKS[name]
    cost = network_cost(build())
    assert (cost.flops, cost.params, cost.aux_params) == (flops, params, aux_params)
    assert cost.payload_bytes == 4 * (params + aux_params)
    assert not cost.warning


def test_the_published_count_takes_fixed_gammas_as_learnable():
    assert network_cost(vargfacenet.get_symbol()).fixed_gammas == 0
    assert network_cost(vargfacenet.get_symbol(variant="insightface")).fixed_gammas == 512


def test_size_of_the_authors_file():
    cost = network_cost(vargfacenet.get_symbol())
    assert cost.file_bytes == 21_015_428  # golden_vargfacenet-0000.params
    assert round(cost.payload_bytes / 2**20, 2) == 19.99


@pytest.mark.real
def test_real_y1(real_faces):
    folder = real_faces / "insightface-y1"
    cost = network_cost(mx.sym.load(str(folder / "model-symbol.json")))
    assert (cost.flops, cost.params) == (439_821_056, 1_003_264)
    assert cost.file_bytes == (folder / "model-0000.params").stat().st_size


def small_symbol():
    data = mx.sym.Variable("data")
    # 3 -> 4 channels, 5x5 -> 3x2 pixels
    data = mx.sym.Convolution(data, name="conv", num_filter=4, kernel=(3, 2), stride=(1, 2), no_bias=True)
    data = mx.sym.BatchNorm(data, name="norm", fix_gamma=False)
    data = mx.sym.LeakyReLU(data, name="act", act_type="prelu")
    data = mx.sym.Convolution(data, name="biased", num_filter=6, kernel=(1, 1), num_group=2)
    data = mx.sym.FullyConnected(data, name="dense", num_hidden=7, no_bias=True)
    return mx.sym.FullyConnected(data, name="out", num_hidden=2)


def test_layers_by_hand():
    cost = network_cost(small_symbol(), (3, 5, 5))
    rows = [(layer.name, layer.output_shape, layer.flops, layer.macs, layer.params) for layer in cost.layers]
    assert rows == [
        ("conv", (4, 3, 2), (2 * 3 * 6 - 1) * 24, 3 * 6 * 24, 72),
        ("norm", (4, 3, 2), 0, 0, 8),
        ("act", (4, 3, 2), 0, 0, 4),
        ("biased", (6, 3, 2), 2 * 4 * 36 // 2, 4 * 36 // 2, 12 + 6),
        ("dense", (7,), 2 * 36 * 7 - 7, 36 * 7, 36 * 7),
        ("out", (2,), 2 * 7 * 2, 7 * 2, 14 + 2),
    ]
    assert cost.flops == sum(row[2] for row in rows)
    assert cost.params == sum(row[4] for row in rows)
    assert [layer.aux_params for layer in cost.layers] == [0, 8, 0, 0, 0, 0]


def test_a_grouped_conv_without_bias_is_rounded_down():
    data = mx.sym.Variable("data")
    conv = mx.sym.Convolution(data, name="conv", num_filter=4, kernel=(1, 1), num_group=4, no_bias=True)
    # (2 * 4 - 1) * 4 * 1 / 4 = 7 at one pixel; 3 groups of 3 channels: (2 * 9 - 1) * 3 / 3 = 17
    assert network_cost(conv, (4, 1, 1)).flops == 7
    wide = mx.sym.Convolution(data, name="conv", num_filter=6, kernel=(1, 1), num_group=6, no_bias=True)
    odd = mx.sym.Convolution(wide, name="odd", num_filter=3, kernel=(1, 1), num_group=3, no_bias=True)
    assert [layer.flops for layer in network_cost(odd, (6, 1, 1)).layers] == [11, 11]


def test_what_multiplies_and_is_not_counted_is_said():
    data = mx.sym.Variable("data")
    up = mx.sym.Deconvolution(data, name="up", num_filter=4, kernel=(2, 2), stride=(2, 2))
    product = mx.sym.dot(mx.sym.Flatten(up), mx.sym.Variable("matrix", shape=(64, 5)), name="product")
    cost = network_cost(mx.sym.FullyConnected(product, name="out", num_hidden=2), (3, 2, 2))
    assert cost.uncounted == ("up", "product")
    assert "2 nodes that multiply (up, product)" in cost.warning
    assert cost.flops == 2 * 5 * 2
    assert not network_cost(small_symbol(), (3, 5, 5)).warning


def test_file_size_is_that_of_a_written_file(tmp_path):
    symbol = small_symbol()
    module = mx.mod.Module(symbol, label_names=None)
    module.bind(data_shapes=[("data", (1, 3, 5, 5))], for_training=False)
    module.init_params()
    module.save_checkpoint(str(tmp_path / "model"), 0)
    assert network_cost(symbol, (3, 5, 5)).file_bytes == (tmp_path / "model-0000.params").stat().st_size


def test_fixed_gamma_is_mxnets_default():
    data = mx.sym.Variable("data")
    assert network_cost(mx.sym.BatchNorm(data, name="norm")).fixed_gammas == 3
    assert network_cost(mx.sym.BatchNorm(data, name="norm", fix_gamma=1)).fixed_gammas == 3
    assert network_cost(mx.sym.BatchNorm(data, name="norm", fix_gamma=False)).fixed_gammas == 0


def test_a_shared_weight_is_one_parameter_and_two_computations():
    weight = mx.sym.Variable("weight")
    options = {"num_filter": 3, "kernel": (1, 1), "no_bias": True, "weight": weight}
    once = mx.sym.Convolution(mx.sym.Variable("data"), name="once", **options)
    twice = mx.sym.Convolution(once, name="twice", **options)
    cost = network_cost(twice, (3, 2, 2))
    assert cost.params == 9
    assert [layer.flops for layer in cost.layers] == [(2 * 3 - 1) * 12] * 2


def test_nodes_of_one_name_are_kept_apart():
    data = mx.sym.Variable("data")
    first = mx.sym.Convolution(
        data,
        mx.sym.Variable("a"),
        name="conv",
        num_filter=2,
        kernel=(2, 2),
        no_bias=True,
    )
    second = mx.sym.Convolution(
        first,
        mx.sym.Variable("b"),
        name="conv",
        num_filter=2,
        kernel=(2, 2),
        no_bias=True,
    )
    flops = [layer.flops for layer in network_cost(second, (1, 4, 4)).layers]
    assert flops == [(2 * 4 - 1) * 2 * 9, (2 * 8 - 1) * 2 * 4]


def test_other_inputs_are_not_parameters():
    label = mx.sym.Variable("teacher_embedding")
    fc1 = mx.sym.FullyConnected(mx.sym.Variable("data"), name="fc1", num_hidden=5, no_bias=True)
    loss = mx.sym.broadcast_sub(fc1, label)
    assert network_cost(loss, (1, 2, 2), teacher_embedding=(1, 5)).params == 20


def test_missing_shapes_are_refused():
    total = mx.sym.broadcast_add(mx.sym.Variable("data"), mx.sym.Variable("other"))
    with pytest.raises(ValueError, match="give those of the symbol's other inputs"):
        network_cost(total, (1, 2, 2))
