"""`vargface rec`: folders built, checked, described and shuffled, packs made; MXNet's own readers are the judges."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest

from vargface import cli
from vargface.cli import main
from vargface.data.check import check
from vargface.data.decoding import decode
from vargface.data.packs import read_pack
from vargface.data.recordio import RecordFile, pack, part_bytes
from vargface.data.records import FaceRecords
from vargface.data.writer import RecordWriter
from vargface.errors import InputError
from vargface.runtime import mx

PEOPLE = {"anna": 3, "bert": 1, "cleo": 4}


def encoded(number: int, size: tuple[int, int] = (112, 112), form: str = ".jpg") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return cv2.imencode(form, cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR))[1].tobytes()


@pytest.fixture
def photos(tmp_path):
    """A folder an identity, of JPEGs of 112x112."""
    number = 0
    for name, count in PEOPLE.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for image in range(count):
            (tmp_path / "photos" / name / f"{name}_{image + 1:04d}.jpg").write_bytes(encoded(number))
            number += 1
    return tmp_path / "photos"


@pytest.fixture
def folder(tmp_path):
    """An InsightFace folder: 6 identities of 5 images."""
    with RecordWriter(tmp_path / "data", 6) as writer:
        for number in range(30):
            writer.add(number // 5, encoded(number))
    return tmp_path / "data"


def rec(*words) -> int:
    return main(["rec", *map(str, words)])


def refused(capsys, *words) -> str:
    assert rec(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("vargface: error: ") and error.count("\n") == 1
    return error[len("vargface: error: ") : -1]


def contents(folder) -> list[tuple[int, bytes]]:
    records = FaceRecords(folder)
    return [records.read(position) for position in range(len(records))]


def insightface_reads(folder) -> list[tuple[float, bytes]]:
    """What InsightFace's FaceImageIter hands to its decoder in an epoch, by the rules of its `__init__`."""
    reader = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    header, _ = mx.recordio.unpack(reader.read_idx(0))
    keys = list(reader.keys)
    if header.flag > 0:
        keys = []
        for identity in range(int(header.label[0]), int(header.label[1])):
            of_identity, _ = mx.recordio.unpack(reader.read_idx(identity))
            keys += range(int(of_identity.label[0]), int(of_identity.label[1]))
    read = []
    for key in keys:
        header, image = mx.recordio.unpack(reader.read_idx(key))
        read.append((header.label if isinstance(header.label, float) else header.label[0], image))
    return read


# --- build


def test_build_numbers_people_by_name_and_copies_what_fits(photos, tmp_path, capsys):
    assert rec("build", photos, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "8 images of 3 identities" in out and "taken as aligned" in out
    expected = [
        (identity, file.read_bytes())
        for identity, name in enumerate(sorted(PEOPLE))
        for file in sorted((photos / name).iterdir())
    ]
    assert contents(tmp_path / "out") == insightface_reads(tmp_path / "out") == expected
    assert (tmp_path / "out" / "identities.txt").read_text().splitlines() == sorted(PEOPLE)
    assert (tmp_path / "out" / "property").read_text() == "3,112,112"
    assert sorted(os.listdir(tmp_path / "out")) == [
        "identities.txt",
        "images.idx",
        "property",
        "train.idx",
        "train.rec",
    ]


def test_build_leaves_out_small_identities_and_other_files(photos, tmp_path, capsys):
    (photos / "anna" / "notes.txt").write_text("not an image")
    (photos / "anna" / ".hidden.jpg").write_bytes(b"")
    (photos / "nobody").mkdir()
    assert rec("build", photos, tmp_path / "out", "--min-images", 3) == 0
    assert "left out: 2 identities of fewer than 3 images" in capsys.readouterr().out
    assert [identity for identity, _ in contents(tmp_path / "out")] == [0] * 3 + [1] * 4
    assert (tmp_path / "out" / "identities.txt").read_text() == "anna\ncleo\n"


def test_build_encodes_other_forms_and_sizes(tmp_path):
    source = tmp_path / "photos" / "one"
    source.mkdir(parents=True)
    (source / "a.png").write_bytes(encoded(1, form=".png"))
    (source / "b.jpg").write_bytes(encoded(1, (224, 224)))
    sizes = {}
    for quality in (60, 95):
        assert rec("build", source.parent, tmp_path / str(quality), "--quality", quality) == 0
        images = [image for _, image in contents(tmp_path / str(quality))]
        sizes[quality] = [len(image) for image in images]
        for image in images:
            pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
            assert image[:2] == b"\xff\xd8" and pixels.shape == (112, 112, 3)
            plain = cv2.imdecode(np.frombuffer(encoded(1, form=".png"), np.uint8), cv2.IMREAD_COLOR)
            assert np.abs(pixels.astype(int) - plain).mean() < 6
    assert sizes[60][0] < sizes[95][0]


@pytest.mark.parametrize(
    "size, policy, fits", [((224, 224), "never", False), ((224, 112), "scale", False), ((224, 112), "crop", True)]
)
def test_build_by_resize_policy(tmp_path, capsys, size, policy, fits):
    source = tmp_path / "photos" / "one"
    source.mkdir(parents=True)
    image = np.zeros((*size, 3), np.uint8)
    image[size[0] // 2 - 40 : size[0] // 2 + 40] = 255
    (source / "a.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    words = ("build", source.parent, tmp_path / "out", "--resize", policy)
    if not fits:
        assert "a.png: is {}x{}, not 112x112".format(*size) in refused(capsys, *words)
        assert not list((tmp_path / "out").glob("*"))
        return
    assert rec(*words) == 0
    ((_, jpeg),) = contents(tmp_path / "out")
    middle = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert middle[56, 56] > 250 and middle[10, 56] < 5 and middle[100, 56] < 5


def test_build_stops_at_a_bad_image_or_leaves_it_out(photos, tmp_path, capsys):
    (photos / "cleo" / "cleo_0002.jpg").write_bytes(encoded(5)[:-300])
    (photos / "bert" / "bert_0001.jpg").write_bytes(b"")
    message = refused(capsys, "build", photos, tmp_path / "out")
    assert "bert_0001.jpg: is not an image that can be decoded (0 bytes) - replace it" in message
    assert not list((tmp_path / "out").glob("*"))
    assert rec("build", photos, tmp_path / "out", "--skip-bad") == 0
    out = capsys.readouterr().out
    assert "cleo_0002.jpg: is a JPEG that is cut short" in out
    assert "1 identities of fewer than 1 images; 2 unusable images" in out
    assert [identity for identity, _ in contents(tmp_path / "out")] == [0] * 3 + [1] * 3


def test_build_refuses(photos, folder, tmp_path, capsys):
    (tmp_path / "empty" / "one").mkdir(parents=True)
    assert "no such" in refused(capsys, "build", tmp_path / "none", tmp_path / "out").lower()
    assert "no folder in it" in refused(capsys, "build", tmp_path / "empty" / "one", tmp_path / "out")
    assert "no image to write" in refused(capsys, "build", tmp_path / "empty", tmp_path / "out")
    assert "has a train.rec already" in refused(capsys, "build", photos, folder)


@pytest.mark.parametrize("size", ["112", "112x", "²x112", "0x112", "112x112x3", "99999x112", "-1x112"])
def test_build_refuses_what_is_no_size(photos, tmp_path, capsys, size):
    with pytest.raises(SystemExit) as stopped:
        rec("build", photos, tmp_path / "out", f"--size={size}")
    assert stopped.value.code == 2 and "is not HEIGHTxWIDTH" in capsys.readouterr().err


def test_build_does_not_wait_for_pipes(photos, tmp_path, capsys):
    os.mkfifo(photos / "bert" / "pipe.jpg")
    (photos / "bert" / "folder.jpg").mkdir()
    (photos / "bert" / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(photos / "pipe")
    assert "gone.jpg: cannot be read (No such file or directory) - replace it" in refused(
        capsys, "build", photos, tmp_path / "out"
    )
    assert rec("build", photos, tmp_path / "out", "--skip-bad") == 0
    assert "pipe.jpg: is no file, but a pipe, a device or a folder" in capsys.readouterr().out
    assert len(contents(tmp_path / "out")) == 8
    (photos / "bert" / "gone.jpg").unlink()
    assert "pipe.jpg: is no file" in refused(capsys, "pack", photos, tmp_path / "out.bin", "--pairs", 18)


def test_build_refuses_a_line_break_in_a_name(photos, tmp_path, capsys):
    (photos / "anna\nbert").mkdir()
    assert r"'anna\nbert' has a line break in its name" in refused(capsys, "build", photos, tmp_path / "out")


def test_fewer_identities_than_folders_leave_nothing_that_check_minds(photos, tmp_path):
    assert rec("build", photos, tmp_path / "out", "--min-images", 4) == 0
    assert faults(tmp_path / "out") == []
    assert rec("shuffle", tmp_path / "out", tmp_path / "shuffled") == 0
    assert len(contents(tmp_path / "shuffled")) == 4


# --- check


def faults(folder, decode_images=True) -> list[str]:
    found = []
    done = check(folder, lambda finding: found.append(str(finding)), decode_images=decode_images)
    assert done.findings == len(found)
    return found


def offsets(folder) -> dict[int, int]:
    lines = (folder / "train.idx").read_text().splitlines()
    return {int(key): int(offset) for key, offset in (line.split("\t") for line in lines)}


def overwrite(folder, at: int, content: bytes) -> None:
    with open(folder / "train.rec", "r+b") as file:
        file.seek(at)
        file.write(content)


def test_check_of_a_good_folder(folder, capsys):
    assert rec("check", folder, "--decode") == 0
    out = capsys.readouterr().out
    assert out == f"{folder}: 37 records, 30 images, every image decoded: 0 faults\n"


def test_check_lists_every_fault_by_record_and_exits_with_1(folder, capsys):
    places = offsets(folder)
    overwrite(folder, places[3], bytes(4))  # no record starts there any longer
    overwrite(folder, places[7] + 12, struct.pack("<f", 99.0))  # a label
    overwrite(folder, places[9] + 12, struct.pack("<f", 3.0))  # an identity's label at another's image
    overwrite(folder, places[12] + 32, bytes(300))  # the head of a JPEG
    assert rec("check", folder, "--decode") == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.endswith("every image decoded: 4 faults")
    for line, (record, what) in zip(
        lines,
        [
            (3, f"is damaged (no record starts at byte {places[3]}) - copy"),
            (7, "has label 99, not one of property's 6 identities (0..5) - correct"),
            (9, "has label 3, the others of identity record 32 have 1 - correct it where"),
            (12, "is not an image that can be decoded"),
        ],
    ):
        assert line.startswith(f"{folder}/train.rec: record {record}: {what}")


def test_check_without_decoding_finds_cut_jpegs(tmp_path):
    with RecordWriter(tmp_path, 4) as writer:
        writer.add(0, encoded(0))
        writer.add(0, encoded(1)[:-10])
        writer.add(1, b"\xff\xd8\xff\xda neither an image nor cut \xff\xd9")
    (found,) = faults(tmp_path, decode_images=False)
    assert "record 2: is a JPEG that is cut short" in found
    cut, none = faults(tmp_path)
    assert cut == found and "record 3: is not an image that can be decoded" in none


def test_check_finds_images_twice(tmp_path):
    with RecordWriter(tmp_path, 4) as writer:
        for identity, number in enumerate([0, 1, 2, 0]):
            writer.add(identity, encoded(number))
        writer.add(3, encoded(0))
    first, second = faults(tmp_path)
    assert "record 4: holds the same image as record 1 under another identity (3 and 0)" in first
    assert "record 5: holds the same image as record 1 under another identity" in second


@pytest.mark.parametrize("cut", [1, 100, 2000, 30_000])
@pytest.mark.parametrize("index", [True, False])
def test_check_of_a_cut_file(folder, cut, index):
    size = (folder / "train.rec").stat().st_size
    os.truncate(folder / "train.rec", size - cut)
    if not index:
        (folder / "train.idx").unlink()
    found = faults(folder)
    assert any("ends at byte" in line or "where no record starts" in line or "is at byte" in line for line in found)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: ["records"], "train.idx: is not lines of 'key<TAB>offset'"),
        (lambda lines: [*lines, lines[3]], "train.idx: record 4 is listed twice"),
        (lambda lines: lines[:4] + lines[5:], "train.idx: record 5 is missing"),
        (lambda lines: lines[:4] + lines[7:], "train.idx: records 5..7 are missing"),
        (lambda lines: [*lines[:-2], lines[-1]], "train.idx: record 36 is missing"),
        (lambda lines: [*lines, "40\t99999999"], "train.idx: record 40 is at byte 99999999 and train.rec has"),
        (lambda lines: [*lines, "40\t5"], "train.idx: record 40 is at byte 5, where no record starts"),
        (lambda lines: [*lines, "40\t0"], "train.idx: record 40 is at byte 0, where another one starts"),
        (lambda lines: ["-1\t0", *lines], "train.idx: record number -1 in line 1 is not in 0..9223372036854775806 -"),
        (lambda lines: [*lines, f"{10**22}\t0"], f"train.idx: record number {10**22} in line 38 is not in 0.."),
    ],
)
def test_check_of_a_bad_index(folder, change, message):
    path = folder / "train.idx"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    assert any(message in line for line in faults(folder))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: lines[:10], "20 records differ from train.idx's images (1..30), the first is 11 - write"),
        (lambda lines: [*lines, "31\t32"], "1 records differ from train.idx's images (1..30), the first is 31"),
        (lambda lines: [*lines, lines[4]], "1 records differ from train.idx's images (1..30), the first is 5"),
        (lambda lines: ["1\t0", *lines[1:]], "1 records differ from train.idx's images (1..30), the first is 1 "),
        (lambda lines: ["records"], "is not lines of 'key<TAB>offset' from line 1 on"),
        (lambda lines: lines[::-1], None),
    ],
)
def test_check_of_the_images_index(folder, change, message):
    path = folder / "images.idx"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    found = faults(folder)
    assert len(found) == (message is not None)
    assert all(line.startswith(f"{path}: {message}") for line in found)


def test_check_of_property(folder):
    for text, message in [
        ("400,112,112", "property: says 400 identities, train.rec has 6 - write 6"),
        ("six", "property: 'six' is not 'num_classes,height,width'"),
        ("6,96,96", "record 1: is 112x112 and property says 96x96"),
        ("5,112,112", "record 26: has label 5, not one of property's 5"),
    ]:
        (folder / "property").write_text(text)
        assert any(message in line for line in faults(folder)), text
    (folder / "property").unlink()
    assert any("property: cannot read" in line for line in faults(folder))


@pytest.mark.parametrize(
    "labels, stated, message",
    [
        ([0, 1, 2], 3, None),
        ([0, 2, 2], 3, None),  # an identity without images
        ([0, 1, 2], 400, "property: says 400 identities, the highest label in train.rec is 2 - write 3 as its first"),
        ([0, 2, 5], 400, "property: says 400 identities, the highest label in train.rec is 5 - write 6 as its first"),
        ([0, 1, 2], 10**15, "property: says 1000000000000000 identities, and labels (float32) tell 16777216 apart"),
    ],
)
def test_check_of_property_beside_images_alone(tmp_path, labels, stated, message):
    writer = mx.recordio.MXIndexedRecordIO(str(tmp_path / "train.idx"), str(tmp_path / "train.rec"), "w")
    for key, label in enumerate(labels):
        writer.write_idx(key, mx.recordio.pack(mx.recordio.IRHeader(0, float(label), key, 0), encoded(key)))
    writer.close()
    (tmp_path / "property").write_text(f"{stated},112,112")
    found = faults(tmp_path)
    assert len(found) == (message is not None) and all(message in line for line in found)


def test_check_of_images_that_the_index_does_not_list(folder):
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(lines[:4] + lines[5:]))
    missing, unlisted = faults(folder)
    assert "train.idx: record 5 is missing" in missing
    assert f"the record at byte {lines[4].split()[1]}: holds an image and the index does not list it" in unlisted


@pytest.mark.parametrize(
    "ranges, message",
    [
        ([(1, 3), (4, 5)], "record 6: gives 4..4 as its identity's images, should begin at 3"),
        ([(1, 3), (3, 4)], "record 6: is the last identity's and ends at 3, the images at 4"),
        ([(1, 3), (3, 9)], "record 6: gives 3..8"),
        ([(1, 5), (5, 5)], "record 3: has label 1, the others of identity record 5 have 0"),
    ],
)
def test_check_of_identity_records(tmp_path, ranges, message):
    writer = mx.recordio.MXIndexedRecordIO(str(tmp_path / "train.idx"), str(tmp_path / "train.rec"), "w")
    records = [(key, float(key // 3), encoded(key)) for key in range(1, 5)]
    records += [(5 + number, list(each), b"") for number, each in enumerate(ranges)]
    for key, labels, image in [*records, (0, [5, 7], b"")]:
        writer.write_idx(key, mx.recordio.pack(mx.recordio.IRHeader(0, labels, key, 0), image))
    writer.close()
    (tmp_path / "property").write_text("2,112,112")
    assert any(message in line for line in faults(tmp_path))


def unusable(folder, places) -> set[int]:
    """The image records that cannot be read and decoded at the place that the index gave when all was well."""
    file, found = RecordFile(folder / "train.rec"), set()
    for record in range(1, 31):
        try:
            decode(file.read(record, places[record])[1])
        except (InputError, ValueError):
            found.add(record)
    return found


def test_check_names_every_record_that_cannot_be_read_whatever_was_overwritten(folder):
    whole, places = (folder / "train.rec").read_bytes(), offsets(folder)
    random = np.random.default_rng(0)
    damaged = 0
    for _ in range(40):
        start = int(random.choice(list(places.values()))) + int(random.integers(-20, 60))
        overwrite(folder, max(start, 0), random.bytes(int(random.integers(4, 40))))
        expected, listed = unusable(folder, places), " ".join(faults(folder))
        assert expected <= {int(record) for record in re.findall(r"record (\d+): ", listed)}
        damaged += bool(expected)
        (folder / "train.rec").write_bytes(whole)
    assert damaged > 10
    overwrite(folder, places[5] + 4, struct.pack("<I", 30_000))  # a length that swallows what follows
    assert any("record 5: is damaged (another record starts inside of it)" in line for line in faults(folder))


@pytest.mark.parametrize("name", ["train.idx", "images.idx", "property"])
def test_check_and_training_do_not_wait_for_pipes(folder, capsys, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    reader = subprocess.run([sys.executable, "-m", "vargface", "rec", "check", folder], capture_output=True, timeout=60)
    assert reader.returncode == 1
    assert f"{folder}/{name}: cannot read (a pipe or a device, not a file)" in reader.stdout.decode()
    if name == "train.idx":
        with pytest.raises(InputError, match="a pipe or a device, not a file"):
            FaceRecords(folder)


def test_check_of_what_is_no_folder(tmp_path, capsys):
    assert "no such folder" in refused(capsys, "check", tmp_path / "none")
    assert "no train.rec in it" in refused(capsys, "check", tmp_path)


# --- info, shuffle


def test_info(photos, folder, tmp_path, capsys):
    assert rec("build", photos, tmp_path / "out") == 0
    capsys.readouterr()
    for with_index in (True, False):
        assert rec("info", tmp_path / "out") == 0
        out = capsys.readouterr().out
        assert "images 8   identities 3 (property: 3)   size 112x112" in out
        assert "images an identity: 1 to 4, median 3" in out
        assert "   2 or more images: 2 identities, 7 images" in out
        assert ("no index" in out) != with_index
        if with_index:
            (tmp_path / "out" / "train.idx").unlink()


def test_info_counts_by_labels_where_identity_records_overlap(folder, capsys, caplog):
    overwrite(folder, offsets(folder)[31], part_bytes(pack((1, 17), record=31)))
    assert rec("info", folder) == 0
    assert "images 30   identities 6" in capsys.readouterr().out
    assert "identity records overlap or leave out images, which are counted by their labels" in caplog.text


def test_shuffled_images_are_read_by_all(folder, tmp_path, capsys):
    assert rec("shuffle", folder, tmp_path / "out", "--seed", 3) == 0
    assert "30 images" in capsys.readouterr().out
    shuffled = contents(tmp_path / "out")
    before = contents(folder)
    assert sorted(shuffled) == sorted(before) and shuffled != before
    assert insightface_reads(tmp_path / "out") == shuffled
    iterator = mx.io.ImageRecordIter(
        path_imgrec=str(tmp_path / "out" / "train.rec"),
        data_shape=(3, 112, 112),
        batch_size=10,
        preprocess_threads=1,
        verbose=False,
    )
    labels, images = [], []
    for batch in iterator:
        labels += batch.label[0].asnumpy().astype(int).tolist()
        images += list(batch.data[0].asnumpy())
    assert labels == [identity for identity, _ in shuffled]
    for image, (_, jpeg) in zip(images, shuffled):
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(image - pixels[:, :, ::-1].transpose(2, 0, 1)).max() <= 2
    assert faults(tmp_path / "out") == []
    rec("shuffle", folder, tmp_path / "again", "--seed", 3)
    rec("shuffle", folder, tmp_path / "other", "--seed", 4)
    assert contents(tmp_path / "again") == shuffled != contents(tmp_path / "other")


def test_shuffle_leaves_out_what_cannot_be_trained_on(folder, tmp_path, capsys):
    places = offsets(folder)
    overwrite(folder, places[3], bytes(4))
    overwrite(folder, places[7] + 12, struct.pack("<f", 99.0))
    overwrite(folder, places[12] + 32, bytes(300))
    assert f"the record at byte {places[3]} is damaged" in refused(capsys, "shuffle", folder, tmp_path / "out")
    assert not (tmp_path / "out" / "train.rec").exists()
    assert rec("shuffle", folder, tmp_path / "out", "--skip-bad") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and last.endswith("27 images, without identity records; left out: 3")
    assert faults(tmp_path / "out") == []
    good = [each for number, each in enumerate(insightface_like(folder)) if number + 1 not in (3, 7, 12)]
    assert sorted(contents(tmp_path / "out")) == sorted(good)
    assert "has a train.rec already" in refused(capsys, "shuffle", folder, tmp_path / "out")


LOST = {
    "no bytes": (lambda: pack(0.0), "holds no image (0 bytes) - leave out all such records: --skip-bad"),
    "no identity": (lambda: pack(7.0, encoded(1)), "has label 7, not one of property's 6 identities - leave out all"),
    "damaged": (lambda: pack(0.0, encoded(1))[:12], "is damaged (12 bytes are fewer than a record's header)"),
}


@pytest.mark.parametrize("kind", LOST)
def test_shuffle_drops_nothing_without_saying_so(folder, tmp_path, capsys, kind):
    content, message = LOST[kind]
    with open(folder / "train.rec", "ab") as file:
        file.write(part_bytes(content()))
    assert message in refused(capsys, "shuffle", folder, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))
    assert rec("shuffle", folder, tmp_path / "out", "--skip-bad") == 0
    assert "30 images, without identity records; left out: 1" in capsys.readouterr().out


@pytest.mark.parametrize("kind, length", [(0, 12_000), (3, None), (2, None), (1, None)])
def test_shuffle_sees_a_record_that_has_swallowed_others_or_lost_its_parts(folder, tmp_path, capsys, kind, length):
    at = offsets(folder)[5] + 4
    whole = (folder / "train.rec").read_bytes()
    word = struct.unpack("<I", whole[at : at + 4])[0]
    overwrite(folder, at, struct.pack("<I", kind << 29 | (length or word)))
    assert " is damaged (" in refused(capsys, "shuffle", folder, tmp_path / "out")


def insightface_like(folder):
    return [(number // 5, encoded(number)) for number in range(30)]


# --- pack


def test_pack_from_lists(photos, tmp_path, capsys):
    (tmp_path / "pairs.tsv").write_text(
        "anna/anna_0001.jpg\tanna/anna_0002.jpg\t1\nanna/anna_0001.jpg\tbert/bert_0001.jpg\t0\n"
    )
    (tmp_path / "pairs.txt").write_text("1\t2\nanna 1 2\nanna\t1\tbert\t1\n", encoding="utf-8-sig")
    images = [
        (photos / name / f"{name}_{number:04d}.jpg").read_bytes()
        for name, number in [("anna", 1), ("anna", 2), ("anna", 1), ("bert", 1)]
    ]
    for name in ("pairs.tsv", "pairs.txt"):
        assert rec("pack", tmp_path / name, tmp_path / "out.bin", "--root", photos) == 0
        out = capsys.readouterr().out
        assert "2 pairs, 1 of one person" in out and "taken as aligned" in out
        pack = read_pack(tmp_path / "out.bin")
        assert list(pack.images) == images and pack.issame.tolist() == [True, False]


def test_pack_from_a_folder(photos, tmp_path, capsys):
    files = {file.read_bytes(): file.parent.name for file in photos.rglob("*.jpg")}
    assert rec("pack", photos, tmp_path / "out.bin", "--pairs", 18) == 0  # all 9 of one person there are
    pack = read_pack(tmp_path / "out.bin")
    seen = set()
    for pair, same in enumerate(pack.issame):
        first, second = pack.images[2 * pair : 2 * pair + 2]
        assert (files[first] == files[second]) == same and first != second
        seen.add(frozenset((first, second)))
    assert len(seen) == 18 and pack.issame.sum() == 9
    before = list(pack.images)
    rec("pack", photos, tmp_path / "out.bin", "--pairs", 18)
    assert list(read_pack(tmp_path / "out.bin").images) == before
    capsys.readouterr()
    assert "give 9 pairs of one person and 19 of two, not 10 and 10" in refused(
        capsys, "pack", photos, tmp_path / "out.bin", "--pairs", 20
    )


def test_pack_refuses(photos, tmp_path, capsys):
    path, out = tmp_path / "pairs.txt", tmp_path / "out.bin"
    for text, message in [
        ("anna/anna_0001.jpg anna/anna_0002.jpg 2\n", "pairs.txt: line 1 is"),
        ("anna/anna_0001.jpg anna/none.jpg 1\n", "line 1: .*none.jpg: no such image"),
        ("anna 1 9\n", "line 1: .*anna_0009.jpg: no such image"),
        ("\n", "has no pairs"),
        ("anna ² 1\n", "pairs.txt: line 1: .*anna: no such image"),
    ]:
        path.write_text(text)
        message_of = refused(capsys, "pack", path, out, "--root", photos)
        assert re.search(message, message_of)
    (photos / "anna" / "anna_0001.jpg").write_bytes(encoded(0, (112, 96)))
    path.write_text("anna 1 2\n")
    assert "is 112x96 - align it" in refused(capsys, "pack", path, out, "--root", photos)
    assert "cannot read" in refused(capsys, "pack", tmp_path / "none.txt", out)
    assert not out.exists()


# --- memory


TINY = """
import resource, sys
from vargface import cli
from vargface.cli import main
from vargface.data.writer import RecordWriter
with RecordWriter(sys.argv[1] + "/data", 50) as writer:
    for number in range(int(sys.argv[2])):
        writer.add(number * 50 // int(sys.argv[2]), b"image %d" % number)
data, out = sys.argv[1] + "/data", sys.argv[1] + "/out"
for command in (["check", data], ["info", data], ["shuffle", data, out]):
    assert main(["rec", *command]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_records(tmp_path):
    peaks = []
    for count in (20_000, 120_000):
        (tmp_path / str(count)).mkdir()
        command = [sys.executable, "-c", TINY, str(tmp_path / str(count)), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    # a list of the 100,000 records more would be 15 MB and more
    assert peaks[1] - peaks[0] < 6_000


# --- help


@pytest.mark.parametrize("tool", ["build", "check", "info", "shuffle", "pack"])
def test_every_tool_has_an_example_that_it_would_take(tool, capsys):
    with pytest.raises(SystemExit) as stopped:
        rec(tool, "--help")
    assert stopped.value.code == 0
    (example,) = re.findall(r"example: (vargface .*)", " ".join(capsys.readouterr().out.split()))
    words = example.split()
    assert words[:3] == ["vargface", "rec", tool]
    assert cli._parser().parse_args(words[1:]).tool == tool
