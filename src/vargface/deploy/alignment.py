"""Alignment to InsightFace's template: the similarity that brings five landmarks to where its networks expect them.

Landmarks are (5, 2), x and y in pixels: the eyes (the one on the image's left first), the tip of the nose, the corners
of the mouth (left first). The template is that of InsightFace's `face_align` for 112x112.
"""

from __future__ import annotations

import cv2
import numpy as np

from vargface.errors import InputError

__all__ = ["SIZE", "TEMPLATE", "align", "similarity"]

SIZE = 112
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


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


def align(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the face at `landmarks` of `image` (H, W, 3) uint8 as (112, 112, 3): bilinear, black outside the image."""
    return cv2.warpAffine(image, similarity(landmarks), (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderValue=0)
