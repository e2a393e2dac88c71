"""From encoded bytes to pixels, and the reasons why that fails, for everything here that decodes."""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["IMAGE_FORMS", "cut_short", "decode", "planes"]

# by these endings, in any case, a file of a folder is taken to be an image
IMAGE_FORMS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_SCAN = 0xDA
# what OpenCV puts where a JPEG's data ends too early, and data of no picture
_MISSING = [128, 128, 128]
# behind half of a pair of bytes, too
_FILLER = b"\0" + b"\x55" * 64


def decode(encoded: bytes) -> np.ndarray:
    """Return the image (H, W, 3) uint8, blue green red, of an encoded one.

    Raises ValueError, its text the reason, where it is none, or a JPEG that is cut short: OpenCV would fill up what is
    missing, and say nothing. Also one that was closed again where it had been cut, if its last block is missing.
    """
    image = _decoded(encoded) if encoded else None
    if image is None:
        raise ValueError(f"is not an image that can be decoded ({len(encoded)} bytes)")
    if not encoded.startswith(_JPEG_START):
        return image
    # who ends so and could be decoded was not cut in its header, and the pair of bytes is no part of a picture's data
    if not encoded.endswith(_JPEG_END) and cut_short(encoded):
        raise ValueError(f"is a JPEG that is cut short ({len(encoded)} bytes and no end)")
    if image[-1, -1].tolist() == _MISSING and _lacks_data(encoded, image):
        raise ValueError(f"is a JPEG that lacks the end of its picture ({len(encoded)} bytes)")
    return image


def cut_short(encoded: bytes) -> bool:
    """Return whether this is a JPEG without its end; bytes that follow the end, and a thumbnail's, do not matter."""
    return encoded.startswith(_JPEG_START) and encoded.find(_JPEG_END, _scan_start(encoded)) < 0


def _scan_start(encoded: bytes) -> int:
    """Return where, behind all segments of its header, a JPEG's picture starts."""
    at = 2
    while 0 <= at < len(encoded) - 3:
        if encoded[at] != 0xFF or encoded[at + 1] in (0x00, 0xFF):
            at = encoded.find(b"\xff", at + 1)
        elif encoded[at + 1] == _SCAN:
            return at
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return len(encoded)


def _lacks_data(encoded: bytes, image: np.ndarray) -> bool:
    """Return whether more data before its end would change the picture: then what it has does not reach to there."""
    longer = encoded[: encoded.rfind(_JPEG_END)] + _FILLER
    other = _decoded(longer)  # without an end: libjpeg would complain on stderr of what comes before it unread
    if other is None:  # a progressive one needs its end
        other = _decoded(longer + _JPEG_END)
    return other is None or not np.array_equal(other, image)


def _decoded(encoded: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
    except (cv2.error, MemoryError):  # damage may make it claim any size
        return None


def planes(image: np.ndarray, out: np.ndarray) -> None:
    """Write `image` (H, W, 3) uint8, blue green red, into `out` (3, H, W), uint8 or wider, RGB."""
    # three times as fast as assigning the transposed array
    blue, green, red = cv2.split(image)
    out[0], out[1], out[2] = red, green, blue
