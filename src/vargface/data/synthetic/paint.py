"""The colours of the face: eyes, brows, nose, lips, marks and wrinkles, painted flat on the head's texture."""

from __future__ import annotations

import numpy as np

from vargface.data.synthetic.brush import Brush, curve
from vargface.data.synthetic.hair import hair_colour
from vargface.data.synthetic.head import Layout, bumps, clip
from vargface.data.synthetic.identity import Identity
from vargface.data.synthetic.view import View

__all__ = ["paint_face", "tint"]

_S = np.linspace(-1, 1, 17)
_FOLD, _FOREHEAD, _ALONG_BROW = np.linspace(0, 1, 7)[:, None], np.linspace(-20, 20, 9), np.linspace(0, 1, 14)
_CROWS_FEET = [np.linspace(1.5, 8, 4)[:, None] * [np.cos(angle), np.sin(angle)] for angle in (-0.45, -0.05, 0.4)]
_NOSE_WING = curve(1.1 * np.cos(np.linspace(-1.1, 1.2, 8)), 4.0 * np.sin(np.linspace(-1.1, 1.2, 8)))
_TURN = np.linspace(0, 2 * np.pi, 19, endpoint=False)
_ROUND = curve(np.cos(_TURN), np.sin(_TURN))
_MIRROR = np.array([-1.0, 1.0])


def tint(identity: Identity, view: View, layout: Layout) -> np.ndarray:
    """What blush, eye sockets, stubble and shadows multiply the light by: (3, ROWS, COLUMNS) float32."""
    n, mouth, nose = identity, layout.mouth_y, layout.nose_y
    old = max(0.0, view.age - 40) / 35
    blush = n.blush + 0.12 * view.makeup
    dark = [(0, mouth + 9, 8, 3, 0.10), (0, nose + 4.5, n.nose_width * 0.9, 2.2, 0.22)]
    red = [(0, nose - 1, n.nose_width * 0.7, 5, 0.10 + 0.2 * n.blush)]
    for side in (-1, 1):
        dark += [
            (side * n.eye_gap * 0.93, -3, 8.5, 5.0, 0.02 * n.eye_depth + 0.14 * view.makeup),
            (side * n.eye_gap, 7, 7, 3, 0.05 + 0.12 * old),
            (side * n.nose_width * 1.05, nose + 1, 2.4, 4.5, 0.08),
            (side * n.eye_gap * 0.45, -1, 3.5, 7, 0.05 + 0.012 * n.nose_bridge),
        ]
        red += [(side * 25, 17, 10, 9, blush)]
    beard = view.beard * n.beard_grows * 0.42
    dark += [(0, mouth + 16, 24, 11, beard), (-24, mouth + 2, 8, 15, beard * 0.7), (24, mouth + 2, 8, 15, beard * 0.7)]
    dark += [(0, mouth - 8, 11, 2.6, beard)]
    shade = 1 - clip(bumps(layout, dark), 0, 0.75)
    flush = clip(bumps(layout, red), 0, 0.6)
    return np.array([shade, shade * (1 - 0.55 * flush), shade * (1 - 0.45 * flush)])


def _mirrored(points) -> list[np.ndarray]:
    """The same points (n, 2) on the right and on the left of the face."""
    points = np.asarray(points, np.float64)
    return [points, points * _MIRROR]


def _band(x: np.ndarray, top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """The polygon (2 n, 2) between two curves over the same x."""
    return np.concatenate([curve(x, top), curve(x, bottom)[::-1]])


def _eye_outline(identity: Identity, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower lid lines (17, 2) of the right eye of the picture, from the inner corner to the outer."""
    n = identity
    old = max(0.0, view.age - 45) / 30
    height = n.eye_width * n.eye_open * (1 - 0.92 * view.eye_close) * (1 + 0.1 * max(0.0, view.brow_raise) - 0.12 * old)
    height *= 1 - 0.25 * max(0.0, view.smile)
    arch = 1 - np.abs(_S) ** 2.2
    upper = arch * (1 + n.eye_peak * _S) * height * 1.15
    lower = arch * (1 - 0.5 * n.eye_peak * _S) * height * 0.62
    x = n.eye_gap + _S * n.eye_width
    slope = -n.eye_slant * _S * n.eye_width * 0.8 + 0.8 * old * (_S > 0) * _S
    shut = 0.8 * view.eye_close
    return curve(x, slope - upper + shut), curve(x, slope + lower + shut)


def _paint_eyes(brush: Brush, identity: Identity, view: View) -> None:
    n, skin = identity, identity.skin
    old = max(0.0, view.age - 40) / 35
    upper, lower = _eye_outline(n, view)
    outlines = _mirrored(np.concatenate([upper, lower[::-1]]))
    lid = np.concatenate([upper - [0, 2.6], lower[::-1] + [0, 0.6]])
    brush.shape(_mirrored(lid), skin * (0.9 - 0.25 * view.makeup), 0.55, 1.5)
    brush.shape(outlines, np.array([0.93, 0.91, 0.89]) - 0.06 * old, 1.0)
    centres = [np.array([n.eye_gap * side + view.gaze[0] * 1.6, view.gaze[1] * 0.8 - 0.7]) for side in (-1, 1)]
    radius = 4.1 * n.iris_size
    for size, colour in ((1.0, n.iris * 0.45), (0.84, n.iris * 1.05), (0.42, np.full(3, 0.03))):
        brush.shape([c + _ROUND * radius * size for c in centres], colour, 1.0, within=outlines)
    brush.shape([c + [-1.1, -1.2] + _ROUND[::2] * 0.75 for c in centres], np.ones(3), 0.9, within=outlines)
    # The lid's shadow on the eyeball.
    shadow = np.concatenate([upper, upper[::-1] + [0, 1.5]])
    brush.shape(_mirrored(shadow), np.full(3, 0.12), 0.45, 0.6, within=outlines)
    lash = 0.35 + 0.9 * n.lashes + 0.6 * view.makeup
    brush.line(_mirrored(upper), n.hair * 0.15 + 0.02, lash * 0.85, 0.9)
    brush.line(_mirrored(lower[6:]), skin * 0.4, 0.5, 0.25 + 0.35 * n.lashes + 0.2 * view.makeup)
    if n.eyelid != "none":
        lift = (2.2 if n.eyelid == "crease" else 0.9) + 1.6 * view.eye_close
        brush.line(_mirrored(upper[2:] - [0, lift]), skin * 0.55, 0.55, 0.7, 0.5)
    if n.eyelid == "hooded":
        hood = np.concatenate([upper[8:] - [0, 3.2], upper[:7:-1] + [0, 0.5]])
        brush.shape(_mirrored(hood), skin * 0.93, 0.85, 0.6)
    if old > 0:
        brush.line(_mirrored(curve(lower[:, 0], 4.6 + 2.2 * (1 - _S**2))[2:-1]), skin * 0.6, 0.6, 0.55 * old, 1.0)
        crows_feet = [foot for ray in _CROWS_FEET for foot in _mirrored(upper[-1] + ray)]
        brush.line(crows_feet, skin * 0.6, 0.4, 0.6 * old, 0.6)


def _paint_brows(brush: Brush, identity: Identity, view: View, colour: np.ndarray) -> None:
    n = identity
    s = _ALONG_BROW
    inner, outer = 5.5 + n.brow_gap, 5.5 + n.brow_gap + 19.5 * n.brow_length
    x = inner + (outer - inner) * s
    middle = (
        -n.brow_height - 2.2 * view.brow_raise - n.brow_arch * np.sin(np.pi * s**1.35) - n.brow_tilt * 18 * (s - 0.5)
    )
    middle += np.maximum(0, -view.brow_raise) * 1.6 * (1 - s)
    thin = 1 - 0.3 * max(0.0, view.age - 50) / 25
    half = n.brow_thick * 0.62 * thin * clip(1.25 - s, 0.12, 1) * clip(0.55 + 3 * s, 0, 1)
    opacity = min(1.0, n.brow_dark + 0.15 * view.makeup)
    brush.shape(_mirrored(_band(x, middle - half, middle + half)), colour, opacity * 0.9, 1.0)
    brush.line(_mirrored(curve(x, middle)[1:-2]), colour * 0.7, 0.5 * n.brow_thick, opacity * 0.5, 0.8)


def _paint_nose(brush: Brush, identity: Identity, layout: Layout) -> None:
    n, y, skin = identity, layout.nose_y, identity.skin
    hole = _ROUND * [1.9 * n.nostril * n.nose_width / 9, 1.05 * n.nostril]
    brush.shape(_mirrored([n.nose_width * 0.42, y + 3.2 - 0.5 * n.nose_up] + hole), skin * 0.22, 0.85, 0.9)
    wing = [n.nose_width * 0.86, y + 1] + _NOSE_WING
    brush.line(_mirrored(wing), skin * 0.5, 0.6, 0.45, 0.8)
    brush.shape([[0, y - 2.5] + _ROUND * [1.8, 1.6]], np.minimum(skin * 1.25, 1), 0.25, 1.5)
    bottom = layout.mouth_y - n.upper_lip - 1.5
    brush.line(_mirrored([[1.7, y + 6], [2.2, bottom]]), skin * 0.6, 0.6, n.philtrum, 1.0)


def _paint_mouth(brush: Brush, identity: Identity, view: View, layout: Layout) -> None:
    n, y = identity, layout.mouth_y
    old = max(0.0, view.age - 45) / 30
    width = n.mouth_width * (1 + 0.16 * max(0.0, view.smile))
    ends = 1 - np.abs(_S) ** 2.0
    x = _S * width
    bend = -(2.6 * view.smile + n.mouth_curve * 0.6) * (_S**2 - 0.35)
    parted = 8.5 * view.mouth_open + 2.2 * max(0.0, view.smile - 0.45)
    bow = n.cupid_bow * (np.exp(-((_S / 0.13) ** 2)) - 0.45 * np.exp(-(((np.abs(_S) - 0.28) / 0.15) ** 2)))
    stretch = 1 - 0.25 * max(0.0, view.smile) - 0.3 * old
    top = y + bend - n.upper_lip * 1.05 * stretch * ends**0.75 + bow
    inner_top = y + bend - 0.3 * parted * ends
    inner_bottom = y + bend + 0.7 * parted * ends
    bottom = inner_bottom + n.lower_lip * stretch * ends**0.7
    red = np.array([0.72, 0.26, 0.28]) if view.makeup == 0 else np.array([0.72, 0.12, 0.2])
    amount = min(0.95, n.lip_red * 0.75 + 0.5 * view.makeup)
    lip = identity.skin * (1 - amount) * 0.88 + amount * red * (0.45 + 0.6 * identity.skin.mean())
    brush.shape([_band(x, top, inner_top)], lip * 0.86, 0.92, 0.7)
    brush.shape([_band(x, inner_bottom, bottom)], lip * 1.04, 0.92, 0.8)
    if parted > 0.6:
        brush.shape([_band(x, inner_top, inner_bottom)], np.array([0.22, 0.06, 0.06]), 1.0)
        teeth = np.minimum(inner_top + np.minimum(3.4, 0.75 * parted) * ends**0.5, inner_bottom)
        brush.shape([_band(x, inner_top, teeth)], np.array([0.92, 0.89, 0.83]) - 0.1 * old, 0.95, 0.5)
    else:
        brush.line([curve(x, (inner_top + inner_bottom) / 2)], lip * 0.4, 0.75, 0.85, 0.5)
    brush.shape([[0, y + 1.2 + parted * 0.7 + n.lower_lip * 0.45] + _ROUND * [width * 0.3, 0.8]], np.ones(3), 0.16, 1.2)
    brush.line([curve(x, bottom + 1.2)[4:13]], identity.skin * 0.55, 0.8, 0.35, 1.4)
    brush.shape(_mirrored([width + 0.6, y + bend[0]] + _ROUND * 1.1), identity.skin * 0.4, 0.45, 1.0)


def _paint_age(brush: Brush, identity: Identity, view: View, layout: Layout) -> None:
    old, skin, y = min(max((view.age - 32) / 40, 0.0), 1.1), identity.skin, layout.mouth_y
    wide = identity.mouth_width
    start, end = np.array([identity.nose_width + 1.5, layout.nose_y - 1]), np.array([wide + 5, y + 1 + 4 * old])
    bend = start + (end - start) * _FOLD + np.sin(np.pi * _FOLD) * [2.2, -0.5]
    brush.line(_mirrored(bend), skin * 0.58, 0.8, 0.1 + 0.45 * old + 0.24 * max(0.0, view.smile), 1.4)
    if old > 0.3:
        brush.line(_mirrored([[wide + 2, y + 3], [wide + 4, y + 13]]), skin * 0.55, 0.7, 0.5 * old, 1.3)
        brush.line(_mirrored([[2.4, -9], [2.2, -15]]), skin * 0.55, 0.6, 0.5 * old, 1.0)
    if old > 0.25 or view.brow_raise > 0.5:
        x, y = _FOREHEAD, -22.5 - 1.5 * view.brow_raise
        waves = [curve(x, y - 5 * k + 1.1 * np.cos(x / 7 + k)) for k in range(3)]
        brush.line(waves, skin * 0.58, 0.55, max(0.65 * old, 0.4 * view.brow_raise - 0.1), 0.9)


def paint_face(brush: Brush, identity: Identity, view: View) -> None:
    """Paint everything that lies in the skin of the face, hair excepted."""
    layout, skin = brush.layout, identity.skin
    if len(identity.freckle_places):
        places = identity.freckle_places[:, None]
        spots = places[..., :2] + _ROUND[::4] * places[..., 2:]
        brush.shape(spots, skin * [0.7, 0.52, 0.42], 0.35 + 0.35 * identity.freckles, 0.5)
    _paint_nose(brush, identity, layout)
    _paint_age(brush, identity, view, layout)
    _paint_mouth(brush, identity, view, layout)
    _paint_eyes(brush, identity, view)
    _paint_brows(brush, identity, view, hair_colour(identity, view)[0] * 0.75)
    for x, y, radius, darkness in identity.moles:
        brush.shape([[x, y] + _ROUND * radius], skin * (1 - darkness) * [1, 0.8, 0.75], 0.9, 0.6)
    if identity.scar is not None:
        brush.line([identity.scar], np.minimum(skin * [1.18, 1.05, 1.05] + 0.06, 1), 1.0, 0.8, 0.5)
        brush.line([identity.scar + [0.5, 0.6]], skin * 0.6, 0.5, 0.6, 0.6)
    brush.finish()
