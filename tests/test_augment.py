"""Random views: a function of (seed, epoch, position), within their ranges, and still the same face."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vargface.data import augment
from vargface.data.augment import Draws, augmented, compressed, cut_out, mixed

FIRST_DRAWS = [0.178994, 0.611577, 0.685772]


class Fixed:
    """Draws that give the middle of every range but for those listed, by their place in the order of asking."""

    def __init__(self, **places: float) -> None:
        self._places, self._asked = {int(name[1:]): value for name, value in places.items()}, 0

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        share = self._places.get(self._asked, 0.5)
        self._asked += 1
        return low + (high - low) * share


@pytest.fixture(scope="module")
def face():
    """A smooth picture (112, 112, 3)."""
    coarse = np.random.default_rng(0).integers(40, 216, (5, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)


def test_draws_never_change():
    """A run is resumed under another numpy or another release of ours: these figures must stay."""
    draws = Draws(3, 2, 10)
    assert [round(draws(), 6) for _ in range(3)] == FIRST_DRAWS
    assert Draws(3, 2, 10)(-2, 4) == pytest.approx(-2 + 6 * FIRST_DRAWS[0], abs=1e-5)


def test_draws_differ_by_seed_epoch_and_position():
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({Draws(*place)() for place in places}) == 4


@settings(max_examples=50, deadline=None)
@given(strength=st.floats(0, 1), position=st.integers(0, 10**9))
def test_a_view_has_the_shape_and_follows_from_its_place(face, strength, position):
    view = augmented(face, strength, Draws(0, 0, position))
    assert view.shape == face.shape and view.dtype == np.uint8
    np.testing.assert_array_equal(view, augmented(face, strength, Draws(0, 0, position)))


def test_no_strength_changes_nothing(face):
    np.testing.assert_array_equal(augmented(face, 0.0, Draws(0, 0, 5)), face)


def test_the_middle_of_every_range_changes_nothing(face):
    np.testing.assert_array_equal(augmented(face, 1.0, Fixed()), face)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_where_a_point_of_the_picture_goes(face, place, end):
    """Against the similarity by hand: turn counter-clockwise and zoom about the centre, then shift."""
    reach = [augment.TURN, augment.ZOOM, augment.SHIFT, augment.SHIFT]
    by = [0.0] * 4
    by[place] = (2 * end - 1) * reach[place]
    view = augmented(face, 1.0, Fixed(**{f"n{place}": end}))
    angle, zoom = np.deg2rad(by[0]), 1 + by[1]
    for x, y in [(40, 50), (70, 45), (56, 80)]:
        right, down = x - 55.5, y - 55.5
        at_x = 55.5 + zoom * (np.cos(angle) * right + np.sin(angle) * down) + by[2] * 112
        at_y = 55.5 + zoom * (np.cos(angle) * down - np.sin(angle) * right) + by[3] * 112
        found = cv2.getRectSubPix(view.astype(np.float32), (1, 1), (at_x, at_y))[0, 0]
        np.testing.assert_allclose(found, face[y, x], atol=4)


def test_colour_contrast_and_brightness_by_hand(face):
    grey = augmented(face, 1.0, Fixed(n5=0.0))
    assert np.ptp(grey.astype(int), axis=2).max() <= 1
    flat = augmented(face, 1.0, Fixed(n6=0.0))
    np.testing.assert_allclose(flat, 127.5 + 0.75 * (face - 127.5), atol=0.51)
    bright = augmented(face, 1.0, Fixed(n7=1.0))
    np.testing.assert_allclose(bright, np.minimum(1.25 * face, 255), atol=0.51)
    blurred = augmented(face, 1.0, Fixed(n8=0.0))
    assert 0 < np.abs(np.diff(blurred.astype(int), axis=1)).sum() < np.abs(np.diff(face.astype(int), axis=1)).sum()


def test_one_face_over_another():
    first, second = np.full((8, 8, 3), 200, np.uint8), np.full((8, 8, 3), 100, np.uint8)
    assert mixed(first, second, Fixed(n0=0.0, n1=0.0))[4, 4, 0] == 130
    assert mixed(first, second, Fixed(n0=0.0, n1=1.0))[4, 4, 0] == 170


def test_two_faces_met_at_a_line():
    first, second = np.full((112, 112, 3), 200, np.uint8), np.full((112, 112, 3), 100, np.uint8)
    picture = mixed(first, second, Fixed(n0=0.9, n2=0.0))  # the line is upright, its right side the first's
    assert (picture[:, :50] == 100).all() and (picture[:, 62:] == 200).all()
    assert np.all(np.diff(picture[0, :, 0].astype(int)) >= 0) and 140 < picture[3, 55, 1] < 160
    moved = mixed(first, second, Fixed(n0=0.9, n2=0.25, n3=1.0))  # level, lower by a sixth: below it the first's
    assert (moved[:69] == 100).all() and (moved[80:] == 200).all()


def test_views_are_spread_over_their_ranges(face):
    """Means of the picture over many views: brightness alone spreads them by a quarter either way."""
    means = np.array([augmented(face, 1.0, Draws(0, 0, position)).mean() for position in range(300)]) / face.mean()
    assert 0.7 < means.min() < 0.82 and 1.15 < means.max() < 1.35 and abs(means.mean() - 1) < 0.03


def test_compressed_is_a_jpeg_of_the_drawn_quality():
    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    draws, again = Draws(1, 2, 3), Draws(1, 2, 3)
    quality = int(again(30, 90))
    expected = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(compressed(image, draws), expected)


def test_cut_out_is_one_grey_square_that_the_image_may_end():
    image = np.random.default_rng(0).integers(128, 256, (112, 96, 3), dtype=np.uint8)
    before, areas, rows, columns = image.copy(), [], [], []
    for position in range(400):
        cut = cut_out(image, Draws(0, 0, position))
        changed = (cut != image).any(axis=2)
        assert (cut[changed] == 127).all()
        down, across = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert changed[down[0] : down[-1] + 1, across[0] : across[-1] + 1].all()
        assert max(len(down), len(across)) <= round(0.45 * 96) + 1
        areas.append(changed.sum())
        rows.append(down.mean())
        columns.append(across.mean())
    assert np.array_equal(image, before)
    # anywhere, not in the middle alone
    assert np.std(rows) > 25 and np.std(columns) > 20 and np.std(areas) > 100
