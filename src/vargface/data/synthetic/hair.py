"""Hair and hats: where they lie on the head, what they look like, and how far they stand out."""

from __future__ import annotations

import cv2
import numpy as np

from vargface.data.synthetic.brush import Brush, coloured, grain
from vargface.data.synthetic.head import COLUMNS, ROWS, TEXTURE_HEIGHT, TEXTURE_WIDTH, Layout, clip
from vargface.data.synthetic.identity import Identity
from vargface.data.synthetic.view import View

__all__ = ["hair_colour", "paint_hair"]

_DEGREES = np.linspace(-165, 165, 67)
_ANGLES, _ASIDE = np.deg2rad(_DEGREES), np.abs(_DEGREES)
_CAP_WIDTH = np.exp(-((np.linspace(-1.65, 1.65, COLUMNS) / 0.55) ** 4))


def hair_colour(identity: Identity, view: View) -> tuple[np.ndarray, float]:
    """Colour (3,) of the hair in this picture and how grey it is, 0..1."""
    grey = min(max((view.age - identity.greys_at) / 18, 0.0), 1.0)
    colour = identity.hair * (1 - grey) + np.array([0.72, 0.71, 0.7]) * grey
    return (colour if view.hair_dye is None else view.hair_dye), grey


def _hair_region(identity: Identity, view: View, style: str) -> np.ndarray:
    """The hair's lower edge: level y for each of the angles -165..165 degrees (67,)."""
    angle, a = _DEGREES, _ASIDE
    recede = identity.recedes * min(max((view.age - 25) / 40, 0.0), 1.0)
    front = identity.hairline - recede
    front = front + identity.hairline_peak * np.exp(-((angle / 14) ** 2))
    front = front - (identity.hairline_temple + recede * 0.5) * np.exp(-(((a - 33) / 11) ** 2)) * 0.7
    if style == "fringe":
        front = np.maximum(front, -19 + 3 * np.cos(angle / 9))
    if style == "swept":
        sweep = 16 * clip((angle * np.sign(identity.parting + 1e-6) + 10) / 60, 0, 1)
        front = front + sweep
    side = {"cropped": 2, "short": 7, "swept": 8, "fringe": 12, "curly": 16, "long": 80, "tied": 0}.get(style, -30)
    temple = clip((a - 50) / 22, 0, 1)
    edge = front * (1 - temple) + temple * side
    if style != "long":
        # Around the ear, and down to the nape behind it.
        edge = np.where(np.abs(a - 97) < 13, np.minimum(edge, -4), edge)
        edge = np.where(a > 110, 30, edge)
    if style == "bald":
        edge = np.where(a > 62, clip(-22 + (a - 62) * 0.9, -22, 25), -200)
    return edge


def _above(layout: Layout, edge: np.ndarray) -> np.ndarray:
    """Mask (H, W) uint8, 0 or 255, of the head above levels `edge` (67,) given for angles -165..165 degrees."""
    line = layout.texture(_ANGLES, edge)
    right, left = [[TEXTURE_WIDTH + 9, line[-1, 1]], [TEXTURE_WIDTH + 9, -9]], [[-9, -9], [-9, line[0, 1]]]
    mask = np.zeros((TEXTURE_HEIGHT, TEXTURE_WIDTH), np.uint8)
    cv2.fillPoly(mask, [(np.concatenate([line, right, left]) * 16 + 0.5).astype(np.int32)], 255, cv2.LINE_8, 4)
    return mask


def _coarse(mask: np.ndarray) -> np.ndarray:
    """The mask as (ROWS, COLUMNS) float32, 0..1."""
    return cv2.resize(mask, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def paint_hair(brush: Brush, identity: Identity, view: View, shift: int) -> np.ndarray:
    """Paint hair and hat; returns how far they stand out from the head, (ROWS, COLUMNS) float32, in face pixels."""
    style = view.hair_style or identity.hair_style
    colour, grey = hair_colour(identity, view)
    _, strands, curls = grain()
    rough = {"curly": 2.5, "cropped": 0.6, "tied": 0.4}.get(style, 1.3)
    jagged = np.roll(curls[shift % TEXTURE_HEIGHT, : 4 * len(_ANGLES) : 4], shift) / 40.0 - 3.2
    close = style in ("cropped", "bald")
    mask = _above(brush.layout, _hair_region(identity, view, style) + rough * jagged)
    hair = coloured(curls if style == "curly" else strands, shift, clip(colour, 0.03, 1), 0.16 + 0.1 * grey)
    if close:
        weight = cv2.GaussianBlur(mask, (7, 7), 2.2) * np.float32(0.75 / 255)
        brush.canvas = cv2.blendLinear(hair, brush.canvas, weight, 1 - weight)
    else:
        cv2.copyTo(hair, mask, brush.canvas)
    volumes = {"bald": 0.5, "cropped": 0.8, "tied": 1.5, "curly": 5 + identity.hair_volume}
    volume = volumes.get(style, 1.5 + identity.hair_volume)
    height = cv2.GaussianBlur(_coarse(mask), (0, 0), 1.1) * np.float32(volume)
    return _paint_hat(brush, view, height, shift) if view.hat else height


def _paint_hat(brush: Brush, view: View, height: np.ndarray, shift: int) -> np.ndarray:
    """Paint a hat over the hair; returns the heights with the hat's."""
    low = {"cap": -24.0, "beanie": -21.0, "scarf": -27.0}[view.hat]
    sides = {"cap": -12.0, "beanie": 2.0, "scarf": 90.0}[view.hat]
    edge = low + (sides - low) * clip((_ASIDE - 45) / 40, 0, 1)
    mask = _above(brush.layout, edge)
    cloth = coloured(grain()[0 if view.hat == "beanie" else 2], shift, view.cloth, 0.07)
    cv2.copyTo(cloth, mask, brush.canvas)
    band = _coarse(mask)
    out = 5.0 * band
    if view.hat == "cap":
        rim = np.exp(-(((brush.layout.y - low + 3) / 3.0) ** 2))[:, None]
        out = out + 15 * (_CAP_WIDTH * rim * band).astype(np.float32)
    return np.where(band > 0.5, out, np.minimum(height, 4)).astype(np.float32)
