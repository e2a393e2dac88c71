"""The embedder: a face's embedding is the plain network's, from whatever array, thread or process it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny

from vargface import runtime
from vargface.checkpoint import load_checkpoint, save_checkpoint
from vargface.data.packs import read_pack
from vargface.deploy import embedder as module
from vargface.deploy.alignment import TEMPLATE
from vargface.deploy.embedder import BATCH_SIZE, Embedder
from vargface.errors import InputError
from vargface.eval.verification import verify_pack
from vargface.inference import FrozenNetwork, unit
from vargface.runtime import mx


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny.make_teacher(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """(11, 112, 112, 3): two batches and three more."""
    return np.stack([tiny.image(number % 4, number) for number in range(2 * BATCH_SIZE + 3)])


@pytest.fixture(scope="module")
def expected(model, faces) -> np.ndarray:
    """Raw embeddings of the faces and of their mirror images, by the plain network: (2, 11, D)."""
    network = FrozenNetwork(load_checkpoint(model), 1)
    views = faces.transpose(0, 3, 1, 2)
    return np.stack([network(views), network(np.ascontiguousarray(views[..., ::-1]))])


@pytest.fixture(params=[1, 2, 3], ids="batches side by side={}".format)
def embedder(request, model, monkeypatch) -> Embedder:
    monkeypatch.setattr(module, "_side_by_side", lambda: request.param)
    return Embedder(model)


def test_any_number_of_faces_in_any_order_of_axes(embedder, faces, expected):
    for number in (11, 8, 5, 1):
        np.testing.assert_allclose(embedder.embed(faces[:number], flip=False), unit(expected[0, :number]), atol=1e-5)
    channels_first = faces.transpose(0, 3, 1, 2)
    np.testing.assert_allclose(embedder(channels_first), expected[0], atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(embedder.embed(channels_first), unit(expected.sum(0)), atol=1e-5)
    assert embedder(channels_first[:0]).shape == (0, tiny.DIMENSIONS)


def test_the_mirror_image_is_added_before_normalising(embedder, faces, expected):
    np.testing.assert_allclose(embedder.embed(faces), unit(expected.sum(0)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embedder.embed(faces), axis=1), 1, atol=1e-6)


def test_a_photos_faces_are_aligned(model, faces):
    photo = np.zeros((200, 300, 3), np.uint8)
    photo[20:132, 30:142], photo[60:172, 160:272] = faces[0], faces[1]
    landmarks = np.stack([TEMPLATE + (30, 20), TEMPLATE + (160, 60)])
    embedder = Embedder(model)
    np.testing.assert_allclose(embedder.embed_photo(photo, landmarks), embedder.embed(faces[:2]), atol=1e-5)


def test_it_verifies_as_the_plain_network_does(model, data):
    pack = read_pack(data / "pairs.bin")
    plain = verify_pack(FrozenNetwork(load_checkpoint(model), 4), pack, batch_size=4)
    fast = verify_pack(Embedder(model), pack, batch_size=4)
    assert fast.accuracy == plain.accuracy
    assert fast.xnorm == pytest.approx(plain.xnorm, rel=1e-4)


def test_threads_and_cores_decide_how_many_batches_go_side_by_side(monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 8)
    for threads, batches in {"1": 8, "3": 2, "8": 1, "16": 1, "": 1, "none": 1}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert module._side_by_side() == batches


def test_many_cores_do_not_have_the_weights_once_each(monkeypatch):
    """64 contexts had them; what `vargface embed` sets has all cores at work in 16."""
    for part in (module, runtime):
        monkeypatch.setattr(part, "cores", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert module._side_by_side() == 16
    monkeypatch.delenv("OMP_NUM_THREADS")
    runtime.prepare_for_embedding()
    assert os.environ["OMP_NUM_THREADS"] == "4"
    assert module._side_by_side() == 16


def test_python_threads_may_share_it(model, faces):
    """One got another's faces' embeddings, or none; it binds for their numbers at the same time, too."""
    expected = [Embedder(model).embed(faces[row : row + 1]) for row in range(8)]
    shared, wrong = Embedder(model), []
    start = threading.Barrier(4)

    def work(thread: int) -> None:
        start.wait()
        for turn in range(25):
            row = (3 * thread + turn) % 8
            try:
                embedding = shared.embed(faces[row : row + 1 + thread % 2])[:1]
            except Exception as error:
                wrong.append(error)
            else:
                if np.abs(embedding - expected[row]).max() > 1e-5:
                    wrong.append(row)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert not wrong


def test_a_list_of_faces_is_an_array_of_them(model, faces):
    """An empty list, too; one of several shapes was a warning of numpy's."""
    embedder = Embedder(model)
    np.testing.assert_array_equal(embedder.embed(list(faces[:3])), embedder.embed(faces[:3]))
    for nothing in ([], (), faces[:0]):
        assert embedder.embed(nothing).shape == (0, tiny.DIMENSIONS)
    with pytest.raises(InputError, match=r"faces of shapes \(112, 112, 3\) and \(100, 112, 3\) in one list"):
        embedder.embed([faces[0], faces[1][:100]])
    with pytest.raises(InputError, match=r"landmarks of shapes \(5, 2\) and \(4, 2\) in one list"):
        embedder.embed_photo(faces[0], [TEMPLATE, TEMPLATE[:4]])


@pytest.mark.parametrize("shape", [(112, 112, 3), (2, 100, 112, 3), (2, 1, 112, 112)])
def test_faces_of_another_shape_are_refused(model, shape):
    with pytest.raises(InputError, match="faces of shape"):
        Embedder(model).embed(np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="images of shape"):
        Embedder(model)(np.zeros((2, 112, 112, 3), np.uint8))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64])
def test_the_same_values_in_another_type_are_the_same_faces(model, faces, kind):
    embedder = Embedder(model)
    np.testing.assert_allclose(embedder.embed(faces[:3].astype(kind)), embedder.embed(faces[:3]), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda faces: faces / 255.0, r"face 0 is float64 in 0.*..*: must be RGB 0..255 - multiply by 255"),
        (lambda faces: (faces - 127.5) / 128, "must be RGB 0..255, not normalised"),
        (lambda faces: [faces[0], faces[1] / 255.0], "face 1 is float64 .* - multiply by 255"),
        (lambda faces: [faces[0], (faces[1] - 127.5) / 128], "face 1 is .* not normalised"),
        (lambda faces: faces.astype(np.int64) + 200, "must be RGB 0..255, not normalised"),
        (lambda faces: np.where(faces == faces[0, 0, 0, 0], np.nan, faces), "nan..nan"),
        (lambda faces: faces.astype(object), "faces are object: must be RGB 0..255, uint8 or float32"),
        (lambda faces: faces > 100, "faces are bool"),
        (lambda faces: faces.astype(str), "faces are <U3"),
        (lambda faces: faces.astype(complex), "faces are complex128"),
    ],
)
def test_faces_of_another_type_or_range_are_refused(model, faces, change, message):
    """A face in 0..1 embedded like a black one, without a word; between others of 0..255, too."""
    with pytest.raises(InputError, match=message) as refused:
        Embedder(model).embed(change(faces[:2]))
    assert "\n" not in str(refused.value)


def test_black_faces_are_faces(model, faces):
    """And such that have a few dots of 1."""
    black = np.zeros((2, 112, 112, 3), np.float32)
    black[1, 5, 5] = 1
    embedder = Embedder(model)
    np.testing.assert_array_equal(embedder.embed(black), embedder.embed(black.astype(np.uint8)))


def test_a_model_may_be_a_path(model, faces):
    np.testing.assert_array_equal(Embedder(Path(model)).embed(faces[:1]), Embedder(model).embed(faces[:1]))


def test_photos_and_landmarks_of_another_form_are_refused(model, faces):
    embedder = Embedder(model)
    for photo in (faces[0, :, :, 0], faces[0] / 255.0, np.dstack([faces[0], faces[0]])):
        with pytest.raises(InputError, match=r"must be uint8 \(H, W, 3\), RGB"):
            embedder.embed_photo(photo, TEMPLATE[None])
    with pytest.raises(InputError, match=r"landmarks of shape \(5, 2\): must be \(n, 5, 2\)"):
        embedder.embed_photo(faces[0], TEMPLATE)
    for none in (np.empty((0, 5, 2)), []):
        assert embedder.embed_photo(faces[0], none).shape == (0, tiny.DIMENSIONS)
    for letters in ([[["a", "b"]] * 5], np.full((1, 5, 2), None)):
        with pytest.raises(InputError, match="landmarks are .*: must be numbers"):
            embedder.embed_photo(faces[0], letters)


def test_of_a_photos_faces_one_that_is_none_is_named_or_a_row_of_zeros(model, faces):
    embedder, told = Embedder(model), []
    landmarks = [TEMPLATE, TEMPLATE + 5000, TEMPLATE[[1, 0, 2, 4, 3]], TEMPLATE]
    with pytest.raises(InputError, match="^face 1: .* 5 of them are outside an image 112 pixels wide and 112 high"):
        embedder.embed_photo(faces[0], landmarks)
    found = embedder.embed_photo(faces[0], landmarks, flip=False, on_unusable=told.append)
    np.testing.assert_allclose(found[[0, 3]], embedder.embed(faces[[0, 0]], flip=False), atol=1e-5)
    assert not found[1:3].any()
    assert [str(error).partition(":")[0] for error in told] == ["face 1", "face 2"]
    assert not embedder.embed_photo(faces[0], landmarks[1:3], on_unusable=told.append).any()


# Embeds in the main thread or in another and prints how many threads there are, without that other one, and how many
# OpenMP would start in it.
COUNTED = """
import ctypes, os, sys, threading
import numpy as np
from vargface.deploy.embedder import Embedder
def work():
    Embedder(sys.argv[1]).embed(np.zeros((8, 112, 112, 3), np.uint8))
    others = len(os.listdir("/proc/self/task")) - (threading.current_thread() is not threading.main_thread())
    print(others, ctypes.CDLL("libgomp.so.1").omp_get_max_threads())
if sys.argv[2] == "main":
    work()
else:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


def test_an_embedder_of_another_python_thread_starts_no_more_threads(tmp_path):
    """It had a pool of its own beside MXNet's, which makes one face take twice as long."""
    # one array of it is long enough for MXNet to copy it with several threads
    data = mx.sym.Pooling(mx.sym.Variable("data"), kernel=(4, 4), stride=(4, 4), pool_type="avg", name="coarse")
    symbol = mx.sym.FullyConnected(mx.sym.Flatten(data), num_hidden=128, name="fc1")
    model = save_checkpoint(tmp_path / "dense", 0, symbol, *tiny.weights(symbol))
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    found = {}
    for where in ("main", "other"):
        command = [sys.executable, "-c", COUNTED, model, where]
        found[where] = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert found["other"] == found["main"]
    assert found["main"].split()[1] == "1"


# Three threads embed, one more loads; meanwhile the process forks, and each child embeds. Prints how many children did.
FORKS = """
import os, signal, sys, threading, time
import numpy as np
from vargface.deploy.embedder import Embedder
faces = np.random.default_rng(0).integers(0, 256, (8, 112, 112, 3), np.uint8)
embedder = Embedder(sys.argv[1])
first = embedder.embed(faces[:1])
def embed():
    while True:
        embedder.embed(faces)
def load():
    while True:
        Embedder(sys.argv[1]).embed(faces)
for work in (embed, embed, embed, load):
    threading.Thread(target=work, daemon=True).start()
done = 0
for _ in range(int(sys.argv[2])):
    time.sleep(0.05)
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(0 if np.abs(embedder.embed(faces[:1]) - first).max() < 1e-5 else 1)
    done += os.waitpid(child, 0)[1] == 0
print(done, np.abs(embedder.embed(faces[:1]) - first).max() < 1e-5, flush=True)
os._exit(0)
"""


def test_a_process_may_fork_while_its_threads_embed(model):
    """The child waited for ever for a lock that a thread of its parent's held."""
    command = [sys.executable, "-c", FORKS, model, "12"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.stdout.split() == ["12", "True"], found.stderr
