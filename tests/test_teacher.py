"""The teacher as a label: embeddings of exactly the views in the batch, remembered, and never trained."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from vargface.checkpoint import load_checkpoint
from vargface.data.iterator import FaceIterator
from vargface.data.records import FaceRecords
from vargface.inference import FrozenNetwork
from vargface.runtime import mx
from vargface.training import teacher as teacher_module
from vargface.training.teacher import LABEL, TaughtIterator, Teacher

BATCH = 4


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return FaceRecords(tiny.make_data(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return load_checkpoint(tiny.make_teacher(tmp_path_factory.mktemp("teacher")))


class Counting:
    """A teacher that counts the images it is asked about."""

    def __init__(self, network):
        self._network, self.asked = network, 0
        self.embedding_size = network.embedding_size

    def __call__(self, images):
        self.asked += len(images)
        return self._network(images)


@pytest.fixture
def teacher(checkpoint):
    return Counting(FrozenNetwork(checkpoint, 8))


@pytest.fixture
def taught(records, teacher):
    """Makes taught iterators and closes them."""
    made = []

    def make(**settings):
        made.append(TaughtIterator(FaceIterator(records, BATCH, **settings), Teacher(teacher, len(records))))
        return made[-1]

    yield make
    for iterator in made:
        iterator.close()


@pytest.fixture(scope="module")
def embed(checkpoint):
    """(3, 112, 112) -> the teacher's embedding, one image at a time, by MXNet's own loading and its own normalising."""
    module = mx.mod.Module(checkpoint.symbol, label_names=None)
    module.bind([("data", (1, 3, 112, 112))], for_training=False)
    module.set_params(checkpoint.args, checkpoint.auxs)

    def one(image):
        module.forward(mx.io.DataBatch([mx.nd.array(image[None])]), is_train=False)
        return mx.nd.L2Normalization(module.get_outputs()[0]).asnumpy()[0]

    return one


def epoch(iterator) -> list:
    """[(index, mirrored, image, identity, teacher's embedding)] of an epoch, in its order."""
    rows = []
    for batch in iterator:
        columns = [array.asnumpy() for array in (*batch.data, *batch.label)]
        rows += zip(batch.index.tolist(), batch.mirrored.tolist(), *columns)
    return rows


def test_it_is_described_as_a_second_label(taught):
    iterator = taught()
    assert [tuple(entry) for entry in iterator.provide_data] == [("data", (BATCH, 3, 112, 112))]
    due = [("softmax_label", (BATCH,)), (LABEL, (BATCH, tiny.DIMENSIONS))]
    assert [tuple(entry) for entry in iterator.provide_label] == due
    batch = iterator.next()
    assert batch.provide_label == iterator.provide_label
    assert [array.shape for array in batch.label] == [shape for _, shape in due]
    assert batch.label[1].dtype == np.float32


def test_labels_are_the_teachers_embeddings_of_the_very_views(taught, embed):
    rows = epoch(taught(seed=2))
    assert len(rows) == 24
    assert 4 < sum(mirrored for _, mirrored, *_ in rows) < 20
    for _, _, image, _, found in rows:
        np.testing.assert_allclose(found, embed(image), atol=1e-5)
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


def test_images_and_identities_are_the_inner_iterators(taught, records):
    plain = FaceIterator(records, BATCH, seed=2)
    for batch, (image, identity) in zip(plain, ((b.data[0], b.label[0]) for b in taught(seed=2))):
        np.testing.assert_array_equal(batch.data[0].asnumpy(), image.asnumpy())
        np.testing.assert_array_equal(batch.label[0].asnumpy(), identity.asnumpy())
    plain.close()


def test_what_was_seen_is_not_asked_again_and_stays_the_same(taught, teacher):
    iterator = taught(seed=2)
    known = {}
    for _ in range(6):
        before, views = teacher.asked, set(known)
        for index, mirrored, _, _, found in epoch(iterator):
            due = known.setdefault((index, mirrored), found)
            np.testing.assert_array_equal(found, due)
        assert teacher.asked - before == len(set(known) - views)
        iterator.reset()
    assert teacher.asked == len(known) <= 48


def test_both_views_of_an_image_are_kept_apart(taught, embed):
    iterator = taught(seed=2)
    known = {}
    for _ in range(6):
        known.update({(index, mirrored): (image, found) for index, mirrored, image, _, found in epoch(iterator)})
        iterator.reset()
    both = [index for index, mirrored in known if mirrored and (index, False) in known]
    assert len(both) > 10
    for index in both:
        (plain, found), (turned, found_turned) = known[index, False], known[index, True]
        np.testing.assert_array_equal(plain[:, :, ::-1], turned)
        assert np.abs(found - found_turned).max() > 1e-3
        np.testing.assert_allclose(found_turned, embed(turned), atol=1e-5)


def test_a_set_too_large_to_remember_is_asked_about_each_time(taught, teacher, monkeypatch):
    remembered = epoch(taught(seed=2))
    monkeypatch.setattr(teacher_module, "MEMORY", 24 * 2 * tiny.DIMENSIONS * 4 - 1)
    iterator = taught(seed=2)
    before = teacher.asked
    rows = epoch(iterator)
    iterator.reset()
    epoch(iterator)
    assert teacher.asked - before == 48
    for one, other in zip(rows, remembered):
        np.testing.assert_allclose(one[-1], other[-1], atol=1e-6)


def test_faces_that_never_come_again_are_asked_about_each_time(records, teacher, embed):
    faces = FaceIterator(records, BATCH, seed=2, augment=1.0, mix=0.5)
    taught = TaughtIterator(faces, Teacher(teacher, len(records), two_views=False))
    for _ in range(2):
        for batch in taught:
            for image, found in zip(batch.data[0].asnumpy(), batch.label[1].asnumpy()):
                np.testing.assert_allclose(found, embed(image), atol=1e-5)
        taught.reset()
    taught.close()
    assert teacher.asked == 48


def test_a_place_gone_to_gives_the_labels_of_that_place(taught):
    straight = taught(seed=2)
    epoch(straight)
    straight.reset()
    rows = epoch(straight)
    there = taught(seed=2)
    there.seek(1, 2)
    assert (there.epoch, there.batches_per_epoch) == (1, 6)
    found = epoch(there)
    assert [row[:2] for row in found] == [row[:2] for row in rows[8:]]
    for one, other in zip(found, rows[8:]):
        np.testing.assert_allclose(one[-1], other[-1], atol=1e-6)


def test_a_teacher_without_a_direction_gives_zeros_not_nan(records):
    class Silent:
        embedding_size = 3

        def __call__(self, images):
            return np.zeros((len(images), 3), np.float32)

    iterator = TaughtIterator(FaceIterator(records, BATCH), Teacher(Silent(), len(records)))
    np.testing.assert_array_equal(iterator.next().label[1].asnumpy(), np.zeros((BATCH, 3)))
    iterator.close()


def test_the_teacher_has_nothing_that_could_be_trained(checkpoint):
    network = FrozenNetwork(checkpoint, 8)
    assert not network._module.for_training
    assert not network._module._exec_group.grad_arrays
    with pytest.raises(AssertionError):
        network._module.backward()
