"""A synthetic face as a picture: the painted head is lit, turned, seen from the camera, and photographed badly."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from vargface.data.synthetic import head
from vargface.data.synthetic.brush import Brush
from vargface.data.synthetic.hair import hair_colour, paint_hair
from vargface.data.synthetic.identity import Identity
from vargface.data.synthetic.paint import paint_face, tint
from vargface.data.synthetic.view import View

__all__ = ["render", "render_jpeg"]

SIZE, _SCALE = 112, 1.5  # drawn at one and a half times the size, then reduced: smooth edges
_BIG = int(SIZE * _SCALE)
_ACROSS, _DOWN = np.linspace(-1, 1, 13), np.linspace(0, 1, 9)
_TURN = np.linspace(0, 2 * np.pi, 33)
_WRAP = np.array([0.25, 0], np.float32)[:, None, None]  # light reaches a little around the edge, shine does not


def _normals(points: np.ndarray) -> np.ndarray:
    """Unit outward normals (3, ROWS, COLUMNS) of turned surface points."""
    across = np.empty_like(points)
    down = np.empty_like(points)
    across[:, :, 1:-1] = points[:, :, 2:] - points[:, :, :-2]
    across[:, :, 0], across[:, :, -1] = across[:, :, 1], across[:, :, -2]
    down[:, 1:-1] = points[:, 2:] - points[:, :-2]
    down[:, 0], down[:, -1] = down[:, 1], down[:, -2]
    normal = np.array(
        [
            across[1] * down[2] - across[2] * down[1],
            across[2] * down[0] - across[0] * down[2],
            across[0] * down[1] - across[1] * down[0],
        ]
    )
    return normal / (np.sqrt((normal**2).sum(axis=0)) + 1e-6)


def _shade(normal: np.ndarray, view: View, colour: np.ndarray) -> np.ndarray:
    """Light (3, ROWS, COLUMNS) float32 that reaches the camera from a surface of these normals, RGB.

    `colour` (3, ROWS, COLUMNS) is what soft colour changes multiply it by.
    """
    light = view.light.astype(np.float32)
    half = light + np.array([0, 0, 1], np.float32)
    towards = np.array([light, half / np.linalg.norm(half)]) @ normal.reshape(3, -1)
    facing, shine = np.maximum(towards.reshape(2, *normal.shape[1:]) + _WRAP, 0)
    # Creases that face away from the camera receive less light from around.
    crease = 0.72 + 0.28 * np.sqrt(np.maximum(normal[2], 0))
    direct = (1.02 - 0.75 * view.ambient) / 1.25 * facing * crease
    sky = view.ambient * (0.85 - 0.15 * normal[1]) * crease
    lit = direct * view.light_colour.astype(np.float32)[:, None, None] + sky
    return lit * colour + 0.6 * view.shine * shine**14


def _splat(canvas: np.ndarray, texture: np.ndarray, flat: np.ndarray, facing: np.ndarray, view: View) -> None:
    """Put the lit texture on `canvas` (BIG, BIG, 3) where the surface is seen; nearer parts hide farther ones.

    `flat` (2, ROWS, COLUMNS) are picture positions. Every texel goes to its pixel in an order in which the nearer of
    two on one pixel comes last: columns from the far side to the near one where the head is turned, rows where it is
    tilted. Pixels left between are filled from around.
    """
    used = np.flatnonzero((facing > 0.02).any(axis=0))
    if len(used) == 0:
        return
    first, last = max(used[0] - 1, 0), min(used[-1] + 2, head.COLUMNS)
    ratio = head.TEXTURE_WIDTH // head.COLUMNS
    texture = texture.view(np.uint32)[:, first * ratio : last * ratio, 0]
    # What is out of the picture goes to a border of two pixels, which is cut off.
    wide = _BIG + 4
    planes = [*head.clip(flat * _SCALE + 2.5, 0, _BIG + 3), facing]
    step_x = -1 if view.yaw > 0 else 1
    step_y = -1 if view.pitch > 0 else 1
    planes = [plane[::step_y, first:last][:, ::step_x] for plane in planes]
    texture = texture[::step_y, ::step_x]
    if abs(view.yaw) > abs(view.pitch):
        planes, texture = [plane.T for plane in planes], texture.T
    # One by one: OpenCV takes thirty times as long for the three of them in one image.
    size = texture.shape[::-1]
    x, y, seen = (cv2.resize(np.ascontiguousarray(plane), size, interpolation=cv2.INTER_LINEAR) for plane in planes)
    place = y.astype(np.int32)
    place *= wide
    place += x.astype(np.int32)
    place *= seen > 0.02
    layer = np.zeros(wide * wide + 1, np.uint32)
    if abs(view.yaw) > 15:
        # The near side of the nose is stretched: two pixels a texel keep what is behind from showing through.
        # `pairs` is the layer again, each pixel of it with the next one as one number.
        pairs = np.ndarray(wide * wide, np.uint64, buffer=layer, strides=layer.strides)
        pairs[place.ravel()] = texture.ravel() * np.uint64(2**32 + 1)
    else:
        layer[place.ravel()] = texture.ravel()
    layer = layer[:-1].reshape(wide, wide)[2:-2, 2:-2]
    layer = np.ascontiguousarray(layer).view(np.uint8).reshape(_BIG, _BIG, 4)
    covered = cv2.extractChannel(layer, 3)
    closed = cv2.morphologyEx(covered, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    holes = np.flatnonzero(closed > covered)
    if len(holes):
        around = cv2.blur(layer, (5, 5)).reshape(-1, 4)[holes].astype(np.float32)
        layer.reshape(-1, 4)[holes, :3] = np.minimum(around[:, :3] * 255 / np.maximum(around[:, 3:], 1), 255)
    cv2.copyTo(cv2.cvtColor(layer, cv2.COLOR_RGBA2RGB), closed, canvas)


def _background(rng: np.random.Generator) -> np.ndarray:
    """An out-of-focus something (BIG, BIG, 3) uint8."""
    cells = int(rng.integers(2, 9))
    base = rng.uniform(20, 230) + rng.normal(0, 22, 3)
    noise = rng.normal(0, rng.uniform(5, 60), (cells, cells, 1)) + rng.normal(0, rng.uniform(1, 14), (cells, cells, 3))
    ground = cv2.resize(head.clip(base + noise, 0, 255).astype(np.uint8), (_BIG, _BIG), interpolation=cv2.INTER_CUBIC)
    for _ in range(int(rng.integers(0, 4))):
        corners = rng.integers(-60, _BIG + 60, (4, 2)).astype(np.int32)
        cv2.fillConvexPoly(
            ground, cv2.convexHull(corners), tuple(float(v) for v in rng.uniform(10, 245) + rng.normal(0, 25, 3))
        )
    return cv2.blur(ground, (int(rng.integers(3, 25)),) * 2)


def _blend(canvas: np.ndarray, polygons: list, colour, opacity: float = 1.0, soft: float = 0.0, width: int = 0) -> None:
    """Fill polygons (or draw closed lines of `width`) of picture points (n, 2), in face pixels, on the big canvas."""
    fixed = [(head.clip(polygon * _SCALE, -500, 800) * 16 + 0.5).astype(np.int32) for polygon in polygons]
    if opacity == 1 and not soft:
        _trace(canvas, fixed, head.clip(colour, 0, 255).tolist(), width)
        return
    left, top, wide, high = cv2.boundingRect(np.concatenate(fixed) // 16)
    margin = 3 + int(3 * soft) + width
    rows = slice(max(top - margin, 0), max(top + high + margin, 0))
    columns = slice(max(left - margin, 0), max(left + wide + margin, 0))
    patch = canvas[rows, columns]
    if not patch.size:
        return
    mask, full = np.zeros(patch.shape[:2], np.uint8), np.empty_like(patch)
    corner = np.array([columns.start * 16, rows.start * 16], np.int32)
    _trace(mask, [polygon - corner for polygon in fixed], 255, width)
    full[0] = head.clip(colour, 0, 255)
    full[1:] = full[0]
    if soft:
        box = (2 * int(1.2 * soft) + 1,) * 2
        mask = cv2.blur(cv2.blur(mask, box), box)  # nearly a Gaussian, in a tenth of its time
    weight = mask * np.float32(opacity / 255)
    cv2.blendLinear(full, patch, weight, 1 - weight, dst=patch)


def _trace(image: np.ndarray, polygons: list, colour, width: int) -> None:
    """Fill polygons, or draw lines of `width` along their points (n, 2) int32, in 1/16 of a pixel."""
    if width:
        cv2.polylines(image, polygons, False, colour, width, cv2.LINE_AA, 4)
    else:
        cv2.fillPoly(image, polygons, colour, cv2.LINE_AA, 4)


def _body(canvas: np.ndarray, pose: head.Pose, identity: Identity, view: View) -> None:
    """Draw neck, shoulders and what long hair hangs behind the head."""
    chin = 62 + identity.chin_length
    light = 255 * (0.35 + 0.5 * view.ambient)

    def draw(points, colour, opacity: float = 1.0, soft: float = 0.0) -> None:
        _blend(canvas, [pose.outline(points)], colour * light, opacity, soft)

    if view.hat == "scarf":
        draw([[-50, -30, -40], [50, -30, -40], [56, 110, -40], [-56, 110, -40]], view.cloth, soft=3)
    elif (view.hair_style or identity.hair_style) == "long":
        out = 44 * identity.head_width + identity.hair_volume * 1.1
        edge = np.array([out + 5 * np.sin(2.5 * _DOWN), -40 + 150 * _DOWN, np.full_like(_DOWN, -45)]).T
        draw(np.concatenate([edge, edge[::-1] * [-1, 1, 1]]), hair_colour(identity, view)[0], soft=2)
    wide = 25 * (0.6 + 0.4 * identity.head_width) * (0.7 + 0.3 * identity.jaw_width)
    neck = [
        [-wide, 30, -50],
        [wide, 30, -50],
        [wide + 3, chin + 25, -48],
        [wide + 16, chin + 60, -50],
        [-wide - 16, chin + 60, -50],
        [-wide - 3, chin + 25, -48],
    ]
    draw(neck, identity.skin * 0.95)
    shadow = [[-26, chin - 4, -30], [26, chin - 4, -30], [20, chin + 10, -30], [-20, chin + 10, -30]]
    draw(shadow, identity.skin * 0.35, 0.6, 6)
    collar = np.array([_ACROSS * 70, chin + 14 + 9 * np.cos(_ACROSS * 2.6), np.full_like(_ACROSS, -40)]).T
    bottom = [[80, chin + 90, -40], [-80, chin + 90, -40]]
    draw(np.concatenate([collar, bottom]), view.cloth[[2, 0, 1]] * 1.2)


def _glasses(canvas: np.ndarray, pose: head.Pose, identity: Identity, view: View) -> None:
    """Draw glasses a little in front of the eyes; the far temple piece is behind the head and left out."""
    width, height, square = view.glasses_shape
    c, s = np.cos(_TURN), np.sin(_TURN)
    rim_x, rim_y = np.sign(c) * np.abs(c) ** (2 / square) * width, np.sign(s) * np.abs(s) ** (2 / square) * height
    centre = max(identity.eye_gap, width + 2.0)
    front = 8.0 + 0.4 * identity.nose_bridge
    rims = []
    for side in (-1, 1):
        x = rim_x + side * centre
        rims.append(np.array([x, rim_y + 1.5, front - 0.006 * x**2]).T)
    bar = [[-3.0, -2, front + 1], [0, -3, front + 2], [3, -2, front + 1]]
    parts = [pose.outline(part) for part in (*rims, bar)]
    if abs(view.yaw) > 6:
        near = -np.sign(view.yaw)
        temple = [[near * (centre + width), -2, front - 4], [near * 47 * identity.head_width, -4, -45]]
        parts.append(pose.outline(temple))
    if view.glasses == "sun":
        _blend(canvas, parts[:2], view.cloth * 30 + 8, 0.9)
    else:
        _blend(canvas, parts[:2], (235, 240, 250), 0.08)
    _blend(canvas, parts, view.cloth * 80, 0.95, width=2 + int(view.cloth[0] * 2.5))


def _occlude(canvas: np.ndarray, pose: head.Pose, identity: Identity, view: View, layout: head.Layout) -> None:
    """Put a hand, a mask or some object before the face."""
    a, b, c = view.occluder_place
    if view.occluder == "mask":
        s = _ACROSS
        top = np.array([s * 40, layout.nose_y - 8 + 7 * s**2, 22 - 30 * s**2]).T
        low = np.array([s * 34, layout.mouth_y + 24 - 16 * s**2, 10 - 30 * s**2]).T
        _blend(canvas, [pose.outline(np.concatenate([top, low[::-1]]))], (0.5 + 0.5 * view.cloth) * 230)
        folds = [pose.outline(top * (1 - k) + low * k) for k in (0.3, 0.55)]
        _blend(canvas, folds, view.cloth * 120, 0.5, 1, width=2)
    elif view.occluder == "patch":
        centre, angle = np.array([10 + 92 * a, 60 + 60 * b]), 6.3 * c
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        box = np.array([[-22, -12], [22, -12], [22, 12], [-22, 12]]) * (0.7 + 0.6 * c)
        _blend(canvas, [centre + box @ turn], view.cloth * 255)
    elif view.occluder == "hand":
        side = 1 if a > 0.5 else -1
        base, skin = np.array([56 + side * (20 + 30 * b), 122.0]), identity.skin * 255 * (0.7 + 0.3 * view.ambient)
        for k in range(4):
            tip = base + [side * (k * 8 - 14) - side * 6, -(30 + 22 * c) - 6 * np.sin(k)]
            finger = np.array([base + [side * (k * 7 - 12), 0], tip])
            _blend(canvas, [finger], skin * 0.62, width=17)
            _blend(canvas, [finger], skin, width=13)


@functools.lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    """Sensor noise to cut pieces from: uint8, mean 128, deviation 40."""
    noise = np.random.default_rng(7).standard_normal(100_000 + SIZE * SIZE * 3)
    return np.clip(128 + 40 * noise, 0, 255).astype(np.uint8)


def _photograph(canvas: np.ndarray, view: View, rng: np.random.Generator) -> np.ndarray:
    """The (112, 112, 3) uint8 picture a middling camera takes of the big canvas."""
    # At this scale every pixel counts in INTER_LINEAR, too, and INTER_AREA takes ten times as long.
    image = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    if view.detail < 1:
        small = max(24, int(SIZE * view.detail))
        image = cv2.resize(
            cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA),
            (SIZE, SIZE),
            interpolation=cv2.INTER_LINEAR,
        )
    if view.blur > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), view.blur)
    length = float(np.hypot(*view.motion))
    if length > 1:
        kernel = np.zeros((9, 9), np.float32)
        step = np.array(view.motion) / length * min(length, 4)
        cv2.line(kernel, tuple(int(v) for v in np.round(4 - step)), tuple(int(v) for v in np.round(4 + step)), 1)
        image = cv2.filter2D(image, -1, kernel / kernel.sum())
    level = np.arange(256, dtype=np.float64)[:, None] / 255
    curve = (level * view.exposure * view.white_balance) ** view.gamma * 255
    curve = np.minimum(curve, 215 + (curve - 215) * 0.4)  # highlights roll off before they clip
    image = cv2.LUT(image, np.minimum(curve, 255).astype(np.uint8)[None])
    if view.saturation != 1:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        image = cv2.addWeighted(image, view.saturation, grey, 1 - view.saturation, 0)
    if view.noise > 0:
        grain = _noise()[int(rng.integers(100_000)) :][: image.size].reshape(image.shape)
        image = cv2.addWeighted(image, 1.0, grain, view.noise / 40, -128 * view.noise / 40)
    return image


def render(identity: Identity, view: View, rng: np.random.Generator) -> np.ndarray:
    """The aligned face (112, 112, 3) uint8 RGB of `identity` in `view`; `rng` gives background, strands and noise."""
    layout = head.Layout(identity, view)
    shift = int(rng.integers(1000))
    brush = Brush(layout, identity.skin, shift)
    paint_face(brush, identity, view)
    standing_out = paint_hair(brush, identity, view, shift)
    points = head.surface(identity, view, layout, standing_out)
    pose = head.Pose(view, head.landmarks(identity, view, layout, points))
    flat, turned = pose(points.reshape(3, -1))
    flat, normal = flat.T.reshape(2, head.ROWS, head.COLUMNS), _normals(turned.reshape(points.shape))
    # Light in 1/128, one byte each: floats of this size would cost more in memory traffic than in arithmetic.
    light = head.clip(_shade(normal, view, tint(identity, view, layout)) * 128, 0, 255).astype(np.uint8)
    light = cv2.merge([*light, np.full_like(light[0], 128)])
    light = cv2.resize(light, (head.TEXTURE_WIDTH, head.TEXTURE_HEIGHT), interpolation=cv2.INTER_LINEAR)
    texture = cv2.multiply(brush.canvas, light, scale=1 / 128)
    canvas = _background(rng)
    _body(canvas, pose, identity, view)
    _splat(canvas, texture, flat, normal[2], view)
    if view.glasses:
        _glasses(canvas, pose, identity, view)
    if view.occluder:
        _occlude(canvas, pose, identity, view, layout)
    return _photograph(canvas, view, rng)


def render_jpeg(identity: Identity, view: View, rng: np.random.Generator) -> bytes:
    """The face as JPEG bytes of quality 95, compressed once before at the view's own quality."""
    image = cv2.cvtColor(render(identity, view, rng), cv2.COLOR_RGB2BGR)
    once = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, view.jpeg_quality])[1]
    image = cv2.imdecode(once, cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
