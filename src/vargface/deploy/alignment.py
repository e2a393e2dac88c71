"""Alignment to InsightFace's template: the similarity that brings five landmarks to where its networks expect them.

Landmarks are (5, 2), x and y in pixels: the eyes (the one on the image's left first), the tip of the nose, the corners
of the mouth (left first). The template is that of InsightFace's `face_align` for 112x112.
"""

from __future__ import annotations

import cv2
import numpy as np

from vargface.errors import InputError

__all__ = ["SIZE", "TEMPLATE", "align", "check_face", "similarity"]

SIZE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
# A head in space: the template, nose and mouth in front of the eyes by so many of its pixels.
DEPTHS = (0.0, 0.0, 24.0, 4.0, 4.0)
# degrees by which it is turned and nodded for `VIEWS`
TURNED, NODDED = range(-90, 91, 15), range(-45, 46, 15)
# Orders in which landmarks come by mistake: whose left is meant, of both, the eyes or the mouth; the mouth first, and
# that with either mistake; the nose first; the nose last. And x for y, and all x before all y.
MISTAKEN = np.argsort(
    [(1, 0, 2, 4, 3), (1, 0, 2, 3, 4), (0, 1, 2, 4, 3), (3, 4, 2, 0, 1), (4, 3, 2, 0, 1), (3, 4, 2, 1, 0),
     (2, 0, 1, 3, 4), (0, 1, 3, 4, 2)], axis=1
)  # fmt: skip
# The least likeness to a view, and by how much another order may be more like one. Of faces found with an error of 5
# pixels (standard deviation, of 112) at most one in 1,000 is refused if turned by up to 45 degrees, one in 200 from any
# side (tests/test_alignment.py). A wrong order is, if turned by up to 30: in profile left and right are one.
LEAST_LIKE, MORE_LIKE = 0.72, 0.15
# Of 1, five points on a line, which may be as like as 0.81. Here the spread across is a tenth of that along it.
MOST_STRAIGHT = 0.98
# no photo has a pixel there
FARTHEST = 1e6
# pixels of the photo that a face is wide at least: fractions of its width and height would be less
LEAST_WIDTH = 8.0
ORDER = "give x and y, in pixels, of the eye on the image's left, the other eye, nose, mouth's left corner, its right"


def similarity(landmarks: np.ndarray) -> np.ndarray:
    """Return the (2, 3) float64 matrix that turns, scales and moves `landmarks` onto the template: least squares.

    There is no mirroring. Raises InputError where landmarks are not (5, 2) numbers that a pixel may have, or are all in
    one place.
    """
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.shape != TEMPLATE.shape or not (np.abs(landmarks) < FARTHEST).all():  # NaN is not less, either
        raise InputError(f"landmarks {landmarks.tolist()}: give five points x, y - eyes, nose, corners of the mouth")
    # as complex numbers a similarity is z -> turn * z + move, and least squares is one division
    source, target = (points @ (1, 1j) for points in (landmarks, TEMPLATE))
    centred = source - source.mean()
    spread = np.vdot(centred, centred).real
    if spread < 1e-6:
        raise InputError(f"landmarks {landmarks.tolist()}: are all in one place - give five points of a face")
    turn = np.vdot(centred, target) / spread
    move = target.mean() - turn * source.mean()
    return np.array([[turn.real, -turn.imag, move.real], [turn.imag, turn.real, move.imag]])


def _shape(points: np.ndarray) -> np.ndarray:
    """Return `points` (..., 5, 2) as complex numbers (..., 5), centred, of unit norm: left are turn and shape."""
    centred = points @ (1, 1j)
    centred = centred - centred.mean(axis=-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)


def _views() -> np.ndarray:
    """Return the shapes (n, 5) in which a head's landmarks are seen, from a distance, turned and nodded."""
    head = np.column_stack([TEMPLATE - TEMPLATE.mean(axis=0), DEPTHS])
    turned, nodded = np.radians([(turn, nod) for turn in TURNED for nod in NODDED]).T[:, :, None]
    x, y, z = head.T
    away = z * np.cos(turned) - x * np.sin(turned)
    seen = np.stack([x * np.cos(turned) + z * np.sin(turned), y * np.cos(nodded) - away * np.sin(nodded)], axis=-1)
    return _shape(seen)


VIEWS = _views()


def _likeness(shapes: np.ndarray) -> np.ndarray:
    """Return for each of `shapes` (..., 5) how like it is to one of `VIEWS`, however that is rolled: 0 to 1.

    It is the share of the landmarks' variance that the view explains.
    """
    return np.square(np.abs(shapes @ VIEWS.conj().T)).max(axis=-1)


def check_face(landmarks: np.ndarray, size: tuple[int, int] | None = None) -> None:
    """Raise InputError where `landmarks` are no face's, as far as five points can tell: another order, no pixels.

    size: height and width of the photo, where known: at least three of them must lie in it.
    """
    matrix = similarity(landmarks)
    landmarks = np.asarray(landmarks, np.float64)
    what = f"landmarks {np.round(landmarks, 2).tolist()}"
    shape = _shape(landmarks)
    others = np.stack([*landmarks[MISTAKEN], landmarks[:, ::-1], landmarks.ravel().reshape(2, 5).T])
    like, other = _likeness(shape), _likeness(_shape(others)).max()
    if like < LEAST_LIKE or other > like + MORE_LIKE or abs(shape @ shape) > MOST_STRAIGHT:
        raise InputError(f"{what}: do not lie as in a face - {ORDER}")
    width = SIZE / np.linalg.norm(matrix[:, 0])
    if width < LEAST_WIDTH:
        raise InputError(f"{what}: a face {width:.2g} pixels wide - {ORDER}")
    if size is not None:
        inside = ((landmarks >= 0) & (landmarks < size[::-1])).all(axis=1).sum()
        if inside < 3:
            photo = f"an image {size[1]} pixels wide and {size[0]} high"
            raise InputError(f"{what}: {5 - inside} of them are outside {photo} - {ORDER}")


def align(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the face at `landmarks` of `image` (H, W, 3) uint8 as (112, 112, 3): bilinear, black outside the image.

    Raises InputError for what is no face's (`check_face`).
    """
    check_face(landmarks, image.shape[:2])
    return cv2.warpAffine(image, similarity(landmarks), (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderValue=0)
