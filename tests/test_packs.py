"""Verification packs: InsightFace's, whatever Python wrote them, and none that runs code."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest

from vargface.data import plain_pickle
from vargface.data.packs import read_pack, write_pack
from vargface.errors import InputError
from vargface.runtime import mx


def encoded(number: int, size: tuple[int, int] = (112, 112), form: str = ".jpg") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    image = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.imencode(form, image)[1].tobytes()


IMAGES = [encoded(number) for number in range(6)]
ISSAME = [True, False, True]


def check(path, images=None):
    pack = read_pack(path)
    assert list(pack.images) == (images or IMAGES) and all(type(image) is bytes for image in pack.images)
    assert pack.issame.dtype == bool and pack.issame.tolist() == ISSAME
    return pack


def dump(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def test_written_packs_are_read_by_us_and_by_insightface(tmp_path):
    path = tmp_path / "lfw.bin"
    write_pack(path, IMAGES, np.array(ISSAME))
    assert check(path).name == "lfw"
    with open(path, "rb") as file:
        images, issame = pickle.load(file, encoding="bytes")
    assert images == IMAGES and issame == ISSAME and type(issame[0]) is bool


@pytest.mark.parametrize("images, issame", [(IMAGES, ISSAME[:2]), (IMAGES[:5], ISSAME), ([], [])])
def test_write_refuses_what_does_not_fit(tmp_path, images, issame):
    with pytest.raises(ValueError, match="images for"):
        write_pack(tmp_path / "lfw.bin", images, issame)
    assert os.listdir(tmp_path) == []


# --- every way in which packs are pickled ---


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("bytes_as", [bytes, bytearray])
def test_python_3_protocols(tmp_path, protocol, bytes_as):
    check(dump(tmp_path / "lfw.bin", ([bytes_as(image) for image in IMAGES], ISSAME), protocol))


def test_tuples_and_lists_are_one(tmp_path):
    check(dump(tmp_path / "lfw.bin", [tuple(IMAGES), tuple(ISSAME)]))


def test_python_2_protocol_2(tmp_path):
    """As Python 2's cPickle writes str and bool."""
    images = b"".join(b"T" + struct.pack("<i", len(image)) + image for image in IMAGES)
    flags = b"".join(b"\x88" if same else b"\x89" for same in ISSAME)
    (tmp_path / "lfw.bin").write_bytes(b"\x80\x02](" + images + b"e](" + flags + b"e\x86.")
    check(tmp_path / "lfw.bin")


def test_python_2_protocol_0(tmp_path):
    """The text form: str as a quoted literal, bool as I01."""
    images = b"".join(b"S" + repr(image)[1:].encode("ascii") + b"\na" for image in IMAGES)
    flags = b"".join(b"I01\na" if same else b"I00\na" for same in ISSAME)
    (tmp_path / "lfw.bin").write_bytes(b"((lp0\n" + images + b"(lp1\n" + flags + b"tp2\n.")
    check(tmp_path / "lfw.bin")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("make", [np.array, lambda flags: [np.bool_(same) for same in flags]])
def test_numpy_flags(tmp_path, protocol, make):
    check(dump(tmp_path / "lfw.bin", (IMAGES, make(ISSAME)), protocol))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["i8", ">i4", "u1", "f4", "f8", "i2"])
def test_numbers_of_numpy_as_flags(tmp_path, protocol, kind):
    """InsightFace takes whatever is true and false."""
    flags = np.array(ISSAME).astype(kind)
    check(dump(tmp_path / "array.bin", (IMAGES, flags), protocol))
    check(dump(tmp_path / "scalars.bin", (IMAGES, list(flags)), protocol))
    with pytest.raises(InputError, match="no list of True and False"):
        read_pack(dump(tmp_path / "bad.bin", (IMAGES, flags * 2), protocol))


def objects(images):
    array = np.empty(len(images), dtype=object)
    array[:] = images
    return array


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "as_numpy",
    [
        lambda images: [np.frombuffer(image, np.uint8) for image in images],
        lambda images: [np.bytes_(image) for image in images],
        lambda images: np.array(images),
        objects,
        lambda images: objects([np.frombuffer(image, np.uint8) for image in images]),
    ],
    ids=["uint8 arrays", "bytes_", "one array of bytes", "one of objects", "one of arrays"],
)
def test_numpy_images(tmp_path, protocol, as_numpy):
    check(dump(tmp_path / "lfw.bin", (as_numpy(IMAGES), ISSAME), protocol))


def test_damage_anywhere_is_bad_input_and_no_error_of_ours(tmp_path):
    random = np.random.default_rng(0)
    small = [b"\xff\xd8 image %d" % number for number in range(6)]
    path = tmp_path / "lfw.bin"
    refused = 0
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for content in (
            (small, ISSAME),
            ([np.bytes_(image) for image in small], np.array(ISSAME, np.int64)),
            (objects(small), [np.float32(same) for same in ISSAME]),
        ):
            whole = bytearray(pickle.dumps(content, protocol))
            for _ in range(60):
                damaged = whole[:]
                for at in random.integers(0, len(whole), 2):
                    damaged[at] = random.integers(0, 256)
                path.write_bytes(damaged)
                try:
                    list(read_pack(path).images)
                except InputError as error:
                    assert "\n" not in str(error)
                    refused += 1
    assert refused > 300


def test_numpy_2_names(tmp_path):
    path = dump(tmp_path / "lfw.bin", (IMAGES, [np.bool_(same) for same in ISSAME]), 2)
    content = path.read_bytes()
    assert b"cnumpy.core.multiarray\n" in content
    path.write_bytes(content.replace(b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"))
    check(path)


# --- packs that run code ---


class Calls:
    """Unpickled by the ordinary pickle, this calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def malicious(tmp_path):
    marker = str(tmp_path / "marker")
    return {
        "system": Calls(os.system, f"touch {marker}"),
        "mkdir": Calls(os.mkdir, marker),
        "eval": Calls(eval, f"open({marker!r}, 'w')"),
        "getattr": Calls(getattr, b"", "decode"),
        "big": Calls(bytes, 1 << 40),
        "load": Calls(np.load, marker, None, True),
        "objects": np.array([Calls(os.mkdir, marker)], dtype=object),
        "text": np.array(["text"]),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", ["system", "mkdir", "eval", "getattr", "big", "load", "objects", "text"])
@pytest.mark.parametrize("where", ["image", "flags", "whole"])
def test_pack_does_not_run_code(tmp_path, kind, where, protocol):
    bad = malicious(tmp_path)[kind]
    content = {"image": ([bad] * 6, ISSAME), "flags": (IMAGES, bad), "whole": bad}[where]
    path = dump(tmp_path / "lfw.bin", content, protocol)
    with pytest.raises(InputError, match="lfw.bin: (asks to run|makes bytes of|holds an array of) .* do not use"):
        read_pack(path)
    assert os.listdir(tmp_path) == ["lfw.bin"]


def test_the_malicious_packs_are_real(tmp_path):
    """The ordinary pickle does run them: else the test above would show nothing."""
    pickle.loads(pickle.dumps(malicious(tmp_path)["mkdir"]))
    assert os.listdir(tmp_path) == ["marker"]


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        b"\x80\x02cvargface.data.packs\nwrite_pack\n.",
        b"\x80\x02cvargface.data.packs\n_Unpickler\n.",
        b"\x80\x02U\x01xQ.",
        b"Px\n.",
    ],
)
def test_no_other_name_is_looked_up(tmp_path, content):
    (tmp_path / "lfw.bin").write_bytes(content)
    with pytest.raises(InputError, match="asks (to run|for an object outside)"):
        read_pack(tmp_path / "lfw.bin")


def test_state_set_on_a_builder_ends_with_the_file(tmp_path):
    state = pickle.dumps((None, {"__defaults__": (b"poison", None)}), protocol=2)[2:-1]
    (tmp_path / "bad.bin").write_bytes(b"\x80\x02cbuiltins\nbytes\n" + state + b"b.")
    with pytest.raises(InputError):
        read_pack(tmp_path / "bad.bin")
    path = dump(tmp_path / "lfw.bin", ([b""] * 6, ISSAME), 2)
    assert b"bytes" in path.read_bytes()
    check(path, images=[b""] * 6)


# --- bad packs ---


@pytest.mark.parametrize(
    "content, message",
    [
        (([], []), "has no pairs"),
        ((IMAGES, ISSAME[:2]), "has 6 images for 2 pairs, not 4"),
        ((IMAGES[:3], ISSAME), "has 3 images for 3 pairs, not 6"),
        ((IMAGES, ISSAME, 1), "not a pair .images, issame."),
        ({"images": IMAGES}, "not a pair"),
        (3, "not a pair"),
        ((IMAGES[0], ISSAME), "images are no list"),
        ((IMAGES[:5] + [7], ISSAME), "image 5 .pair 2. is a int"),
        ((IMAGES, [0, 1, 2]), "no list of True and False"),
        ((IMAGES, ["yes", "no", "no"]), "no list of True and False"),
        ((IMAGES, None), "no list of True and False"),
    ],
)
def test_wrong_content(tmp_path, content, message):
    with pytest.raises(InputError, match=f"lfw.bin: .*{message}"):
        read_pack(dump(tmp_path / "lfw.bin", content))


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / "lfw.bin"
    with pytest.raises(InputError, match="lfw.bin: cannot read .No such file"):
        read_pack(path)
    with pytest.raises(InputError, match="cannot read"):
        read_pack(tmp_path)
    whole = pickle.dumps((IMAGES, ISSAME), protocol=4)
    for content in (b"", b"PK\x03\x04 a zip file", whole[:-1], whole[:100], IMAGES[0]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="lfw.bin: is not a verification pack"):
            read_pack(path)


def test_arrays_of_several_dimensions_are_refused(tmp_path):
    """In which order their images come would be a guess."""
    two = np.array(IMAGES, dtype=object).reshape(3, 2)
    for images in (two, np.asfortranarray(two)):
        with pytest.raises(InputError, match="array of shape .3, 2., not of one dimension"):
            read_pack(dump(tmp_path / "lfw.bin", (images, ISSAME)))
    for flags in (np.array(ISSAME)[:, None], np.array(True)):
        for protocol in (2, 5):
            with pytest.raises(InputError, match="array of shape .* not of one dimension"):
                read_pack(dump(tmp_path / "lfw.bin", (IMAGES, flags), protocol))


@pytest.mark.parametrize(
    "content", [b"]" * 4000, b"N" + b"\x94" * 4000, b"]" + b"]a" * 4000, b"(" * 4000, b"K\1" * 4000]
)
def test_a_file_does_not_make_more_objects_than_images_account_for(tmp_path, monkeypatch, content):
    monkeypatch.setattr(plain_pickle, "_MADE", 1000)
    (tmp_path / "lfw.bin").write_bytes(b"\x80\x04" + content + b".")
    with pytest.raises(InputError, match="makes more objects than its images account for"):
        read_pack(tmp_path / "lfw.bin")


# --- decoding ---


def pack_of(tmp_path, images):
    write_pack(tmp_path / "some.bin", images, [True] * (len(images) // 2))
    return read_pack(tmp_path / "some.bin")


def test_decodes_what_is_asked_for_in_rgb(tmp_path):
    pack = pack_of(tmp_path, IMAGES)
    faces = pack.decode(0, 6)
    assert faces.shape == (6, 3, 112, 112) and faces.dtype == np.uint8
    for face, image in zip(faces, IMAGES):
        assert np.array_equal(face, mx.image.imdecode(image).asnumpy().transpose(2, 0, 1))
    assert np.array_equal(pack.decode(2, 5), faces[2:5])
    assert np.array_equal(pack.decode(4, 99), faces[4:])
    assert pack.decode(6, 9).shape == (0, 3, 112, 112)


def test_bad_images_matter_only_when_decoded(tmp_path):
    pack = pack_of(tmp_path, [*IMAGES[:2], b"\xff\xd8nothing", b""])
    assert len(pack.decode(0, 2)) == 2
    with pytest.raises(
        InputError, match=rf"^{tmp_path}/some.bin: image 2 \(pair 1\) is not an image that can be decoded \(9 bytes\)"
    ):
        pack.decode(0, 4)
    with pytest.raises(
        InputError, match=r"some.bin: image 3 \(pair 1\) is not an image that can be decoded \(0 bytes\)"
    ):
        pack.decode(3, 4)


@pytest.mark.parametrize("side", [64, 111, 113, 250])
def test_other_sizes_are_resized_as_insightface_does(tmp_path, side):
    image = encoded(3, (side, side), ".png")
    expected = mx.image.resize_short(mx.image.imdecode(image), 112).asnumpy().transpose(2, 0, 1)
    face = pack_of(tmp_path, [image, image]).decode(0, 1)[0]
    # two builds of OpenCV may round differently
    assert np.max(np.abs(face.astype(int) - expected)) <= 1


def test_target_that_is_not_square(tmp_path):
    pack = pack_of(tmp_path, [encoded(1, (112, 96)), encoded(2, (56, 48))])
    assert pack.decode(0, 2, (112, 96)).shape == (2, 3, 112, 96)


@pytest.mark.parametrize("size", [(112, 96), (96, 112), (224, 112)])
def test_other_shapes_are_refused(tmp_path, size):
    pack = pack_of(tmp_path, [IMAGES[0], encoded(1, size)])
    with pytest.raises(
        InputError, match=rf"^{tmp_path}/some.bin: image 1 \(pair 0\) is {size[0]}x{size[1]}, .*112x112"
    ):
        pack.decode(0, 2)


def test_grey_images_become_three_equal_channels(tmp_path):
    grey = cv2.imencode(".png", np.arange(112 * 112, dtype=np.uint8).reshape(112, 112))[1].tobytes()
    face = pack_of(tmp_path, [grey, grey]).decode(0, 1)[0]
    assert np.array_equal(face[0], face[1]) and np.array_equal(face[1], face[2]) and face.max() == 255


@pytest.mark.real
@pytest.mark.parametrize("name, pairs", [("mini_ff", 1200), ("mini_fp", 800)])
def test_real_packs(real_faces, name, pairs):
    path = real_faces / "real-mini" / f"{name}.bin"
    pack = read_pack(path)
    with open(path, "rb") as file:
        images, issame = pickle.load(file, encoding="bytes")
    assert (pack.name, len(pack.issame), pack.issame.sum()) == (name, pairs, pairs // 2)
    assert list(pack.images) == images and pack.issame.tolist() == list(issame)
    assert len(pack.decode(2 * pairs - 64, 2 * pairs)) == 64


# --- images stay in the file ---


def test_images_are_not_loaded(tmp_path):
    """A pack of 60 MB in a process that may have 20 MB more than it has."""
    image = IMAGES[0] + bytes(100_000)
    write_pack(tmp_path / "some.bin", (image for _ in range(600)), [True] * 300)
    code = (
        "import resource, sys\n"
        "from vargface.data.packs import read_pack\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "pack = read_pack(sys.argv[1])\n"
        "sizes = [len(image) for image in pack.images]\n"
        "assert sum(sizes) > 6e7\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "some.bin")]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 10_000


def test_a_pack_that_is_cut_after_it_was_opened(tmp_path):
    pack = pack_of(tmp_path, IMAGES)
    os.truncate(tmp_path / "some.bin", 3000)
    with pytest.raises(InputError, match=r"some.bin: image 5 \(pair 2\) cannot be read \(.*\) - get the pack anew"):
        pack.decode(5, 6)


def test_an_image_that_is_pickled_once_and_meant_twice(tmp_path):
    same = [IMAGES[0], IMAGES[0], IMAGES[1], IMAGES[0], IMAGES[2], IMAGES[1]]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        check(dump(tmp_path / "lfw.bin", (same, ISSAME), protocol), same)
