"""The ONNX files: what ONNX Runtime makes of them is what MXNet makes of the checkpoint."""

from __future__ import annotations

import logging
import re

import cv2
import numpy as np
import pytest
import test_networks
import tiny
from test_deploy_network import every_network, native, of_symbol
from test_graph import NETWORKS, in_other_words

from vargface.checkpoint import Checkpoint, load_checkpoint
from vargface.cli import main
from vargface.data.packs import read_pack
from vargface.deploy import int8
from vargface.deploy.embedder import Embedder
from vargface.deploy.network import fold
from vargface.deploy.onnx_file import OPSET, export_onnx, onnx_model
from vargface.errors import InputError
from vargface.inference import FrozenNetwork, unit
from vargface.runtime import mx
from vargface.symbols.layers import embedding_layer, scaled_input

onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")


def session(model) -> onnxruntime.InferenceSession:
    """Of a ModelProto or a file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model, images: np.ndarray) -> np.ndarray:
    return session(model).run(None, {"data": images.astype(np.float32)})[0]


def assert_parity(model, images: np.ndarray, embeddings: np.ndarray) -> None:
    assert np.abs(unit(run(model, images)) - unit(embeddings)).max() < 1e-4


@every_network
@pytest.mark.parametrize("wide_groups", [False, True])
def test_every_layer_gives_what_mxnets_does(network, wide_groups):
    """With negative slopes, fixed gammas that are not 1 in their arrays, and random statistics."""
    checkpoint, images = of_symbol(NETWORKS[network]())
    model = onnx_model(fold(checkpoint), wide_groups=wide_groups)
    assert_parity(model, images, native(checkpoint, images))
    # no array twice, none that folding or splitting has made of nothing: of weights there are not more
    written = sum(onnx.numpy_helper.to_array(array).nbytes for array in model.graph.initializer)
    given = sum(array.asnumpy().nbytes for array in (*checkpoint.args.values(), *checkpoint.auxs.values()))
    assert written <= given or wide_groups


@pytest.mark.parametrize("words", [("true", "false"), ("1", "0")])
def test_true_and_false_as_others_write_them(words):
    checkpoint, images = of_symbol(in_other_words(NETWORKS["vargfacenet-insightface"](), *words))
    assert_parity(onnx_model(fold(checkpoint)), images, native(checkpoint, images))


@pytest.mark.slow
@pytest.mark.parametrize("network", test_networks.NETWORKS)
def test_whole_networks(network, tmp_path):
    symbol = test_networks.NETWORKS[network][0]()
    args, auxs = tiny.weights(symbol)
    for name in args:
        if name.endswith("fc1_gamma"):
            args[name][:] = 3  # where it is fixed, the array does not count
    checkpoint = Checkpoint(symbol, args, auxs, network)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 112, 112), np.uint8)
    export_onnx(fold(checkpoint), tmp_path / "network.onnx")
    assert_parity(tmp_path / "network.onnx", images, FrozenNetwork(checkpoint, 2)(images))
    mx.nd.save(str(tmp_path / "network.params"), {**args, **auxs})
    assert (tmp_path / "network.onnx").stat().st_size <= (tmp_path / "network.params").stat().st_size


def test_the_real_networks_on_real_faces(real_faces):
    """The public MobileFaceNet y1 of 2018, whose dense layer sits on a convolution."""
    checkpoint = load_checkpoint(f"{real_faces}/insightface-y1/model,0")
    images = read_pack(real_faces / "real-mini" / "mini_ff.bin").decode(0, 16)
    model = onnx_model(fold(checkpoint))
    assert_parity(model, images, FrozenNetwork(checkpoint, 16)(images))
    assert model.ByteSize() < (real_faces / "insightface-y1" / "model-0000.params").stat().st_size


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny.make_teacher(tmp_path_factory.mktemp("model"))


def test_what_a_consumer_reads_off_the_file(model, tmp_path):
    out = tmp_path / "tiny.onnx"
    assert main(["export", "onnx", "--model", model, "--out", str(out)]) == 0
    proto = onnx.load(str(out))
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", OPSET)]
    # ArcFaceONNX feeds RGB 0..255 where it finds both among the first eight
    first = [node.name for node in proto.graph.node[:8]]
    assert any(name.startswith("Sub") for name in first)
    assert any(name.startswith("Mul") for name in first)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    ready = session(out)
    (given,), (result,) = ready.get_inputs(), ready.get_outputs()
    assert (given.name, given.shape) == ("data", ["N", 3, 112, 112])
    assert (result.name, result.shape) == ("fc1", ["N", tiny.DIMENSIONS])


def test_any_batch_size(model):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 112, 112), np.uint8)
    proto = onnx_model(fold(load_checkpoint(model)))
    whole = run(proto, images)
    for size in (1, 2, 5):
        np.testing.assert_allclose(run(proto, images[:size]), whole[:size], atol=1e-4 * np.abs(whole).max())


def test_a_prelu_on_rows_and_one_slope_for_all(tmp_path):
    data = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=4, kernel=(3, 3), stride=(16, 16), name="conv")
    data = mx.sym.FullyConnected(mx.sym.Flatten(data), num_hidden=4, name="hidden")
    checkpoint, images = of_symbol(
        embedding_layer(mx.sym.LeakyReLU(data, act_type="prelu", name="act"), 8, fix_gamma=True)
    )
    assert_parity(onnx_model(fold(checkpoint)), images, native(checkpoint, images))


def image_layer(data=None, **keys):
    """A convolution to 8 channels of 7x7."""
    data = scaled_input() if data is None else data
    return mx.sym.Convolution(data, num_filter=8, kernel=(3, 3), stride=(16, 16), name="conv", **keys)


ENDINGS = {
    "a convolution to one pixel": lambda: mx.sym.Flatten(
        mx.sym.Convolution(image_layer(), num_filter=12, kernel=(7, 7), name="gdc"), name="fc1"
    ),
    "a depthwise one, then its norm": lambda: mx.sym.BatchNorm(
        mx.sym.Flatten(mx.sym.Convolution(image_layer(), num_filter=8, num_group=8, kernel=(7, 7), name="gdc")),
        name="fc1",
    ),
    "a pooling": lambda: mx.sym.Flatten(
        mx.sym.Pooling(image_layer(), global_pool=True, pool_type="avg", kernel=(7, 7)), name="fc1"
    ),
    "no bias": lambda: mx.sym.FullyConnected(image_layer(), num_hidden=8, no_bias=True, name="fc1"),
}  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_width_is_the_embeddings_whatever_the_network_ends_in(ending):
    checkpoint, images = of_symbol(ENDINGS[ending]())
    proto = onnx_model(fold(checkpoint))
    assert session(proto).get_outputs()[0].shape == ["N", checkpoint.embedding_size]
    assert_parity(proto, images, native(checkpoint, images))


@pytest.mark.parametrize("form", ["as it is", "times first", "one product", "divided"])
def test_a_network_that_scales_in_another_way_still_says_that_it_takes_0_to_255(form, tmp_path):
    """ArcFaceONNX would feed one without Sub and Mul (x - 127.5) / 127.5."""
    data = mx.sym.Variable("data")
    scaled = {
        "as it is": data,
        "times first": data * 0.0078125 - 1,
        "one product": data * 0.01,
        "divided": (data - 127.5) / 128,
    }
    checkpoint, images = of_symbol(embedding_layer(image_layer(scaled[form]), 8, fix_gamma=True))
    proto = onnx_model(fold(checkpoint))
    assert [node.op_type for node in proto.graph.node[:2]] == ["Sub", "Mul"]
    assert_parity(proto, images, native(checkpoint, images))
    int8.export_int8(fold(checkpoint), tmp_path / "int8.onnx", images.astype(np.uint8))
    assert [node.op_type for node in onnx.load(str(tmp_path / "int8.onnx")).graph.node[:2]] == ["Sub", "Mul"]


def in_half(symbol) -> tuple[Checkpoint, np.ndarray]:
    """A checkpoint whose arrays are float16, and images."""
    checkpoint, images = of_symbol(symbol)
    args, auxs = ({name: value.astype("float16") for name, value in part.items()} for part in checkpoint[1:3])
    return Checkpoint(symbol, args, auxs, "half"), images


def test_a_checkpoint_in_half_precision():
    symbol = embedding_layer(mx.sym.LeakyReLU(image_layer(), act_type="prelu", name="act"), 8, fix_gamma=True)
    checkpoint, images = in_half(symbol)
    floats = ({name: value.astype("float32") for name, value in part.items()} for part in checkpoint[1:3])
    assert_parity(onnx_model(fold(checkpoint)), images, native(Checkpoint(symbol, *floats, "float"), images))


def test_a_symbol_that_casts_to_half_precision_runs_in_float32():
    """As InsightFace's code trains in float16: MXNet's CPU operators do not all have it."""
    half = mx.sym.Cast(image_layer(), dtype="float16")
    symbol = embedding_layer(mx.sym.Cast(half, dtype="float32"), 8, fix_gamma=True)
    checkpoint, images = of_symbol(symbol)
    plain, _ = of_symbol(embedding_layer(image_layer(), 8, fix_gamma=True))
    assert_parity(onnx_model(fold(checkpoint)), images, native(plain, images))
    np.testing.assert_allclose(unit(Embedder(checkpoint)(images)), unit(native(plain, images)), atol=1e-4)


def kinds(model) -> set[str]:
    return {node.op_type for node in model.graph.node}


def test_prelus_are_split_where_the_convolutions_around_them_are_fast():
    """MobileFaceNet then runs 1.2 to 1.5 times as fast; VarGFaceNet's narrow groups would lose."""
    depthwise, _ = of_symbol(NETWORKS["mobilefacenet-y2"]())
    narrow, _ = of_symbol(NETWORKS["vargfacenet-authors"]())
    assert "PRelu" not in kinds(onnx_model(fold(depthwise)))
    assert "PRelu" in kinds(onnx_model(fold(narrow)))
    assert "PRelu" not in kinds(onnx_model(fold(narrow), wide_groups=True))


def test_an_operator_without_a_counterpart_is_named(model, tmp_path, monkeypatch, capsys):
    data = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=4, kernel=(3, 3), stride=(16, 16), name="conv")
    checkpoint, _ = of_symbol(embedding_layer(mx.sym.LRN(data, nsize=3, name="lrn"), 8, fix_gamma=True))
    with pytest.raises(InputError, match="lrn: operator LRN cannot be exported"):
        onnx_model(fold(checkpoint))


@pytest.mark.parametrize("form", ["onnx", "int8"])
def test_a_wrong_name_or_folder_is_said_first_and_nothing_is_written(model, tmp_path, capsys, form):
    more = ["--calibrate", "nowhere"] if form == "int8" else []
    for out, message in {"net.bin": "give it a name in .onnx", "no/net.onnx": "no such folder - make it first"}.items():
        assert main(["export", form, "--model", model, "--out", str(tmp_path / out), *more]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- int8


def test_int8_is_near_the_float_network_and_smaller(tmp_path, data, capsys):
    """On a narrow VarGFaceNet's beginning, calibrated on a data folder."""
    checkpoint, _ = of_symbol(NETWORKS["vargfacenet-authors"]())
    faces = int8.calibration_faces([data], 16)
    assert faces.shape == (16, 3, 112, 112)
    seen = []
    told = int8.export_int8(fold(checkpoint), tmp_path / "int8.onnx", faces, on_face=seen.append)
    assert sum(seen) == 16
    ours, exact = unit(run(tmp_path / "int8.onnx", faces)), unit(native(checkpoint, faces.astype(np.float32)))
    # a face whose values go past the usual range is cut off, so one may lie further away
    cosines = (ours * exact).sum(1)
    np.testing.assert_allclose(told, cosines, atol=0.01)
    assert np.median(cosines) > 0.98
    assert cosines.min() > 0.7
    # where insightface looks for a file's own preprocessing
    graph = onnx.load(str(tmp_path / "int8.onnx")).graph
    assert [node.op_type for node in graph.node[:2]] == ["Sub", "Mul"]
    assert graph.node[0].name.startswith("Sub")
    assert graph.node[1].name.startswith("Mul")
    assert (graph.input[0].name, graph.output[0].name) == ("data", "fc1")
    assert max(len(name) for node in graph.node for name in node.input if name != "data") <= 4  # no weight of names
    types = {array.data_type for array in onnx.load(str(tmp_path / "int8.onnx")).graph.initializer}
    assert onnx.TensorProto.INT8 in types
    # two products of 8-bit activations with these stay within the 16 bits in which x86 without VNNI adds them
    assert 2 * 255 * largest_weight(tmp_path / "int8.onnx") < 2**15
    int8.export_int8(fold(checkpoint), tmp_path / "vnni.onnx", faces[:1], vnni=True)
    assert largest_weight(tmp_path / "vnni.onnx") == 127


def largest_weight(file) -> int:
    arrays = [array for array in onnx.load(str(file)).graph.initializer if array.data_type == onnx.TensorProto.INT8]
    return max(np.abs(onnx.numpy_helper.to_array(array).astype(int)).max() for array in arrays)


def test_calibration_faces_are_spread_over_whatever_holds_faces(data, tmp_path):
    pack = read_pack(data / "pairs.bin")
    cv2.imwrite(str(tmp_path / "face.png"), tiny.image(0, 0)[:, :, ::-1])
    faces = int8.calibration_faces([data / "pairs.bin", tmp_path / "face.png"], 3)
    np.testing.assert_array_equal(faces[0], pack.decode(0, 1)[0])
    np.testing.assert_array_equal(faces[1], pack.decode(10, 11)[0])
    np.testing.assert_array_equal(faces[2], tiny.image(0, 0).transpose(2, 0, 1))
    assert len(int8.calibration_faces([data], 1000)) == tiny.IDENTITIES * tiny.EACH


def test_images_to_calibrate_on_are_checked_as_embed_checks_them(model, data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "none.npy", np.empty((0, 112, 112, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((250, 250, 3), np.uint8))
    out = tmp_path / "int8.onnx"
    arguments = ["export", "int8", "--model", model, "--out", str(out), "--calibrate"]
    for name, message in {"empty": "no image in this folder", "none.npy": "no face", "large.png": "--resize"}.items():
        assert main([*arguments, str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()
    assert main([*arguments, str(tmp_path / "large.png"), "--resize"]) == 0
    with pytest.raises(InputError, match="no face to calibrate on"):
        int8.calibration_faces([], 3)


@pytest.mark.parametrize("level", [logging.NOTSET, logging.ERROR])
def test_who_has_silenced_the_log_still_has(model, data, tmp_path, level):
    logging.disable(level)
    try:
        int8.export_int8(fold(load_checkpoint(model)), tmp_path / "int8.onnx", int8.calibration_faces(data, 1))
        assert logging.root.manager.disable == level
    finally:
        logging.disable(logging.NOTSET)


def test_an_int8_file_far_from_its_float_network_is_said(model, data, tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.setattr(int8, "FEW", 24)
    monkeypatch.setattr(int8, "LEAST_COSINE", 1.01)
    assert main(["export", "int8", "--model", model, "--out", str(tmp_path / "a.onnx"), "--calibrate", str(data)]) == 0
    assert "faces only" not in caplog.text
    assert caplog.messages[-1].startswith(f"{tmp_path / 'a.onnx'}: far from the float network - calibrate on more")


def test_int8_from_the_command_line(model, data, tmp_path, capsys, caplog):
    out = tmp_path / "int8.onnx"
    arguments = ["export", "int8", "--model", model, "--out", str(out), "--calibrate", str(data)]
    assert main([*arguments, "--images", "0"]) == 2
    assert "--images 0: must be at least 1" in capsys.readouterr().err
    assert main([*arguments, "--images", "8"]) == 0
    said = capsys.readouterr().out
    assert "calibrated on 8 faces" in said
    assert re.search(r"cosine to the float network, 8 of them: mean (0\.9|1\.0)\d+, least [01]\.\d+\n", said)
    assert caplog.messages[-1:] == ["calibrated on 8 faces only - give 64 or more, better 256"]
    assert run(out, np.zeros((1, 3, 112, 112))).shape == (1, tiny.DIMENSIONS)
