"""The embedder and `vargface embed`: the rows of a file are the faces that were asked for, in their order."""

from __future__ import annotations

import os
import re
import sys
import threading

import cv2
import numpy as np
import pytest
import tiny

from vargface import runtime
from vargface.checkpoint import load_checkpoint
from vargface.cli import main
from vargface.data.packs import read_pack
from vargface.deploy import embedder as module
from vargface.deploy.alignment import TEMPLATE
from vargface.deploy.embedder import BATCH_SIZE, Embedder, find_faces
from vargface.errors import InputError
from vargface.eval.verification import verify_pack
from vargface.inference import FrozenNetwork, unit


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
        (lambda faces: faces / 255.0, r"float64 in 0.*..*: must be RGB 0..255 - multiply by 255"),
        (lambda faces: (faces - 127.5) / 128, "must be RGB 0..255, not normalised"),
        (lambda faces: faces.astype(np.int64) + 200, "must be RGB 0..255, not normalised"),
        (lambda faces: np.where(faces == faces[0, 0, 0, 0], np.nan, faces), "nan..nan"),
        (lambda faces: faces.astype(object), "faces are object: must be RGB 0..255, uint8 or float32"),
        (lambda faces: faces > 100, "faces are bool"),
        (lambda faces: faces.astype(str), "faces are <U3"),
        (lambda faces: faces.astype(complex), "faces are complex128"),
    ],
)
def test_faces_of_another_type_or_range_are_refused(model, faces, change, message):
    """A face in 0..1 embedded like a black one, without a word."""
    with pytest.raises(InputError, match=message) as refused:
        Embedder(model).embed(change(faces[:2]))
    assert "\n" not in str(refused.value)


def test_photos_and_landmarks_of_another_form_are_refused(model, faces):
    embedder = Embedder(model)
    for photo in (faces[0, :, :, 0], faces[0] / 255.0, np.dstack([faces[0], faces[0]])):
        with pytest.raises(InputError, match=r"must be uint8 \(H, W, 3\), RGB"):
            embedder.embed_photo(photo, TEMPLATE[None])
    with pytest.raises(InputError, match=r"landmarks of shape \(5, 2\): must be \(n, 5, 2\)"):
        embedder.embed_photo(faces[0], TEMPLATE)
    for none in (np.empty((0, 5, 2)), []):
        assert embedder.embed_photo(faces[0], none).shape == (0, tiny.DIMENSIONS)
    with pytest.raises(InputError, match="5 of them are outside an image 112 pixels wide and 112 high"):
        embedder.embed_photo(faces[0], TEMPLATE[None] + 5000)


# --- files


@pytest.fixture
def folder(tmp_path, faces):
    """Aligned faces in b.png, a/c.bmp and "a/with 2 words.png", and a file that is no image."""
    (tmp_path / "a").mkdir()
    write = {"b.png": faces[0], "a/c.bmp": faces[1], "a/with 2 words.png": faces[2]}
    for name, face in write.items():
        cv2.imwrite(str(tmp_path / name), face[:, :, ::-1])
    (tmp_path / "a" / "notes.md").write_text("no image")
    return tmp_path


def embed(model, *arguments) -> int:
    return main(["embed", "--model", model, *map(str, arguments)])


def test_rows_are_in_input_order(model, folder, faces, capsys):
    photo = np.zeros((150, 160, 3), np.uint8)
    photo[10:122, 20:132] = faces[4]
    cv2.imwrite(str(folder / "photo.PNG"), photo[:, :, ::-1])
    landmarks = " ".join(f"{number:.4f}" for number in (TEMPLATE + (20, 10)).ravel())
    (folder / "list.txt").write_text(f"a/with 2 words.png\n\nphoto.PNG\t{landmarks}\n")
    np.save(folder / "array.npy", faces[5:7].transpose(0, 3, 1, 2))
    out = folder / "out.npy"
    sources = [folder / "list.txt", folder / "a", folder / "array.npy", folder / "b.png"]
    assert embed(model, "--out", out, *sources) == 0
    embeddings = np.load(out)
    np.testing.assert_allclose(embeddings, Embedder(model).embed(faces[[2, 4, 1, 2, 5, 6, 0]]), atol=1e-5)
    assert embeddings.dtype == np.float32
    assert f"{out}: 7 embeddings of {tiny.DIMENSIONS} numbers" in capsys.readouterr().out
    names = [
        "a/with 2 words.png",
        "photo.PNG",
        "a/c.bmp",
        "a/with 2 words.png",
        "array.npy[0]",
        "array.npy[1]",
        "b.png",
    ]
    assert (folder / "out.npy.txt").read_text().splitlines() == [f"{folder}/{name}" for name in names]


def test_lists_as_other_systems_write_them(model, folder, faces):
    """With a byte order mark, a name in capitals, a path that ends in a number."""
    (folder / "b.png").rename(folder / "face 5")
    (folder / "LIST.TXT").write_text("face 5\r\na/c.bmp\r\n", encoding="utf-8-sig")
    assert embed(model, "--out", folder / "out.npy", folder / "LIST.TXT") == 0
    np.testing.assert_allclose(np.load(folder / "out.npy"), Embedder(model).embed(faces[:2]), atol=1e-5)


def test_ten_numbers_behind_a_path_that_ends_in_one(model, folder, faces):
    (folder / "b.png").rename(folder / "img 5")
    landmarks = " ".join(f"{number:.4f}" for number in TEMPLATE.ravel())
    (folder / "list.txt").write_text(f"img 5 {landmarks}\nimg 5  {landmarks}\n")
    assert embed(model, "--out", folder / "out.npy", folder / "list.txt") == 0
    np.testing.assert_allclose(np.load(folder / "out.npy"), Embedder(model).embed(faces[[0, 0]]), atol=1e-5)
    assert (folder / "out.npy.txt").read_text().splitlines() == [f"{folder}/img 5"] * 2


def test_a_row_of_zeros_for_what_cannot_be_used(model, folder, faces, caplog):
    """An image that is cut short, one of another size, landmarks that are no face's: the others are embedded."""
    _cut_short(folder)
    cv2.imwrite(str(folder / "d.png"), np.zeros((100, 90, 3), np.uint8))
    landmarks = " ".join(map(str, TEMPLATE.ravel() / 112))
    (folder / "list.txt").write_text(f"cut.jpg\nb.png\nd.png\na/c.bmp {landmarks}\na/c.bmp\n")
    assert embed(model, "--out", folder / "out.npy", folder / "list.txt") == 2
    assert embed(model, "--on-error", "zero", "--out", folder / "out.npy", folder / "list.txt") == 0
    found = np.load(folder / "out.npy")
    np.testing.assert_allclose(found[[1, 4]], Embedder(model).embed(faces[:2]), atol=1e-5)
    assert not found[[0, 2, 3]].any()
    assert "3 rows are zero, their faces cannot be used, the first: " in caplog.text
    assert len((folder / "out.npy.txt").read_text().splitlines()) == 5


def test_no_image_is_used_whatever_it_is_called(model, folder, caplog):
    """Not even one: that is rows of zeros, not a crash."""
    (folder / "list.txt").write_text("nowhere.png\n")
    assert embed(model, "--on-error", "zero", "--out", folder / "out.npy", folder / "list.txt") == 0
    np.testing.assert_array_equal(np.load(folder / "out.npy"), np.zeros((1, tiny.DIMENSIONS), np.float32))


def test_what_a_folder_holds_beside_images_is_counted(folder, faces, caplog):
    """Hidden files, which other systems leave beside an image under its name, are none; .tiff and .jfif are."""
    for name in ("e.tiff", "f.TIF"):
        encoded = cv2.imencode(".tiff", faces[3])[1]
        (folder / name).write_bytes(encoded.tobytes())
    (folder / "g.jfif").write_bytes(tiny.jpeg(0, 0))
    (folder / "._g.jpg").write_text("no image")
    found = find_faces([folder])
    names = ["a/c.bmp", "a/with 2 words.png", "b.png", "e.tiff", "f.TIF", "g.jfif"]
    assert [str(face.path.relative_to(folder)) for face in found] == names
    assert f"{folder}: 2 of 8 files left out" in caplog.text
    np.testing.assert_array_equal(found[3].pixels(), faces[3][:, :, ::-1])


@pytest.mark.parametrize("source", ["out.npy", "out.npy.txt"])
def test_no_source_is_written_over(model, folder, faces, capsys, source):
    np.save(folder / "out.npy", faces[:1])
    (folder / "out.npy.txt").write_text("b.png\n")
    before = (folder / source).read_bytes()
    assert embed(model, "--out", folder / "a" / ".." / "out.npy", folder / source) == 2
    assert f"{source}: would be written over" in capsys.readouterr().err
    assert (folder / source).read_bytes() == before


def test_without_the_mirror_image(model, folder, faces):
    assert embed(model, "--no-flip", "--out", folder / "out.npy", folder / "b.png") == 0
    ours = Embedder(model).embed(faces[:1], flip=False)
    np.testing.assert_allclose(np.load(folder / "out.npy"), ours, atol=1e-5)


def test_another_size_is_resized_when_asked(model, folder, faces):
    large = cv2.resize(faces[0], (224, 224), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / "b.png"), large[:, :, ::-1])
    assert embed(model, "--resize", "--out", folder / "out.npy", folder / "b.png") == 0
    small = cv2.resize(large, (112, 112), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_allclose(np.load(folder / "out.npy"), Embedder(model).embed(small[None]), atol=1e-5)


def wrong_size(folder, height, width):
    cv2.imwrite(str(folder / "b.png"), np.zeros((height, width, 3), np.uint8))
    return folder / "b.png"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda folder: wrong_size(folder, 250, 250), "is 250x250, not an aligned face of 112x112 - .*or --resize"),
        (lambda folder: wrong_size(folder, 112, 96), "is 112x96, not an aligned face .* five landmarks$"),
        (lambda folder: folder / "nowhere.png", "nowhere.png: no such image, folder, list or array"),
        (lambda folder: folder / "a" / "notes.md", "notes.md: is not an image"),
        (lambda folder: _empty(folder), "no image in this folder"),
        (lambda folder: _text(folder, ""), "names no image"),
        (lambda folder: _text(folder, "b.png 1 2 3\n"), "list.txt: line 1: 3 numbers behind the path"),
        (lambda folder: _text(folder, "b.png" + " 5" * 10), "list.txt: line 1: landmarks .* all in one place"),
        (lambda folder: _text(folder, "b.png\n\nb.png" + " nan" * 10), "line 3: landmarks .* five points x, y"),
        (lambda folder: _text(folder, "b.png\nnowhere.png\n"), "list.txt: line 2: .*nowhere.png: cannot read"),
        (lambda folder: _text(folder, "b.png\na/notes.md\n"), "list.txt: line 2: .*notes.md: is not an image"),
        (lambda folder: _cut_short(folder), "cut.jpg: is a JPEG that is cut short"),
        (lambda folder: _saved(folder, np.zeros((0, 112, 112, 3), np.uint8)), "list.npy: holds no face"),
        (lambda folder: _npz(folder), "list.npy: is an .npz"),
        (lambda folder: _saved(folder, np.zeros((2, 112, 112, 3), np.float32)), "holds float32, must be uint8"),
        (lambda folder: _saved(folder, np.zeros((2, 112, 112), np.uint8)), r"list.npy: faces of shape \(2, 112, 112\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_embedded_is_one_line_and_writes_nothing(model, folder, capsys, source, message):
    out = folder / "out.npy"
    assert embed(model, "--out", out, source(folder)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error.strip()), error
    assert not out.exists()


def _empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def _text(folder, content):
    (folder / "list.txt").write_text(content)
    return folder / "list.txt"


def _cut_short(folder):
    encoded = tiny.jpeg(0, 0)
    (folder / "cut.jpg").write_bytes(encoded[: len(encoded) // 2])
    return folder / "cut.jpg"


def _npz(folder):
    """An archive of arrays under the name of one."""
    with open(folder / "list.npy", "wb") as file:
        np.savez(file, np.zeros((2, 112, 112, 3), np.uint8))
    return folder / "list.npy"


def _saved(folder, array):
    np.save(folder / "list.npy", array)
    return folder / "list.npy"


def test_a_name_that_cannot_be_written_is_said_first(model, folder, capsys, monkeypatch):
    monkeypatch.setattr(module, "find_faces", None)  # not come to
    (folder / "d.npy").mkdir()
    assert embed(model, "--out", folder / "d.npy", folder / "b.png") == 2
    assert "d.npy: is a folder - give the file to write" in capsys.readouterr().err
    assert embed(model, "--out", folder / "out.bin", folder / "b.png") == 2
    assert embed(model, "--out", folder / "nowhere" / "out.npy", folder / "b.png") == 2
    error = capsys.readouterr().err
    assert "give it a name in .npy" in error
    assert "no such folder - make it first" in error


def test_the_order_of_a_folder_is_that_of_paths(folder):
    assert [str(face.path.relative_to(folder)) for face in find_faces([folder])] == [
        "a/c.bmp", "a/with 2 words.png", "b.png",
    ]  # fmt: skip
