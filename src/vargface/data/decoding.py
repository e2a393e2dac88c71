"""From encoded bytes to pixels, and the reasons why that fails, for everything here that decodes."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["cut_short", "decode", "planes"]

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


def decode(encoded: bytes) -> np.ndarray:
    """Return the image (H, W, 3) uint8, blue green red, of an encoded one.

    Raises ValueError, its text the reason, where it is none, or a JPEG that is cut short: OpenCV would fill up what is
    missing, and say nothing.
    """
    try:
        image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR) if encoded else None
    except (cv2.error, MemoryError):  # damage may make it claim any size
        image = None
    if image is None:
        raise ValueError(f"is not an image that can be decoded ({len(encoded)} bytes)")
    if cut_short(encoded):
        raise ValueError(f"is a JPEG that is cut short ({len(encoded)} bytes and no end)")
    return image


def cut_short(encoded: bytes) -> bool:
    """Return whether this is a JPEG without its end."""
    # the pair of bytes is no part of a picture's data; one in the first half may be a thumbnail's
    return encoded[:2] == _JPEG_START and encoded.rfind(_JPEG_END, len(encoded) // 2) < 0


def planes(image: np.ndarray, out: np.ndarray) -> None:
    """Write `image` (H, W, 3) uint8, blue green red, into `out` (3, H, W), uint8 or wider, RGB."""
    # three times as fast as assigning the transposed array
    blue, green, red = cv2.split(image)
    out[0], out[1], out[2] = red, green, blue
