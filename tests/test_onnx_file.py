"""The ONNX files: what ONNX Runtime makes of them is what MXNet makes of the checkpoint."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import test_networks
import tiny
from test_deploy_network import every_network, native, of_symbol
from test_graph import NETWORKS

from vargface.checkpoint import Checkpoint, load_checkpoint
from vargface.cli import main
from vargface.data.packs import read_pack
from vargface.deploy import int8
from vargface.deploy.network import fold
from vargface.deploy.onnx_file import OPSET, export_onnx, onnx_model
from vargface.errors import InputError
from vargface.inference import FrozenNetwork, unit
from vargface.runtime import mx
from vargface.symbols.layers import embedding_layer

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
    assert_parity(onnx_model(fold(checkpoint), wide_groups=wide_groups), images, native(checkpoint, images))


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
    assert (tmp_path / "network.onnx").stat().st_size < 1.005 * (tmp_path / "network.params").stat().st_size


def test_the_real_networks_on_real_faces(real_faces):
    """The public MobileFaceNet y1 of 2018, whose dense layer sits on a convolution."""
    checkpoint = load_checkpoint(f"{real_faces}/insightface-y1/model,0")
    images = read_pack(real_faces / "real-mini" / "mini_ff.bin").decode(0, 16)
    assert_parity(onnx_model(fold(checkpoint)), images, FrozenNetwork(checkpoint, 16)(images))


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
    int8.export_int8(fold(checkpoint), tmp_path / "int8.onnx", faces, on_face=seen.append)
    assert sum(seen) == 16
    ours, exact = unit(run(tmp_path / "int8.onnx", faces)), unit(native(checkpoint, faces.astype(np.float32)))
    # a face whose values go past the usual range is cut off, so one may lie further away
    cosines = (ours * exact).sum(1)
    assert np.median(cosines) > 0.98
    assert cosines.min() > 0.7
    # where insightface looks for a file's own preprocessing
    first = [node.op_type for node in onnx.load(str(tmp_path / "int8.onnx")).graph.node[:8]]
    assert first[:2] == ["Sub", "Mul"]
    types = {array.data_type for array in onnx.load(str(tmp_path / "int8.onnx")).graph.initializer}
    assert onnx.TensorProto.INT8 in types


def test_calibration_faces_are_spread_over_whatever_holds_faces(data, tmp_path):
    pack = read_pack(data / "pairs.bin")
    cv2.imwrite(str(tmp_path / "face.png"), tiny.image(0, 0)[:, :, ::-1])
    faces = int8.calibration_faces([data / "pairs.bin", tmp_path / "face.png"], 3)
    np.testing.assert_array_equal(faces[0], pack.decode(0, 1)[0])
    np.testing.assert_array_equal(faces[1], pack.decode(10, 11)[0])
    np.testing.assert_array_equal(faces[2], tiny.image(0, 0).transpose(2, 0, 1))
    assert len(int8.calibration_faces([data], 1000)) == tiny.IDENTITIES * tiny.EACH


def test_int8_from_the_command_line(model, data, tmp_path, capsys):
    out = tmp_path / "int8.onnx"
    arguments = ["export", "int8", "--model", model, "--out", str(out), "--calibrate", str(data)]
    assert main([*arguments, "--images", "0"]) == 2
    assert "--images 0: must be at least 1" in capsys.readouterr().err
    assert main([*arguments, "--images", "8"]) == 0
    assert "calibrated on 8 faces" in capsys.readouterr().out
    assert run(out, np.zeros((1, 3, 112, 112))).shape == (1, tiny.DIMENSIONS)
