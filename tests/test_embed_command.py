"""`vargface embed` and the faces in files: the rows are the faces that were asked for, in their order."""

from __future__ import annotations

import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny

from vargface.cli import main
from vargface.deploy import face_files
from vargface.deploy.alignment import TEMPLATE
from vargface.deploy.embedder import Embedder
from vargface.deploy.face_files import find_faces
from vargface.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny.make_teacher(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.stack([tiny.image(number % 4, number) for number in range(7)])


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
    ten = [" ".join(map(str, TEMPLATE.ravel() / 112))]  # and ten times the same
    ten += [" ".join([number] * 10) for number in ("0", "nan", "-1", "inf", "1e200")]
    lines = ["cut.jpg", "b.png", "d.png", "a/c.bmp", *(f"a/c.bmp {numbers}" for numbers in ten), "my photo 5"]
    (folder / "list.txt").write_text("\n".join(lines))
    assert embed(model, "--out", folder / "out.npy", folder / "list.txt") == 2
    assert embed(model, "--on-error", "zero", "--out", folder / "out.npy", folder / "list.txt") == 0
    found = np.load(folder / "out.npy")
    np.testing.assert_allclose(found[[1, 3]], Embedder(model).embed(faces[:2]), atol=1e-5)
    assert not found[[0, 2, *range(4, 11)]].any()
    assert "9 rows are zero, their faces cannot be used, the first: " in caplog.text
    assert len((folder / "out.npy.txt").read_text().splitlines()) == len(found) == 11


def test_landmarks_that_are_no_faces_are_said_before_anything_is_read(model, folder, capsys):
    """Not after hours of the images before them."""
    (folder / "list.txt").write_text("nowhere.png\nb.png" + " 0" * 10)
    assert embed(model, "--out", folder / "out.npy", folder / "list.txt") == 2
    assert "line 2: " in capsys.readouterr().err


def test_what_rows_of_zeros_do_not_stand_for(model, folder, capsys):
    """A list that is wrong, a source that is not there."""
    (folder / "list.txt").write_text("b.png 1 2 3 4\n")
    for source in ("list.txt", "nowhere.png", "nowhere"):
        assert embed(model, "--on-error", "zero", "--out", folder / "out.npy", folder / source) == 2
    error = capsys.readouterr().err
    assert "line 1: 4 numbers behind the path" in error
    assert not (folder / "out.npy").exists()


def test_folders_that_links_lead_to(model, folder, tmp_path_factory, faces, caplog):
    """They were left out without a word; a link back to a folder above it has no end."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "deep").mkdir()
    cv2.imwrite(str(elsewhere / "deep" / "x.png"), faces[3][:, :, ::-1])
    (elsewhere / "back").symlink_to(folder)
    for name, target in {"two": elsewhere, "one": elsewhere, "loop": ".", "itself": "itself", "gone": "no"}.items():
        (folder / name).symlink_to(target)
    (folder / "photo.png").symlink_to("b.png")
    found = find_faces(folder)
    names = ["a/c.bmp", "a/with 2 words.png", "b.png", "one/deep/x.png", "photo.png", "two/deep/x.png"]
    assert [str(face.path.relative_to(folder)) for face in found] == names
    np.testing.assert_array_equal(found[3].pixels(), faces[3])
    assert f"{folder}: 1 of 7 files left out" in caplog.text
    (left,) = (record.getMessage() for record in caplog.records if ": left out: " in record.getMessage())
    assert left.endswith(" and 2 more")  # loop, itself, gone, and each of the ways back


def test_each_thing_left_out_is_named_with_its_reason(folder, monkeypatch, caplog):
    (folder / "loop").symlink_to(folder)
    (folder / "gone").symlink_to("nowhere")
    (folder / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    find_faces([folder])
    left = caplog.messages[-1]
    for name, reason in {"loop": "a link to a folder above it", "gone": "No such", "closed": "Permission"}.items():
        assert f"{folder}/{name} ({reason}" in left
    with pytest.raises(InputError, match="no image in this folder .left out: .*closed .Permission denied"):
        find_faces(folder / "closed")


def test_of_links_that_lead_nowhere_only_images_are_rows(model, folder, caplog):
    (folder / "c.png").symlink_to("nowhere")
    (folder / "person").symlink_to("nowhere")
    assert embed(model, "--on-error", "zero", "--out", folder / "out.npy", folder) == 0
    found = np.load(folder / "out.npy")
    assert [name.rpartition("/")[2] for name in (folder / "out.npy.txt").read_text().splitlines()] == [
        "c.bmp", "with 2 words.png", "b.png", "c.png",
    ]  # fmt: skip
    assert found[:3].any(axis=1).all()
    assert not found[3].any()
    assert "person (No such file or directory)" in caplog.text


@pytest.mark.parametrize("kind", [str, Path])
def test_one_source_need_not_be_in_a_list(folder, kind):
    """The letters of a name were taken for sources: "/" is a folder with every image of the machine."""
    assert [face.path for face in find_faces(kind(folder / "b.png"))] == [folder / "b.png"]


@pytest.mark.parametrize("broken", ["\n", "\r", "\x0c", "\x85", "\u2028", "\u2029"])
def test_a_name_is_one_line_whatever_is_in_it(model, folder, broken):
    (folder / "a" / "c.bmp").rename(folder / "a" / f"c{broken}d.bmp")
    assert embed(model, "--out", folder / "out.npy", folder / "a") == 0
    names = (folder / "out.npy.txt").read_bytes().decode().splitlines()
    assert names == [f"{folder}/a/c{broken!r}d.bmp".replace("'", ""), f"{folder}/a/with 2 words.png"]


def test_a_line_with_many_digits(model, folder, faces):
    """As a path it would be longer than a path may be."""
    numbers = " ".join(f"{number:.40f}" for number in TEMPLATE.ravel())
    (folder / "list.txt").write_text(f"b.png {numbers}\n")
    assert embed(model, "--out", folder / "out.npy", folder / "list.txt") == 0
    np.testing.assert_allclose(np.load(folder / "out.npy"), Embedder(model).embed(faces[:1]), atol=1e-5)


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
        (lambda folder: _text(folder, "b.png" + " 5" * 10), "list.txt: line 1: .*b.png: landmarks .* all in one place"),
        (lambda folder: _text(folder, "b.png\n\nb.png" + " nan" * 10), "line 3: .*b.png: landmarks .* five points"),
        (lambda folder: _text(folder, "b.png\nnowhere.png\n"), "list.txt: line 2: .*nowhere.png: cannot read"),
        (lambda folder: _text(folder, "b.png\nmy photo 5\n"), "list.txt: line 2: .*my photo 5: cannot read"),
        (lambda folder: _linked(folder / "c.png", "x" * 300), "c.png: cannot read .File name too long"),
        (lambda folder: _linked(folder / "c.png", "x" * 300).parent, "c.png: cannot read .File name too long"),
        (lambda folder: _linked(folder / "c.png", "nowhere").parent, "c.png: cannot read .No such file"),
        (lambda folder: _pipe(folder / "c.png"), "c.png: is a pipe or a device"),
        (lambda folder: _text(folder, _pipe(folder / "c.png").name), "c.png: cannot read .a pipe or a device"),
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


def _linked(link, target):
    link.symlink_to(target)
    return link


def _pipe(path):
    os.mkfifo(path)
    return path


def _saved(folder, array):
    np.save(folder / "list.npy", array)
    return folder / "list.npy"


def test_a_name_that_cannot_be_written_is_said_first(model, folder, capsys, monkeypatch):
    monkeypatch.setattr(face_files, "find_faces", None)  # not come to
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
