"""How somebody was photographed: everything about a picture that says nothing of who is in it."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, fields, replace

import numpy as np

from vargface.data.synthetic.identity import HAIR_COLOURS, HAIR_STYLES

__all__ = ["View"]

KINDS = ("any", "frontal", "profile", "young", "old")


@dataclass(frozen=True)
class View:
    """One picture's pose, expression, age, light, camera and things in the way; angles in degrees, ages in years."""

    # Pose
    yaw: float
    pitch: float
    roll: float
    distance: float  # of the camera, in face pixels: nearer is more perspective
    landmark_noise: np.ndarray  # (5, 2): what a face detector gets wrong, in pixels
    # Age and expression
    age: float
    weight: float  # fuller or thinner cheeks than usual, -1..1
    smile: float  # -0.5..1
    mouth_open: float  # 0..1
    brow_raise: float  # -1..1
    eye_close: float  # 0..1
    gaze: tuple[float, float]
    # Hair and things worn
    hair_style: str | None  # another style than usual
    hair_dye: np.ndarray | None
    beard: float  # 0..1 of what can grow
    makeup: float
    glasses: str  # "", "clear", "sun"
    glasses_shape: tuple[float, float, float]  # width, height, squareness
    hat: str  # "", "cap", "beanie", "scarf"
    cloth: np.ndarray
    # In the way
    occluder: str  # "", "hand", "mask", "patch"
    occluder_place: tuple[float, float, float]
    # Light and camera
    light: np.ndarray  # (3,) unit vector towards the light: right, down, towards the camera
    light_colour: np.ndarray
    ambient: float
    shine: float
    white_balance: np.ndarray
    exposure: float
    gamma: float
    saturation: float
    blur: float
    motion: tuple[float, float]
    detail: float  # resolution before enlargement, 1 = full
    noise: float
    jpeg_quality: int  # of a first compression, before the stored one

    @classmethod
    def draw(cls, rng: np.random.Generator, kind: str = "any") -> View:
        """A picture drawn from `rng`.

        `kind` is "any", "frontal" (yaw within 18 degrees), "profile" (30 to 50), or frontal and "young" (18 to 28
        years) or "old" (58 to 78).
        """
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r}: expected one of {KINDS}")
        parts = {
            **_draw_pose(rng, kind),
            **_draw_expression(rng),
            **_draw_worn(rng, 1.0 if kind == "any" else 0.4),
            **_draw_light(rng),
            **_draw_camera(rng),
        }
        ages = {"young": (18, 28), "old": (58, 78)}
        parts["age"] = float(rng.uniform(*ages.get(kind, (18, 70) if kind == "any" else (22, 50))))
        return cls(**parts)

    @classmethod
    def plain(cls) -> View:
        """A passport picture: frontal, 30 years old, evenly lit, nothing in the way."""
        view = cls.draw(np.random.default_rng(0), "frontal")
        still = {f.name: 0.0 for f in fields(cls) if f.name in _STILL}
        return replace(
            view,
            **still,
            distance=700.0,
            landmark_noise=np.zeros((5, 2)),
            age=30.0,
            gaze=(0.0, 0.0),
            hair_style=None,
            hair_dye=None,
            glasses="",
            hat="",
            occluder="",
            light=np.array([0.2, -0.4, 0.9]),
            light_colour=np.ones(3),
            ambient=0.55,
            shine=0.1,
            white_balance=np.ones(3),
            exposure=1.0,
            gamma=1.0,
            saturation=1.0,
            motion=(0.0, 0.0),
            detail=1.0,
            jpeg_quality=95,
        )


_STILL = {
    "yaw",
    "pitch",
    "roll",
    "weight",
    "smile",
    "mouth_open",
    "brow_raise",
    "eye_close",
    "beard",
    "makeup",
    "blur",
    "noise",
}


def _draw_pose(rng: np.random.Generator, kind: str) -> dict:
    wide = kind == "profile" or (kind == "any" and rng.random() < 0.4)
    side = 1 if rng.random() < 0.5 else -1
    if wide:
        yaw = side * rng.uniform(*((30, 50) if kind == "profile" else (18, 58)))
    else:
        yaw = np.clip(rng.normal(0, 8), -18, 18)
    return {
        "yaw": float(yaw),
        "pitch": float(np.clip(rng.normal(0, 6.5), -16, 16)),
        "roll": float(rng.normal(0, 8)),
        "distance": float(rng.uniform(260, 900)),
        "landmark_noise": rng.normal(0, 0.6, (5, 2)),
    }


def _draw_expression(rng: np.random.Generator) -> dict:
    smile = rng.uniform(0.2, 1) if rng.random() < 0.45 else rng.uniform(-0.5, 0.2)
    return {
        "weight": float(rng.uniform(-1, 1)),
        "smile": float(smile),
        "mouth_open": float(rng.beta(1, 2.2)) if rng.random() < 0.3 else 0.0,
        "brow_raise": float(rng.uniform(-1, 1)),
        "eye_close": float(rng.beta(1, 5)),
        "gaze": (float(rng.uniform(-1, 1)), float(rng.uniform(-0.6, 0.6))),
    }


def _draw_one(rng: np.random.Generator, chances: dict[str, float]) -> str:
    """One of the names, each with its chance; the chances add up to 1."""
    names, place = list(chances), bisect.bisect(list(itertools.accumulate(chances.values())), rng.random())
    return names[min(place, len(names) - 1)]


def _draw_dye(rng: np.random.Generator) -> np.ndarray:
    """A hair colour (3,), natural as a rule."""
    return (
        rng.uniform(0.1, 0.7, 3).astype(np.float32)
        if rng.random() < 0.15
        else HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))]
    )


def _draw_worn(rng: np.random.Generator, often: float) -> dict:
    """What is worn and in the way; `often` multiplies the chances of what hides part of the face."""
    glasses = _draw_one(rng, {"": 0.84 - 0.06 * often, "clear": 0.16, "sun": 0.06 * often})
    hat = _draw_one(rng, {"": 1 - 0.2 * often, "cap": 0.08 * often, "beanie": 0.07 * often, "scarf": 0.05 * often})
    occluder = _draw_one(rng, {"": 1 - 0.12 * often, "hand": 0.06 * often, "mask": 0.02 * often, "patch": 0.04 * often})
    return {
        "hair_style": HAIR_STYLES[rng.integers(1, len(HAIR_STYLES))] if rng.random() < 0.2 else None,
        "hair_dye": _draw_dye(rng) if rng.random() < 0.2 else None,
        "beard": float(rng.uniform(0.2, 1)) if rng.random() < 0.5 else 0.0,
        "makeup": float(rng.uniform(0.3, 1)) if rng.random() < 0.25 else 0.0,
        "glasses": glasses,
        "glasses_shape": tuple(float(v) for v in rng.uniform([9.5, 6.0, 2.0], [13.0, 10.5, 5.0])),
        "hat": hat,
        "cloth": np.clip(rng.uniform(0.05, 0.9) + rng.normal(0, 0.16, 3), 0.03, 1).astype(np.float32),
        "occluder": occluder,
        "occluder_place": tuple(float(v) for v in rng.uniform(0, 1, 3)),
    }


def _draw_light(rng: np.random.Generator) -> dict:
    light = np.array([rng.normal(0, 0.65), rng.normal(-0.35, 0.45), rng.uniform(0.25, 1)])
    warmth = rng.normal(0, 0.09)
    return {
        "light": light / np.linalg.norm(light),
        "light_colour": np.array([1 + warmth, 1 + rng.normal(0, 0.02), 1 - warmth]),
        "ambient": float(rng.uniform(0.25, 0.65)),
        "shine": float(rng.uniform(0, 0.28)),
    }


def _draw_camera(rng: np.random.Generator) -> dict:
    moving = rng.random() < 0.08
    return {
        "white_balance": np.exp(rng.normal(0, 0.085, 3)),
        "exposure": float(np.exp(rng.normal(0, 0.2))),
        "gamma": float(np.exp(rng.normal(0, 0.2))),
        "saturation": 0.0 if rng.random() < 0.06 else float(rng.uniform(0.5, 1.3)),
        "blur": float(rng.uniform(0, 1.0)) if rng.random() < 0.35 else 0.0,
        "motion": tuple(float(v) for v in rng.normal(0, 2.2, 2)) if moving else (0.0, 0.0),
        "detail": float(rng.uniform(0.45, 1)) if rng.random() < 0.25 else 1.0,
        "noise": float(rng.uniform(0, 8)),
        "jpeg_quality": int(rng.integers(40, 96)),
    }
