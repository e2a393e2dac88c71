"""InsightFace folders: what we read and write, with MXNet's own RecordIO as the judge."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import struct

import cv2
import numpy as np
import pytest

from vargface.data.recordio import RecordFile, part_bytes
from vargface.data.records import FaceRecords, first_without_image
from vargface.data.writer import RecordWriter
from vargface.errors import InputError
from vargface.runtime import mx

MAGIC = struct.pack("<I", 0xCED7230A)
FILES = ["images.idx", "property", "train.idx", "train.rec"]
COUNTS = (3, 1, 4, 1, 5)
IDENTITIES = [identity for identity, count in enumerate(COUNTS) for _ in range(count)]


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    image = cv2.resize(pixels, (112, 112), interpolation=cv2.INTER_LINEAR)
    return cv2.imencode(".jpg", image)[1].tobytes()


@pytest.fixture(scope="module")
def jpegs():
    return [jpeg(number) for number in range(len(IDENTITIES))]


@pytest.fixture
def folder(tmp_path, jpegs):
    with RecordWriter(tmp_path / "data", len(COUNTS)) as writer:
        for identity, image in zip(IDENTITIES, jpegs):
            writer.add(identity, image)
    return tmp_path / "data"


def mx_folder(folder, records, num_identities, index=True):
    """A folder written by MXNet from (key, labels, image)."""
    folder.mkdir()
    paths = str(folder / "train.idx"), str(folder / "train.rec")
    writer = mx.recordio.MXIndexedRecordIO(*paths, "w")
    for key, labels, image in records:
        writer.write_idx(key, mx.recordio.pack(mx.recordio.IRHeader(0, labels, key, 0), image))
    writer.close()
    if not index:
        (folder / "train.idx").unlink()
    (folder / "property").write_text(f"{num_identities},112,112\n")
    return folder


def contents(records):
    return [records.read(position) for position in range(len(records))]


# --- the format ---


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"a",
        b"abcd",
        MAGIC,
        MAGIC + MAGIC,
        b"abcd" + MAGIC + b"tail",
        b"ab" + MAGIC + b"not aligned",
        b"ab" + MAGIC + b"cd" + MAGIC + b"x",
        MAGIC + bytes(20000) + MAGIC,
        b"\x0a" * 3 + MAGIC * 3 + b"\x0a",
    ],
)
def test_records_are_written_and_read_as_mxnet_does(tmp_path, payload):
    """Also where the payload holds the magic word, which splits a record into parts."""
    theirs = mx.recordio.MXRecordIO(str(tmp_path / "theirs.rec"), "w")
    for piece in (b"before", payload, b"after"):
        theirs.write(piece)
    theirs.close()
    ours = [part_bytes(piece) for piece in (b"before", payload, b"after")]
    assert (tmp_path / "theirs.rec").read_bytes() == b"".join(ours)
    file = RecordFile(tmp_path / "theirs.rec")
    assert bytes(file.payload(len(ours[0]))) == payload
    assert bytes(file.payload(len(ours[0]) + len(ours[1]))) == b"after"


def test_layout_is_insightface(folder, jpegs):
    reader = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    first, last = len(jpegs) + 1, len(jpegs) + 1 + len(COUNTS)
    assert sorted(reader.keys) == list(range(last))
    header, image = mx.recordio.unpack(reader.read_idx(0))
    assert (header.flag, list(header.label), image) == (2, [first, last], b"")
    for key in range(1, first):
        header, image = mx.recordio.unpack(reader.read_idx(key))
        assert (header.flag, header.label, header.id, image) == (0, IDENTITIES[key - 1], key, jpegs[key - 1])
    for identity, key in enumerate(range(first, last)):
        header, image = mx.recordio.unpack(reader.read_idx(key))
        start = 1 + sum(COUNTS[:identity])
        assert (header.flag, list(header.label), image) == (2, [start, start + COUNTS[identity]], b"")
    assert (folder / "property").read_text() == "5,112,112"
    assert sorted(os.listdir(folder)) == FILES


@pytest.mark.parametrize("settings", [{}, {"shuffle": True}, {"num_parts": 2, "part_index": 1, "shuffle": True}])
@pytest.mark.parametrize("most", [5, 9])
def test_the_same_folder_is_read_by_image_record_iter(tmp_path, jpegs, settings, most):
    """By the index of the images alone; also where fewer identities came than were announced."""
    with RecordWriter(tmp_path, most) as writer:
        for identity, image in zip(IDENTITIES, jpegs):
            writer.add(identity, image)
    assert contents(FaceRecords(tmp_path)) == list(zip(IDENTITIES, jpegs))
    iterator = mx.io.ImageRecordIter(
        path_imgrec=str(tmp_path / "train.rec"),
        path_imgidx=str(tmp_path / "images.idx"),
        data_shape=(3, 112, 112),
        batch_size=7,
        preprocess_threads=1,
        verbose=False,
        **settings,
    )
    expected = sorted(IDENTITIES[7:] if "num_parts" in settings else IDENTITIES)
    for _ in range(2):
        labels, images = [], []
        for batch in iterator:
            labels += batch.label[0].asnumpy().astype(int).tolist()
            images += list(batch.data[0].asnumpy())
        assert sorted(labels) == expected
        iterator.reset()
    for label, image in zip(labels, images):
        pixels = [
            cv2.imdecode(np.frombuffer(jpegs[at], np.uint8), 1) for at, of in enumerate(IDENTITIES) if of == label
        ]
        assert min(np.abs(image - each[:, :, ::-1].transpose(2, 0, 1)).max() for each in pixels) <= 2


def test_reads_what_it_wrote(folder, jpegs):
    records = FaceRecords(folder)
    assert (len(records), records.num_identities, records.image_size) == (14, 5, (112, 112))
    assert records.image_keys.dtype == np.int64 and records.image_keys.tolist() == list(range(1, 15))
    assert contents(records) == list(zip(IDENTITIES, jpegs))


def test_image_that_holds_the_magic_word(tmp_path):
    """An image of more than one read, with the word on a multiple of four of the payload and elsewhere."""
    image = bytes(2) + MAGIC + bytes(2) + MAGIC + bytes(30000) + MAGIC
    with RecordWriter(tmp_path, 300) as writer:
        writer.add(0, image)
    assert contents(FaceRecords(tmp_path)) == [(0, image)]
    (tmp_path / "train.idx").unlink()
    assert contents(FaceRecords(tmp_path)) == [(0, image)]


def test_image_size_of_the_writer(tmp_path):
    with RecordWriter(tmp_path, 5, image_size=(96, 80)) as writer:
        writer.add(0, b"image")
    assert FaceRecords(tmp_path).image_size == (96, 80)


# --- other people's folders ---


def test_label_arrays_and_record_0_in_front(tmp_path, jpegs):
    images = [(key, [key // 2, 33.0, 1.0], jpegs[key]) for key in range(1, 5)]
    identities = [(5, [1, 2], b""), (6, [2, 4], b""), (7, [4, 5], b"")]
    records = FaceRecords(mx_folder(tmp_path / "d", [(0, [5, 8], b""), *images, *identities], 3))
    assert contents(records) == [(key // 2, jpegs[key]) for key in range(1, 5)]


@pytest.mark.parametrize("index", [True, False])
def test_shuffled_records_without_record_0(tmp_path, jpegs, index):
    order = [4, 0, 3, 1, 2]
    pieces = [(key, float(label), jpegs[label]) for key, label in enumerate(order)]
    records = FaceRecords(mx_folder(tmp_path / "d", pieces, 5, index=index))
    assert records.image_keys.tolist() == list(range(5))
    assert contents(records) == [(label, jpegs[label]) for label in order]


def test_without_index_only_images_are_found(folder, jpegs):
    (folder / "train.idx").unlink()
    assert contents(FaceRecords(folder)) == list(zip(IDENTITIES, jpegs))


def test_without_index_an_image_of_no_bytes_is_not_dropped(tmp_path, jpegs):
    pieces = [(0, 0.0, jpegs[0]), (1, 0.0, b""), (2, [1.0], b""), (3, 1.0, jpegs[1])]
    records = FaceRecords(mx_folder(tmp_path / "d", pieces, 2, index=False))
    assert len(records) == 4
    for position in (1, 2):
        with pytest.raises(InputError, match="is not an image .0 bytes. - leave it out: vargface rec shuffle DIR OUT"):
            records.read(position)


def test_labels_with_gaps_are_accepted(tmp_path, jpegs):
    pieces = [(0, [3, 5], b""), (1, 2.0, jpegs[0]), (2, 7.0, jpegs[1]), (3, [1, 2], b""), (4, [2, 3], b"")]
    assert [identity for identity, _ in contents(FaceRecords(mx_folder(tmp_path / "d", pieces, 10)))] == [2, 7]


def test_opening_reads_few_records(tmp_path, monkeypatch):
    with RecordWriter(tmp_path, 300) as writer:
        for identity in range(300):
            writer.add(identity, b"image")
    calls = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *args: calls.append(args) or pread(*args))
    assert len(FaceRecords(tmp_path)) == 300
    assert len(calls) < 30


@pytest.mark.parametrize("first", [2**24 + 1, 2**24 + 3, 17_091_657, 2**25 + 3, 2**25 + 6])
def test_image_range_past_float32(first):
    """Past 2^24 the header's float32 is only near: the records themselves tell."""
    near = int(np.float32(first))
    assert first_without_image(near, first + 100_000, lambda key: key < first) == first


# --- sharing ---


def test_pickled_and_forked(folder):
    records = FaceRecords(folder)
    expected = contents(records)
    assert contents(pickle.loads(pickle.dumps(records))) == expected
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(records.read, range(len(records))) == expected
    assert contents(records) == expected


def test_pickled_records_of_a_replaced_file(folder):
    state = pickle.dumps(FaceRecords(folder))
    with open(folder / "train.rec", "ab") as file:
        file.write(bytes(8))
    with pytest.raises(InputError, match="train.rec.*bytes"):
        pickle.loads(state)


def test_close(folder):
    records = FaceRecords(folder)
    records.close()
    # takes the number of the file that was closed
    with open(folder / "train.rec", "rb"), pytest.raises(OSError):
        records.read(0)


# --- bad input ---


@pytest.mark.parametrize("name", ["train.rec", "property"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"data: no {name}"):
        FaceRecords(folder)


def test_missing_and_empty_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        FaceRecords(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no train.rec"):
        FaceRecords(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "five,112,112", "5,112", "5,112,112,3", "0,112,112", "5,-1,112", "5.0,112,112", "5,112,70000"]
)
def test_unreadable_property(folder, text):
    (folder / "property").write_text(text)
    with pytest.raises(InputError, match="property: .*num_classes,height,width"):
        FaceRecords(folder)


@pytest.mark.parametrize("number", [2**24 + 1, 10**15, 10**30])
def test_property_of_more_identities_than_labels_can_tell_apart(folder, number):
    (folder / "property").write_text(f"{number},112,112")
    with pytest.raises(InputError, match=f"property: says {number} identities, and labels .* tell 16777216 apart - wr"):
        FaceRecords(folder)


def test_property_with_too_few_identities(folder):
    (folder / "property").write_text("4,112,112")
    with pytest.raises(InputError, match=r"train.rec: record 10 has label 4, .* 4 identities .*property"):
        FaceRecords(folder)


def test_property_with_too_many_identities(folder):
    (folder / "property").write_text("400,112,112")
    with pytest.raises(InputError, match=r"property: says 400 identities, .*train.rec has 5"):
        FaceRecords(folder)


@pytest.mark.parametrize(
    "identities, message", [(3, "record 1 has label 3,"), (400, "says 400 identities, .* has 5 - ")]
)
def test_property_of_images_in_any_order(tmp_path, jpegs, identities, message):
    """The last image need not be the last identity's."""
    order = [3, 4, 0, 2, 1]
    images = [(key, float(label), jpegs[label]) for key, label in enumerate(order, start=1)]
    people = [(6 + label, [order.index(label) + 1, order.index(label) + 2], b"") for label in range(5)]
    contents(FaceRecords(mx_folder(tmp_path / "right", [(0, [6, 11], b""), *images, *people], 5)))
    with pytest.raises(InputError, match=message):
        FaceRecords(mx_folder(tmp_path / "wrong", [(0, [6, 11], b""), *images, *people], identities))


@pytest.mark.parametrize("index", [True, False])
def test_property_of_images_alone(tmp_path, index):
    """A shuffled file: every label is looked at where there is no index, or where they are not many."""
    pieces = [(key, float(key * 7 % 40), b"image") for key in range(300)]
    assert len(FaceRecords(mx_folder(tmp_path / "right", pieces, 40, index=index))) == 300
    with pytest.raises(InputError, match=r"property: says 41 identities, .*train.rec has 40 - write 40 as the first"):
        FaceRecords(mx_folder(tmp_path / "more", pieces, 41, index=index))
    with pytest.raises(InputError, match=r"train.rec: record 17 has label 39, not one of property's 39 identities"):
        FaceRecords(mx_folder(tmp_path / "less", pieces, 39, index=index))
    thinned = [piece for piece in pieces if piece[1] != 20]
    assert len(FaceRecords(mx_folder(tmp_path / "gap", thinned, 45, index=index))) == len(thinned)


def test_without_index_labels_in_arrays_are_checked(tmp_path):
    pieces = [(key, [float(key), 33.0], b"image") for key in range(30)]
    with pytest.raises(InputError, match="record 29 has label 29"):
        FaceRecords(mx_folder(tmp_path / "less", pieces, 29, index=False))


def test_a_large_shuffled_file_is_opened_at_once_and_its_labels_checked_when_read(tmp_path):
    pieces = [(key, 0.0, b"image") for key in range(2500)]
    pieces[1234] = (1234, 7.0, b"image")
    records = FaceRecords(mx_folder(tmp_path / "d", pieces, 5))
    with pytest.raises(InputError, match="train.rec: record 1234 has label 7, not one of property's 5"):
        contents(records)


def test_an_identity_record_that_points_nowhere(tmp_path):
    pieces = [(0, [2, 3], b""), (1, 0.0, b"image"), (2, [9, 10], b"")]
    with pytest.raises(InputError, match="train.rec: record 2 gives 9 as an identity's first image, of 1 - copy"):
        FaceRecords(mx_folder(tmp_path / "d", pieces, 5))


def test_more_identity_records_than_property(tmp_path):
    pieces = [(0, [2, 4], b""), (1, 0.0, b"image"), (2, [1, 2], b""), (3, [1, 1], b"")]
    with pytest.raises(InputError, match=r"says 1 identities, .* has 2"):
        FaceRecords(mx_folder(tmp_path / "d", pieces, 1))


@pytest.mark.parametrize("share", [0, 0.0001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("index", [True, False])
def test_truncated_rec(folder, share, index):
    size = (folder / "train.rec").stat().st_size
    os.truncate(folder / "train.rec", int(size * share))
    if not index:
        (folder / "train.idx").unlink()
    with pytest.raises(InputError, match="train.(rec|idx): .* - "):
        FaceRecords(folder)


@pytest.mark.parametrize("index", [True, False])
def test_empty_rec(folder, index):
    os.truncate(folder / "train.rec", 0)
    if not index:
        (folder / "train.idx").unlink()
    with pytest.raises(InputError, match=rf"^{folder}/train.rec: is empty \(0 bytes\) - copy the data set anew"):
        FaceRecords(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: [], "key<TAB>offset"),
        (lambda lines: ["records"], "key<TAB>offset"),
        (lambda lines: [*lines, "20"], "key<TAB>offset"),
        (lambda lines: [line.replace("\t", " ") for line in lines], "key<TAB>offset"),
        (lambda lines: [*lines, lines[3]], "record 4 is listed twice"),
        (lambda lines: lines[:4] + lines[5:], "record 5 of 0..19 is missing"),
        (lambda lines: [*lines[:-2], lines[-1]], "record 19 of 0..19 is missing"),
        (lambda lines: [*lines, "20\t99999999"], "record 20 is at byte 99999999"),
        (lambda lines: [*lines, "20\t-4"], "record 20 is at byte -4"),
    ],
)
def test_bad_index(folder, change, message):
    path = folder / "train.idx"
    path.write_text("".join(f"{line}\n" for line in change(path.read_text().splitlines())))
    with pytest.raises(InputError, match=f"train.idx: .*{message}"):
        FaceRecords(folder)


def test_damaged_record_is_named_when_read(tmp_path):
    """Opening looks at a few records only; the others are checked when they are read."""
    with RecordWriter(tmp_path, 300) as writer:
        for _ in range(100):
            writer.add(0, b"image")
    offset = int((tmp_path / "train.idx").read_text().splitlines()[1].split("\t")[1])
    with open(tmp_path / "train.rec", "r+b") as file:
        file.seek(offset)
        file.write(bytes(4))
    records = FaceRecords(tmp_path)
    records.read(0)
    with pytest.raises(InputError, match=f"train.rec: record 2 is damaged .*byte {offset}"):
        records.read(1)


@pytest.mark.parametrize("label", [-1.0, 1.5, 2.0, float("nan"), float("inf")])
def test_label_that_is_no_identity(tmp_path, label):
    pieces = [(1, 0.0, b"image"), (2, label, b"image"), (3, 1.0, b"image")]
    with pytest.raises(InputError, match=r"train.rec: record 2 has label .*2 identities"):
        contents(FaceRecords(mx_folder(tmp_path / "d", pieces, 2)))


def test_record_without_image(tmp_path):
    pieces = [(1, 0.0, b"image"), (2, 1.0, b"")]
    with pytest.raises(InputError, match=r"train.rec: record 2 of identity 1 is not an image \(0 bytes\)"):
        contents(FaceRecords(mx_folder(tmp_path / "d", pieces, 2)))


def test_record_with_fewer_labels_than_announced(tmp_path):
    mx_folder(tmp_path / "d", [(1, 0.0, b"image")], 1)
    with open(tmp_path / "d" / "train.rec", "r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 1000))
    with pytest.raises(InputError, match="record 1 is damaged .1000 labels"):
        FaceRecords(tmp_path / "d")


# --- writing ---


def test_exception_leaves_what_was_there(folder, jpegs):
    before = contents(FaceRecords(folder))
    with pytest.raises(FileNotFoundError, match="of the caller"), RecordWriter(folder, 1) as writer:
        writer.add(0, jpegs[0])
        raise FileNotFoundError(errno.ENOENT, "of the caller")
    assert contents(FaceRecords(folder)) == before
    assert sorted(os.listdir(folder)) == FILES


def test_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match="out: cannot write .No space left"), RecordWriter(
        tmp_path / "out", 1
    ) as writer:
        writer.add(0, b"image")
        monkeypatch.setattr(os, "fsync", refuse)
    assert os.listdir(tmp_path / "out") == []


def test_nothing_to_write(tmp_path):
    with pytest.raises(InputError, match="no image to write"), RecordWriter(tmp_path / "out", 1):
        pass
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("identities", [(1,), (0, 2), (0, 1, 0), (-1,), (0, 1, 2)])
def test_identities_must_ascend_without_gaps_up_to_the_most_that_was_said(tmp_path, identities):
    with pytest.raises(ValueError, match="identity"), RecordWriter(tmp_path, 2) as writer:
        for identity in identities:
            writer.add(identity, b"image")
    assert os.listdir(tmp_path) == []


# --- real faces ---


@pytest.mark.real
def test_real_mini(real_faces):
    folder = real_faces / "real-mini"
    records = FaceRecords(folder)
    reader = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    assert (len(records), records.num_identities) == (10_598, 299)
    identities = set()
    for position, key in enumerate(records.image_keys.tolist()):
        identity, image = records.read(position)
        header, expected = mx.recordio.unpack(reader.read_idx(key))
        assert (identity, image) == (header.label, expected)
        identities.add(identity)
    assert identities == set(range(299))
