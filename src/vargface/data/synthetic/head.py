"""The head as a surface, rows from crown to chin and columns around it: shape, pose and place in the picture.

Coordinates: x to the right of the picture, y down, z towards the camera, in pixels of the aligned frontal face, with
the origin between the eyes. A row of the surface is a level of the head, a column an angle around it (0 = the nose).
"""

from __future__ import annotations

import numpy as np

from vargface.data.synthetic.identity import Identity
from vargface.data.synthetic.view import View

__all__ = [
    "COLUMNS",
    "ROWS",
    "TEMPLATE",
    "TEXTURE_HEIGHT",
    "TEXTURE_WIDTH",
    "Layout",
    "Pose",
    "bumps",
    "clip",
    "landmarks",
    "surface",
]

# Where InsightFace's alignment puts eyes, nose tip and mouth corners in a 112 x 112 face.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)

ROWS, COLUMNS = 64, 68  # of the surface that is rotated and lit
TEXTURE_HEIGHT, TEXTURE_WIDTH = 256, 272  # of the picture painted on it

# Levels of an average head: crown, top, hairline, brow, eye, nose base, mouth, chin middle, chin, under the chin.
_LEVEL = np.array([-80.0, -68, -44, -14, 0, 22, 41, 53, 62, 66])
_HALF_WIDTH = np.array([10.0, 35, 43, 44.8, 44.2, 41.5, 37, 33.5, 30, 26])
_FRONT = np.array([6.0, 38, 50, 53, 50, 51, 52, 51, 49, 40])
_BACK = np.array([6.0, 42, 60, 64, 60, 52, 42, 34, 28, 22])
_JAW_CLIMB = 0.52  # of the height below the nose, from the chin to the ear

# Columns are dense in front and sparse behind.
_U = np.linspace(-1, 1, COLUMNS)
_THETA = np.deg2rad(100 * _U + 65 * _U**5)
_SIN, _COS = np.sin(_THETA).astype(np.float32), np.cos(_THETA).astype(np.float32)
_NOMINAL = np.linspace(_LEVEL[0], _LEVEL[-1], ROWS)
_RADIUS = 45.0  # of the cylinder on which bumps are laid out
_ACROSS = _RADIUS * np.where(_COS > 0, _SIN, np.sign(_SIN) * (2 - np.abs(_SIN)))  # where on it a column lies


def clip(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """`np.clip`, without the 8 us that it spends on each call before it starts (numpy 1.23)."""
    return np.minimum(np.maximum(values, low), high)


def _spline_basis(knots: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Matrix (len(at), len(knots)) that turns values at the knots into the natural cubic spline through them."""
    n, h = len(knots), np.diff(knots)
    system, right = np.eye(n), np.zeros((n, n))
    for i in range(1, n - 1):
        system[i, i - 1 : i + 2] = h[i - 1], 2 * (h[i - 1] + h[i]), h[i]
        right[i, i - 1 : i + 2] = 6 / h[i - 1], -6 / h[i - 1] - 6 / h[i], 6 / h[i]
    second = np.linalg.solve(system, right)
    k = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, n - 2)
    right_part = ((at - knots[k]) / h[k])[:, None]
    left_part, step, unit = 1 - right_part, h[k][:, None], np.eye(n)
    curved = ((left_part**3 - left_part) * second[k] + (right_part**3 - right_part) * second[k + 1]) * step**2 / 6
    return left_part * unit[k] + right_part * unit[k + 1] + curved


_BASIS = _spline_basis(_LEVEL, _NOMINAL)
# A face is flatter in front than an ellipse: the cosine's root brings the cheeks forward.
_DEPTH = np.where(_COS > 0, np.abs(_COS) ** 0.8 * (_BASIS @ _FRONT)[:, None], _COS * (_BASIS @ _BACK)[:, None]) - 50
_BEHIND_EAR = np.exp(-(((np.abs(np.rad2deg(_THETA)) - 97) / 9.0) ** 4))
_BRIDGE = np.linspace(0, 1, 6)  # of the nose: from between the eyes to the tip


class Layout:
    """Where on the texture a place of the face is: depends on the head's outline, not on what is painted."""

    def __init__(self, identity: Identity, view: View) -> None:
        drop = 5.5 * view.mouth_open + 0.06 * max(0.0, view.age - 45) * 0.6
        longer = np.array([0, 0, 0, 0, 0, 0, 0, 0.55, 1, 1]) * (identity.chin_length + drop)
        full = 0.012 * view.weight - 0.0006 * max(0.0, view.age - 45)
        jaw = np.array([0, 0, 0, 0, 0, 0.3, 0.85, 1, 1, 1])
        brow = np.array([0.5, 1, 1, 0.7, 0.2, 0, 0, 0, 0, 0])
        wide = (
            identity.head_width
            * (1 + brow * (identity.forehead_width - 1))
            * (1 + jaw * (identity.jaw_width - 1 + full))
        )
        self.y = _BASIS @ (_LEVEL + longer)
        self.half_width = _BASIS @ (_HALF_WIDTH * wide)
        self.mouth_y = identity.mouth_height
        self.nose_y = identity.nose_length

    def place(self, points: np.ndarray) -> np.ndarray:
        """Texture pixels (n, 2) float of face points (n, 2), as seen from the front."""
        x, y = np.asarray(points, np.float64).T
        angle = np.arcsin(clip(x / np.interp(y, self.y, self.half_width), -1, 1))
        return self.texture(angle, y)

    def texture(self, angle: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Texture pixels (n, 2) float of angles around the head (radians) and levels y."""
        column = (np.interp(angle, _THETA, np.arange(COLUMNS)) + 0.5) * TEXTURE_WIDTH / COLUMNS - 0.5
        row = (np.interp(y, self.y, np.arange(ROWS)) + 0.5) * TEXTURE_HEIGHT / ROWS - 0.5
        return np.array([column, row]).T


def bumps(layout: Layout, table: np.ndarray) -> np.ndarray:
    """Sum (ROWS, COLUMNS) of bell-shaped bumps on the front of the face.

    Rows of `table` are x, y, x radius, y radius, height. A bump is a product of a
    function of x and one of y, so that all of them together are one matrix product.
    """
    x, y, x_radius, y_radius, height = np.asarray(table, np.float64).T
    # The texture is laid out on the true outline, bumps on a cylinder: bring x to the cylinder.
    x = x * _RADIUS / np.interp(y, layout.y, layout.half_width)
    gx = np.exp(-(((_ACROSS[:, None] - x) / x_radius) ** 2))
    gy = np.exp(-(((layout.y[:, None] - y) / y_radius) ** 2))
    return ((gy * height) @ gx.T).astype(np.float32)


def _relief(identity: Identity, view: View, layout: Layout) -> np.ndarray:
    """How far each point of the face stands out forwards (ROWS, COLUMNS)."""
    n, nose, mouth = identity, layout.nose_y, layout.mouth_y
    sag = max(0.0, view.age - 40) / 35
    full = n.cheek_full + 2.5 * view.weight - 3 * sag
    smile = max(0.0, view.smile)
    # The bridge is a chain of bumps.
    part = _BRIDGE
    height = n.nose_bridge * (1 - part) ** 1.3 + n.nose_tip * 0.62 * part**1.2 + n.nose_hook * np.sin(np.pi * part)
    width = n.nose_bridge_width + (n.nose_width * 0.42 - n.nose_bridge_width * 0.6) * part**2
    bridge = np.zeros((len(part), 5))
    bridge[:, 1], bridge[:, 2] = -5 + (nose + 2) * part * 0.93, width + 1.0
    bridge[:, 3], bridge[:, 4] = nose / 6.0 + 1.0, height * 0.75
    table = [
        (0, nose - n.nose_up * 0.6, n.nose_width * 0.45, 4.0, n.nose_tip * 0.8),
        (-n.nose_width * 0.62, nose + 1.5, 3.4, 3.4, 4.2),
        (n.nose_width * 0.62, nose + 1.5, 3.4, 3.4, 4.2),
        (0, mouth - 1.5, n.mouth_width * 0.8, n.upper_lip * 0.6 + 2.0, 2.2 + 0.6 * n.upper_lip),
        (0, mouth + 3.5, n.mouth_width * 0.7, n.lower_lip * 0.6 + 1.6, 2.0 + 0.6 * n.lower_lip),
        (0, mouth + 10, 9.0, 3.6, -3.0),
        (0, 58 + n.chin_length, 9.5, 7.0, n.chin_forward + 3.5),
        (0, 59 + n.chin_length, 1.8, 4.5, -max(0.0, n.chin_cleft)),
    ]
    for side in (-1, 1):
        table += [
            (side * n.eye_gap, 0, 9.0, 6.5, -n.eye_depth),
            (side * n.eye_gap, 0.3, 6.0, 4.0, 3.6),
            (side * n.eye_gap * 0.95, -n.brow_height + 1.5, 12.0, 4.5, n.brow_ridge),
            (side * 29, 15, 9.0, 8.0, n.cheekbone + 2.0 * smile),
            (side * 23, 31, 9.0, 12.0, full),
            (side * (n.mouth_width + 7), mouth - 5, 5.0, 8.0, 2.5 * smile + 2 * sag),
            (side * 7, -30, 14.0, 12.0, 1.0),
        ]
    return bumps(layout, np.concatenate([bridge, table]))


def _ears(identity: Identity, layout: Layout) -> np.ndarray:
    """How far the surface stands out sideways at the ears (ROWS, COLUMNS)."""
    along = (layout.y - 7) / (15.0 * identity.ear_size)
    rim = np.exp(-((along + 0.15 * along**2) ** 4))[:, None] * _BEHIND_EAR
    return (rim * (1.5 + 0.75 * identity.ear_out)).astype(np.float32)


def surface(identity: Identity, view: View, layout: Layout, hair: np.ndarray) -> np.ndarray:
    """Points (3, ROWS, COLUMNS) float32 of the head; `hair` (ROWS, COLUMNS) says how far hair or hat stands out."""
    level, points = layout.y[:, None], np.empty((3, ROWS, COLUMNS), np.float32)
    climb = np.where(_COS < 0, 1, np.abs(_SIN) ** identity.jaw_square)
    lift = _JAW_CLIMB * np.maximum(level - 21, 0) * climb
    out = hair * (1 - 0.3 * np.exp(-(((level + 5) / 12) ** 2))) + _ears(identity, layout)
    points[0] = (layout.half_width[:, None] + out) * _SIN
    points[1] = level - lift - hair * clip((-30 - level) / 40, 0, 1)
    points[2] = _DEPTH + _relief(identity, view, layout) + hair * np.where(_COS > 0, _COS, 0.8 * _COS)
    return points


def _rotation(view: View) -> np.ndarray:
    """Rotation (3, 3) of the head: yaw, then pitch, then roll."""
    yaw, pitch, roll = np.deg2rad([view.yaw, view.pitch, view.roll])
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def _align(points: np.ndarray) -> tuple[complex, complex]:
    """Scale-rotation and shift (complex) of the similarity that brings points (5, 2) closest to the template."""
    source, target = (places[:, 0] + 1j * places[:, 1] for places in (points, TEMPLATE))
    centred = source - source.mean()
    turn = np.vdot(centred, target) / np.vdot(centred, centred).real
    return complex(turn), complex(target.mean() - turn * source.mean())


class Pose:
    """Maps head points to the aligned picture, as a detector and InsightFace's alignment would place them."""

    def __init__(self, view: View, landmarks: np.ndarray) -> None:
        self.rotation, self.distance = _rotation(view).astype(np.float32), view.distance
        self.turn, self.shift = 1 + 0j, 0j
        self.turn, self.shift = _align(self(landmarks.T)[0] + view.landmark_noise)

    def __call__(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Picture positions (n, 2) and turned points (3, n), both float32, of points (3, n)."""
        turned = self.rotation @ points.astype(np.float32, copy=False)
        x, y = turned[:2] * (self.distance / (self.distance - turned[2]))
        turn, shift = self.turn, self.shift
        flat = np.array([turn.real * x - turn.imag * y + shift.real, turn.imag * x + turn.real * y + shift.imag])
        return flat.T, turned

    def outline(self, points) -> np.ndarray:
        """Picture positions (n, 2) float32 of points (n, 3)."""
        return self(np.asarray(points).T)[0]


def landmarks(identity: Identity, view: View, layout: Layout, points: np.ndarray) -> np.ndarray:
    """Eyes, nose tip and mouth corners (5, 3), left first, on the surface `points` (3, ROWS, COLUMNS)."""
    wide = identity.mouth_width * (1 + 0.16 * max(0.0, view.smile))
    mouth = layout.mouth_y - 2 * view.smile
    eye, nose = identity.eye_gap, layout.nose_y - 1
    places = layout.place([[-eye, 0], [eye, 0], [0, nose], [-wide, mouth], [wide, mouth]])
    column = clip(np.round(places[:, 0] * COLUMNS / TEXTURE_WIDTH), 0, COLUMNS - 1).astype(int)
    row = clip(np.round(places[:, 1] * ROWS / TEXTURE_HEIGHT), 0, ROWS - 1).astype(int)
    return points[:, row, column].T
