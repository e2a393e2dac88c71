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
# Past these, five points are no face's. Of a head turned by 90 degrees (tests/test_alignment.py), looking up or down,
# they lie up to 18 pixels from the template (root of the mean square); of one whose left is taken for its right 22.6.
MOST_APART = 20.0
# Eyes and mouth are parallel from any side, the eyes 1.2 times as far apart: 0 for every head; 2.6 for points given as
# x x x x x y y y y y, 3 where only the eyes are swapped. In the landmarks' spread.
EYES_TO_MOUTH, MOST_SKEWED = 1.2, 1.2
# pixels of the photo that a face is wide at least: fractions of its width and height would be less
LEAST_WIDTH = 8.0
ORDER = "give x and y, in pixels, of the eye on the image's left, the other eye, nose, mouth's left corner, its right"


def similarity(landmarks: np.ndarray) -> np.ndarray:
    """Return the (2, 3) float64 matrix that turns, scales and moves `landmarks` onto the template: least squares.

    There is no mirroring. Raises InputError where landmarks are not (5, 2) finite numbers or are all in one place.
    """
    landmarks = np.asarray(landmarks, np.float64)
    if landmarks.shape != TEMPLATE.shape or not np.isfinite(landmarks).all():
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


def check_face(landmarks: np.ndarray, size: tuple[int, int] | None = None) -> None:
    """Raise InputError where `landmarks` are no face's, as far as five points can tell: another order, no pixels.

    size: height and width of the photo, where known: at least three of them must lie in it.
    """
    matrix = similarity(landmarks)
    landmarks = np.asarray(landmarks, np.float64)
    what = f"landmarks {np.round(landmarks, 2).tolist()}"
    moved = landmarks @ matrix[:, :2].T + matrix[:, 2]
    apart = np.sqrt(np.square(moved - TEMPLATE).sum(axis=1).mean())
    spread = np.sqrt(np.square(landmarks - landmarks.mean(axis=0)).sum(axis=1).mean())
    eyes, mouth = landmarks[1] - landmarks[0], landmarks[4] - landmarks[3]
    if apart > MOST_APART or np.linalg.norm(eyes - EYES_TO_MOUTH * mouth) > MOST_SKEWED * spread:
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
