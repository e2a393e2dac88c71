"""A teacher store: both views of every image, whole or made again, and no store of anything else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from vargface.cli import main
from vargface.data.iterator import FaceIterator
from vargface.data.recordio import pack, part_bytes
from vargface.data.records import FaceRecords
from vargface.data.samples import face_at
from vargface.data.writer import RecordWriter
from vargface.errors import InputError
from vargface.inference import unit
from vargface.runtime import mx
from vargface.teachers import store, writer
from vargface.teachers.models import TeacherModels, teacher_digest
from vargface.teachers.store import Contents, TeacherStore
from vargface.teachers.writer import make_store
from vargface.training.teacher import TaughtIterator, Teacher

COUNT = tiny.IDENTITIES * tiny.EACH
NO_NUMBER = '{"format": 1, "teacher": "t", "index": "i", "images": "many", "embedding_size": 16}'


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Five shards of five images and less."""
    monkeypatch.setattr(store, "LEAST_IMAGES", 5)


@pytest.fixture(scope="module")
def records(data):
    return FaceRecords(data)


@pytest.fixture
def made(data, teacher, tmp_path):
    return make_store(teacher, str(data), tmp_path / "store", workers=1)


def opened(folder, records, teacher) -> TeacherStore:
    return TeacherStore(folder, records, teacher_digest(teacher))


def look_up(found: TeacherStore, positions, mirrored) -> np.ndarray:
    return found.embeddings(SimpleNamespace(index=np.array(positions), mirrored=np.array(mirrored)))


def test_it_holds_both_views_of_every_image(made, records, teacher):
    network = TeacherModels(teacher).network(1, mx.cpu())
    found = opened(made, records, teacher)
    assert found.embedding_size == tiny.DIMENSIONS
    for position in range(COUNT):
        image = face_at(records, position)[1][:, :, ::-1].transpose(2, 0, 1)
        for mirrored, view in ((False, image), (True, image[:, :, ::-1])):
            due = unit(network(view[None]))
            row = look_up(found, [position], [mirrored])
            assert row.dtype == np.float32
            np.testing.assert_allclose(row, due, atol=2**-11)
            assert 1 - (due.astype(np.float64) * row).sum() / np.linalg.norm(row) < 1e-6
            assert np.linalg.norm(row) == pytest.approx(1, abs=1e-3)


def test_a_look_up_is_in_the_order_asked_for(made, records, teacher):
    found = opened(made, records, teacher)
    positions, mirrored = [23, 0, 7, 7, 4, 5], [True, False, True, False, False, True]
    rows = look_up(found, positions, mirrored)
    for row, position, view in zip(rows, positions, mirrored):
        np.testing.assert_array_equal(row, look_up(found, [position], [view])[0])


def test_its_labels_are_the_loops_but_for_float16(made, records, teacher):
    asked = Teacher(TeacherModels(teacher).network(8, mx.cpu()), len(records))
    iterators = [
        TaughtIterator(FaceIterator(records, 4, seed=3), way) for way in (asked, opened(made, records, teacher))
    ]
    for one, other in zip(*iterators):
        assert one.provide_label == other.provide_label
        loop, looked_up = (batch.label[1].asnumpy() for batch in (one, other))
        np.testing.assert_allclose(looked_up, loop, atol=2**-11)
        np.testing.assert_array_equal(one.data[0].asnumpy(), other.data[0].asnumpy())
    for iterator in iterators:
        iterator.close()


def test_the_files_are_what_they_are_said_to_be(made):
    shards = sorted(path.name for path in made.glob("*.npy"))
    assert shards == [f"shard-000{number}.npy" for number in range(5)]
    shapes = [np.load(made / name).shape for name in shards]
    assert shapes == [(5, 2, tiny.DIMENSIONS)] * 4 + [(4, 2, tiny.DIMENSIONS)]
    assert {np.load(made / name).dtype for name in shards} == {np.dtype(np.float16)}
    sums = b"".join((made / name).with_suffix(".sha256").read_bytes() for name in shards)
    assert subprocess.run(["sha256sum", "-c", "--quiet"], input=sums, cwd=made).returncode == 0


def test_several_workers_make_the_same_store(made, data, teacher, tmp_path):
    other = make_store(teacher, str(data), tmp_path / "other", workers=2)
    for path in made.glob("*.npy"):
        np.testing.assert_array_equal(np.load(path), np.load(other / path.name))


def embedded_positions(monkeypatch) -> list[int]:
    """The positions that are embedded from now on."""
    positions: list[int] = []
    whole = writer._embedded
    monkeypatch.setattr(writer, "_embedded", lambda *keys: positions.extend(keys[-1]) or whole(*keys))
    return positions


def test_what_is_finished_is_not_made_again(data, teacher, tmp_path, monkeypatch, records):
    whole = store.write_shard

    def stopped(folder, shard, embeddings):
        if shard == 2:
            raise KeyboardInterrupt
        whole(folder, shard, embeddings)

    monkeypatch.setattr(store, "write_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_store(teacher, str(data), tmp_path / "store", workers=1)
    monkeypatch.setattr(store, "write_shard", whole)
    with pytest.raises(InputError, match=r"3 of 5 shards are missing or damaged \(shard-0002.npy first\)"):
        opened(tmp_path / "store", records, teacher)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*.npy")}
    positions = embedded_positions(monkeypatch)
    make_store(teacher, str(data), tmp_path / "store", workers=1)
    assert positions == list(range(10, COUNT))
    for name, time_ in before.items():
        assert (tmp_path / "store" / name).stat().st_mtime_ns == time_
    positions.clear()
    make_store(teacher, str(data), tmp_path / "store", workers=1)
    assert positions == []
    opened(tmp_path / "store", records, teacher)


@pytest.mark.slow
def test_a_kill_costs_the_shard_at_work_and_leaves_no_process(teacher, tmp_path, records):
    with RecordWriter(tmp_path / "data", 1) as faces:
        for number in range(3 * 1024):
            faces.add(0, tiny.jpeg(0, number % 50))
    command = [sys.executable, "-c", "import sys; from vargface.cli import main; sys.exit(main())", "teacher-store"]
    command += ["--model", teacher, "--workers", "2", str(tmp_path / "data"), str(tmp_path / "store")]
    first = tmp_path / "store" / "shard-0000.sha256"
    process = subprocess.Popen(command, start_new_session=True)
    while not first.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    deadline = time.time() + 20
    while subprocess.run(["pgrep", "-s", str(process.pid)], stdout=subprocess.DEVNULL).returncode == 0:
        assert time.time() < deadline, "its workers go on"
        time.sleep(0.1)
    before = first.with_suffix(".npy").stat().st_mtime_ns
    assert not (tmp_path / "store" / "shard-0002.sha256").exists()
    command[command.index("2")] = "1"
    assert subprocess.run(command).returncode == 0
    assert first.with_suffix(".npy").stat().st_mtime_ns == before
    assert len(list((tmp_path / "store").glob("*.sha256"))) == 3


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "unsummed", "of another shape"])
def test_a_damaged_shard_is_refused_and_made_again(made, data, teacher, records, harm, monkeypatch):
    file = made / "shard-0003.npy"
    content = file.read_bytes()
    if harm == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "cut":
        file.write_bytes(content[:-10])
    elif harm == "gone":
        file.unlink()
    elif harm == "unsummed":
        file.with_suffix(".sha256").unlink()
    else:
        store.write_shard(made, 3, np.zeros((5, 2, 3), np.float16))
    with pytest.raises(InputError, match=r"1 of 5 shards are missing or damaged \(shard-0003.npy first\)"):
        opened(made, records, teacher)
    positions = embedded_positions(monkeypatch)
    make_store(teacher, str(data), made, workers=1)
    assert positions == list(range(15, 20))
    assert file.read_bytes() == content
    opened(made, records, teacher)


def test_a_store_of_another_teacher_is_refused(made, records, data, tmp_path):
    other = tiny.make_teacher(tmp_path, seed=8)
    with pytest.raises(InputError, match=r"store: a store of another teacher \(sha256 \w+, not sha256 \w+\)"):
        opened(made, records, other)
    with pytest.raises(InputError, match=r"holds a store of another teacher .* - choose another folder"):
        make_store(other, str(data), made, workers=1)


def test_the_same_teacher_elsewhere_is_the_same(made, records, teacher, tmp_path):
    prefix = teacher.partition(",")[0]
    for name in ("-symbol.json", "-0003.params"):
        shutil.copy(prefix + name, tmp_path / f"moved{name}")
    opened(made, records, f"{tmp_path}/moved,3")


def test_a_store_of_other_images_is_refused(made, teacher, tmp_path):
    fewer = FaceRecords(tiny.make_data(tmp_path / "fewer", each=5))
    with pytest.raises(InputError, match=r"of another data set \(24 images, not 20\)"):
        opened(made, fewer, teacher)
    others = FaceRecords(tiny.make_data(tmp_path / "others", first=50))
    with pytest.raises(InputError, match=r"of another data set \(the index is sha256 \w+, not sha256 \w+\)"):
        opened(made, others, teacher)


def test_images_in_another_order_are_other_images_also_without_an_index(data, tmp_path):
    found = []
    for name in ("one", "two"):
        shutil.copytree(data, tmp_path / name)
        (tmp_path / name / "train.idx").unlink()
    jpegs = [(identity, tiny.jpeg(identity, number)) for identity in (0, 1) for number in (0, 1)]
    for name, order in (("one", (0, 1, 2, 3)), ("two", (1, 0, 2, 3))):
        with open(tmp_path / name / "train.rec", "wb") as file:
            for key, number in enumerate(order):
                file.write(part_bytes(pack(float(jpegs[number][0]), jpegs[number][1], key)))
        (tmp_path / name / "property").write_text("2,112,112")
        found.append(FaceRecords(tmp_path / name).index_digest())
    assert found[0] != found[1]


@pytest.mark.parametrize("text", ["{}", "[]", "no json", '{"format": 9}', '{"format": 1, "images": 3}', NO_NUMBER])
def test_a_store_json_of_another_shape_is_said(made, records, teacher, text):
    (made / "store.json").write_text(text)
    with pytest.raises(
        InputError, match=r"store.json: not what `vargface teacher-store` wrote \(.*make the store anew"
    ):
        opened(made, records, teacher)


def test_no_store_is_said(records, teacher, tmp_path):
    with pytest.raises(InputError, match=r"no teacher store \(store.json\) - make one: vargface teacher-store"):
        opened(tmp_path, records, teacher)


def test_a_folder_of_something_else_is_left_alone(data, teacher):
    before = sorted(os.listdir(data))
    with pytest.raises(InputError, match=r"holds \S+ and no teacher store - choose another folder"):
        make_store(teacher, str(data), data, workers=1)
    assert sorted(set(os.listdir(data)) - {".lock"}) == sorted(set(before) - {".lock"})


def test_a_disk_without_space_is_said_before_anything_is_embedded(data, teacher, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    positions = embedded_positions(monkeypatch)
    caplog.set_level("INFO")
    with pytest.raises(InputError, match=r"1.54e-06 GB are to be written, 0.001 GB are free - free space"):
        make_store(teacher, str(data), tmp_path / "store", workers=1)
    assert positions == []
    assert not (tmp_path / "store" / "store.json").exists()
    assert "24 images x 2 views x 16 dimensions x 2 bytes = 1.54e-06 GB" in caplog.text


def test_a_disk_that_fills_up_is_said_and_nothing_is_half_written(data, teacher, tmp_path, records):
    with tiny.largest_file(300), pytest.raises(InputError, match=r"shard-0000.npy: cannot write"):
        make_store(teacher, str(data), tmp_path / "store", workers=1)
    assert sorted(os.listdir(tmp_path / "store")) == [".lock", "store.json"]
    make_store(teacher, str(data), tmp_path / "store", workers=1)
    opened(tmp_path / "store", records, teacher)


def test_images_that_training_passes_over_have_no_embedding(teacher, tmp_path, caplog):
    bad = (1, 7)
    with RecordWriter(tmp_path / "data", 1) as faces:
        for number in range(12):
            faces.add(0, b"no image" if number in bad else tiny.jpeg(0, number))
    records = FaceRecords(tmp_path / "data")
    with pytest.raises(InputError, match=r"1 of 12 images are unusable, more than max_bad = 0.001 allows"):
        make_store(teacher, str(tmp_path / "data"), tmp_path / "none", workers=1)
    folder = make_store(teacher, str(tmp_path / "data"), tmp_path / "store", workers=1, max_bad=0.2)
    assert "train.rec: record 2 of identity 0 is not an image that can be decoded" in caplog.text
    found = store.read_unusable(folder)
    assert sorted(found) == list(bad) and "record 8 of identity 0" in found[7]
    # a shard made again counts the others' all the same
    store.shard_file(folder, 0).unlink()
    with pytest.raises(InputError, match="2 of 12 images are unusable"):
        make_store(teacher, str(tmp_path / "data"), folder, workers=1, max_bad=0.1)
    make_store(teacher, str(tmp_path / "data"), folder, workers=1, max_bad=0.2)
    assert sorted(store.read_unusable(folder)) == list(bad)
    taught = opened(folder, records, teacher)
    with pytest.raises(InputError, match=r"has no embedding of image 7 \(from 0\)"):
        look_up(taught, [0, 7], [False, False])
    # in training another image stands in for it: its label goes with the image that is seen
    loop = Teacher(TeacherModels(teacher).network(4, mx.cpu()), len(records))
    seen = set()
    faces = FaceIterator(records, 4, max_bad=0.2)
    for _ in range(3):
        batch = faces.next()
        seen.update(batch.index.tolist())
        np.testing.assert_allclose(taught.embeddings(batch), loop.embeddings(batch), atol=1e-3)
        for row, position in enumerate(batch.index):
            image = face_at(records, int(position))[1][:, :, ::-1].transpose(2, 0, 1)
            image = image[:, :, ::-1] if batch.mirrored[row] else image
            np.testing.assert_array_equal(batch.data[0].asnumpy()[row], image)
    assert not seen & set(bad) and len(faces.faults) == 2


def test_the_challenges_data_set_takes_what_is_said_of_it():
    monkey = pytest.MonkeyPatch()
    monkey.setattr(store, "LEAST_IMAGES", 1024)
    contents = Contents("t", "i", 5_179_510, 512)
    assert contents.num_bytes == 10_607_636_480
    assert len(contents.shards) <= store.MOST_SHARDS
    assert sum(map(len, contents.shards)) == contents.images
    monkey.undo()


def test_the_command_makes_a_store(data, teacher, tmp_path, records, capsys):
    assert main(["teacher-store", "--model", teacher, "--workers", "1", str(data), str(tmp_path / "store")]) == 0
    opened(tmp_path / "store", records, teacher)
    held = json.loads((tmp_path / "store" / "store.json").read_text())
    assert (held["images"], held["embedding_size"]) == (COUNT, tiny.DIMENSIONS)
    assert main(["teacher-store", "--model", "none,1", str(data), str(tmp_path / "none")]) == 2
    assert "none-symbol.json: no such file" in capsys.readouterr().err
    assert main(["teacher-store", "--model", teacher, "--workers", "0", str(data), str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
