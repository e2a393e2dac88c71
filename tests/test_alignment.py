"""Alignment: the similarity against least squares by numpy, and that a face comes to lie on the template."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vargface.deploy.alignment import SIZE, TEMPLATE, align, similarity
from vargface.errors import InputError

points = arrays(np.float64, (5, 2), elements=st.floats(-500, 500, width=32))


def by_lstsq(landmarks: np.ndarray) -> np.ndarray:
    """The same by the normal way: x' = a x - b y + c, y' = b x + a y + d, ten equations for a, b, c, d."""
    rows, values = [], []
    for (x, y), (to_x, to_y) in zip(landmarks, TEMPLATE):
        rows += [[x, -y, 1, 0], [y, x, 0, 1]]
        values += [to_x, to_y]
    a, b, c, d = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
    return np.array([[a, -b, c], [b, a, d]])


@settings(deadline=None)
@given(points)
def test_least_squares(landmarks):
    assume(landmarks.std(axis=0).max() > 1)
    ours, theirs = similarity(landmarks), by_lstsq(landmarks)
    at = np.concatenate([landmarks, np.ones((5, 1))], axis=1)
    np.testing.assert_allclose(at @ ours.T, at @ theirs.T, atol=1e-6)


@settings(deadline=None)
@given(st.floats(-np.pi, np.pi), st.floats(0.1, 10), st.tuples(st.floats(-300, 300), st.floats(-300, 300)))
def test_a_turned_scaled_and_moved_template_comes_back(angle, scale, move):
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = TEMPLATE @ turn.T + move
    matrix = similarity(moved)
    np.testing.assert_allclose(moved @ matrix[:, :2].T + matrix[:, 2], TEMPLATE, atol=1e-6)


def test_a_mirrored_face_is_not_mirrored_back():
    matrix = similarity(TEMPLATE * (-1, 1))
    assert np.linalg.det(matrix[:, :2]) >= 0


def test_pixels_come_to_lie_where_the_template_has_them():
    photo = np.zeros((400, 300, 3), np.uint8)
    turn = 1.7 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    landmarks = TEMPLATE @ turn.T + (60, 80)
    for number, (x, y) in enumerate(np.round(landmarks).astype(int)):
        photo[y - 2 : y + 3, x - 2 : x + 3, :] = 50 + 40 * number
    face = align(photo, landmarks)
    assert face.shape == (SIZE, SIZE, 3)
    for number, (x, y) in enumerate(np.round(TEMPLATE).astype(int)):
        assert abs(int(face[y, x, 0]) - (50 + 40 * number)) <= 2


def test_an_aligned_face_stays_as_it_is():
    face = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(align(face, TEMPLATE), face)


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.zeros((4, 2)), "give five points"),
        (np.full((5, 2), np.nan), "give five points"),
        (np.full((5, 2), 30.0), "all in one place"),
    ],
)
def test_what_are_no_landmarks_is_said(landmarks, message):
    with pytest.raises(InputError, match=message):
        similarity(landmarks)
