"""The challenge's feature file and labels: what is read, and what is refused."""

import struct

import numpy as np
import pytest

from vargface.errors import InputError
from vargface.eval.lfr.features import TestSet, header, normalised, open_features, open_test_set, read_labels


def written(path, rows):
    path.write_bytes(header(*rows.shape) + rows.astype("<f4").tobytes())
    return path


def test_layout_is_that_of_the_challenge(tmp_path):
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = written(tmp_path / "feat.bin", rows)
    assert path.read_bytes()[:16] == struct.pack("4i", 3, 2, 8, 5)
    assert path.stat().st_size == 16 + 24
    np.testing.assert_array_equal(open_features(path), rows)
    with pytest.raises(ValueError):
        open_features(path)[0] = 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin as a feature file does"),
        (header(2, 2)[:12], "does not begin as a feature file does"),
        (struct.pack("<4i", 2, 2, 8, 6) + bytes(16), "does not begin as a feature file does"),
        (struct.pack("<4i", 2, 2, 16, 5) + bytes(16), "does not begin as a feature file does"),
        (header(2, 2) + bytes(15), r"31 bytes, its header \(2 x 2\) says 32"),
        (header(2, 2) + bytes(20), r"36 bytes, its header \(2 x 2\) says 32"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "feat.bin").write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_features(tmp_path / "feat.bin")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.bin: cannot read \(No such file"):
        open_features(tmp_path / "none.bin")
    with pytest.raises(InputError, match=r"none.txt: cannot read \(No such file"):
        read_labels(tmp_path / "none.txt")


def test_labels_as_text_and_as_an_array(tmp_path):
    (tmp_path / "labels.txt").write_text("3\n-1\n\n 3 \n0")
    np.save(tmp_path / "labels.npy", np.array([3, -1, 3, 0], np.int32))
    for name in ("labels.txt", "labels.npy"):
        labels = read_labels(tmp_path / name)
        assert (labels.dtype, labels.tolist()) == (np.int64, [3, -1, 3, 0])


def test_labels_may_begin_with_a_byte_order_mark_as_filelists_may(tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbf3\n-1\n")
    assert read_labels(tmp_path / "labels.txt").tolist() == [3, -1]
    (tmp_path / "labels.txt").write_bytes(b"3\n\xef\xbb\xbf1\n")
    with pytest.raises(InputError, match="label 2 is"):
        read_labels(tmp_path / "labels.txt")


@pytest.mark.parametrize(
    ("text", "label"),
    [("1\ntwo\n", "2 is two"), ("1.5\n", "1 is 1.5"), ("1\n-2\n", "2 is -2"), ("nan\n", "1 is nan")]
    + [(f"0\n{label}\n", f"2 is {label}") for label in (2**63, -(2**63), -(2**63) - 1, 10**30)]
    + [
        pytest.param("1\n" + "9" * 5000, "2 is " + "9" * 40, id="long"),
        pytest.param("7\n" * 600_000 + "x\n", "600001 is x", id="far on"),
    ],
)
def test_labels_that_are_none_are_named(tmp_path, text, label):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(InputError) as refused:
        read_labels(tmp_path / "labels.txt")
    assert str(refused.value) == (
        f"{tmp_path}/labels.txt: label {label} - give an integer from 0 to 2^63 - 1, or -1 for a distractor"
    )


@pytest.mark.parametrize("array", [np.array([3, 2**63], np.uint64), np.array([3, -2], np.int8)])
def test_labels_in_arrays_that_are_none_are_named(tmp_path, array):
    np.save(tmp_path / "labels.npy", array)
    with pytest.raises(InputError, match=rf"labels\.npy: label 2 is {array[1]} - give"):
        read_labels(tmp_path / "labels.npy")


@pytest.mark.parametrize("array", [np.array([1.0, 2.0]), np.array([[1], [2]]), np.array([None, 1]), np.array([True])])
def test_arrays_that_are_no_labels_are_refused(tmp_path, array):
    np.save(tmp_path / "labels.npy", array)
    with pytest.raises(InputError, match=r"labels\.npy: "):
        read_labels(tmp_path / "labels.npy")


def test_files_that_are_no_arrays_are_refused(tmp_path):
    path = tmp_path / "labels.npy"
    for content in (b"", b"1\n2\n", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"labels\.npy: is no \.npy file of integers"):
            read_labels(path)
    with open(path, "wb") as file:
        np.savez(file, a=np.arange(3))
    with pytest.raises(InputError, match=r"labels\.npy: labels are integers, one a row"):
        read_labels(path)


def test_the_greatest_label_is_no_distractor(tmp_path):
    (tmp_path / "labels.txt").write_text(f"{2**63 - 1}\n-1\n{2**63 - 1}\n0\n-1")
    test_set = TestSet.of(np.eye(5, dtype=np.float32), read_labels(tmp_path / "labels.txt"))
    assert test_set.order.tolist() == [3, 0, 2, 1, 4]
    assert (test_set.positives, test_set.ends.tolist()) == (1, [1, 3, 3, 4, 5])


def test_a_label_a_row(tmp_path):
    path = written(tmp_path / "feat.bin", np.eye(3))
    (tmp_path / "labels.txt").write_text("1\n1\n")
    with pytest.raises(InputError, match=r"labels.txt: 2 labels, .*feat.bin has 3 rows"):
        open_test_set(str(path), str(tmp_path / "labels.txt"))


def test_rows_stand_by_person_and_distractors_last():
    features = np.arange(14, dtype=np.float32).reshape(7, 2)
    test_set = TestSet.of(features, np.array([5, -1, 2, 5, -1, 2, 7]))
    assert test_set.labels.tolist() == [2, 2, 5, 5, 7, -1, -1]
    assert test_set.order.tolist() == [2, 5, 0, 3, 6, 1, 4]
    assert test_set.starts.tolist() == [0, 0, 2, 2, 4, 5, 6]
    assert test_set.ends.tolist() == [2, 2, 4, 4, 5, 6, 7]
    np.testing.assert_array_equal(test_set.rows(1, 4), features[[5, 0, 3]])
    assert (test_set.positives, test_set.negatives) == (2, 19)


def test_check_tells_norms_and_zero_rows():
    rows = normalised(np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32))
    rows[[3, 9]] = 0
    greatest, zeros = TestSet.of(rows, np.zeros(20, int)).check("feat.bin")
    assert zeros == 2
    assert np.linalg.norm(rows.astype(np.float64), axis=1).max() <= greatest < 1.00001


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0])
def test_a_row_that_is_not_of_norm_1_is_named(value):
    rows = np.eye(20, dtype=np.float32)
    rows[13, 1] = value
    with pytest.raises(InputError, match=r"^feat.bin: row 13 has norm (nan|inf|3.16)"):
        TestSet.of(rows, np.zeros(20, int)).check("feat.bin")


def test_normalised_is_scikit_learns_to_the_last_bit():
    normalize = pytest.importorskip("sklearn.preprocessing").normalize
    rows = np.random.default_rng(1).normal(size=(50, 128)).astype(np.float32)
    rows[7] = 0
    np.testing.assert_array_equal(normalised(rows), normalize(rows))
