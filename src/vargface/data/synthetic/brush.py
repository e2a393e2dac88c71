"""A brush that paints polygons and lines, given in face coordinates, on the texture of the head."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from vargface.data.synthetic.head import TEXTURE_HEIGHT, TEXTURE_WIDTH, Layout, clip

__all__ = ["Brush", "coloured", "curve", "grain"]


@functools.lru_cache(maxsize=1)
def grain() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fixed patterns (H, 2 W), 0..255, mean 128 and deviation 40, each twice side by side: skin, hair strands, curls.

    As intp, because indexing with anything narrower takes three times as long.
    """
    rng = np.random.default_rng(20191008)
    patterns = []
    for width, height in ((1.0, 1.0), (0.8, 12.0), (2.4, 2.4)):
        noise = rng.standard_normal((TEXTURE_HEIGHT, TEXTURE_WIDTH)).astype(np.float32)
        noise = cv2.GaussianBlur(noise, (0, 0), width, sigmaY=height)
        patterns.append(np.tile(np.clip(128 + 40 * noise / noise.std(), 0, 255).astype(np.intp), (1, 2)))
    return tuple(patterns)


def coloured(pattern: np.ndarray, shift: int, colour: np.ndarray, depth: float) -> np.ndarray:
    """The pattern, rolled by `shift` columns, in shades of `colour`: (H, W, 4) uint8 RGBA; `depth`: deviation."""
    shift %= TEXTURE_WIDTH
    level = 1 + depth * (np.arange(256, dtype=np.float32)[:, None] - 128) / 40
    table = np.full((256, 4), 255, np.uint8)
    table[:, :3] = clip(level * np.float32(colour) * 255, 0, 255)
    rolled = pattern[:, shift : shift + TEXTURE_WIDTH]
    return table.view(np.uint32)[:, 0][rolled].view(np.uint8).reshape(*rolled.shape, 4)


def curve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points (n, 2) of these coordinates; `y` may be one for all."""
    points = np.empty((len(x), 2))
    points[:, 0], points[:, 1] = x, y
    return points


class _Stroke(NamedTuple):
    shapes: Sequence[np.ndarray]
    within: Sequence[np.ndarray]
    colour: np.ndarray
    opacity: float
    soft: float
    width: float


class Brush:
    """Paints polygons and lines given in face coordinates on the texture `canvas` (H, W, 4) uint8 RGBA.

    Strokes are only noted down; `finish` finds the places of all of them at once and paints them in order.
    """

    def __init__(self, layout: Layout, colour: np.ndarray, shift: int) -> None:
        self.layout = layout
        self.canvas = coloured(grain()[0], 3 * shift, colour, 0.018)
        self._strokes: list[_Stroke] = []

    def shape(self, polygons, colour, opacity=1.0, soft=0.0, within=()) -> None:
        """Fill polygons, each (n, 2) face points; `soft` blurs their edges, polygons `within` keep them inside."""
        self._strokes.append(_Stroke(polygons, within, colour, opacity, soft, 0.0))

    def line(self, lines, colour, width, opacity=1.0, soft=0.0) -> None:
        """Draw open lines, each (n, 2) face points, `width` face pixels thick."""
        self._strokes.append(_Stroke(lines, (), colour, opacity, soft, width))

    def finish(self) -> None:
        """Paint the strokes noted so far."""
        # Places, boxes and colours of all the strokes at once: one by one they cost more than the painting.
        strokes, self._strokes = self._strokes, []
        pieces = [[*stroke.shapes, *stroke.within] for stroke in strokes]
        places = self.layout.place(np.concatenate([piece for group in pieces for piece in group]))
        fixed = (places * 16 + 0.5).astype(np.int32)
        starts = np.cumsum([0] + [sum(map(len, group)) for group in pieces[:-1]])
        margin = np.array([[2 + 2 * stroke.soft + stroke.width] for stroke in strokes])
        lows = np.maximum(np.minimum.reduceat(places, starts) - margin, 0).astype(int).tolist()
        highs = np.maximum(np.maximum.reduceat(places, starts) + margin + 2, 0).astype(int).tolist()
        paints = np.full((len(strokes), 4), 255, np.uint8)
        paints[:, :3] = clip(np.array([stroke.colour for stroke in strokes]) * 255, 0, 255)
        masks = np.zeros((2, TEXTURE_HEIGHT, TEXTURE_WIDTH), np.uint8)
        end = 0
        for stroke, group, low, high, paint in zip(strokes, pieces, lows, highs, paints.view(np.uint32)[:, 0]):
            shapes = []
            for piece in group:
                shapes.append(fixed[end : end + len(piece)])
                end += len(piece)
            self._paint(masks, stroke, shapes, np.s_[low[1] : high[1], low[0] : high[0]], paint)

    def _paint(self, masks: np.ndarray, stroke: _Stroke, shapes: list, box: tuple, paint: np.uint32) -> None:
        """Paint one stroke inside `box` with the pixel `paint`; `masks` (2, H, W) is blank before and after."""
        patch, (mask, inside) = self.canvas[box], masks
        if not patch.size:
            return
        count = len(stroke.shapes)
        if stroke.width:
            cv2.polylines(mask, shapes, False, 255, max(1, int(stroke.width * 1.75 + 0.5)), cv2.LINE_AA, 4)
        else:
            cv2.fillPoly(mask, shapes[:count], 255, cv2.LINE_AA, 4)
        weight = cv2.GaussianBlur(mask[box], (0, 0), 0.65 * stroke.soft) if stroke.soft else mask[box]
        if stroke.within:
            cv2.fillPoly(inside, shapes[count:], 255, cv2.LINE_AA, 4)
            weight = cv2.min(weight, inside[box])
            inside[box] = 0
        weight = weight * np.float32(stroke.opacity / 255)
        full = np.full(patch.shape[:2], paint).view(np.uint8).reshape(patch.shape)
        cv2.blendLinear(full, patch, weight, 1 - weight, dst=patch)
        mask[box] = 0
