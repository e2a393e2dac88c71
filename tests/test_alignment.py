"""Alignment: the similarity against least squares by numpy, and that a face comes to lie on the template."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vargface.deploy.alignment import SIZE, TEMPLATE, align, check_face, similarity
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
        (TEMPLATE * 1e200, "give five points"),
        (np.full((5, 2), 30.0), "all in one place"),
    ],
)
def test_what_are_no_landmarks_is_said(landmarks, message):
    with pytest.raises(InputError, match=message):
        similarity(landmarks)


def seen_from(yaw: float, pitch: float, roll: float = 0, nose: float = 22) -> np.ndarray:
    """The landmarks of a head whose front is the template, nose out by 22 pixels, turned by so many degrees."""
    head = np.column_stack([TEMPLATE - TEMPLATE.mean(axis=0), [0, 0, nose, 4, 4]])
    a, b, c = np.radians([yaw, pitch, roll])
    turned = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    nodded = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    tilted = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return (head @ (tilted @ nodded @ turned).T)[:, :2] + 200


@settings(deadline=None)
@given(
    st.floats(-90, 90), st.floats(-40, 40), st.floats(-180, 180), arrays(np.float64, (5, 2), elements=st.floats(-2, 2))
)
def test_a_face_is_one_from_every_side(yaw, pitch, roll, error):
    """Full profile, looking down, upside down, landmarks found with an error of up to 2 pixels."""
    check_face(seen_from(yaw, pitch, roll) + error, (400, 400))


def refused(landmarks: np.ndarray) -> bool:
    try:
        check_face(landmarks)
    except InputError:
        return True
    return False


def share_refused(poses, order, error: float, number: int) -> float:
    random = np.random.default_rng(0)
    draws = [(pose, nose) for pose in poses for nose in (22, 30)]
    return np.mean([
        refused(seen_from(*pose, nose=nose)[order] + random.normal(0, error, (5, 2)))
        for pose, nose in draws for _ in range(number // len(draws))
    ])  # fmt: skip


RIGHT = [0, 1, 2, 3, 4]
ORDINARY = [(0, 0), (20, 10), (-30, 0), (30, -20), (45, 0), (-45, 20)]
FROM_ANY_SIDE = [(60, 20), (-80, 0), (90, 0), (90, 30), (75, -30), (0, 50), (0, -40)]


@pytest.mark.parametrize(
    ("poses", "error", "most"), [(ORDINARY, 5, 0.002), (FROM_ANY_SIDE, 5, 0.01), (ORDINARY, 6, 0.005)]
)
def test_landmarks_found_with_a_large_error_are_a_faces(poses, error, most):
    """Pixels of a face of 112, standard deviation. One in ten was refused."""
    assert share_refused(poses, RIGHT, error, 3000) <= most


@pytest.mark.parametrize("order", [
    [1, 0, 2, 4, 3], [1, 0, 2, 3, 4], [0, 1, 2, 4, 3], [3, 4, 2, 0, 1], [4, 3, 2, 0, 1], [3, 4, 2, 1, 0],
    [2, 0, 1, 3, 4], [0, 1, 3, 4, 2],
])  # fmt: skip
def test_a_wrong_order_is_found_in_faces_that_are_turned(order):
    """By up to 30 degrees; landmarks found with an error of 2 pixels, nearly always."""
    poses = [(0, 0), (30, 0), (-30, 0), (15, 15), (0, -20)]
    assert share_refused(poses, order, 2, 400) > 0.98
    assert share_refused(poses, order, 0, 10) == 1


@settings(deadline=None)
@given(arrays(np.float64, 5, elements=st.floats(-100, 100)), st.floats(0, np.pi))
def test_points_on_a_line_are_no_face(places, angle):
    assume(places.std() > 1)
    assert refused(200 + places[:, None] * [np.cos(angle), np.sin(angle)])


PHOTO = (300, 400)


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (TEMPLATE[[1, 0, 2, 4, 3]], "do not lie as in a face"),
        (TEMPLATE[[1, 0, 2, 3, 4]], "do not lie as in a face"),
        (TEMPLATE[[0, 1, 2, 4, 3]], "do not lie as in a face"),
        (TEMPLATE[[3, 4, 2, 0, 1]], "do not lie as in a face"),
        (TEMPLATE[[2, 0, 1, 3, 4]], "do not lie as in a face"),
        (TEMPLATE[[0, 1, 3, 4, 2]], "do not lie as in a face"),
        (TEMPLATE[:, ::-1], "do not lie as in a face"),  # y, x
        (TEMPLATE.T.reshape(5, 2), "do not lie as in a face"),  # x x x x x y y y y y
        (TEMPLATE / SIZE, "a face 1 pixels wide - give x and y, in pixels"),  # fractions
        (TEMPLATE + 5000, "5 of them are outside an image 400 pixels wide and 300 high"),
        (TEMPLATE + (0, 235), "3 of them are outside"),
        (TEMPLATE - (60, 0), "3 of them are outside"),
    ],
)
def test_five_points_that_are_no_face_are_refused(landmarks, message):
    """They gave an embedding, without a word."""
    with pytest.raises(InputError, match=message) as refused:
        align(np.zeros((*PHOTO, 3), np.uint8), landmarks)
    assert "\n" not in str(refused.value)


def test_a_face_that_the_edge_of_the_photo_cuts_is_taken():
    align(np.zeros((*PHOTO, 3), np.uint8), TEMPLATE - (45, 0))
    align(np.zeros((*PHOTO, 3), np.uint8), TEMPLATE + (0, 215))
