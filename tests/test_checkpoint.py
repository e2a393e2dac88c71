"""Checkpoints: what InsightFace's consumers get of ours, what we accept of theirs, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import largest_file

from vargface.checkpoint import load_checkpoint, load_params, matching, parse_model, save_checkpoint, write_params
from vargface.errors import InputError
from vargface.graph import training_form
from vargface.runtime import mx
from vargface.symbols import vargfacenet

SIZE = 16


class Saved:
    """A checkpoint on disk, with the parameters it was made of."""

    def __init__(self, folder: Path) -> None:
        self.symbol = vargfacenet.get_symbol(SIZE, 0.25, "insightface")
        module = mx.mod.Module(self.symbol, label_names=None)
        module.bind([("data", (1, 3, 112, 112))], for_training=False)
        module.init_params(mx.init.Xavier())
        self.args, self.auxs = module.get_params()
        random = np.random.default_rng(0)
        for values in (self.args, self.auxs):
            for name, value in values.items():
                if name != "fc1_gamma":  # fixed at 1: what its array holds counts for nothing
                    value[:] = mx.nd.array(random.uniform(0.1, 0.2, value.shape))
        self.prefix = folder / "student"
        self.model = save_checkpoint(self.prefix, 3, self.symbol, self.args, self.auxs)
        self.symbol_file, self.params_file = folder / "student-symbol.json", folder / "student-0003.params"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Saved:
    return Saved(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def saved(pristine, tmp_path) -> Saved:
    """A checkpoint of this test's own, to damage."""
    own = object.__new__(Saved)
    vars(own).update(vars(pristine))
    own.prefix, own.model = tmp_path / "student", f"{tmp_path}/student,3"
    for name in ("symbol_file", "params_file"):
        setattr(own, name, tmp_path / getattr(pristine, name).name)
        getattr(own, name).write_bytes(getattr(pristine, name).read_bytes())
    return own


def assert_refused(call, *parts: str) -> None:
    """The call raises an InputError of one line that has every one of `parts`."""
    with pytest.raises(InputError) as refused:
        call()
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 600
    for part in parts:
        assert part in message


# --- there and back


def test_what_is_saved_is_loaded(pristine):
    assert pristine.model == f"{pristine.prefix},3"
    assert sorted(path.name for path in pristine.prefix.parent.iterdir()) == [
        "student-0003.params",
        "student-symbol.json",
    ]
    loaded = load_checkpoint(pristine.model)
    assert loaded.symbol.tojson() == pristine.symbol.tojson()
    assert (loaded.source, loaded.embedding_size) == (pristine.model, SIZE)
    for values, expected in ((loaded.args, pristine.args), (loaded.auxs, pristine.auxs)):
        assert set(values) == set(expected)
        for name, value in values.items():
            np.testing.assert_array_equal(value.asnumpy(), expected[name].asnumpy(), err_msg=name)


def test_insightfaces_consumers_can_load_and_run_it(pristine):
    """The calls of `insightface` 0.1, verification.py, gen_image_feature.py: nothing missing, nothing left over."""
    symbol, args, auxs = mx.model.load_checkpoint(str(pristine.prefix), 3)
    symbol = symbol.get_internals()["fc1_output"]
    module = mx.mod.Module(symbol=symbol, context=mx.cpu(), label_names=None)
    module.bind(data_shapes=[("data", (2, 3, 112, 112))])
    module.set_params(args, auxs)  # neither missing nor extra parameters are allowed by default
    module.forward(mx.io.DataBatch(data=(mx.nd.ones((2, 3, 112, 112)),)), is_train=False)
    assert module.get_outputs()[0].shape == (2, SIZE)


def test_its_symbol_is_the_native_one(pristine):
    nodes = json.loads(pristine.symbol_file.read_text())["nodes"]
    assert sum(node["op"] == "LeakyReLU" for node in nodes) == 70


@pytest.mark.parametrize("missing", ["fc1_beta", "fc1_moving_var"])
def test_a_network_without_one_of_its_parameters_is_not_saved(pristine, tmp_path, missing):
    args, auxs = ({n: v for n, v in values.items() if n != missing} for values in (pristine.args, pristine.auxs))
    with pytest.raises(ValueError, match=f"m: no array for {missing}, which the symbol has"):
        save_checkpoint(tmp_path / "m", 0, pristine.symbol, args, auxs)
    assert list(tmp_path.iterdir()) == []


def test_heads_and_labels_are_not_saved(pristine, tmp_path):
    extra = {"fc7_weight": mx.nd.ones((9, SIZE)), "softmax_label": mx.nd.ones((2,))}
    model = save_checkpoint(tmp_path / "m", 0, pristine.symbol, {**pristine.args, **extra}, pristine.auxs)
    keys = set(mx.nd.load(str(tmp_path / "m-0000.params")))
    assert keys == {f"arg:{name}" for name in pristine.args} | {f"aux:{name}" for name in pristine.auxs}
    assert set(load_checkpoint(model).args) == set(pristine.args)


def test_what_was_trained_in_the_training_form_is_saved_with_the_native_symbol(pristine, tmp_path):
    module = mx.mod.Module(training_form(pristine.symbol), label_names=None)
    module.bind([("data", (1, 3, 112, 112))], for_training=False)
    module.init_params(mx.init.Xavier())
    args, auxs = module.get_params()
    loaded = load_checkpoint(save_checkpoint(tmp_path / "m", 0, pristine.symbol, args, auxs))
    assert set(loaded.args) == set(args)
    assert "LeakyReLU" in loaded.symbol.tojson()


def test_a_fixed_gamma_is_saved_as_one(pristine, tmp_path):
    """MXNet computes with 1 whatever the array holds, and an ONNX exporter does not."""
    args = {**pristine.args, "fc1_gamma": mx.nd.full((SIZE,), 0.5)}
    loaded = load_checkpoint(save_checkpoint(tmp_path / "m", 0, pristine.symbol, args, pristine.auxs))
    assert (loaded.args["fc1_gamma"].asnumpy() == 1).all()
    for name in ("fc1_beta", "embed_convx_bn_gamma", "embed_convx_act_gamma"):
        np.testing.assert_array_equal(loaded.args[name].asnumpy(), pristine.args[name].asnumpy())


@pytest.mark.parametrize("epoch, file", [(0, "m-0000.params"), (12345, "m-12345.params")])
def test_an_epoch_has_four_digits_or_more(pristine, tmp_path, epoch, file):
    model = save_checkpoint(tmp_path / "m", epoch, pristine.symbol, pristine.args, pristine.auxs)
    assert (tmp_path / file).is_file()
    assert load_checkpoint(model).source == model


def test_a_checkpoint_with_its_training_head_is_cut_at_the_embedding(saved):
    head = mx.sym.FullyConnected(saved.symbol, num_hidden=9, no_bias=True, name="fc7")
    mx.sym.SoftmaxOutput(head, name="softmax").save(str(saved.symbol_file))
    params = {**mx.nd.load(str(saved.params_file)), "arg:fc7_weight": mx.nd.ones((9, SIZE))}
    mx.nd.save(str(saved.params_file), params)
    loaded = load_checkpoint(saved.model)
    assert loaded.symbol.list_outputs() == ["fc1_output"]
    assert set(loaded.args) == set(saved.args)


def test_the_old_name_of_the_dense_weight_is_understood(pristine):
    """InsightFace's early MobileFaceNets call it fc1_weight."""
    params = mx.nd.load(str(pristine.params_file))
    params["arg:fc1_weight"] = params.pop("arg:pre_fc1_weight")
    args, _ = matching(pristine.symbol, params, "old")
    np.testing.assert_array_equal(args["pre_fc1_weight"].asnumpy(), params["arg:fc1_weight"].asnumpy())


# --- what is refused


@pytest.mark.parametrize(
    "model", ["", ",", "student", "student,", ",3", "student,-1", "student,1.5", "student,best", "student,٣"]
)
def test_a_model_is_a_prefix_and_an_epoch(model):
    assert_refused(lambda: load_checkpoint(model), repr(model), "PREFIX,EPOCH")


def test_a_prefix_may_have_commas():
    assert parse_model("runs/a,b/student,12") == ("runs/a,b/student", 12)


def test_files_that_are_not_there_are_named(saved):
    assert_refused(lambda: load_checkpoint(f"{saved.prefix}x,3"), "studentx-symbol.json: no such file", "studentx,3")
    assert_refused(lambda: load_checkpoint(f"{saved.prefix},4"), "student-0004.params: no such file", "student,4")


def test_a_symbol_without_fc1_is_refused_with_the_names_that_may_be_meant(saved):
    data = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=2, kernel=(3, 3), name="conv1")
    mx.sym.FullyConnected(data, num_hidden=4, name="embedding").save(str(saved.symbol_file))
    assert_refused(lambda: load_checkpoint(saved.model), "student-symbol.json", "no fc1_output", ": embedding_output")
    data.save(str(saved.symbol_file))
    assert_refused(lambda: load_checkpoint(saved.model), "no fc1_output", ": conv1_output")


def dense(data, **keywords):
    return mx.sym.FullyConnected(data, num_hidden=4, name="fc1", **keywords)


@pytest.mark.parametrize(
    "symbol, told",
    [
        (
            lambda: mx.sym.Convolution(mx.sym.Variable("data"), num_filter=4, kernel=(3, 3), name="fc1"),
            "(1, 4, 110, 110)",
        ),
        (lambda: dense(mx.sym.Variable("image")), "image, fc1_weight"),
        (lambda: dense(mx.sym.Variable("data"), weight=mx.sym.Variable("w", shape=(4, 7))), "inconsistent"),
        (lambda: dense(mx.sym.concat(mx.sym.Variable("data"), mx.sym.Variable("pose"))), "open"),
    ],
    ids=["not (N, D)", "no data", "other size", "another input"],
)
def test_a_symbol_that_makes_no_embedding_of_images_is_refused(saved, symbol, told):
    symbol().save(str(saved.symbol_file))
    assert_refused(lambda: load_checkpoint(saved.model), "student-symbol.json: fc1_output", "(N, 3, 112, 112)", told)


@pytest.mark.parametrize("kept", [0, 1, 10, 100, 5000, 0.5])
def test_a_truncated_symbol_is_refused(saved, kept):
    text = saved.symbol_file.read_bytes()
    saved.symbol_file.write_bytes(text[: int(kept * len(text)) if kept == 0.5 else kept])
    assert_refused(lambda: load_checkpoint(saved.model), "student-symbol.json: not a symbol that MXNet can read")


@pytest.mark.parametrize("text", ["{}", "[1, 2]", "\0" * 100, '{"nodes": 3}', "\ufeff{}"])
def test_a_file_that_is_no_symbol_is_refused(saved, text):
    saved.symbol_file.write_text(text)
    assert_refused(lambda: load_checkpoint(saved.model), "student-symbol.json: not a symbol that MXNet can read")


def test_an_unknown_operator_is_named(saved):
    text = saved.symbol_file.read_text().replace('"op": "LeakyReLU"', '"op": "NewReLU"', 1)
    saved.symbol_file.write_text(text)
    assert_refused(lambda: load_checkpoint(saved.model), "student-symbol.json", "NewReLU")


@pytest.mark.parametrize("kept", [0, 7, 8, 24, 100, 0.5, -5000, -1])
def test_truncated_params_are_refused(saved, kept):
    data = saved.params_file.read_bytes()
    saved.params_file.write_bytes(data[: int(kept * len(data)) if kept == 0.5 else kept])
    assert_refused(
        lambda: load_checkpoint(saved.model), "student-0003.params: not a parameter file that MXNet can read"
    )


@pytest.mark.parametrize("place", [0, 16, 20, 24, 40])
def test_damaged_params_are_refused(saved, place):
    """Magic number, counts, shapes: the rest of the file is values, and any value is a value."""
    data = bytearray(saved.params_file.read_bytes())
    data[place] ^= 0xFF
    saved.params_file.write_bytes(data)
    assert_refused(
        lambda: load_checkpoint(saved.model), "student-0003.params: not a parameter file that MXNet can read"
    )


@pytest.mark.parametrize("text", [b"a text\n" * 100, b"PK\x03\x04" + bytes(500)])
def test_a_file_of_another_kind_is_refused(saved, text):
    saved.params_file.write_bytes(text)
    assert_refused(
        lambda: load_checkpoint(saved.model), "student-0003.params: not a parameter file that MXNet can read"
    )


def test_nameless_params_are_refused(saved):
    mx.nd.save(str(saved.params_file), [mx.nd.ones((2,))])
    assert_refused(lambda: load_params(saved.params_file), "student-0003.params", "no named parameters")


@pytest.mark.parametrize("key", ["arg:pre_fc1_weight", "arg:embed_convx_act_gamma", "aux:fc1_moving_var"])
def test_a_missing_parameter_is_named_with_its_shape(saved, key):
    params = mx.nd.load(str(saved.params_file))
    shape = params.pop(key).shape
    mx.nd.save(str(saved.params_file), params)
    assert_refused(lambda: load_checkpoint(saved.model), "student-0003.params", f"{key[4:]} {shape}")


def test_a_parameter_of_another_shape_is_named_with_both(saved):
    params = {**mx.nd.load(str(saved.params_file)), "arg:pre_fc1_weight": mx.nd.ones((32, 512))}
    mx.nd.save(str(saved.params_file), params)
    assert_refused(lambda: load_checkpoint(saved.model), "pre_fc1_weight is (32, 512)", f"needs ({SIZE}, 512)")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("arg:fc1_beta", np.nan, "1 of its 16 values are not finite"),
        ("arg:pre_fc1_weight", np.inf, "values are not finite"),
        ("aux:fc1_moving_var", -1e-3, "1 of its 16 values are negative"),
    ],
)
def test_values_that_no_network_can_have_are_refused(saved, key, value, told):
    """They embedded and exported without a word: every face NaN."""
    params = load_params(saved.params_file)
    flat = params[key].asnumpy()
    flat.reshape(-1)[0] = value
    params[key] = mx.nd.array(flat)
    mx.nd.save(str(saved.params_file), params)
    assert_refused(lambda: load_checkpoint(saved.model), str(saved.params_file), key[4:], told)


# --- writing that fails


@pytest.fixture(scope="module")
def small_params() -> dict:
    return {f"arg:some_name_{number}": mx.nd.full((50,), number) for number in range(300)}


@pytest.mark.parametrize("missing", [1, 100, 10_000, 77_000])
def test_params_are_written_whole_or_not_at_all(small_params, tmp_path, missing):
    """The last bytes are MXNet's last buffer, whose loss it does not report."""
    path = tmp_path / "m-0000.params"
    write_params(path, small_params)
    size = path.stat().st_size
    before = path.read_bytes()
    with largest_file(size - missing):
        assert_refused(lambda: write_params(path, {**small_params, "arg:some_name_0": mx.nd.zeros((50,))}), str(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with largest_file(size):
        write_params(path, small_params)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(saved):
    symbol, params = saved.symbol_file.read_bytes(), saved.params_file.read_bytes()
    for size in (1000, len(params) - 1):
        with largest_file(size):
            save = lambda: save_checkpoint(saved.prefix, 3, saved.symbol, saved.args, saved.auxs)  # noqa: E731
            assert_refused(save, "cannot write")
        assert (saved.symbol_file.read_bytes(), saved.params_file.read_bytes()) == (symbol, params)
        assert len(list(saved.prefix.parent.iterdir())) == 2


def test_a_folder_that_is_not_there_is_named(pristine, tmp_path):
    prefix = tmp_path / "none" / "m"
    assert_refused(
        lambda: save_checkpoint(prefix, 0, pristine.symbol, pristine.args, pristine.auxs),
        f"{prefix}-symbol.json",
        "No such",
    )
