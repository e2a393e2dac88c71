"""The verification protocol against brute force, by hand, and at its edges."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vargface.errors import InputError
from vargface.eval import verification
from vargface.eval.verification import FARS, Verification, pair_distances, verify, verify_pack


def naive_normalised(embeddings):
    embeddings = np.array(embeddings, dtype=np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings))
    norms[norms < 10 * np.finfo(np.float64).eps] = 1
    return embeddings / norms[:, None]


def naive_threshold(fars, thresholds, target):
    """Walk to the last knot at or below the target, as the B-spline of old scipy does, and blend it with the next."""
    if max(fars) < target:
        return 0.0
    knot = 0
    while knot < len(fars) - 2 and fars[knot + 1] <= target:
        knot += 1
    low, high = fars[knot], fars[knot + 1]
    if low == high:
        return 0.0
    weight = 1 / (high - low)
    return thresholds[knot] * (weight * (high - target)) + thresholds[knot + 1] * (weight * (target - low))


def naive_verify(embeddings, issame, folds, far_target):
    """Every threshold against every pair, fold by fold: accuracy, std, tar, tar_std, far."""
    unit = naive_normalised(embeddings)
    distances = np.sum(np.square(unit[0::2] - unit[1::2]), axis=1)
    issame = np.asarray(issame, dtype=bool)
    everything = np.arange(len(issame))
    accuracies, tars, fars = [], [], []
    for test in np.array_split(everything, folds):
        train = everything if folds == 1 else np.setdiff1d(everything, test)
        thresholds = np.arange(0, 4, 0.01)
        accuracy = [np.mean((distances[train] < threshold) == issame[train]) for threshold in thresholds]
        best = thresholds[accuracy.index(max(accuracy))]
        accuracies.append(np.mean((distances[test] < best) == issame[test]))

        thresholds = np.arange(0, 4, 0.001)
        train_diff, test_diff = (part[~issame[part]] for part in (train, test))
        test_same = test[issame[test]]
        if not len(train_diff):
            continue
        accepted = distances[train_diff][None] < thresholds[:, None]
        threshold = naive_threshold(accepted.sum(axis=1) / len(train_diff), thresholds, far_target)
        if len(test_same):
            tars.append(np.mean(distances[test_same] < threshold))
        if len(test_diff):
            fars.append(np.mean(distances[test_diff] < threshold))
    tar = (np.mean(tars), np.std(tars)) if tars else (math.nan, math.nan)
    return (
        np.mean(accuracies),
        np.std(accuracies),
        *tar,
        np.mean(fars) if fars else math.nan,
    )


def assert_equals_naive(embeddings, issame, folds, far):
    got = verify(embeddings, issame, folds, far=far)
    want = naive_verify(embeddings, issame, folds, far)
    np.testing.assert_allclose(
        [got.accuracy, got.accuracy_std, got.tar, got.tar_std, got.far],
        want,
        rtol=0,
        atol=1e-9,
    )


@st.composite
def packs(draw):
    """Pairs on a coarse grid: equal distances, zero rows and distances on a threshold's edge are common."""
    pairs = draw(st.integers(1, 24))
    size = draw(st.integers(1, 3))
    coordinate = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    values = draw(st.lists(coordinate, min_size=2 * pairs * size, max_size=2 * pairs * size))
    issame = draw(st.lists(st.booleans(), min_size=pairs, max_size=pairs))
    folds = draw(st.integers(1, min(pairs, 10)))
    far = draw(st.sampled_from([1e-3, 0.1, 0.25, 1 / 3, 0.5, 1.0]))
    return np.array(values).reshape(2 * pairs, size), issame, folds, far


@settings(max_examples=60, deadline=None)
@given(packs())
def test_equals_brute_force_on_ties_and_edges(pack):
    assert_equals_naive(*pack)


@pytest.mark.parametrize(("pairs", "folds"), [(200, 10), (203, 10), (37, 4), (50, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_brute_force_on_random_embeddings(pairs, folds, dtype):
    rng = np.random.default_rng(pairs)
    issame = rng.random(pairs) < 0.5
    first = rng.normal(size=(pairs, 16))
    second = np.where(
        issame[:, None],
        first + rng.normal(size=first.shape),
        rng.normal(size=first.shape),
    )
    embeddings = np.stack([first, second], axis=1).reshape(2 * pairs, 16).astype(dtype)
    for far in (1e-3, 0.05):
        assert_equals_naive(embeddings, issame, folds, far)


@settings(max_examples=40, deadline=None)
@given(packs())
def test_tar_at_every_far_that_the_pack_can_tell_is_brute_forces(pack):
    embeddings, issame, folds, _ = pack
    issame = np.array(issame)
    result = verify(embeddings, issame, folds)
    parts = np.array_split(np.arange(len(issame)), folds)
    train = [np.arange(len(issame)) if folds == 1 else np.setdiff1d(np.arange(len(issame)), part) for part in parts]
    fewest = min(int((~issame[part]).sum()) for part in train)
    assert list(result.tars) == [far for far in FARS if issame.any() and fewest * float(far) >= 1]
    for far, tar in result.tars.items():
        assert tar == pytest.approx(naive_verify(embeddings, issame, folds, float(far))[2], abs=1e-9)


def test_fars_that_a_pack_of_6000_pairs_can_tell():
    embeddings = np.random.default_rng(0).normal(size=(12000, 4))
    assert list(verify(embeddings, np.arange(6000) % 2 == 0).tars) == ["1e-1", "1e-2", "1e-3"]


@settings(max_examples=60, deadline=None)
@given(packs())
def test_auc_is_the_share_of_pairs_of_pairs_in_the_right_order(pack):
    embeddings, issame, folds, _ = pack
    result = verify(embeddings, issame, folds)
    distances, same = pair_distances(embeddings), np.array(issame)
    if same.all() or not same.any():
        assert math.isnan(result.auc) and math.isnan(result.eer)
        return
    near, far = distances[same], distances[~same]
    won = [(a < b) + 0.5 * (a == b) for a in near for b in far]
    assert result.auc == pytest.approx(np.mean(won), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(packs())
def test_eer_is_where_both_errors_are_equal_on_the_line_between_two_thresholds(pack):
    embeddings, issame, folds, _ = pack
    distances, same = pair_distances(embeddings), np.array(issame)
    if same.all() or not same.any():
        return
    cuts = [-1.0, *sorted(set(distances))]
    errors = [(np.mean(distances[~same] <= cut), np.mean(distances[same] > cut)) for cut in cuts]
    after = next(k for k, (far, frr) in enumerate(errors) if far >= frr)
    (far, frr), (next_far, next_frr) = errors[after - 1 : after + 1]
    along = (frr - far) / ((frr - far) + (next_far - next_frr))
    assert verify(embeddings, issame, folds).eer == pytest.approx(far + along * (next_far - far), abs=1e-12)


def test_best_threshold_as_a_cosine():
    right, up = (1, 0), (0, 5)
    result = verify(np.array([right, right, right, up]), [True, False], folds=1)
    assert result.cosine_threshold == 1 - result.threshold / 2
    assert 0 < result.cosine_threshold < 1  # of the cosines 1 and 0


@pytest.mark.parametrize(("step", "thresholds"), [(0.01, "ACCURACY_THRESHOLDS"), (0.001, "FAR_THRESHOLDS")])
def test_a_distance_on_a_threshold_is_not_accepted_by_it(step, thresholds):
    grid = np.arange(0, 4, step)
    np.testing.assert_array_equal(getattr(verification, thresholds), grid)
    for distances in (grid, np.nextafter(grid, -1), np.nextafter(grid, 5)):
        counts = verification._accepted(distances, np.zeros(len(grid), dtype=int), 1, grid)[0]
        np.testing.assert_array_equal(counts, (distances[None] < grid[:, None]).sum(axis=1))


def test_by_hand():
    right, up, left = (1, 0), (0, 5), (-2, 0)
    # distances 0, 2 | 2, 4; the first pair of each fold is one person
    embeddings = np.array([right, right, right, up, right, up, right, left], dtype=np.float32)
    result = verify(embeddings, [True, False, True, False], folds=2, far=0.5, name="hand")
    # fold 1 is judged at 2.01 (2 is same in fold 2), fold 2 at .01: each takes one pair wrong
    assert (result.accuracy, result.accuracy_std) == (0.5, 0.0)
    assert result.threshold == pytest.approx((2.01 + 0.01) / 2, abs=1e-12)
    # fold 1: no threshold accepts fold 2's different pair: 0; fold 2: half way between 2.000 (FAR 0) and 2.001 (FAR 1)
    assert result.tar_threshold == pytest.approx(2.0005 / 2, abs=1e-12)
    assert (result.tar, result.tar_std, result.far) == (0.5, 0.5, 0.0)
    assert (result.pairs, result.folds, result.far_target, result.name) == (
        4,
        2,
        0.5,
        "hand",
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=2, max_size=12),
    st.sampled_from([0.0, 1e-3, 0.25, 0.3, 0.5, 1.0]),
)
def test_threshold_is_that_of_scipys_linear_spline(steps, far):
    interpolate = pytest.importorskip("scipy.interpolate")
    fars = np.sort(np.array([0, *steps])) / max(4, *steps)
    thresholds = np.arange(len(fars)) * 0.001
    got = verification._threshold_at(far, fars, thresholds)
    if fars[-1] < far:
        assert got == 0
    else:
        spline = interpolate.BSpline.construct_fast(np.r_[fars[0], fars, fars[-1]], thresholds, 1)
        assert got == float(spline(far))


def test_distances_are_scikit_learns_bit_for_bit():
    normalize = pytest.importorskip("sklearn.preprocessing").normalize
    embeddings = np.random.default_rng(3).normal(size=(2 * 77, 128))
    embeddings[4] = 0
    embeddings[5] = 1e-17
    unit = normalize(embeddings)
    expected = np.sum(np.square(unit[0::2] - unit[1::2]), axis=1)
    np.testing.assert_array_equal(pair_distances(embeddings), expected)


def test_folds_without_a_kind_of_pair_are_left_out():
    same_only = verify(np.ones((20, 4)), [True] * 10, folds=5)
    assert same_only.accuracy == 1
    assert all(
        math.isnan(value)
        for value in (
            same_only.tar,
            same_only.tar_std,
            same_only.far,
            same_only.tar_threshold,
        )
    )
    apart = verify(np.tile([[1.0, 0], [-1, 0]], (10, 1)), [False] * 10, folds=5)
    assert (apart.accuracy, apart.far) == (1, 0)
    assert math.isnan(apart.tar)
    # same pairs in the first fold only, different ones in the others: TAR is the first fold's, not a fifth of it
    close, far_off = [[1.0, 0], [1, 0]], [[1.0, 0], [0, 1]]
    mixed = verify(np.array(close * 2 + far_off * 8), [True] * 2 + [False] * 8, folds=5)
    assert (mixed.tar, mixed.tar_std) == (1, 0)


def test_result_goes_into_json():
    result = verify(np.ones((4, 2)), [True, True], folds=2, name="one")
    loaded = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert loaded["tar"] is None
    assert (loaded["accuracy"], loaded["name"]) == (1.0, "one")
    assert set(loaded) == {field.name for field in dataclasses.fields(result)} - {"distances"} | {"cosine_threshold"}


def test_result_comes_back_from_json():
    pack = FakePack(pairs=40)
    result = verify_pack(sided, pack, folds=4)
    again = Verification.of(json.loads(json.dumps(result.as_dict(), allow_nan=False)))
    assert again == result
    assert again.norms.median == result.norms.median
    # of an older version, which knew less
    old = {key: value for key, value in result.as_dict().items() if key not in ("tars", "auc", "eer", "norms")}
    assert math.isnan(Verification.of({**old, "tar": None}).tar)


def test_input_is_not_changed():
    embeddings = np.random.default_rng(0).normal(size=(20, 3))
    before = embeddings.copy()
    verify(embeddings, [True, False] * 5)
    np.testing.assert_array_equal(embeddings, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_embedding_that_is_not_finite_is_named(value):
    embeddings = np.ones((200, 4), dtype=np.float32)
    embeddings[137, 2] = value
    with pytest.raises(InputError, match=r"^lfw: embedding of image 137 is not finite"):
        verify(embeddings, [True, False] * 50, name="lfw")


def test_packs_too_small_are_refused():
    with pytest.raises(InputError, match=r"^lfw: has no pairs"):
        verify(np.zeros((0, 4)), [], name="lfw")
    with pytest.raises(InputError, match=r"^lfw: 9 pairs cannot be split into 10 folds"):
        verify(np.ones((18, 4)), [True] * 9, name="lfw")


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="19 embeddings for 10 pairs"):
        verify(np.ones((19, 4)), [True] * 10)
    with pytest.raises(ValueError, match=r"must be \(2P, D\)"):
        verify(np.ones((20, 4, 1)), [True] * 10)
    with pytest.raises(ValueError, match="folds 0"):
        verify(np.ones((20, 4)), [True] * 10, folds=0)
    with pytest.raises(ValueError, match="far 2"):
        verify(np.ones((20, 4)), [True] * 10, far=2)


class FakePack:
    """Random images; records which parts were decoded."""

    name = "fake"

    def __init__(self, pairs, seed=0):
        rng = np.random.default_rng(seed)
        self.images = rng.integers(0, 256, size=(2 * pairs, 3, 4, 4), dtype=np.uint8)
        self.issame = rng.random(pairs) < 0.5
        self.decoded = []

    def __len__(self):
        raise AssertionError("images or pairs? verify_pack must not depend on it")

    def decode(self, start, stop):
        self.decoded.append((start, stop))
        return self.images[start:stop]


def sided(view):
    """Embed by the left half alone, so that the mirror image differs."""
    assert view.dtype == np.uint8
    assert view.flags.c_contiguous
    return view[:, 0, :, :2].reshape(len(view), -1).astype(np.float32) / 3 - 40


@pytest.mark.parametrize("batch_size", [1, 7, 24, 100])
def test_verify_pack_sums_both_views_batch_by_batch(batch_size):
    pack, done = FakePack(pairs=12), []
    result = verify_pack(sided, pack, folds=4, far=0.1, batch_size=batch_size, on_batch=done.append)
    left, right = sided(pack.images), sided(pack.images[..., ::-1].copy())
    expected = verify(left.astype(np.float64) + right, pack.issame, 4, far=0.1, name="fake")
    norms = [math.sqrt(sum(float(x) ** 2 for x in row)) for row in (*left, *right)]
    assert result.xnorm == pytest.approx(sum(norms) / len(norms), rel=1e-12)
    assert (result.norms.smallest, result.norms.largest) == (pytest.approx(min(norms)), pytest.approx(max(norms)))
    assert dataclasses.replace(result, xnorm=0, norms=None) == dataclasses.replace(expected, xnorm=0)
    np.testing.assert_array_equal(result.distances, expected.distances)
    assert [start for start, _ in pack.decoded] == list(range(0, 24, batch_size))
    assert max(stop - start for start, stop in pack.decoded) <= batch_size
    assert sum(done) == 24


def test_verify_pack_refuses_a_small_pack_before_embedding_it():
    with pytest.raises(InputError, match=r"^fake: 3 pairs cannot be split into 10 folds"):
        verify_pack(lambda view: pytest.fail("embedded"), FakePack(pairs=3))


def test_verify_pack_refuses_embeddings_of_a_wrong_shape():
    with pytest.raises(ValueError, match=r"embed gave \(3, 2\)"):
        verify_pack(lambda view: np.ones((3, 2)), FakePack(pairs=12))
