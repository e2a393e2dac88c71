"""Encoded bytes: what is an image, and which JPEG lacks a part of its picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vargface.data.decoding import cut_short, decode

KINDS = {
    "baseline": [],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 2],
    "optimised": [cv2.IMWRITE_JPEG_OPTIMIZE, 1],
}
END = b"\xff\xd9"


def pixels(size=(112, 112)) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    return cv2.resize(noise, size[::-1])


def jpeg(kind="baseline", image=None) -> bytes:
    return cv2.imencode(".jpg", pixels() if image is None else image, KINDS[kind])[1].tobytes()


def with_thumbnail(whole: bytes, thumbnail: bytes) -> bytes:
    """With an application's segment in front, as cameras write it."""
    return whole[:2] + b"\xff\xe1" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail + whole[2:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", [b"", b"\0", b"\0" * 20_000, b"some text", b"\xff\xd8\xff" * 3000])
def test_whatever_follows_a_whole_jpeg(kind, behind):
    whole = jpeg(kind)
    for each in (whole, with_thumbnail(whole, jpeg(image=pixels((30, 40))))):
        assert not cut_short(each + behind)
        np.testing.assert_array_equal(decode(each + behind), decode(whole))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [b"", b"\0" * 500, b"\xff" * 3])
def test_a_jpeg_without_its_end(kind, padding):
    whole = jpeg(kind)
    start = whole.rindex(b"\xff\xda") + 14
    thumbnail = jpeg(image=pixels((60, 60)))
    for end in (*range(start, len(whole) - 2, 97), len(whole) - 2):
        for each in (whole[:end] + padding, with_thumbnail(whole[:end], thumbnail) + padding):
            assert cut_short(each)
            with pytest.raises(ValueError, match="is a JPEG that is cut short|is not an image that can"):
                decode(each)


@pytest.mark.parametrize("kind", ["baseline", "restarts", "optimised"])
@pytest.mark.parametrize("size", [(112, 112), (100, 90)])
def test_a_jpeg_that_was_cut_and_closed_again(kind, size):
    whole = jpeg(kind, pixels(size))
    start = whole.rindex(b"\xff\xda") + 14
    for end in range(start, len(whole) - 250, 97):
        with pytest.raises(ValueError, match="lacks the end of its picture"):
            decode(whole[:end] + END)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_grey_lacks_nothing(kind):
    """OpenCV fills up with this grey."""
    grey = np.full((112, 112, 3), 128, np.uint8)
    assert (decode(jpeg(kind, grey)) == 128).all()
    half = pixels()
    half[60:] = 128
    assert decode(jpeg(kind, half))[-1, -1].tolist() == [128] * 3


@pytest.mark.parametrize("kind", ["baseline", "restarts", "optimised"])
def test_to_look_for_missing_data_is_no_complaint_of_libjpegs(kind, capfd):
    half = pixels()
    half[60:] = 128
    decode(jpeg(kind, half))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("form", [".png", ".bmp", ".webp"])
def test_other_forms_that_are_cut(form):
    whole = cv2.imencode(form, pixels())[1].tobytes()
    assert decode(whole).shape == (112, 112, 3)
    for share in (0.3, 0.9, 0.999):
        with pytest.raises(ValueError, match="is not an image that can be decoded"):
            decode(whole[: int(len(whole) * share)])
