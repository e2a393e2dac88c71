"""Random views of a face beyond the mirrored one, each a function of (seed, epoch, position) alone.

`augment` = 1 draws uniformly from the ranges below; a smaller strength narrows them in proportion. They are about as
wide as aligned photos differ from one another; the borders that a turned picture uncovers are reflected into it.

`mix` makes faces of nobody, for a teacher to say who they look like: two faces laid over one another, or one face on
one side of a line and another on the other. Aligned faces have their eyes and mouths in the same places, so what comes
out is a face, too. (Mixing for teaching: Beyer et al., "Knowledge distillation: a good teacher is patient and
consistent", https://arxiv.org/abs/2106.05237.)

`jpeg` and `cutout` are shares of the faces that are compressed anew and that have a square cut out.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

__all__ = ["Draws", "augmented", "compressed", "cut_out", "mixed"]

TURN = 12.0  # degrees, either way
ZOOM = 0.12  # of the size, either way
SHIFT = 0.06  # of the side, either way, along each axis
BRIGHTNESS, CONTRAST, SATURATION = 0.25, 0.25, 0.5  # of the value, either way
GREY = 0.1  # share of the faces without colour
BLURRED, SIGMA = 0.25, 1.5  # share of the faces blurred; standard deviation in pixels, at most
OVERLAID = (0.3, 0.7)  # share of the first face where one is laid over the other
EDGE = 8.0  # pixels over which one face passes into the other at a line
QUALITY = (30, 90)  # of JPEG
SQUARE = (0.15, 0.45)  # side of what is cut out, of the image's shorter one
MIDDLE_GREY = 127  # what is put in its place: near 0 where the networks take it


class Draws:
    """Uniform numbers that belong to (seed, epoch, position), the same under every numpy release (raw Philox words)."""

    def __init__(self, seed: int, epoch: int, position: int) -> None:
        self._words = iter(np.random.Philox(np.random.SeedSequence([seed, epoch, 2, position])).random_raw(32))

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return the next number, in [low, high); there are 32 of them."""
        return low + (high - low) * (int(next(self._words)) >> 11) * 2.0**-53


def augmented(image: np.ndarray, strength: float, draws: Draws) -> np.ndarray:
    """Return a random view of `image` (H, W, 3) uint8, blue green red, of the same shape; `strength` in 0..1."""
    height, width = image.shape[:2]
    turn, zoom, right, down = (strength * draws(-reach, reach) for reach in (TURN, ZOOM, SHIFT, SHIFT))
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), turn, 1 + zoom)
    matrix[:, 2] += right * width, down * height
    view = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)

    saturation = 1 + strength * draws(-SATURATION, SATURATION)
    saturation = 0.0 if draws() < strength * GREY else saturation
    grey = cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    view = cv2.addWeighted(view, saturation, grey, 1 - saturation, 0)
    contrast, brightness = (1 + strength * draws(-reach, reach) for reach in (CONTRAST, BRIGHTNESS))
    # contrast leaves the middle grey where it is
    tones = ((np.arange(256) - 127.5) * contrast + 127.5) * brightness
    view = cv2.LUT(view, np.clip(np.rint(tones), 0, 255).astype(np.uint8))

    blurred, sigma = draws() < strength * BLURRED, strength * draws(0.3, SIGMA)
    return cv2.GaussianBlur(view, (0, 0), sigma) if blurred else view


def compressed(image: np.ndarray, draws: Draws) -> np.ndarray:
    """Return `image` (H, W, 3) uint8 as JPEG of a random quality leaves it."""
    quality = int(draws(*QUALITY))
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def cut_out(image: np.ndarray, draws: Draws) -> np.ndarray:
    """Return `image` (H, W, 3) uint8 with a grey square at a random place, of which a part may lie outside.

    (DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout",
    https://arxiv.org/abs/1708.04552.)
    """
    height, width = image.shape[:2]
    half = draws(*SQUARE) * min(height, width) / 2
    down, across = draws(0, height), draws(0, width)
    image = image.copy()
    rows, columns = (slice(max(round(middle - half), 0), round(middle + half)) for middle in (down, across))
    image[rows, columns] = MIDDLE_GREY
    return image


def mixed(first: np.ndarray, second: np.ndarray, draws: Draws) -> np.ndarray:
    """Return a face (H, W, 3) uint8 of parts of two of that shape: laid over one another, or met at a line."""
    overlaid, share, angle, offset = draws() < 0.5, draws(*OVERLAID), draws(0, 2 * math.pi), draws(-1 / 6, 1 / 6)
    if overlaid:
        return cv2.addWeighted(first, share, second, 1 - share, 0)
    height, width = first.shape[:2]
    across = np.arange(width, dtype=np.float32) - (width - 1) / 2
    down = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    # signed distance in pixels to a line through the middle third
    distance = across * math.cos(angle) + down * math.sin(angle) - offset * min(height, width)
    weight = np.clip(0.5 + distance / EDGE, 0, 1).astype(np.float32)
    return cv2.blendLinear(first, second, weight, 1 - weight)
