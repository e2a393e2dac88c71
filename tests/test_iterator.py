"""The training iterator: the right images, an order that is a function of the place, and no hanging."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from vargface.data import pool
from vargface.data.augment import Draws, augmented, mixed
from vargface.data.iterator import FaceIterator
from vargface.data.recordio import pack, part_bytes
from vargface.data.records import FaceRecords
from vargface.data.samples import NOBODY
from vargface.data.sampling import epoch_order, mirror_bits
from vargface.data.shuffle import shuffle
from vargface.data.writer import RecordWriter
from vargface.errors import InputError
from vargface.runtime import mx

IDENTITIES, EACH = 5, 5
SIZE = (16, 12)


def encoded(number: int, size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def write(folder, images):
    with RecordWriter(folder, -(-len(images) // EACH), SIZE) as writer:
        for number, image in enumerate(images):
            writer.add(number // EACH, image)
    return FaceRecords(folder)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """25 images of 5 identities, 16x12."""
    return write(tmp_path_factory.mktemp("data"), [encoded(number) for number in range(IDENTITIES * EACH)])


@pytest.fixture
def iterate(records):
    """Makes iterators and closes them."""
    made = []

    def make(batch_size, **settings):
        made.append(FaceIterator(settings.pop("records", records), batch_size, **settings))
        return made[-1]

    yield make
    for iterator in made:
        iterator.close()


def snapshot(batch):
    return (
        batch.data[0].asnumpy().tobytes(),
        batch.label[0].asnumpy().tolist(),
        batch.index.tolist(),
        batch.mirrored.tolist(),
    )


# --- sampling ---


def test_order_is_a_permutation_of_its_own_for_each_seed_and_epoch():
    orders = [epoch_order(1000, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (2**63, 0)]]
    for order in orders:
        assert order.dtype == np.int64 and sorted(order) == list(range(1000))
    for one in range(len(orders)):
        for other in range(one):
            assert np.mean(orders[one] == orders[other]) < 0.01


def test_sampling_never_changes():
    """A run is resumed under another numpy or another release of ours: these figures must stay."""
    assert epoch_order(10, 3, 2).tolist() == [2, 8, 9, 3, 6, 4, 1, 7, 5, 0]
    assert np.flatnonzero(mirror_bits(np.arange(20), 3, 2)).tolist() == [0, 3, 4, 6, 13, 15, 18]


def test_mirror_bits_are_fair_and_independent():
    positions = np.arange(20_000)
    bits = np.stack([mirror_bits(positions, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)])
    signs = np.where(bits, 1.0, -1.0)
    # 4.5 standard deviations
    limit = 4.5 / np.sqrt(len(positions))
    assert np.all(np.abs(signs.mean(axis=1)) < limit)
    between = signs @ signs.T / len(positions)
    assert np.all(np.abs(between - np.eye(len(signs))) < limit)
    assert np.all(np.abs((signs[:, 1:] * signs[:, :-1]).mean(axis=1)) < limit)


def test_mirror_bit_is_of_the_image_not_of_its_place_in_the_batch():
    positions = np.random.default_rng(0).permutation(100)
    assert np.array_equal(mirror_bits(positions, 1, 1), mirror_bits(np.arange(100), 1, 1)[positions])


# --- batches ---


@pytest.mark.parametrize("mirror", [True, False])
def test_batches_hold_the_images_they_say(records, iterate, mirror):
    iterator = iterate(4, seed=7, mirror=mirror)
    mirrored = []
    for batch in iterator:
        data, label = batch.data[0], batch.label[0]
        assert data.dtype == label.dtype == np.float32
        assert [tuple(data.shape)] == [desc.shape for desc in iterator.provide_data] == [(4, 3, *SIZE)]
        assert [tuple(label.shape)] == [desc.shape for desc in iterator.provide_label] == [(4,)]
        for row, position in enumerate(batch.index):
            identity, image = records.read(position)
            expected = mx.image.imdecode(image).asnumpy().transpose(2, 0, 1)
            expected = expected[:, :, ::-1] if batch.mirrored[row] else expected
            assert label.asnumpy()[row] == identity
            assert np.array_equal(data.asnumpy()[row], expected)
        mirrored += batch.mirrored.tolist()
    assert any(mirrored) == mirror and not all(mirrored)


def test_names_for_module(iterate):
    iterator = iterate(4)
    assert [desc.name for desc in iterator.provide_data + iterator.provide_label] == ["data", "softmax_label"]
    batch = next(iterator)
    assert batch.provide_data == iterator.provide_data and batch.pad == 0


def test_batches_given_out_stay_as_they_are(iterate):
    iterator = iterate(4)
    batches = list(iterator)
    before = [snapshot(batch) for batch in batches]
    iterator.reset()
    list(iterator)
    assert [snapshot(batch) for batch in batches] == before


def test_epoch_gives_every_image_at_most_once(iterate):
    iterator = iterate(4, seed=1)
    epochs = []
    for epoch in range(3):
        assert iterator.epoch == epoch
        batches = list(iterator)
        positions = np.concatenate([batch.index for batch in batches])
        mirrored = np.concatenate([batch.mirrored for batch in batches])
        assert np.array_equal(positions, epoch_order(25, 1, epoch)[:24])
        assert np.array_equal(mirrored, mirror_bits(positions, 1, epoch))
        assert len(positions) == len(set(positions)) == 24 == 4 * iterator.batches_per_epoch
        with pytest.raises(StopIteration):
            next(iterator)
        epochs.append(positions.tolist())
        iterator.reset()
    assert epochs[0] != epochs[1] != epochs[2]


def test_whole_batches_that_leave_nothing_over(iterate):
    positions = np.concatenate([batch.index for batch in iterate(5)])
    assert sorted(positions) == list(range(25))


def test_seek_gives_what_walking_gives(iterate):
    walking = iterate(4, seed=3)
    places = {}
    for epoch in range(3):
        for number, batch in enumerate(walking):
            places[epoch, number] = snapshot(batch)
        walking.reset()
    seeking = iterate(4, seed=3)
    for place in [(2, 5), (0, 0), (1, 3), (1, 2)]:
        seeking.seek(*place)
        assert snapshot(next(seeking)) == places[place]
    seeking.seek(1, 5)
    assert [snapshot(batch) for batch in seeking] == [places[1, 5]]
    seeking.reset()
    assert [snapshot(batch) for batch in seeking] == [places[2, number] for number in range(6)]
    seeking.seek(0, 6)
    assert list(seeking) == []


def test_reset_in_the_middle_goes_to_the_next_epoch(iterate):
    iterator = iterate(4)
    next(iterator)
    iterator.reset()
    assert iterator.epoch == 1
    expected = iterate(4)
    expected.seek(1)
    assert [snapshot(batch) for batch in iterator] == [snapshot(batch) for batch in expected]


@pytest.mark.parametrize("epoch, batch", [(-1, 0), (0, -1), (0, 7)])
def test_seek_outside(iterate, epoch, batch):
    with pytest.raises(ValueError, match="outside"):
        iterate(4).seek(epoch, batch)


@pytest.mark.parametrize("parts, batch_size", [(2, 3), (3, 4), (5, 5), (7, 1)])
def test_parts_are_disjoint_and_of_equal_length_whatever_is_left_over(iterate, parts, batch_size):
    """And nobody waits: each ends by itself after as many batches as the others, in every epoch."""
    iterators = [iterate(batch_size, seed=5, part=part, num_parts=parts) for part in range(parts)]
    for epoch in range(2):
        seen = [[batch.index.tolist() for batch in iterator] for iterator in iterators]
        assert {len(batches) for batches in seen} == {25 // (parts * batch_size)}
        positions = [position for batches in seen for batch in batches for position in batch]
        assert len(positions) == len(set(positions)) == 25 // (parts * batch_size) * parts * batch_size
        assert set(positions) <= set(epoch_order(25, 5, epoch)[: len(positions)])
        for iterator in iterators:
            iterator.reset()


def test_workers_share_out_the_batches_of_one(iterate):
    """Two workers at batch 3 see together what one sees at batch 6, batch by batch."""
    whole = iterate(6, seed=5)
    parts = [iterate(3, seed=5, part=part, num_parts=2) for part in range(2)]
    assert whole.batches_per_epoch == parts[0].batches_per_epoch == parts[1].batches_per_epoch == 4
    for batch, first, second in zip(whole, *parts):
        assert batch.index.tolist() == first.index.tolist() + second.index.tolist()
        assert batch.mirrored.tolist() == first.mirrored.tolist() + second.mirrored.tolist()


# --- augmented ---


def picture(records, position):
    """(H, W, 3) uint8, blue green red."""
    return cv2.imdecode(np.frombuffer(records.read(position)[1], np.uint8), cv2.IMREAD_COLOR)


def test_augmented_batches_are_views_of_the_images_they_say(records, iterate):
    for batch in iterate(5, seed=7, augment=0.8):
        for row, position in enumerate(batch.index):
            image = picture(records, position)[:, :: -1 if batch.mirrored[row] else 1]
            draws = Draws(7, 0, int(position))
            draws()
            expected = augmented(image, 0.8, draws)[:, :, ::-1].transpose(2, 0, 1)
            np.testing.assert_array_equal(batch.data[0].asnumpy()[row], expected)
            assert batch.label[0].asnumpy()[row] == records.read(position)[0]


def test_every_face_is_mixed_with_another_of_the_data_set(records, iterate):
    others = set()
    for batch in iterate(5, seed=7, mix=1.0):
        assert (batch.label[0].asnumpy() == NOBODY).all()
        for row, position in enumerate(batch.index):
            draws = Draws(7, 0, int(position))
            draws()
            other = int(draws() * 25)
            first = picture(records, position)[:, :: -1 if batch.mirrored[row] else 1]
            second = picture(records, other)[:, :: -1 if draws() < 0.5 else 1]
            expected = mixed(first, second, draws)[:, :, ::-1].transpose(2, 0, 1)
            np.testing.assert_array_equal(batch.data[0].asnumpy()[row], expected)
            others.add(other)
    assert len(others) > 10


def test_the_share_that_is_mixed(iterate):
    iterator = iterate(25, mix=0.3)
    share = []
    for _ in range(40):
        share.append((next(iterator).label[0].asnumpy() == NOBODY).mean())
        iterator.reset()
    assert 0.26 < np.mean(share) < 0.34


def test_views_differ_by_epoch_and_come_again_at_their_place(iterate):
    walking = iterate(25, seed=3, augment=1.0, mix=0.5, mirror=False)
    epochs = []
    for _ in range(2):
        batch = next(walking)
        epochs.append(batch.data[0].asnumpy()[np.argsort(batch.index)])
        walking.reset()
    assert all((one != other).any() for one, other in zip(*epochs))
    again = iterate(25, seed=3, augment=1.0, mix=0.5, mirror=False)
    again.seek(1)
    batch = next(again)
    np.testing.assert_array_equal(batch.data[0].asnumpy()[np.argsort(batch.index)], epochs[1])


def test_workers_share_out_augmented_batches_of_one(iterate):
    settings = {"seed": 5, "augment": 1.0, "mix": 0.5}
    whole = next(iterate(6, **settings)).data[0].asnumpy()
    parts = [next(iterate(3, part=part, num_parts=2, **settings)).data[0].asnumpy() for part in range(2)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


# --- bad input ---


def test_fewer_images_than_a_batch(iterate):
    with pytest.raises(InputError, match="25 images are fewer than a batch of 26 x 1"):
        iterate(26)
    with pytest.raises(InputError, match="13 x 2 workers"):
        iterate(13, num_parts=2)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"part": 2, "num_parts": 2}, {"part": -1, "num_parts": 2}])
def test_wrong_settings(records, settings):
    with pytest.raises(ValueError, match="batch_size"):
        FaceIterator(records, **{"batch_size": 4, **settings})


@pytest.mark.parametrize(
    "image, message",
    [
        (b"\xff\xd8 this is not a JPEG", r"cannot be decoded|that can be decoded \(21 bytes\)"),
        (encoded(0, (12, 16)), "is 12x16 and property says 16x12"),
    ],
)
def test_unusable_image_is_named_each_time(tmp_path, iterate, image, message):
    images = [encoded(number) for number in range(10)]
    images[7] = image
    iterator = iterate(2, records=write(tmp_path, images))
    good = 0
    with pytest.raises(InputError, match=f"train.rec: record 8 of identity 1 .*({message})"):
        for _ in iterator:
            good += 1
    with pytest.raises(InputError, match="record 8"):
        next(iterator)
    assert good == epoch_order(10, 0, 0).tolist().index(7) // 2


@pytest.mark.parametrize("label", [-1.0, 20.0])
def test_label_that_is_no_identity_is_named_in_training(tmp_path, iterate, label):
    """Opening looks at a few labels only."""
    write(tmp_path, [encoded(number) for number in range(100)])
    offset = int((tmp_path / "train.idx").read_text().splitlines()[1].split("\t")[1])
    with open(tmp_path / "train.rec", "r+b") as file:
        file.seek(offset + 12)  # past the part's two words and the number of labels
        file.write(struct.pack("<f", label))
    message = rf"{tmp_path}/train.rec: record 2 has label {label:g}, not one of property's 20 identities"
    with pytest.raises(InputError, match=message):
        list(iterate(100, records=FaceRecords(tmp_path)))


# --- unusable images ---


def damage(kind: str, folder, record: int) -> None:
    """Make `record` unusable on the disk."""
    offset = int((folder / "train.idx").read_text().splitlines()[record - 1].split("\t")[1])
    at, content = {
        "record": (0, bytes(4)),  # no record starts there any longer
        "label": (12, struct.pack("<f", -7.0)),
        "head": (32, bytes(60)),
    }[kind]
    with open(folder / "train.rec", "r+b") as file:
        file.seek(offset + at)
        file.write(content)


def expected_epoch(bad: set[int], count: int, seed: int) -> list[int]:
    """An epoch's positions: in place of an unusable one, the next in its order that is usable."""
    order = epoch_order(count, seed, 0).tolist()
    return [next(p for p in (order[i:] + order[:i]) if p not in bad) for i in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_images_are_skipped_counted_and_logged(tmp_path, iterate, caplog, workers):
    images = [encoded(number) for number in range(30)]
    images[4], images[11], images[12] = b"not an image", encoded(0, (12, 16)), encoded(3)[:-20]
    write(tmp_path, images)
    for record, kind in [(22, "record"), (25, "label"), (28, "head")]:
        damage(kind, tmp_path, record)
    bad = {4, 11, 12, 21, 24, 27}
    records = FaceRecords(tmp_path)
    iterator = iterate(5, records=records, seed=1, max_bad=0.2, workers=workers)
    for _ in range(2):  # the same again: a function of the place
        iterator.seek(0)
        batches = list(iterator)
        assert np.concatenate([batch.index for batch in batches]).tolist() == expected_epoch(bad, 30, 1)
    for batch in batches:
        for row, position in enumerate(batch.index):
            image = picture(records, position)[:, :: -1 if batch.mirrored[row] else 1]
            np.testing.assert_array_equal(batch.data[0].asnumpy()[row], image[:, :, ::-1].transpose(2, 0, 1))
            assert batch.mirrored[row] == mirror_bits(np.array([position]), 1, 0)[0]
            assert batch.label[0].asnumpy()[row] == position // EACH
    assert set(iterator.faults) == bad
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 6
    for position in bad:
        assert sum(f"train.rec: record {position + 1} " in line for line in warned) == 1
    assert all("; skipped, record " in line and line.endswith("stands in") for line in warned)


def test_more_unusable_images_than_allowed_are_listed(tmp_path, iterate):
    images = [encoded(number) for number in range(30)]
    images[4] = images[7] = images[19] = b"not an image"
    iterator = iterate(5, records=write(tmp_path, images), max_bad=0.07)
    message = r"3 of 30 images are unusable, more than max_bad allows: records 5, 8, 20 - run 'vargface rec check"
    with pytest.raises(InputError, match=message):
        list(iterator)


def test_a_file_of_nothing_usable_ends_and_says_so(tmp_path, iterate):
    records = write(tmp_path, [b"not an image"] * 100)
    with pytest.raises(InputError, match="is not an image that can be decoded .*; nor can the 63 images be used that"):
        next(iterate(5, records=records, max_bad=1.0))


def test_an_unusable_image_is_not_mixed_in(tmp_path, iterate):
    images = [encoded(number) for number in range(25)]
    images[9] = b"not an image"
    iterator = iterate(5, records=write(tmp_path, images), mix=1.0, max_bad=0.1)
    for _ in range(3):
        assert len(list(iterator)) == 5
        iterator.reset()
    assert set(iterator.faults) == {9}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_written_to_while_it_is_read(tmp_path, iterate, workers):
    records = write(tmp_path, [encoded(number) for number in range(60)])
    iterator = iterate(2, records=records, workers=workers, max_bad=1.0)
    next(iterator)
    with open(tmp_path / "train.rec", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(InputError, match="train.rec: was written to while it was being read - restore it"):
        list(iterator)


def test_a_file_that_is_replaced_is_read_to_the_end(tmp_path, iterate):
    """By every process, those that are started later, too: they inherit the file, not its name."""
    records = write(tmp_path / "data", [encoded(number) for number in range(30)])
    expected = [snapshot(batch) for batch in iterate(5, records=records)]
    iterator = iterate(5, records=records, workers=2)
    found = [snapshot(next(iterator))]
    write(tmp_path / "other", [encoded(100 + number) for number in range(30)])
    (tmp_path / "other" / "train.rec").replace(tmp_path / "data" / "train.rec")
    for pid in iterator.pids:
        os.kill(pid, signal.SIGKILL)
    assert found + [snapshot(batch) for batch in iterator] == expected


# --- identities of few images ---


@pytest.mark.parametrize("shuffled", [False, True])
def test_identities_of_few_images_are_left_out(tmp_path, iterate, shuffled):
    with RecordWriter(tmp_path / "data", 4, SIZE) as writer:
        for number, identity in enumerate([0, 0, 0, 1, 2, 2, 2, 2, 3, 3]):
            writer.add(identity, encoded(number))
    folder = tmp_path / "data"
    if shuffled:
        shuffle(folder, tmp_path / "shuffled")
        folder = tmp_path / "shuffled"
    records = FaceRecords(folder)
    labels = [records.read(position)[0] for position in range(10)]
    settings = {"records": records, "min_images": 3, "mix": 0.3, "seed": 2}
    iterator = iterate(7, **settings)
    for _ in range(5):
        (batch,) = iterator
        assert sorted(batch.index) == [position for position in range(10) if labels[position] in (0, 2)]
        for label, position in zip(batch.label[0].asnumpy(), batch.index):
            assert label in (NOBODY, labels[position])
        iterator.reset()
    assert snapshot(next(iterate(7, workers=1, **settings))) == snapshot(next(iterate(7, **settings)))
    with pytest.raises(InputError, match="4 images of identities with 4 or more are fewer than a batch of 5 x 1"):
        iterate(5, records=records, min_images=4)


@pytest.mark.parametrize("ranges", [(1, 9), (2, 4), (1, 1), None])
def test_identity_records_that_cannot_be_trusted_do_not_choose(tmp_path, ranges, caplog):
    """Overlapping, with a gap, or damaged: no image comes twice, and none is lost."""
    write(tmp_path, [encoded(number) for number in range(12)])  # 5, 5 and 2
    lines = dict(map(int, line.split()) for line in (tmp_path / "train.idx").read_text().splitlines())
    with open(tmp_path / "train.rec", "r+b") as file:
        file.seek(lines[13])
        file.write(part_bytes(pack(ranges, record=13)) if ranges else bytes(8))
    assert FaceRecords(tmp_path).of_identities_with(3).tolist() == list(range(10))
    assert "until then the images' own labels count" in caplog.text


def test_a_damaged_image_is_skipped_whatever_min_images_is(tmp_path, iterate):
    write(tmp_path / "data", [encoded(number) for number in range(12)])
    shuffle(tmp_path / "data", tmp_path / "shuffled")
    damage("record", tmp_path / "shuffled", 3)
    records = FaceRecords(tmp_path / "shuffled")
    assert 2 in records.of_identities_with(3)
    iterator = iterate(5, records=records, min_images=3, max_bad=0.3)
    for _ in range(4):
        (batch, *_) = list(iterator)
        assert 2 not in batch.index
        iterator.reset()
    assert set(iterator.faults) == {2}


@pytest.mark.parametrize("at", [None, 0, -1])
def test_a_touched_file_is_read_on_and_a_rewritten_one_is_not(tmp_path, iterate, caplog, at):
    records = write(tmp_path, [encoded(number) for number in range(60)])
    iterator = iterate(2, records=records)
    next(iterator)
    path = tmp_path / "train.rec"
    if at is not None:
        content = bytearray(path.read_bytes())
        content[at] ^= 255
        with open(path, "r+b") as file:
            file.write(content)
    os.utime(path, (1, 1))
    if at is None:
        assert len(list(iterator)) == 29
        assert caplog.text.count("has a new time of modification") == 1
    else:
        with pytest.raises(InputError, match="was written to while it was being read"):
            next(iterator)


# --- the processes ---


def alive(pids) -> list[int]:
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_give_what_the_trainer_decodes_itself(iterate, workers):
    settings = {"seed": 5, "augment": 0.7, "mix": 0.3, "jpeg": 0.5, "cutout": 0.5}
    here, there = iterate(4, **settings), iterate(4, workers=workers, **settings)
    for _ in range(3):
        assert [snapshot(batch) for batch in here] == [snapshot(batch) for batch in there]
        here.reset()
        there.reset()
    for place in [(2, 5), (0, 0), (1, 3)]:
        here.seek(*place)
        there.seek(*place)
        assert snapshot(next(here)) == snapshot(next(there))


def test_batches_of_processes_stay_as_they_are(iterate):
    iterator = iterate(4, workers=2)
    batches = [*iterator]
    iterator.reset()
    batches += [*iterator]
    before = [snapshot(batch) for batch in batches]
    del batches[3:]
    iterator.reset()
    list(iterator)
    assert [snapshot(batch) for batch in batches] == before[:3]


def test_an_array_is_used_again_once_its_batch_is_gone(iterate):
    iterator = iterate(4)
    arrays = {id(next(iterator).data[0]) for _ in range(6)}
    assert len(arrays) <= 2


def test_close_and_garbage_collection_end_the_processes(records, iterate):
    iterator = iterate(4, workers=2)
    first, pids = snapshot(next(iterator)), iterator.pids
    assert len(alive(pids)) == 2
    iterator.close()
    assert not alive(pids) and iterator.pids == []
    iterator.seek(0)
    assert snapshot(next(iterator)) == first
    dropped = FaceIterator(records, 4, workers=1)
    next(dropped)
    pids = dropped.pids
    del dropped
    assert not alive(pids)


@pytest.mark.parametrize("how_many", [1, 2])
def test_killed_processes_are_started_anew_and_nothing_is_lost_or_repeated(iterate, caplog, how_many):
    expected = [snapshot(batch) for batch in iterate(2, seed=3)]
    iterator = iterate(2, seed=3, workers=2)
    found = [snapshot(next(iterator)) for _ in range(3)]
    for pid in iterator.pids[:how_many]:
        os.kill(pid, signal.SIGKILL)
    iterator.seek(0)
    assert [snapshot(batch) for batch in iterator] == expected
    assert found == expected[:3]
    assert "was killed by SIGKILL" in caplog.text


def test_a_stuck_process_is_started_anew(iterate, monkeypatch, caplog):
    expected = [snapshot(batch) for batch in iterate(2)]
    iterator = iterate(2, workers=1)
    found = [snapshot(next(iterator))]
    monkeypatch.setattr(pool, "_STUCK", 4.0)
    os.kill(iterator.pids[0], signal.SIGSTOP)
    assert found + [snapshot(batch) for batch in iterator] == expected
    assert "no news for 4 s" in caplog.text


def test_processes_that_always_die_are_an_error(iterate, monkeypatch):
    monkeypatch.setattr(pool.sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="ended 3 times with nothing done in between, at last ended with"):
        next(iterate(4, workers=1))


# a decoder that a picture brings down, as a fault in a codec would; without the trainer's folder in its path it finds
# this by PYTHONPATH
CRASHES = """
import os, signal
from vargface.data import samples
def decode(encoded, decode=samples.decode):
    if encoded == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode(encoded)
samples.decode = decode
"""


def crashing(folder, monkeypatch, how):
    """Records of which one, the eighth, ends the process that decodes it."""
    images = [encoded(number) for number in range(20)]
    images[7] = b"crash"
    monkeypatch.setattr(pool, "_PROGRAM", CRASHES.replace("SIGSEGV", how) + pool._PROGRAM)
    return write(folder, images)


def test_an_image_at_which_processes_die_is_told_of_and_left_out(tmp_path, iterate, monkeypatch, caplog):
    """Also where the other half of its batch is done again every time."""
    records = crashing(tmp_path, monkeypatch, "SIGSEGV")
    iterator = iterate(20, records=records, workers=2, max_bad=0.1)
    assert next(iterator).index.tolist() == expected_epoch({7}, 20, 0)
    said = "train.rec: record 8: the process that decoded it was killed by SIGSEGV 3 times - build the data set without"
    assert said in iterator.faults[7] and f"{said} it; skipped, record " in caplog.text
    assert "was killed by SIGSEGV, at " in caplog.text and "train.rec: record 8; all are started anew" in caplog.text


def test_an_image_at_which_processes_stick_is_told_of(tmp_path, iterate, monkeypatch, caplog):
    """A disk that does not answer is no fault of the image: it is not left out."""
    records = crashing(tmp_path, monkeypatch, "SIGSTOP")
    monkeypatch.setattr(pool, "_STUCK", 3.0)
    message = r"ended 3 times with nothing done in between, at last stuck, at .*train.rec: record 8 - "
    with pytest.raises(InputError, match=message):
        next(iterate(20, records=records, workers=2, max_bad=0.1))
    assert "no news for 3 s, at " in caplog.text and "train.rec: record 8; the processes" in caplog.text


def test_a_bug_in_a_process_comes_with_its_traceback(iterate):
    iterator = iterate(4, workers=1)
    next(iterator)
    iterator._decoder._pool.cancel()
    iterator._decoder._pool.submit(0, -1)  # no epoch: numpy refuses it as a seed
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*samples.py.*ValueError"):
        iterator._decoder._pool.wait(0)


def test_a_forked_child_is_told_to_make_its_own(iterate):
    iterator = iterate(4, workers=1)
    next(iterator)
    child = os.fork()
    if not child:
        try:
            next(iterator)
        except RuntimeError as error:
            os._exit(7 if "make the iterator in the process" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7
    next(iterator)


# who runs the tests in the background of a shell has Ctrl-C ignored, and hands that on
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from vargface.data.iterator import FaceIterator
from vargface.data.records import FaceRecords
iterator = FaceIterator(FaceRecords(sys.argv[1]), 4, workers=2)
next(iterator)
print(*iterator.pids, flush=True)
while sys.argv[2] != "exit":
    for batch in iterator:
        pass
    iterator.reset()
"""


@pytest.mark.parametrize("how", ["exit", "interrupt", "kill"])
def test_no_process_outlives_the_trainer(records, how):
    """That ends by itself with batches waiting, by Ctrl-C, or is killed."""
    command = [sys.executable, "-c", PROGRAM, str(records.folder), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            pids = [int(word) for word in process.stdout.readline().split()]
            assert len(pids) == 2
            if how != "exit":
                process.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
            _, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    deadline = time.monotonic() + 20
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pids)
    if how == "interrupt":
        assert process.returncode == -signal.SIGINT and errors.rstrip().endswith("KeyboardInterrupt")
    else:
        assert (process.returncode, errors) == (0 if how == "exit" else -signal.SIGKILL, "")


FORKS = """
import os, sys, time
from vargface.data.iterator import FaceIterator
from vargface.data.records import FaceRecords
iterator = FaceIterator(FaceRecords(sys.argv[1]), 4, workers=2)
next(iterator)
child = os.fork()
if not child:
    if sys.argv[2] == "leaves":
        sys.exit()  # and what was to be done at the trainer's end is done
    del iterator
    time.sleep(60)
    os._exit(0)
if sys.argv[2] == "leaves":
    os.waitpid(child, 0)
    iterator.reset()
    list(iterator)
print(child, *iterator.pids, flush=True)
time.sleep(60)
"""


def test_no_process_outlives_a_trainer_that_has_forked(records):
    """The child has its end of the socket."""
    command = [sys.executable, "-c", FORKS, str(records.folder), "stays"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        child, *pids = [int(word) for word in process.stdout.readline().split()]
        try:
            assert len(alive(pids)) == 2
            process.kill()
            deadline = time.monotonic() + 20
            while alive(pids) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not alive(pids) and alive([child])
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_that_ends_leaves_the_processes_alone(records):
    command = [sys.executable, "-c", FORKS, str(records.folder), "leaves"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert len(process.stdout.readline().split()) == 3
        process.kill()
        assert process.stderr.read() == ""  # none was started anew


def test_memory_of_a_process_does_not_grow_with_the_data_set(tmp_path, iterate):
    """The index is in shared memory, once for all."""
    private = []
    for count in (50, 100_000):
        with RecordWriter(tmp_path / str(count), 2, SIZE) as writer:
            for number in range(count):
                writer.add(min(number, 1), encoded(number % 7) if number < 50 else b"tiny")
        iterator = iterate(10, records=FaceRecords(tmp_path / str(count)), workers=1)
        iterator._orders = lambda epoch, count=count: np.arange(count) % 50
        next(iterator)
        lines = Path(f"/proc/{iterator.pids[0]}/smaps_rollup").read_text().splitlines()
        private.append(sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")))
    assert private[1] - private[0] < 1000  # KiB; an index of its own would be 1,600


def test_a_size_that_no_memory_holds(tmp_path, iterate):
    records = write(tmp_path, [encoded(number) for number in range(20)])
    records.image_size = (60_000, 60_000)
    with pytest.raises(InputError, match="decoding: no .* bytes of memory for a batch - set a smaller batch_size"):
        next(iterate(20, records=records))


@pytest.mark.real
def test_real_mini_epoch(real_faces, iterate):
    iterator = iterate(64, records=FaceRecords(real_faces / "real-mini"))
    batch = next(iterator)
    data = batch.data[0].asnumpy()
    assert data.shape == (64, 3, 112, 112) and data.min() >= 0 and data.max() <= 255
    # skin: red over green over blue
    red, green, blue = data[:, :, 40:80, 40:70].mean(axis=(0, 2, 3))
    assert red > green > blue
    assert iterator.batches_per_epoch == 10_598 // 64


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_claims_an_absurd_size_is_skipped(tmp_path, iterate, workers):
    """OpenCV raises an error of its own for it."""
    images = [encoded(number) for number in range(40)]
    start = images[7].index(b"\xff\xc0")
    images[7] = images[7][: start + 5] + struct.pack(">HH", 65000, 65000) + images[7][start + 9 :]
    iterator = iterate(5, records=write(tmp_path, images), max_bad=0.1, workers=workers)
    list(iterator)
    assert list(iterator.faults) == [7]


def test_processes_import_nothing_from_the_folder_that_training_is_started_in(tmp_path, iterate, monkeypatch):
    (tmp_path / "cv2.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert len(list(iterate(5, workers=1))) == 5
