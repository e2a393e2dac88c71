"""Who somebody is: the parameters of a synthetic face that no photograph of it changes.

Lengths are in pixels of the aligned 112 x 112 face seen from the front: the eye line is y = 0, y grows downwards, x = 0
is the middle of the face. Colours are RGB, 0..1. Factors multiply an average face.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

__all__ = ["HAIR_COLOURS", "HAIR_STYLES", "Identity"]

HAIR_STYLES = ("bald", "cropped", "short", "swept", "fringe", "curly", "long", "tied")

# Pale to dark; an identity lies somewhere on the line through them.
_SKIN = np.array([[247, 214, 194], [231, 184, 153], [198, 146, 110], [146, 97, 70], [92, 60, 46]], np.float32) / 255
HAIR_COLOURS = (
    np.array(
        [
            [22, 19, 20],
            [48, 32, 24],
            [84, 54, 34],
            [124, 82, 48],
            [178, 138, 86],
            [214, 182, 128],
            [142, 62, 30],
            [92, 86, 84],
        ],
        np.float32,
    )
    / 255
)
_IRIS = (
    np.array([[52, 32, 20], [92, 58, 30], [112, 96, 50], [80, 116, 78], [84, 130, 172], [118, 136, 148]], np.float32)
    / 255
)


def _between(low: float, high: float):
    """A field drawn uniformly from [low, high]."""
    return field(metadata={"range": (low, high)})


def _one_of(*choices):
    """A field drawn uniformly from `choices`."""
    return field(metadata={"choices": choices})


@dataclass(frozen=True)
class Identity:
    """One synthetic person; `Identity.draw(rng)` makes one. Two people differ in about 60 numbers."""

    # Head
    head_width: float = _between(0.85, 1.12)
    jaw_width: float = _between(0.8, 1.2)
    jaw_square: float = _between(1.2, 4.0)
    chin_length: float = _between(-8.0, 9.0)
    chin_forward: float = _between(-3.0, 6.0)
    chin_cleft: float = _between(-1.5, 2.0)
    forehead_width: float = _between(0.92, 1.08)
    cheekbone: float = _between(-2.0, 6.0)
    cheek_full: float = _between(-6.0, 6.0)
    brow_ridge: float = _between(-1.0, 5.0)
    ear_size: float = _between(0.75, 1.3)
    ear_out: float = _between(1.0, 9.0)
    # Eyes
    eye_gap: float = _between(14.8, 20.2)
    eye_width: float = _between(6.4, 10.2)
    eye_open: float = _between(0.36, 0.7)
    eye_slant: float = _between(-0.3, 0.32)
    eye_peak: float = _between(-0.45, 0.45)
    eye_depth: float = _between(2.0, 8.0)
    eyelid: str = _one_of("none", "crease", "crease", "hooded")
    iris_size: float = _between(0.82, 1.12)
    lashes: float = _between(0.25, 1.0)
    # Brows
    brow_height: float = _between(7.5, 16.5)
    brow_thick: float = _between(0.8, 5.2)
    brow_length: float = _between(0.8, 1.25)
    brow_arch: float = _between(-1.5, 6.5)
    brow_tilt: float = _between(-0.28, 0.34)
    brow_gap: float = _between(-2.5, 3.5)
    brow_dark: float = _between(0.35, 0.95)
    # Nose
    nose_length: float = _between(14.0, 27.0)
    nose_width: float = _between(5.6, 14.0)
    nose_tip: float = _between(8.5, 20.0)
    nose_bridge: float = _between(0.5, 9.0)
    nose_bridge_width: float = _between(2.8, 5.6)
    nose_hook: float = _between(-2.5, 3.5)
    nose_up: float = _between(-2.0, 3.0)
    nostril: float = _between(0.5, 1.4)
    # Mouth
    mouth_height: float = _between(35.5, 46.5)
    mouth_width: float = _between(10.0, 19.5)
    upper_lip: float = _between(1.0, 5.6)
    lower_lip: float = _between(1.6, 7.2)
    cupid_bow: float = _between(0.0, 1.8)
    mouth_curve: float = _between(-2.6, 2.6)
    lip_red: float = _between(0.05, 0.85)
    philtrum: float = _between(0.0, 0.5)
    # Skin and hair
    skin_tone: float = _between(0.0, 4.0)
    skin_red: float = _between(-0.05, 0.07)
    blush: float = _between(0.0, 0.3)
    freckles: float = field(metadata={"sometimes": (0.3, 0.3, 1.0)})
    hair_style: str = _one_of(*HAIR_STYLES)
    hair_volume: float = _between(1.0, 9.0)
    hairline: float = _between(-46.0, -31.0)
    hairline_peak: float = _between(-6.0, 7.0)
    hairline_temple: float = _between(-4.0, 11.0)
    parting: float = _between(-0.6, 0.6)
    greys_at: float = _between(35.0, 75.0)
    recedes: float = field(metadata={"sometimes": (0.4, 4.0, 16.0)})
    beard_grows: float = field(metadata={"sometimes": (0.45, 0.4, 1.0)})
    # Drawn as arrays, below
    skin: np.ndarray = field(default=None, repr=False)
    hair: np.ndarray = field(default=None, repr=False)
    iris: np.ndarray = field(default=None, repr=False)
    moles: np.ndarray = field(default=None, repr=False)  # (n, 4): x, y, radius, darkness
    freckle_places: np.ndarray = field(default=None, repr=False)  # (n, 3): x, y, radius
    scar: np.ndarray | None = field(default=None, repr=False)  # (k, 2): a line on the skin

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Identity:
        """A person drawn from `rng`; equal generators give equal people."""
        values = {f.name: _draw_field(rng, f.metadata) for f in fields(cls) if f.metadata}
        tone = values["skin_tone"]
        skin = np.array([np.interp(tone, range(len(_SKIN)), _SKIN[:, c]) for c in range(3)], np.float32)
        skin += values["skin_red"] * np.array([0.6, -0.4, -0.2], np.float32)
        values["skin"] = np.clip(skin, 0.05, 1.0)
        # Dark skin goes with dark hair and eyes more often than not, as among people.
        light = max(0.0, 1 - tone / 3.2)
        hair = (
            HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))]
            if rng.random() < 0.25 + light
            else HAIR_COLOURS[rng.integers(2)]
        )
        values["hair"] = np.clip(hair * rng.uniform(0.8, 1.2), 0, 1).astype(np.float32)
        iris = _IRIS[rng.integers(len(_IRIS))] if rng.random() < 0.15 + light else _IRIS[rng.integers(2)]
        values["iris"] = (iris * rng.uniform(0.8, 1.2)).astype(np.float32)
        count = rng.choice(5, p=[0.35, 0.25, 0.2, 0.12, 0.08])
        values["moles"] = np.stack(
            [
                rng.uniform(-34, 34, count),
                rng.uniform(-28, 56, count),
                rng.uniform(0.7, 1.7, count),
                rng.uniform(0.4, 0.8, count),
            ],
            axis=1,
        )
        count = int(values["freckles"] * 90)
        values["freckle_places"] = np.stack(
            [rng.normal(0, 17, count), rng.normal(14, 8, count), rng.uniform(0.3, 0.75, count)], axis=1
        )
        values["scar"] = _draw_scar(rng) if rng.random() < 0.15 else None
        return cls(**values)


def _draw_field(rng: np.random.Generator, how: dict):
    """One value drawn as the field's metadata says."""
    if "range" in how:
        return float(rng.uniform(*how["range"]))
    if "choices" in how:
        return how["choices"][rng.integers(len(how["choices"]))]
    chance, low, high = how["sometimes"]
    there, value = rng.random(), rng.uniform(low, high)
    return float(value) if there < chance else 0.0


def _draw_scar(rng: np.random.Generator) -> np.ndarray:
    """A slightly bent line (4, 2) somewhere on the cheeks, chin or forehead."""
    start = np.array([rng.uniform(-30, 30), rng.choice([rng.uniform(-30, -18), rng.uniform(12, 50)])])
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(8, 18)
    along = np.linspace(0, length, 4)[:, None] * np.array([np.cos(angle), np.sin(angle)])
    return start + along + rng.normal(0, 0.6, (4, 2))
