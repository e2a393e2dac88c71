"""What training and export write, in the real packages: `insightface` 0.1.5 (MXNet) and 0.2 or later (ONNX).

Neither can live in this project's environment. VARGFACE_INSIGHTFACE_OLD and VARGFACE_INSIGHTFACE_NEW name the Python of
one that has it: `pip install mxnet==1.9.1 'numpy<1.24' opencv-python-headless` and then `pip install --no-deps
insightface==0.1.5`; and `pip install insightface onnxruntime`. Without them these tests skip. Where there are real
faces, y1 is taken, too, and the checkpoints that VARGFACE_INSIGHTFACE_MODELS names (PREFIX,EPOCH, between spaces).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny

from vargface.checkpoint import load_checkpoint, load_params, parse_model
from vargface.data.packs import read_pack
from vargface.deploy.alignment import TEMPLATE
from vargface.deploy.embedder import Embedder
from vargface.deploy.network import fold
from vargface.inference import FrozenNetwork, unit
from vargface.runtime import mx
from vargface.teachers.onnx_network import OnnxNetwork
from vargface.training import fit


def package(variable: str) -> str:
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} is not set: the Python of an environment with that insightface (see this file's top)")
    return python


def run(python: str, code: str, *arguments: str) -> np.ndarray:
    """Run `code` there, in a clean environment, and return the array that it saves under the last argument."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MXNET_", "DNNL_", "PY"))}
    done = subprocess.run([python, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(arguments[-1])


@pytest.fixture
def trained(make, teacher) -> dict[str, str]:
    """PREFIX,EPOCH of a distilled student and of a network trained alone, each on two contexts."""
    models = {}
    for role, keys in {"student": {"teacher": teacher}, "teacher": {"role": "teacher"}}.items():
        recipe = make(context="cpu(0),cpu(1)", **keys)
        recipe.out = f"{recipe.out}-{role}"
        (folder,) = fit.train(recipe)
        models[role] = folder.model(folder.result["last"])
    return models


def test_a_consumer_finds_nothing_missing_and_nothing_extra(trained):
    for model in trained.values():
        prefix, epoch = parse_model(model)
        symbol, args, auxs = mx.model.load_checkpoint(prefix, epoch)
        assert symbol.list_outputs() == ["fc1_output"]
        assert set(symbol.list_arguments()) == {"data", *args}
        assert set(symbol.list_auxiliary_states()) == set(auxs)
        nodes = symbol.get_internals().list_outputs()
        assert not [name for name in nodes if any(word in name for word in ("fc7", "label", "loss", "teacher"))]
        module = mx.mod.Module(symbol.get_internals()["fc1_output"], label_names=None)
        module.bind([("data", (1, 3, 112, 112))], for_training=False)
        module.set_params(args, auxs, allow_missing=False, allow_extra=False)
        keys = load_params(f"{prefix}-{epoch:04d}.params").keys()
        assert {key.partition(":")[0] for key in keys} == {"arg", "aux"}


# FaceRecognition's module alone: the package imports what its detectors need
OLD = """
import importlib.util, pathlib, sys
import cv2, numpy as np
(folder,) = importlib.util.find_spec("insightface").submodule_search_locations
path = pathlib.Path(folder) / "model_zoo" / "face_recognition.py"
spec = importlib.util.spec_from_file_location("face_recognition", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
params, *photos, out = sys.argv[1:]
network = module.FaceRecognition("vargface", True, params)
network.prepare(-1)
np.save(out, np.concatenate([network.get_embedding(cv2.imread(photo)) for photo in photos]))
"""


@pytest.fixture
def photos(tmp_path) -> list[str]:
    """Three aligned faces, as files without loss."""
    names = [str(tmp_path / f"{identity}.png") for identity in range(3)]
    for identity, name in enumerate(names):
        cv2.imwrite(name, tiny.image(identity, 0)[:, :, ::-1])
    return names


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (unit(one.astype(np.float64)) * unit(other.astype(np.float64))).sum(1)


def file_of(model: str) -> str:
    prefix, epoch = parse_model(model)
    return f"{prefix}-{epoch:04d}.params"


def rgb(photos: list[str]) -> np.ndarray:
    return np.stack([cv2.imread(photo)[:, :, ::-1] for photo in photos])


def test_insightface_0_1_5_embeds_as_we_do(trained, photos, tmp_path):
    python = package("VARGFACE_INSIGHTFACE_OLD")
    for model in trained.values():
        theirs = run(python, OLD, file_of(model), *photos, str(tmp_path / "old.npy"))
        assert theirs.shape == (3, tiny.DIMENSIONS)
        ours = Embedder(model).embed(rgb(photos), flip=False)
        assert cosines(theirs, ours).min() > 0.99999


# a photo with a face that was turned, moved and scaled, and where its landmarks came to lie
NEW = """
import sys
import cv2, numpy as np
from insightface.app.common import Face
from insightface.model_zoo import get_model
network_file, photo, points, *aligned, out = sys.argv[1:]
network = get_model(network_file)
assert type(network).__name__ == "ArcFaceONNX", network
assert (network.input_mean, network.input_std, network.input_size) == (0.0, 1.0, (112, 112))
network.prepare(-1)
rows = [network.get_feat(cv2.imread(file)).ravel() for file in aligned]
rows += list(network.get_feat([cv2.imread(file) for file in aligned]))
rows.append(network.get(cv2.imread(photo), Face(kps=np.load(points))))
np.save(out, np.stack(rows))
"""


def test_todays_insightface_embeds_as_we_do(photos, tmp_path):
    python = package("VARGFACE_INSIGHTFACE_NEW")
    pytest.importorskip("onnx", reason="needs the extra 'export'")
    from vargface.deploy.onnx_file import export_onnx

    prefix = tiny.make_teacher(tmp_path)
    export_onnx(fold(load_checkpoint(prefix)), tmp_path / "tiny.onnx")
    photo = cv2.resize(tiny.image(1, 7), (300, 300))
    cv2.imwrite(str(tmp_path / "photo.png"), photo[:, :, ::-1])
    landmarks = np.array([[100, 120], [190, 110], [150, 160], [110, 210], [195, 200]], np.float32)
    np.save(tmp_path / "points.npy", landmarks)
    arguments = [str(tmp_path / name) for name in ("tiny.onnx", "photo.png", "points.npy")]
    theirs = run(python, NEW, *arguments, *photos, str(tmp_path / "new.npy"))
    embedder = Embedder(prefix)
    ours = embedder.embed(rgb(photos), flip=False)
    ours = np.concatenate([ours, ours, embedder.embed_photo(photo, landmarks[None], flip=False)])
    assert cosines(theirs, ours).min() > 0.99999


@pytest.fixture
def real_models(real_faces) -> list[str]:
    return [f"{real_faces}/insightface-y1/model,0", *os.environ.get("VARGFACE_INSIGHTFACE_MODELS", "").split()]


@pytest.fixture
def real_photos(real_faces, tmp_path) -> list[str]:
    """16 faces of a pack, as files without loss."""
    names = [str(tmp_path / f"real{number}.png") for number in range(16)]
    for name, face in zip(names, read_pack(real_faces / "real-mini" / "mini_ff.bin").decode(0, 16)):
        cv2.imwrite(name, face.transpose(1, 2, 0)[:, :, ::-1])
    return names


def test_real_networks_on_real_faces_in_0_1_5(real_models, real_photos, tmp_path):
    python = package("VARGFACE_INSIGHTFACE_OLD")
    for model in real_models:
        theirs = run(python, OLD, file_of(model), *real_photos, str(tmp_path / "old.npy"))
        found = cosines(theirs, Embedder(model).embed(rgb(real_photos), flip=False)).min()
        print(f"{model}: insightface 0.1.5: smallest cosine {found:.10f}")
        assert found > 0.99999


def photo_with_landmarks(aligned: str, folder: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A photo (300, 300, 3) RGB of that face, its landmarks (5, 2), and the files in `folder` that hold both."""
    photo = cv2.resize(rgb([aligned])[0], (300, 300))
    landmarks = (TEMPLATE * 300 / 112).astype(np.float32)
    files = [str(folder / name) for name in ("photo.png", "points.npy")]
    cv2.imwrite(files[0], photo[:, :, ::-1])
    np.save(files[1], landmarks)
    return photo, landmarks, files


@pytest.mark.parametrize("form", ["onnx", "avx512"])
def test_real_networks_on_real_faces_in_todays(real_models, real_photos, tmp_path, form):
    """The last row is a face that both align: OpenCV 4 and 5 differ by 1 in a few of its values."""
    python = package("VARGFACE_INSIGHTFACE_NEW")
    pytest.importorskip("onnx", reason="needs the extra 'export'")
    from vargface.deploy.onnx_file import export_onnx

    photo, landmarks, files = photo_with_landmarks(real_photos[0], tmp_path)
    for model in real_models:
        checkpoint = load_checkpoint(model)
        export_onnx(fold(checkpoint), tmp_path / "real.onnx", wide_groups=form == "avx512")
        theirs = run(python, NEW, str(tmp_path / "real.onnx"), *files, *real_photos, str(tmp_path / "new.npy"))
        ours = unit(FrozenNetwork(checkpoint, 8)(rgb(real_photos).transpose(0, 3, 1, 2)))
        apart = np.abs(unit(theirs[:16]) - ours).max()
        aligned = cosines(theirs[-1:], Embedder(model).embed_photo(photo, landmarks[None], flip=False)).min()
        found = cosines(theirs[:-1], np.concatenate([ours, ours])).min()
        print(f"{model}: insightface, {form}: smallest cosine {found:.10f}, apart {apart:.1e}, aligned {aligned:.7f}")
        assert found > 0.99999
        assert apart < 1e-4
        assert aligned > 0.9999


def test_an_int8_file_in_todays(real_models, real_photos, tmp_path):
    """`insightface` feeds it as it feeds a float file: it gives what ONNX Runtime gives here."""
    python = package("VARGFACE_INSIGHTFACE_NEW")
    pytest.importorskip("onnx", reason="needs the extra 'export'")
    from vargface.deploy.int8 import export_int8

    *_, files = photo_with_landmarks(real_photos[0], tmp_path)
    faces = rgb(real_photos).transpose(0, 3, 1, 2)
    for model in real_models:
        checkpoint = load_checkpoint(model)
        export_int8(fold(checkpoint), tmp_path / "int8.onnx", faces)
        theirs = run(python, NEW, str(tmp_path / "int8.onnx"), *files, *real_photos, str(tmp_path / "new.npy"))[:-1]
        ours = OnnxNetwork(tmp_path / "int8.onnx")(faces)
        same = cosines(theirs, np.concatenate([ours, ours])).min()
        near = cosines(theirs[:16], FrozenNetwork(checkpoint, 8)(faces))
        print(f"{model}: int8: to ours {same:.10f}; to float mean {near.mean():.3f}, least {near.min():.3f}")
        assert same > 0.99999
        assert near.mean() > 0.9


def test_face_analysis_takes_the_file_as_its_recognition_model(tmp_path):
    """As far as it goes without its detector, which it downloads: the folder is scanned, ours is recognised."""
    python = package("VARGFACE_INSIGHTFACE_NEW")
    pytest.importorskip("onnx", reason="needs the extra 'export'")
    from vargface.deploy.onnx_file import export_onnx

    folder = tmp_path / "models"
    folder.mkdir()
    export_onnx(fold(load_checkpoint(tiny.make_teacher(tmp_path))), folder / "tiny.onnx")
    code = (
        "import sys, numpy as np\n"
        "from insightface.app import FaceAnalysis\n"
        "try:\n"
        "    FaceAnalysis(name=sys.argv[1])\n"
        "except AssertionError as error:\n"
        "    frame = error.__traceback__\n"
        "    while frame.tb_next: frame = frame.tb_next\n"
        "    models = frame.tb_frame.f_locals['self'].models\n"
        "    np.save(sys.argv[2], np.array(sorted(models)))\n"
    )
    assert run(python, code, str(folder), str(tmp_path / "found.npy")).tolist() == ["recognition"]
