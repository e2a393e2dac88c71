"""Teachers by name: one or several, MXNet's or ONNX, and what each is fed."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import tiny

from vargface import packages
from vargface.errors import InputError
from vargface.inference import unit
from vargface.runtime import mx
from vargface.teachers.models import TeacherModels, models_of, teacher_digest

IMAGES = np.stack([tiny.image(number % 4, number) for number in range(5)]).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def other_teacher(tmp_path_factory):
    return tiny.make_teacher(tmp_path_factory.mktemp("other"), seed=8)


@pytest.mark.parametrize(
    ("teacher", "models"),
    [
        ("r100/model,0", ["r100/model,0"]),
        ("a.onnx", ["a.onnx"]),
        ("a/model,0+b.onnx+c,12", ["a/model,0", "b.onnx", "c,12"]),
        ("run1+2/model,0+x,1", ["run1+2/model,0", "x,1"]),
        ("with,comma/model,0", ["with,comma/model,0"]),
        ("a.onnx.d/model,3", ["a.onnx.d/model,3"]),
    ],
)
def test_a_teacher_names_its_models(teacher, models):
    assert models_of(teacher) == models


@pytest.mark.parametrize("teacher", ["", "model", "a,0+", "+a,0", "a,0++b,0", "a,0+b", "a,x"])
def test_what_names_no_model_is_refused(teacher):
    with pytest.raises(InputError, match=r"must be PREFIX,EPOCH, FILE.onnx or several"):
        models_of(teacher)


def test_a_teacher_is_known_by_its_models_in_any_order(teacher, other_teacher):
    both = teacher_digest(f"{teacher}+{other_teacher}")
    assert both == teacher_digest(f"{other_teacher}+{teacher}")
    assert len({both, teacher_digest(teacher), teacher_digest(other_teacher)}) == 3


def test_several_are_averaged_on_the_sphere(teacher, other_teacher):
    one, other, both = (
        TeacherModels(name).network(4, mx.cpu())(IMAGES)
        for name in (teacher, other_teacher, f"{teacher}+{other_teacher}")
    )
    one, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other))
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-6)
    # of two: in the middle of the arc
    np.testing.assert_allclose((both * one).sum(axis=1), (both * other).sum(axis=1), atol=1e-6)
    np.testing.assert_allclose((both * one).sum(axis=1), np.sqrt((1 + (one * other).sum(axis=1)) / 2), atol=1e-6)


def test_teachers_of_two_sizes_cannot_be_averaged(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "DIMENSIONS", 8)
    small = tiny.make_teacher(tmp_path)
    with pytest.raises(InputError, match=rf"embed into as many dimensions, not {teacher} into 16, {small} into 8"):
        TeacherModels(f"{teacher}+{small}")


# --- ONNX


def make_onnx(path, *, scales: bool, batch: int | str = "N", fed=("N", 3, 112, 112), embeds=True) -> np.ndarray:
    """Write a model that averages cells of 28x28 and multiplies by a matrix, returned; scaling is in it if `scales`."""
    onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
    pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(3 * (fed[2] // 28) ** 2, 8)).astype(np.float32)
    constants = {"mean": np.float32(127.5), "scale": np.float32(0.0078125), "weight": weight}
    scaling = [
        helper.make_node("Sub", ["data", "mean"], ["centred"], "Sub_0"),
        helper.make_node("Mul", ["centred", "scale"], ["scaled"], "Mul_0"),
    ]
    cells, source = {"kernel_shape": [28, 28], "strides": [28, 28]}, "scaled" if scales else "data"
    nodes = [
        *(scaling if scales else []),
        helper.make_node("AveragePool", [source], ["cells"], "pool", **cells),
        helper.make_node("Flatten", ["cells"], ["flat"], "flat"),
        helper.make_node("MatMul", ["flat", "weight"], ["fc1"], "fc1"),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [batch, *fed[1:]])],
        [helper.make_tensor_value_info("fc1" if embeds else "cells", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return weight


def cells(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float64).reshape(len(images), 3, 4, 28, 4, 28).mean(axis=(3, 5)).reshape(len(images), 48)


@pytest.mark.parametrize(("scales", "divisor"), [(True, 128.0), (False, 127.5)])
@pytest.mark.parametrize("batch", ["N", 2])
def test_an_onnx_model_is_fed_as_insightface_feeds_it(tmp_path, scales, divisor, batch):
    weight = make_onnx(tmp_path / "t.onnx", scales=scales, batch=batch)
    models = TeacherModels(f"{tmp_path}/t.onnx")
    assert models.embedding_size == 8
    found = models.network(3, mx.cpu())(IMAGES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, (cells(IMAGES) - 127.5) / divisor @ weight, rtol=1e-4, atol=1e-4)
    assert models.network(3, mx.cpu())(IMAGES[:0]).shape == (0, 8)


def test_an_onnx_teacher_is_averaged_with_another(tmp_path, teacher, monkeypatch):
    make_onnx(tmp_path / "t.onnx", scales=True)
    monkeypatch.setattr(tiny, "DIMENSIONS", 8)
    small = tiny.make_teacher(tmp_path)
    rows = [TeacherModels(name).network(4, mx.cpu())(IMAGES) for name in (f"{tmp_path}/t.onnx", small)]
    both = TeacherModels(f"{tmp_path}/t.onnx+{small}").network(4, mx.cpu())(IMAGES)
    np.testing.assert_allclose(both, unit(unit(rows[0]) + unit(rows[1])), atol=1e-6)


def test_an_onnx_teacher_is_known_by_weights_outside_its_file_too(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra 'export'")
    digests = []
    for name, factor in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "t.onnx"
        make_onnx(file, scales=True)
        model = onnx.load(str(file))
        (weight,) = [each for each in model.graph.initializer if each.name == "weight"]
        weight.CopyFrom(onnx.numpy_helper.from_array(factor * onnx.numpy_helper.to_array(weight), "weight"))
        onnx.save(model, str(file), save_as_external_data=True, location="t.data", size_threshold=64)
        digests.append(teacher_digest(str(file)))
    assert (tmp_path / "a" / "t.onnx").read_bytes() == (tmp_path / "b" / "t.onnx").read_bytes()
    assert digests[0] != digests[1]
    (tmp_path / "a" / "t.data").unlink()
    with pytest.raises(InputError, match=r"t.onnx: its weights are in t.data, which is not beside it"):
        teacher_digest(f"{tmp_path}/a/t.onnx")


def test_an_onnx_file_that_is_none_is_said(tmp_path):
    make_onnx(tmp_path / "t.onnx", scales=True)
    (tmp_path / "t.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"t.onnx: not (an ONNX|a) model"):
        TeacherModels(f"{tmp_path}/t.onnx")
    with pytest.raises(InputError, match=r"none.onnx: no such file"):
        TeacherModels(f"{tmp_path}/none.onnx")


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"fed": ("N", 3, 56, 56)}, r"takes data \['N', 3, 56, 56\]"), ({"embeds": False}, r"no embedding \(N, D\)")],
)
def test_an_onnx_model_that_embeds_no_faces_is_said(tmp_path, keys, message):
    make_onnx(tmp_path / "t.onnx", scales=True, **keys)
    with pytest.raises(InputError, match=message):
        TeacherModels(f"{tmp_path}/t.onnx")


def test_without_onnxruntime_it_is_said_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "t.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=f"an ONNX teacher needs onnx .* - {re.escape(packages.install('export'))}"):
        TeacherModels(f"{tmp_path}/t.onnx")
