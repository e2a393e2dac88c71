"""A brush that paints polygons and lines, given in face coordinates, on the texture of the head."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from vargface.data.synthetic.head import TEXTURE_HEIGHT, TEXTURE_WIDTH, Layout

__all__ = ["Brush", "coloured", "grain"]


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
    table[:, :3] = np.clip(level * np.float32(colour) * 255, 0, 255)
    rolled = pattern[:, shift : shift + TEXTURE_WIDTH]
    return table.view(np.uint32)[:, 0][rolled].view(np.uint8).reshape(*rolled.shape, 4)


class Brush:
    """Paints polygons and lines given in face coordinates on the texture `canvas` (H, W, 4) uint8 RGBA.

    Strokes are only noted down; `finish` finds the places of all of them at once and paints them in order.
    """

    def __init__(self, layout: Layout, colour: np.ndarray, shift: int) -> None:
        self.layout = layout
        self.canvas = coloured(grain()[0], 3 * shift, colour, 0.018)
        self._strokes: list[tuple] = []

    def shape(self, polygons, colour, opacity=1.0, soft=0.0, within=None) -> None:
        """Fill polygons, each (n, 2) face points; `soft` blurs their edges, polygons `within` keep them inside."""
        self._strokes.append((polygons, within or [], colour, opacity, soft, 0.0))

    def line(self, lines, colour, width, opacity=1.0, soft=0.0) -> None:
        """Draw open lines, each (n, 2) face points, `width` face pixels thick."""
        self._strokes.append((lines, [], colour, opacity, soft, width))

    def finish(self) -> None:
        """Paint the strokes noted so far."""
        pieces = [np.asarray(p, np.float64) for stroke in self._strokes for p in (*stroke[0], *stroke[1])]
        ends = np.cumsum([len(piece) for piece in pieces])
        places = self.layout.place(np.concatenate(pieces))
        starts = np.r_[0, ends[:-1]]
        # Boxes of all the shapes at once: one by one they cost more than the painting.
        lows = np.minimum.reduceat(places, starts, axis=0)
        highs = np.maximum.reduceat(places, starts, axis=0)
        fixed = (places * 16 + 0.5).astype(np.int32)
        shapes = [fixed[start:end] for start, end in zip(starts, ends)]
        masks = np.zeros((2, TEXTURE_HEIGHT, TEXTURE_WIDTH), np.uint8)
        k = 0
        for polygons, within, colour, opacity, soft, width in self._strokes:
            middle, end = k + len(polygons), k + len(polygons) + len(within)
            margin = 2 + int(2 * soft) + int(width)
            left, top = np.maximum(lows[k:middle].min(axis=0).astype(int) - margin, 0)
            right, bottom = highs[k:middle].max(axis=0).astype(int) + margin + 2
            box = (slice(top, max(bottom, 0)), slice(left, max(right, 0)))
            self._blend(
                masks, box, shapes[k:middle], shapes[middle:end], np.float32(colour), opacity, 0.65 * soft, width
            )
            k = end
        self._strokes = []

    def _blend(self, masks, box, shapes, within, colour, opacity, soft, width) -> None:
        """Paint one stroke inside `box`; `masks` (2, H, W) is blank before and after."""
        patch = self.canvas[box]
        if not patch.size:
            return
        if width:
            cv2.polylines(masks[0], shapes, False, 255, max(1, int(width * 1.75 + 0.5)), cv2.LINE_AA, 4)
        else:
            cv2.fillPoly(masks[0], shapes, 255, cv2.LINE_AA, 4)
        mask = masks[0][box]
        weight = cv2.GaussianBlur(mask, (0, 0), soft) if soft > 0 else mask
        if within:
            cv2.fillPoly(masks[1], within, 255, cv2.LINE_AA, 4)
            weight = cv2.min(weight, masks[1][box])
            masks[1].fill(0)
        weight = weight * np.float32(opacity / 255)
        full = np.empty_like(patch)
        full[..., :3] = np.minimum(np.maximum(colour * 255, 0), 255)
        full[..., 3] = 255
        patch[:] = cv2.blendLinear(full, np.ascontiguousarray(patch), weight, 1 - weight)
        mask.fill(0)
